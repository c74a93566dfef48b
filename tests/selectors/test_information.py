"""BatchBALD and EPIG against all label vectors and pairs."""

from __future__ import annotations

import math
import sys
from itertools import product

import pytest
import torch

from steelyard.selectors import DegenerateWarning, bald, batch_bald, epig
from tests.selectors.pools import generator


def draws(t: int = 6, n: int = 8, classes: int = 3, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    logits = 2 * torch.randn(t, n, classes, generator=generator(seed), dtype=torch.float64)
    return logits.softmax(2).to(dtype)


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -torch.xlogy(p, p).sum(-1)


def batch_information(p: torch.Tensor, batch: list[int]) -> float:
    """I(labels of the batch; draw), by every label vector."""
    joint = 0.0
    for labels in product(range(p.shape[2]), repeat=len(batch)):
        chance = float(math.prod(p[:, i, c] for i, c in zip(batch, labels, strict=True)).mean())
        joint -= chance * math.log(chance)
    return joint - float(sum(entropy(p[:, i]).mean() for i in batch))


def brute_batch(p: torch.Tensor, k: int) -> list[int]:
    picked: list[int] = []
    while len(picked) < k:
        left = [i for i in range(p.shape[1]) if i not in picked]
        picked.append(max(left, key=lambda i: batch_information(p, [*picked, i])))
    return picked


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_bald_is_greedy_in_the_joint_information(seed, dtype) -> None:
    p = draws(seed=seed, dtype=dtype)
    picked = batch_bald(p, 4, generator=generator())
    assert picked.tolist() == brute_batch(p.double(), 4)
    assert int(picked[0]) == int(bald(p).argmax())


def test_drawn_vectors_find_nearly_the_same_information() -> None:
    """With 3 classes and 9 vectors the third pick on is estimated."""
    for seed in range(3):
        p = draws(seed=seed, n=6)
        exact, drawn = brute_batch(p, 4), batch_bald(p, 4, generator=generator(seed), configurations=2000)
        assert drawn.tolist() == exact
        few = batch_bald(p, 4, generator=generator(seed), configurations=30)
        assert few[:3].tolist() == exact[:3]
        assert batch_information(p, few.tolist()) > 0.9 * batch_information(p, exact)


@pytest.mark.parametrize("length", [1, 3])
def test_the_estimate_of_a_joint_entropy_is_unbiased(length) -> None:
    from steelyard.selectors.batch_bald import _drawn, _joint_entropy

    p = draws(n=4)
    joint = _drawn(p[:, :length], 20_000, generator())
    found = _joint_entropy(joint, 1 / (len(joint) * joint.mean(1)), p)
    batches = [batch_information(p, [*range(length), i]) + float(entropy(p[:, i]).mean()) for i in range(length, 4)]
    exact = torch.tensor(batches)
    found = found[length:]
    # Up to a constant; 20,000 vectors: a standard error of about log(3) / sqrt(20000) = 0.008.
    torch.testing.assert_close(found - found.mean(), (exact - exact.mean()).to(found), rtol=0, atol=0.04)


def test_a_copy_says_nothing_new() -> None:
    p = draws(n=5)
    copies = torch.cat([p, p], dim=1)
    assert sorted(i % 5 for i in batch_bald(copies, 2, generator=generator()).tolist()) != [0, 0]
    sure = torch.eye(3, dtype=torch.float64)[:, None]  # every draw is certain of a class of its own
    p = torch.cat([sure, draws(t=3, n=2), sure, draws(t=3, n=2, seed=1)], dim=1)
    assert batch_bald(p, 6, generator=generator()).tolist()[0] == 0
    assert batch_bald(p[:, :1].repeat(1, 3, 1), 3, generator=generator()).tolist() == [0, 1, 2]


def test_a_batch_beyond_what_vectors_can_hold() -> None:
    p = draws(n=60)
    picked = batch_bald(p, 60, generator=generator(), configurations=50)
    assert sorted(picked.tolist()) == list(range(60))
    certain = torch.eye(3).repeat(1, 20, 1).reshape(3, 20, 3)
    certain[1] = certain[1].roll(1, 1)
    assert len(set(batch_bald(certain, 20, generator=generator(), configurations=3).tolist())) == 20


def test_batch_bald_of_a_permuted_pool() -> None:
    p = draws(n=12)
    order = torch.randperm(12, generator=generator(1))
    assert order[batch_bald(p[:, order], 4, generator=generator())].tolist() == brute_batch(p, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_epig_is_the_mean_information_on_targets(dtype) -> None:
    p, aims = draws(n=5), draws(n=4, seed=1)
    found = epig(p.to(dtype), aims.to(dtype))
    assert found.dtype == dtype
    for i in range(5):
        pairs = torch.cat([p[:, i : i + 1], aims], dim=1)
        total = 0.0
        for j in range(1, 5):
            joint = torch.einsum("ta,tb->ab", pairs[:, 0], pairs[:, j]) / len(p)
            total += float(entropy(pairs[:, 0].mean(0)) + entropy(pairs[:, j].mean(0)) - entropy(joint.flatten()))
        assert float(found[i]) == pytest.approx(total / 4, rel=1e-4)


def test_epig_takes_blocks(monkeypatch) -> None:
    p, aims = draws(n=9), draws(n=4, seed=1)
    whole = epig(p, aims)
    monkeypatch.setattr(sys.modules["steelyard.selectors.epig"], "_BLOCK", 100)
    torch.testing.assert_close(epig(p, aims), whole)
    assert float(epig(p, p).max()) <= float(bald(p).max())


@pytest.mark.usefixtures("unchecked_shapes")
def test_refusals() -> None:
    p = draws()
    with pytest.raises(ValueError, match="probabilities has one draw"):
        epig(p[:1], p[:1])
    with pytest.raises(ValueError, match="targets must have 6 draws and 3 classes"):
        epig(p, p[:5])
    with pytest.raises(ValueError, match="configurations must be >= 3, got 2"):
        batch_bald(p, 1, generator=generator(), configurations=2)
    with pytest.raises(TypeError, match="generator must be a torch.Generator"):
        batch_bald(p, 1, generator=None)
    same = p[:1].expand(3, -1, -1)
    with pytest.warns(DegenerateWarning):
        assert len(batch_bald(same, 2, generator=generator())) == 2
    with pytest.warns(DegenerateWarning):
        assert float(epig(same, same).max()) < 1e-12
