"""Meta-Weight-Net: a small network from a sample's loss to its weight, learned beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard._support._random import seeded
from steelyard.bilevel import Batch, Outer, WeightedLoss
from steelyard.reweight.clean import Balanced
from steelyard.reweight.identity import described
from steelyard.reweight.lookahead import look_ahead
from steelyard.reweight.online import Online
from steelyard.reweight.risk import MeanRisk, Risk

__all__ = ["MetaWeightNet", "WeightNet"]

_MEAN = MeanRisk()
_ADAM: Callable[[Iterable[Tensor]], Optimizer] = partial(torch.optim.Adam, lr=1e-3)


class WeightNet(nn.Module):
    """Weights in (0, 1) from losses ``(batch,)``: an MLP 1 - `hidden` - 1 with ReLU and a sigmoid (section 3.2).

    Args:
        hidden: width.
    """

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        hidden = _check.integer("hidden", hidden, low=1)
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, losses: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the weight of each sample from its loss."""
        found: Tensor = self.layers(losses[:, None])
        return found[:, 0]


class MetaWeightNet(Online):
    """Weigh each sample by V(its loss), V a network that learns from the clean samples (Algorithm 1).

    A step looks ahead to theta'(Phi), the parameters after the optimizer's next step with the loss
    sum V(l_i; Phi) l_i / b; moves Phi down the gradient of the clean loss at theta'(Phi), in which the losses that V is
    given are constants; and weighs the batch by the new V.

    The step ahead is that of `optimizer`; the paper's is plain SGD, with the settings of the run.

    With ``normalise="weights"`` both losses are sum V(l_i; Phi) l_i / sum_j V(l_j; Phi), so that a step's weights have
    the mean 1 and V learns which losses to prefer, not how far to step. Section 3 of the paper divides by b; of the
    authors' two scripts one divides by b and the other (of WRN-28-10) by the sum of the weights, in both losses.

    Args:
        model, optimizer, objective, clean, clean_size, risk, seed: see `Online`.
        net: V, from losses ``(batch,)`` to weights ``(batch,)`` >= 0; None: a `WeightNet` from `seed`.
        net_optimizer: makes the optimizer of V's parameters; default Adam, step 1e-3.
        normalise: what the weighted sum of a batch's losses is divided by: "weights", the sum of V over the batch
            (where that is 0, as "batch"), or "batch", the number of its rows, as in the paper.

    Attributes:
        net: V.

    Raises:
        ValueError: at a step, `net` gives no weights ``(batch,)``, or a negative one.

    References:
        Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019.

    Example:
        >>> from functools import partial
        >>> import torch.nn.functional as F
        >>> model = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> train, clean = (Batch.of(torch.randn(n, 3), torch.arange(n) % 2) for n in (40, 10))
        >>> online = MetaWeightNet(model, optimizer, objective, clean)
        >>> seen = online.step(train.take(torch.arange(8)))
        >>> online.net(torch.tensor([0.1, 2.0])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: WeightedLoss,
        clean: Batch | Balanced,
        *,
        clean_size: int | None = None,
        risk: Risk = _MEAN,
        seed: int = 0,
        net: nn.Module | None = None,
        net_optimizer: Callable[[Iterable[Tensor]], Optimizer] = _ADAM,
        normalise: Literal["weights", "batch"] = "weights",
    ) -> None:
        super().__init__(model, optimizer, objective, clean, clean_size=clean_size, risk=risk, seed=seed)
        self.normalise = _check.choice("normalise", normalise, ("weights", "batch"))
        like = next(self.model.parameters())
        if net is None:
            with seeded(like.device, self.seed):
                net = WeightNet()
            net = net.to(like.device, torch.promote_types(like.dtype, torch.float32))
        self.net = _check.instance("net", net, nn.Module, "a module from losses (batch,) to weights (batch,)")
        _check.function("net_optimizer", net_optimizer, "a function that makes an optimizer of parameters")
        self._make_net_optimizer = net_optimizer
        self.net_optimizer = net_optimizer(self.net.parameters())
        self._look_ahead = look_ahead(model, optimizer, self.objective)

    def state_dict(self) -> dict[str, Any]:
        """Return what the method has beside the model and the optimizer: tensors, numbers, lists and dicts only."""
        return {
            **super().state_dict(),
            "net": {name: value.clone() for name, value in self.net.state_dict().items()},
            "net_optimizer": self.net_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        self.net.load_state_dict(state["net"])
        self.net_optimizer.load_state_dict(state["net_optimizer"])

    def meta_gradient(self, batch: Batch, outer: Callable[[nn.Module], Tensor]) -> Float[Tensor, " batch"]:
        """Put d outer(theta'(Phi)) / d Phi into the gradients of `net`; return the losses of the batch.

        Args:
            batch: the samples of the step that is looked ahead to.
            outer: ``module -> scalar``.
        """
        seen: list[Tensor] = []

        def weigh(losses: Tensor) -> Tensor:
            with torch.enable_grad():
                seen.extend([losses, self._of(losses)])
            return seen[1].detach()

        gradient = self._look_ahead.of_losses(batch, weigh, outer)
        losses, weight = seen
        for p in self.net.parameters():
            p.grad = None
        weight.backward(gradient.to(weight.dtype))
        return losses

    def _weigh(self, batch: Batch, outer: Outer) -> Tensor:
        losses = self.meta_gradient(batch, outer)
        self._losses, self._look_ahead.losses = self._look_ahead.losses, None
        self.net_optimizer.step()
        with torch.no_grad():
            return self._of(losses)

    def _of(self, losses: Tensor) -> Tensor:
        """Return the weights of a batch with these losses."""
        like = next(self.net.parameters(), losses)
        # Under autocast V's weights would be good to a part in 256; the model's types may differ from layer to layer.
        with torch.autocast(losses.device.type, enabled=False):
            weight: Tensor = self.net(losses.to(like.dtype))
        if weight.shape != losses.shape:
            raise ValueError(
                f"net must give one weight a sample, {tuple(losses.shape)}, got {tuple(weight.shape)}; end its "
                "forward with .reshape(losses.shape)"
            )
        if bool((weight < 0).any()):
            raise ValueError(
                f"net gave the weight {float(weight.detach().min())}; weights must be >= 0: end it with a sigmoid"
            )
        if self.normalise == "batch":
            return weight
        total = weight.sum()
        return weight * (len(weight) / total) if bool(total > 0) else weight

    def _settings(self) -> dict[str, Any]:
        net = {name: tuple(value.shape) for name, value in self.net.state_dict().items()}
        own = {"net": type(self.net).__name__, "net's tensors": net, "net's optimizer": self._make_net_optimizer}
        own["normalise"] = self.normalise
        return {**super()._settings(), **{name: described(value) for name, value in own.items()}}
