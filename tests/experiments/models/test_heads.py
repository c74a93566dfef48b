"""The output heads."""

import pytest
import torch
import torch.nn.functional as F

from steelyard.experiments.models import HEADS, MLP, binary_cross_entropy


def test_one_logit_is_the_softmax_of_zero_and_the_logit() -> None:
    logit = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.arange(20) % 2
    both = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(binary_cross_entropy(logit, targets), F.cross_entropy(both, targets, reduction="none"))
    assert torch.equal(HEADS["one_logit"].predict(logit), HEADS["softmax"].predict(both))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_losses_are_in_single_precision_under_autocast(head: str) -> None:
    outputs = torch.randn(6, HEADS[head].width(2), generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(6) % 2).to(torch.float32 if head == "value" else torch.int64)
    low = HEADS[head].loss(outputs.bfloat16(), targets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, HEADS[head].loss(outputs.bfloat16().float(), targets))
    assert HEADS[head].loss(outputs.double(), targets).dtype == torch.float64


def test_one_logit_refuses_more_classes() -> None:
    with pytest.raises(ValueError, match="two classes.*softmax"):
        MLP(head="one_logit").build((1, 2, 2), 3, seed=0)
