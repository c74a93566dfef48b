"""The noise benchmarks: exact shares, the right images and labels, everything else as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steelyard.bilevel.batch import Batch
from steelyard.experiments.active.noise import Noise, NoisyBlank, NoisyClass, NoisyDiverse, NoNoise, added
from steelyard.experiments.data.splits import Splits

KINDS = (NoisyBlank, NoisyDiverse, NoisyClass)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def splits(n: int = 40, channels: int = 3) -> Splits:
    def part(count: int, first: int) -> Batch:
        # every image has a value of its own, so that copies are told apart from originals
        values = (first + torch.arange(count) + 1) / 1000
        inputs = values[:, None, None, None].expand(count, channels, 4, 4).clone()
        inputs[:, :, 0, 0] = 0.9
        targets = torch.arange(count) % 5
        return Batch.of(inputs, targets, environment=torch.zeros(count, dtype=torch.long))

    return Splits("toy", part(n, 0), part(10, 500), part(10, 700), tuple("abcde"), ("all",))


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(KINDS), n=st.integers(5, 50), share=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_the_share_is_exact_and_the_clean_samples_stay(kind: type, n: int, share: float, seed: int) -> None:
    data = splits(n)
    noisy = kind(share).apply(data, seeded(seed))
    count = added(n, share)
    assert len(noisy.train) == n + count
    assert abs(count - share * (n + count)) <= 0.5 / (1 - share)
    assert noisy.facts["noisy"].tolist() == [False] * n + [True] * count
    assert torch.equal(noisy.train.inputs[:n], data.train.inputs)
    assert torch.equal(noisy.train.targets[:n], data.train.targets)
    assert noisy.train.index.tolist() == list(range(n + count))
    assert noisy.validation is data.validation
    assert noisy.test is data.test


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: type[Noise]) -> None:
    one, same, other = (kind().apply(splits(), seeded(seed)).train for seed in (0, 0, 1))
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.targets, same.targets)
    assert not torch.equal(one.targets, other.targets)


def test_blank_images_with_every_label() -> None:
    train = NoisyBlank(0.99).apply(splits(), seeded()).train
    assert not bool(train.inputs[40:].any())
    assert stats.chisquare(torch.bincount(train.targets[40:], minlength=5).numpy()).pvalue > 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_solid_colours_with_three_labels_each(channels: int) -> None:
    train = NoisyDiverse(0.98, unique=20, labels=3).apply(splits(60, channels), seeded()).train
    images, labels = train.inputs[60:], train.targets[60:]
    colours = images[:, :, 0, 0]
    assert torch.equal(images, colours[:, :, None, None].expand_as(images))
    distinct, which = torch.unique(colours, dim=0, return_inverse=True)
    assert len(distinct) == 20
    sets = [set(labels[which == k].tolist()) for k in range(20)]
    assert all(len(own) == 3 for own in sets)
    assert len({frozenset(own) for own in sets}) > 1
    assert stats.chisquare(torch.bincount(which).numpy()).pvalue > 0.01


def test_copies_of_one_class_with_every_label() -> None:
    data = splits(40)
    train = NoisyClass(0.98, label=2).apply(data, seeded()).train
    members = data.train.inputs[data.train.targets == 2][:, 0, 1, 1]
    copied, counts = torch.unique(train.inputs[40:, 0, 1, 1], return_counts=True)
    assert torch.equal(copied, members)
    assert int(counts.max() - counts.min()) <= 1
    assert stats.chisquare(torch.bincount(train.targets[40:], minlength=5).numpy()).pvalue > 0.01
    few = NoisyClass(0.9, label=2, unique=3).apply(data, seeded()).train
    assert len(few.inputs[40:, 0, 1, 1].unique()) == 3


def test_facts_that_are_there_go_on() -> None:
    data = splits(10)
    data = NoisyBlank(0.5).apply(data, seeded())
    again = NoisyClass(0.5).apply(data, seeded())
    assert again.facts["noisy"].tolist() == [False] * 10 + [True] * 30
    assert NoNoise().apply(data, seeded()).facts["noisy"].tolist() == [False] * 10 + [True] * 10
    assert not NoNoise().apply(splits(), seeded()).facts["noisy"].any()


def test_bad_settings_name_themselves() -> None:
    with pytest.raises(ValueError, match="share"):
        NoisyBlank(1.0)
    with pytest.raises(ValueError, match=r"labels must be in \[1, 5\]"):
        NoisyDiverse(labels=6).apply(splits(), seeded())
    with pytest.raises(ValueError, match=r"label must be in \[0, 4\]"):
        NoisyClass(label=5).apply(splits(), seeded())
    with pytest.raises(ValueError, match="unique"):
        NoisyClass(unique=-1)
    points = Batch.of(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), environment=torch.zeros(4, dtype=torch.long))
    flat = Splits("flat", points, points, points, ("a", "b"), ("all",))
    with pytest.raises(ValueError, match="images"):
        NoisyDiverse().apply(flat, seeded())
