"""Label corruption: exact shares, the right distribution, the attack against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steelyard.experiments.data.corruption import adversarial_flips, class_noise, uniform_flips


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(n=st.integers(1, 60), classes=st.integers(2, 6), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_uniform_flips_change_exactly_their_share_and_nothing_else(
    n: int, classes: int, share: float, seed: int
) -> None:
    targets = torch.randint(classes, (n,), generator=seeded(seed))
    before = targets.clone()
    new, flipped = uniform_flips(targets, classes, share, seeded(seed + 1))
    assert int(flipped.sum()) == round(share * n)
    assert torch.equal(new != targets, flipped)
    assert torch.equal(targets, before)
    assert int(new.min()) >= 0
    assert int(new.max()) < classes


def test_uniform_flips_reach_every_other_class_and_every_sample_alike() -> None:
    n, classes = 40, 4
    targets = torch.arange(n) % classes
    generator, counts, moves = seeded(), torch.zeros(n), torch.zeros(classes)
    for _ in range(500):
        new, flipped = uniform_flips(targets, classes, 0.3, generator)
        counts += flipped
        moves += torch.bincount((new - targets)[flipped] % classes, minlength=classes)
    assert moves[0] == 0
    assert stats.chisquare(moves[1:].numpy()).pvalue > 0.01
    # a draw without replacement varies less than a multinomial one: the p-value is pessimistic towards 1
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_adversarial_flips_are_the_best_attack_of_all(count: int) -> None:
    p = torch.softmax(2 * torch.randn(4, 3, generator=seeded(3), dtype=torch.float64), 1)
    targets = torch.tensor([0, 1, 2, 1])
    new, flipped = adversarial_flips(p, targets, count / 4, seeded())
    assert torch.equal(new != targets, flipped)
    assert int(flipped.sum()) == count

    def gained(labels: torch.Tensor, where: torch.Tensor) -> float:
        return float(torch.linalg.vector_norm(p - torch.eye(3, dtype=torch.float64)[labels], dim=1)[where].sum())

    best = 0.0
    for labels in itertools.product(range(3), repeat=4):
        changed = torch.tensor(labels) != targets
        if int(changed.sum()) == count:
            best = max(best, gained(torch.tensor(labels), changed))
    assert gained(new, flipped) == pytest.approx(best, abs=1e-12)


def test_adversarial_flips_of_equal_norms_are_drawn_by_the_generator() -> None:
    p, targets = torch.full((50, 2), 0.5), torch.zeros(50, dtype=torch.long)
    chosen = [adversarial_flips(p, targets, 0.5, seeded(seed))[1] for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])


@given(n=st.integers(1, 60), classes=st.integers(2, 6), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_class_noise_stays_inside_of_its_samples(n: int, classes: int, share: float, seed: int) -> None:
    targets = torch.randint(classes, (n,), generator=seeded(seed))
    noisy = targets == 1
    new, redrawn = class_noise(targets, classes, share, seeded(seed + 1), noisy=noisy)
    assert int(redrawn.sum()) == round(share * int(noisy.sum()))
    assert not bool((redrawn & ~noisy).any())
    assert torch.equal(new[~redrawn], targets[~redrawn])


def test_class_noise_draws_every_class_alike_the_true_one_too() -> None:
    targets = torch.ones(4000, dtype=torch.long)
    new, _ = class_noise(targets, 5, 1.0, seeded(), noisy=targets == 1)
    assert stats.chisquare(torch.bincount(new, minlength=5).numpy()).pvalue > 0.01


def test_bad_arguments_name_themselves() -> None:
    targets = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="share"):
        uniform_flips(targets, 2, 1.5, seeded())
    with pytest.raises(ValueError, match="classes"):
        uniform_flips(targets, 1, 0.5, seeded())
    with pytest.raises(ValueError, match=r"0 \.\. 1 .*0 \.\. 2"):
        uniform_flips(torch.tensor([0, 2]), 2, 0.5, seeded())
    with pytest.raises(ValueError, match="probabilities has 1 entries"):
        adversarial_flips(torch.tensor([[0.5, torch.nan], [0.5, 0.5]]), targets, 0.5, seeded())
