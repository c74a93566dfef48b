"""The state of an outer run: what is learned, how it moves, and what must be saved to go on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard._support._nested import named_tensors
from steelyard.bilevel import Batch
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.constraints import ConstraintSet

__all__ = ["OuterOptimizer", "OuterState", "OuterStep"]

OuterOptimizer = Callable[[Iterable[Tensor]], Optimizer]


@dataclass
class OuterStep:
    """What a callback of `Maple.fit` sees after an outer step. (examples/to_tensorboard.py logs it.)

    Attributes:
        step: number of the step, from 0.
        weights: ``(n,)`` w that the model was trained under (before this step's update).
        probabilities: ``(n,)`` s that the mask was drawn from (before this step's update).
        mask: ``(n,)`` the kept set of the last draw, 0 or 1.
        outer_loss: mean over the draws.
        row: the row of the history, plain numbers by name:

            - step: as above;
            - outer_loss: as above, the risk alone, without a prior's anchor;
            - budget: K at this step, a number of samples;
            - kept: samples of a mask, mean over the draws;
            - weights_gradient_norm, probabilities_gradient_norm: 2-norm of the mean gradient, before clipping;
            - weights_gradient_variance, probabilities_gradient_variance: over the draws, mean over the samples; None
              for one draw;
            - weights_change, probabilities_change: mean absolute change by this step's update;
            - anchor_coefficient, anchor_kl: with a prior's anchor, its factor and its divergence before the update.

            Those of weights are there where w is learned, those of probabilities where s is.
        make_model: returns `model`.
    """

    step: int
    weights: Float[Tensor, " n"]
    probabilities: Float[Tensor, " n"]
    mask: Float[Tensor, " n"]
    outer_loss: float
    row: dict[str, Any]
    make_model: Callable[[], nn.Module] = field(repr=False, compare=False)

    @cached_property
    def model(self) -> nn.Module:
        """The inner model at the end of its run on `mask` (of the last draw), in eval mode.

        It is reused by later steps: copy what is to be kept. A cross-fitted step has no such model, only those of the
        folds: it is trained when it is first asked for, which takes one more inner run. (On several ranks, which have
        to train it together, at every step.)
        """
        return self.make_model()


@dataclass
class OuterState:
    """Everything that an outer run goes on from: saved and loaded, a run continues bit for bit.

    (With a warm-started `InnerRun`, save its `state_dict()` beside this one.)

    On several ranks w, s and the optimizers' moments are those of this rank's samples. `state_dict` then gathers all of
    them (every rank must call it): it is that of one process, and any number of ranks can go on from it. The optimizers
    must work entry by entry, as torch's do but for LBFGS.

    Attributes:
        weights: ``(n,)`` w, a leaf that requires a gradient if it is learned.
        probabilities: ``(n,)`` s, likewise.
        optimizers: "weights" and/or "probabilities" -> optimizer of that leaf.
        generator: source of the masks.
        step: outer steps done.
        best_loss: lowest outer loss so far, and
        best_step: when it came (for the early stop).
        history: one row a step.
        ranks: the processes that hold the samples.
    """

    weights: Float[Tensor, " n"]
    probabilities: Float[Tensor, " n"]
    optimizers: dict[str, Optimizer]
    generator: torch.Generator
    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    ranks: Ranks = ALONE

    @classmethod
    def start(
        cls,
        train: Batch,
        constraints: ConstraintSet,
        optimizers: dict[str, OuterOptimizer],
        seed: int,
        probabilities: Float[Tensor, " n"] | None = None,
        ranks: Ranks = ALONE,
    ) -> OuterState:
        """Make the state before the first step, see `Maple.begin`; float64 if the inputs are, else float32."""
        everywhere = ranks.gather(train.index)
        count, ids = len(everywhere), _check.distinct(everywhere)
        if not count or ids != count:
            raise ValueError(f"train must hold distinct samples, got {count} samples with {ids} ids")
        device = train.device
        wide = any(one.dtype == torch.float64 for _, one in named_tensors("inputs", train.inputs))
        dtype = torch.float64 if wide else torch.float32
        weights = torch.ones(len(train), device=device, dtype=dtype)
        s = weights * (constraints.budget_at(0.0, count) / count) if probabilities is None else probabilities
        ranks.together(lambda: _check.same_length(train=train.index, probabilities=s))
        s = constraints.project_probabilities(s.detach().to(device, dtype), 0.0, ranks).clone()
        leaves = {"weights": weights, "probabilities": s}
        made = {name: make([leaves[name].requires_grad_()]) for name, make in optimizers.items()}
        return cls(weights, s, made, torch.Generator().manual_seed(seed), ranks=ranks)

    def leaves(self) -> dict[str, Tensor]:
        """Return the tensors that are learned, by name."""
        return {name: getattr(self, name) for name in self.optimizers}

    def update(self, gradients: dict[str, Tensor], constraints: ConstraintSet, progress: float, scale: float) -> None:
        """Take one optimizer step with its learning rate times `scale`, then project; Algorithm 1, line 6."""
        for name, optimizer in self.optimizers.items():
            leaf = getattr(self, name)
            leaf.grad = gradients[name]
            rates = [group["lr"] for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            optimizer.step()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            leaf.grad = None
            with torch.no_grad():
                if name == "weights":
                    leaf.copy_(constraints.project_weights(leaf, self.ranks))
                else:
                    leaf.copy_(constraints.project_probabilities(leaf, progress, self.ranks))

    def close_step(self, row: dict[str, Any], tolerance: float) -> None:
        """Count the step, file its row, and note whether its outer loss is the best yet by `tolerance`."""
        self.history.append(row)
        self.step += 1
        if row["outer_loss"] < self.best_loss - tolerance:
            self.best_loss, self.best_step = row["outer_loss"], self.step

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything: tensors, numbers, lists and dicts only (`torch.load(weights_only=True)`)."""
        optimizers = {name: copy.deepcopy(one.state_dict()) for name, one in self.optimizers.items()}
        for state in optimizers.values():
            _for_each_moment(state, len(self.weights), self.ranks.gather)
        return {
            "weights": self.ranks.gather(self.weights.detach()).clone(),
            "probabilities": self.ranks.gather(self.probabilities.detach()).clone(),
            "optimizers": optimizers,
            "generator": self.generator.get_state(),
            "step": self.step,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "history": [dict(row) for row in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: the state is of another number of samples, or of a run that learned something else.
        """
        start, total = self.ranks.place(len(self.weights))
        own = slice(start, start + len(self.weights))
        if state["weights"].shape != (total,) or set(state["optimizers"]) != set(self.optimizers):
            raise ValueError(
                f"the state is of {len(state['weights'])} samples learning {sorted(state['optimizers'])}; "
                f"this run has {total} samples and learns {sorted(self.optimizers)}"
            )
        with torch.no_grad():
            self.weights.copy_(state["weights"][own])
            self.probabilities.copy_(state["probabilities"][own])
        for name, optimizer in self.optimizers.items():
            moments = copy.deepcopy(state["optimizers"][name])
            _for_each_moment(moments, total, lambda everywhere: everywhere[own].clone())
            optimizer.load_state_dict(moments)
        self.generator.set_state(state["generator"])
        self.step, self.best_loss, self.best_step = state["step"], state["best_loss"], state["best_step"]
        self.history = [dict(row) for row in state["history"]]


def _for_each_moment(state: dict[str, Any], samples: int, change: Callable[[Tensor], Tensor]) -> None:
    """Replace, in an optimizer's `state`, every tensor with an entry a sample by what `change` makes of it."""
    for entries in state["state"].values():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == (samples,):
                entries[name] = change(value)
