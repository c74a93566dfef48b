"""What every weighting rule has in common: weights >= 0 by losses and groups, which carry no gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steelyard import reweight
from steelyard.bilevel import Batch
from steelyard.reweight import Rule

GROUP = torch.tensor([0, 1, 0, 2, 2, 0, 1, 0])
LOSSES = torch.tensor([0.3, 2.0, 0.7, 1.1, 2.5, 0.1, 0.9, 1.6], dtype=torch.float64)
COUNTS = torch.bincount(GROUP)
BATCH = Batch.of(torch.zeros(8, 1), torch.zeros(8, dtype=torch.long), group=GROUP)

RULES: dict[str, Callable[[], Rule]] = {
    "CVaR": lambda: reweight.CVaR(0.35),
    "Custom": lambda: reweight.Custom(lambda losses, batch: losses.square()),
    "EffectiveNumber": lambda: reweight.EffectiveNumber(COUNTS, 0.9),
    "GeneralisedCrossEntropy": lambda: reweight.GeneralisedCrossEntropy(0.7),
    "GroupDRO": lambda: reweight.GroupDRO(COUNTS, step=0.5, adjustment=0.2),
    "GroupWeights": lambda: reweight.GroupWeights(COUNTS),
    "KLDRO": lambda: reweight.KLDRO(1.5, memory=0.9),
    "TopQ": lambda: reweight.TopQ(3),
    "Uniform": lambda: reweight.Uniform(),
}
OF_GROUPS = ("EffectiveNumber", "GroupDRO", "GroupWeights")
REMEMBER = {"GroupDRO", "KLDRO"}


def test_every_rule_is_here() -> None:
    members = {name: getattr(reweight, name) for name in reweight.__all__}
    rules = {name for name, one in members.items() if isinstance(one, type) and issubclass(one, Rule)}
    assert set(RULES) == rules - {"Rule"}
    assert {name for name in rules if hasattr(members[name], "state_dict")} == REMEMBER


@pytest.mark.parametrize("name", RULES)
def test_a_weight_a_sample_not_negative(name: str) -> None:
    weight = RULES[name]()(LOSSES, BATCH)
    assert weight.shape == (8,)
    assert weight.isfinite().all()
    assert (weight >= 0).all()
    assert weight.sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_weights_are_of_the_type_of_the_losses(name: str, dtype: torch.dtype) -> None:
    weight = RULES[name]()(LOSSES.to(dtype), BATCH)
    assert weight.dtype == dtype
    torch.testing.assert_close(weight.double(), RULES[name]()(LOSSES, BATCH), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(RULES[name]()(LOSSES[order], BATCH.take(order)), RULES[name]()(LOSSES, BATCH)[order])


@pytest.mark.parametrize("name", RULES)
def test_the_mean_is_the_weighted_sum_over_its_divisor_and_no_gradient_passes_the_weights(name: str) -> None:
    losses = LOSSES.clone().requires_grad_()
    value = RULES[name]().mean(losses, BATCH)
    weight = RULES[name]()(LOSSES, BATCH)
    divisor = {"weights": float(weight.sum()), "batch": 8.0, "none": 1.0}[RULES[name]().normalise]
    torch.testing.assert_close(value.detach(), weight @ LOSSES / divisor)
    torch.testing.assert_close(torch.autograd.grad(value, losses)[0], weight / divisor)


@pytest.mark.parametrize("name", RULES)
def test_losses_stay_as_they_are(name: str) -> None:
    losses = LOSSES.clone()
    RULES[name]()(losses, BATCH)
    assert torch.equal(losses, LOSSES)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_its_settings_and_its_state(name: str) -> None:
    """Two new ones answer alike; what remembers goes on from its state as if it had never stopped."""
    first, second = RULES[name](), RULES[name]()
    earlier: list[Tensor] = [first(LOSSES * scale, BATCH) for scale in (1.0, 2.0)]
    assert all(torch.equal(second(LOSSES * s, BATCH), seen) for s, seen in zip((1.0, 2.0), earlier, strict=True))
    third = RULES[name]()
    if name in REMEMBER:
        assert not torch.equal(first(LOSSES, BATCH), third(LOSSES, BATCH))  # or it would have nothing to remember
        third = RULES[name]()
        third.load_state_dict({key: value.clone() for key, value in second.state_dict().items()})
    assert torch.equal(third(LOSSES.flip(0), BATCH), second(LOSSES.flip(0), BATCH))


@pytest.mark.parametrize("name", OF_GROUPS)
def test_groups_that_are_missing_or_unknown_are_refused(name: str) -> None:
    without = Batch.of(torch.zeros(8, 1), torch.zeros(8))
    with pytest.raises(
        ValueError, match=r"needs group ids, but batch\.group is None; make the batch with group=\.\.\."
    ):
        RULES[name]()(LOSSES, without)
    beyond = Batch.of(torch.zeros(8, 1), torch.zeros(8), group=GROUP + 1)
    with pytest.raises(ValueError, match=r"batch\.group must hold ids 0 \.\. 2, got 1 \.\. 3"):
        RULES[name]()(LOSSES, beyond)
