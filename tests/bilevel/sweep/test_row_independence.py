"""Operators that keep rows to rows: where that is claimed, a sample's loss does not move with another sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel.sweep.graph_record import ForwardRecord, Recording
from steelyard.bilevel.sweep.row_independence import separate
from tests.bilevel.sweep.test_from_record import MODELS, ROWS, SIDE

INPUTS = torch.randn(ROWS, SIDE**2, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A linear layer and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(SIDE**2, width), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def noted(model: nn.Module, losses: Callable[[Tensor], Tensor]) -> ForwardRecord:
    with Recording({name: p for name, p in model.named_parameters() if p.requires_grad}) as recording:
        value = losses(model(INPUTS))
    forward_record = recording.forward_record(value)
    assert forward_record is not None
    return forward_record


def touches(model: nn.Module, losses: Callable[[Tensor], Tensor]) -> bool:
    """Whether loss i moves when what the first layer gives for another sample does."""
    layer = next(one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d))
    factor = torch.ones(())

    def move(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return torch.cat([output[:1] + (factor - 1) * output[:1].square(), output[1:]])  # (no scale: norms undo one)

    handle = layer.register_forward_hook(move)
    with torch.no_grad():
        before = losses(model(INPUTS))
        factor.mul_(3)
        after = losses(model(INPUTS))
    handle.remove()
    assert not torch.equal(before[:1], after[:1])
    return not torch.equal(before[1:], after[1:])


def entropy(outputs: Tensor) -> Tensor:
    return F.cross_entropy(outputs, torch.arange(len(outputs)) % 3, reduction="none")


KNOWN = {
    **{name: MODELS[name] for name in ("convolution, none", "convolution, group", "convolution, frozen")},
    "layer norm": lambda: Layer(nn.LayerNorm(4)),
    "softmax": lambda: Layer(lambda x: x.softmax(-1)),
    "residual": lambda: Layer(lambda x: x * x.sigmoid() + F.gelu(x)),
}
COUPLED: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: Layer(nn.BatchNorm1d(4)),
    "softmax over samples": lambda: Layer(lambda x: x.softmax(0)),
    "mean over samples": lambda: Layer(lambda x: x - x.mean(0)),
    "mean over all": lambda: Layer(lambda x: x * x.mean((0, 1))),  # (a shift of all logits would change no loss)
    "rows broadcast as columns": lambda: Layer(lambda x: x + x.mean(1), ROWS),
    "turned": lambda: Layer(lambda x: x + x.t(), ROWS),
    "rows as the other matrix": lambda: Layer(lambda x: torch.ones(ROWS, ROWS) @ x),
    "rows as bias": lambda: Layer(lambda x: torch.addmm(x, torch.ones(ROWS, ROWS), x)),
    "rolled": lambda: Layer(lambda x: x + x.roll(1, 0)),
    "layer norm over all": lambda: Layer(lambda x: F.layer_norm(x, x.shape)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_operators_keep_to_rows(name: str) -> None:
    torch.manual_seed(0)
    model = KNOWN[name]()
    assert separate(noted(model, entropy))
    assert not touches(model, entropy)


@pytest.mark.parametrize("name", COUPLED)
def test_what_couples_samples_is_not_called_separate(name: str) -> None:
    torch.manual_seed(0)
    model = COUPLED[name]()
    assert not separate(noted(model, entropy))
    assert touches(model, entropy)


@pytest.mark.parametrize("name", ["attention", "mapped", "time first"])
def test_an_unknown_operator_is_not_called_separate(name: str) -> None:
    assert not separate(noted(MODELS[name](), entropy))


@pytest.mark.parametrize(
    "losses",
    [
        lambda x: F.binary_cross_entropy_with_logits(x[:, 0], torch.ones(ROWS), reduction="none"),
        lambda x: F.mse_loss(x.mean(1), torch.ones(ROWS), reduction="none"),
    ],
    ids=["binary", "squared"],
)
def test_losses(losses: Callable[[Tensor], Tensor]) -> None:
    model = Layer(lambda x: x)
    # Before 2.7 torch makes the binary one of other operators, and reuse probes instead.
    assert separate(noted(model, losses)) or torch.__version__ < (2, 7)
    assert not touches(model, losses)


def test_a_loss_shared_by_the_batch_is_not_separate() -> None:
    def shared(outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, torch.arange(len(outputs)) % 3).expand(ROWS) * 1.0

    assert not separate(noted(Layer(lambda x: x), shared))
