"""InvRat: no predictor that knows the environment may do better than one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from steelyard import reweight
from steelyard._support import _check
from steelyard._support._modules import last_linear
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.newest_inputs import NewestInputs
from steelyard.experiments.training.output_gap import OutputGap
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import Range
from steelyard.experiments.training.trainer import Anneal, Training, train

__all__ = ["EnvironmentGap", "InvRat"]


@dataclass(frozen=True)
class InvRat(TrainedMethod):
    """InvRat (Chang et al. 2020, arXiv:2003.09772, section 3) without its rationale generator, as in IRM comparisons.

    ``min over features and shared head, max over environment heads of R + lambda max(0, R - R_env)``: R is the mean
    loss of the shared head, R_env that of a head for each environment on the same features. The environment heads
    take one step down their own loss at each step, then the rest takes its step against them.
    Labels needed: class and environment, in training.
    Published in comparisons on coloured MNIST: lambda 100, learning rate 0.01, batch 128, one inner step. The
    environment there goes into the predictor's input; a linear head for each environment can do at least as much.
    Heads on features that move with them may not keep up: the gap is then below zero, nothing is penalised, and the run
    swings between ERM and a constant (results/colored_mnist). With ``heads = "outputs"`` an environment's head is a
    scale and a bias of the one logit, at its optimum for each batch (`OutputGap`): a weaker adversary, never late.

    Attributes:
        heads: "features" trains linear heads, "outputs" solves for scales and biases.
        head_rate: Adam's step size on the heads of "features". Too large a one leaves them behind the shared head, and
            then the penalty is zero and the result that of ERM (seen in our tests' problem from 0.05 on).
        penalty: lambda over the steps.
    """

    name: Literal["invrat"] = "invrat"
    heads: Literal["features", "outputs"] = "features"
    head_rate: Annotated[float, Range.log10(-3.5, -1.5)] = 0.01
    penalty: Anneal = field(default_factory=lambda: Anneal(100.0, 100.0, 0))
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("head_rate", self.head_rate, low=0.0, open_low=True)

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return True

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the model with the shared head."""
        model = problem.model()
        if self.heads == "outputs":
            if problem.head.width(len(problem.splits.classes)) != 1:
                raise ValueError(
                    f"heads = 'outputs' are for one logit, and the model's head is {problem.model_settings.head!r}; "
                    "take model.head = 'one_logit', or method.heads = 'features'"
                )
            best = OutputGap()
            return Fitted(train(problem, self.training, observe, penalty=best, anneal=self.penalty, model=model))
        gap = EnvironmentGap(
            last_linear(model),
            len(problem.splits.environments),
            lambda parameters: torch.optim.Adam(parameters, lr=self.head_rate),
        )
        try:
            train(problem, self.training, observe, penalty=gap, anneal=self.penalty, model=model)
        finally:
            gap.close()
        return Fitted(model)


class EnvironmentGap(reweight.Risk):
    """``max(0, R_shared - R_env)`` of the outputs' batch; each call first takes one step of the environment heads.

    The features are what went into `layer` when the outputs were made: a hook keeps the last ones, so a call belongs
    right after the model's forward pass on the batch.

    Args:
        layer: the shared head, a linear layer; the environment heads start as copies of it.
        environments: how many.
        optimizer: of the environment heads.
    """

    def __init__(
        self, layer: nn.Linear, environments: int, optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    ) -> None:
        _check.integer("environments", environments, low=2)
        copies = [layer.weight, layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)]
        weight, bias = (p.detach().expand(environments, *p.shape).clone().requires_grad_() for p in copies)
        self.heads = (weight, bias)  # (environments, outputs, features), (environments, outputs)
        self.optimizer = optimizer([weight, bias])
        self.inputs = NewestInputs(layer)

    def state_dict(self) -> dict[str, Any]:
        """Return the environment heads and their optimizer's state."""
        return {"heads": [head.detach() for head in self.heads], "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        with torch.no_grad():
            for head, kept in zip(self.heads, state["heads"], strict=True):
                head.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """Take the hook off the layer."""
        self.inputs.close()

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the gap, with a graph to the outputs and, through the environment heads, to the features."""
        features = self.inputs.value
        if batch.environment is None or features is None or len(features) != len(outputs):
            raise ValueError(
                "this risk needs environment ids, and the model's forward pass on this very batch before it"
            )
        self.optimizer.zero_grad()
        self._risk(features.detach(), batch, loss).backward()
        self.optimizer.step()
        shared = loss(outputs, batch.targets).mean()
        return torch.relu(shared - self._risk(features, batch, loss, frozen=True))

    def _risk(self, features: Tensor, batch: Batch, loss: SampleLoss, frozen: bool = False) -> Tensor:
        """Mean loss of the environment heads; frozen, with no graph to them."""
        weight, bias = (p.detach() if frozen else p for p in self.heads)
        assert batch.environment is not None  # checked by the call
        outputs = torch.einsum("nf,nof->no", features, weight[batch.environment]) + bias[batch.environment]
        return loss(outputs, batch.targets).mean()
