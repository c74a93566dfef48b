"""Losses that know a class's frequency, against sums written out in NumPy, with their gradients and limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steelyard.experiments.training.class_losses import (
    BalancedSoftmaxLoss,
    FocalLoss,
    LDAMLoss,
    soft_cross_entropy,
)

COUNTS = torch.tensor([81, 16, 1])
OUTPUTS = torch.tensor(
    [[0.3, -1.2, 2.0], [1.5, 0.1, 0.2], [-0.7, 0.4, 0.9], [2.0, 2.0, -3.0]], dtype=torch.float64, requires_grad=True
)
TARGETS = torch.tensor([0, 2, 1, 0])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def focal(logits: np.ndarray, targets: np.ndarray) -> list[float]:
    log_p = log_softmax(logits)[np.arange(len(targets)), targets]
    return [-((1 - np.exp(one)) ** 2) * one for one in log_p]


def ldam(logits: np.ndarray, targets: np.ndarray) -> list[float]:
    moved = logits.copy()
    for row, label in enumerate(targets):  # n^(-1/4) is 1/3, 1/2, 1: the rarest has the margin 0.6
        moved[row, label] -= {0: 0.2, 1: 0.3, 2: 0.6}[label]
    return [-one for one in log_softmax(7.0 * moved)[np.arange(len(targets)), targets]]


def balanced(logits: np.ndarray, targets: np.ndarray) -> list[float]:
    weighed = np.exp(logits) * COUNTS.numpy()
    return [-np.log(weighed[row, label] / weighed[row].sum()) for row, label in enumerate(targets)]


LOSSES = {
    "focal": (FocalLoss(2.0), focal),
    "ldam": (LDAMLoss(COUNTS, margin=0.6, scale=7.0), ldam),
    "balanced softmax": (BalancedSoftmaxLoss(COUNTS), balanced),
}


@pytest.mark.parametrize(("loss", "written_out"), LOSSES.values(), ids=LOSSES)
def test_each_loss_is_its_formula(loss: Callable, written_out: Callable) -> None:
    expected = written_out(OUTPUTS.detach().numpy(), TARGETS.numpy())
    assert loss(OUTPUTS, TARGETS).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=LOSSES)
def test_the_gradient_is_that_of_differences(loss: Callable) -> None:
    assert torch.autograd.gradcheck(lambda outputs: loss(outputs, TARGETS), OUTPUTS)


@pytest.mark.parametrize("loss", [FocalLoss(1.5), LDAMLoss(COUNTS[:2]), BalancedSoftmaxLoss(COUNTS[:2])])
def test_one_logit_is_the_pair_of_zero_and_it(loss: Callable) -> None:
    logit, targets = OUTPUTS[:, :1].detach(), TARGETS.clamp(max=1)
    pair = torch.cat([torch.zeros_like(logit), logit], 1)
    assert torch.equal(loss(logit, targets), loss(pair, targets))


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (FocalLoss(0), OUTPUTS),
        (BalancedSoftmaxLoss(torch.tensor([5, 5, 5])), OUTPUTS),
        (LDAMLoss(COUNTS, margin=0, scale=4.0), 4.0 * OUTPUTS),
    ],
    ids=["focal", "balanced softmax", "ldam"],
)
def test_limits_are_cross_entropy(loss: Callable, plain: torch.Tensor) -> None:
    torch.testing.assert_close(loss(OUTPUTS, TARGETS), F.cross_entropy(plain, TARGETS, reduction="none"))


def test_the_focal_loss_falls_with_gamma_and_is_smooth_where_the_loss_is_zero() -> None:
    half, one, two = (FocalLoss(gamma)(OUTPUTS, TARGETS) for gamma in (0.5, 1.0, 2.0))
    assert bool((half > one).all())
    assert bool((one > two).all())
    sure = torch.tensor([[200.0, -200.0]], requires_grad=True)  # its cross-entropy is 0 in float32
    FocalLoss(0.5)(sure, torch.tensor([0])).sum().backward()
    assert sure.grad is not None
    assert sure.grad.tolist() == [[0.0, 0.0]]


def test_balanced_softmax_is_the_posterior_under_the_training_prior() -> None:
    """Bayes: where z_j are log-likelihoods, p(j | x) in training is in proportion to n_j exp(z_j)."""
    likelihood = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    posterior = COUNTS * likelihood / (COUNTS * likelihood).sum()
    for label in range(3):
        loss = BalancedSoftmaxLoss(COUNTS)(likelihood.log(), torch.tensor([label]))
        assert float(loss) == pytest.approx(-float(posterior[0, label].log()), rel=1e-6)


def test_mixed_labels_mix_the_losses() -> None:
    other, share = torch.tensor([1, 2, 0, 0]), 0.3
    soft = share * F.one_hot(TARGETS, 3) + (1 - share) * F.one_hot(other, 3)
    two = [F.cross_entropy(OUTPUTS, labels, reduction="none") for labels in (TARGETS, other)]
    torch.testing.assert_close(soft_cross_entropy(OUTPUTS, soft), share * two[0] + (1 - share) * two[1])


def test_losses_of_bfloat16_are_taken_in_single_precision() -> None:
    rough = OUTPUTS.detach().bfloat16()
    for loss, _ in LOSSES.values():
        assert torch.equal(loss(rough, TARGETS), loss(rough.float(), TARGETS))
        assert loss(rough, TARGETS).dtype == torch.float32


def test_settings_out_of_range_are_refused() -> None:
    for make in (lambda: FocalLoss(-1.0), lambda: LDAMLoss(COUNTS, -0.1), lambda: LDAMLoss(COUNTS, 0.5, 0.0)):
        with pytest.raises(ValueError, match="must be"):
            make()
