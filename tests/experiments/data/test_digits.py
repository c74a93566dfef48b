"""Facts of the coloured digits: counts, rates, colours, environments, seeds."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from sklearn.datasets import load_digits

from steelyard.experiments.data import ColouredDigits
from steelyard.experiments.data.splits import Splits, deal, pictures

SPLITS = ColouredDigits().load(seed=0)
MANY = [ColouredDigits().load(seed) for seed in range(8)]


def within(count: int, n: int, rate: float, miss: float = 1e-9) -> bool:
    """Whether a binomial count is within its exact central interval of mass 1 - miss (the seeds are fixed anyway)."""
    return binom.ppf(miss / 2, n, rate) <= count <= binom.ppf(1 - miss / 2, n, rate)


def test_counts() -> None:
    assert [len(SPLITS.train), len(SPLITS.validation), len(SPLITS.test)] == [1079, 269, 449]
    assert torch.bincount(SPLITS.train.environment).tolist() == [540, 539]
    assert torch.bincount(SPLITS.validation.environment).tolist() == [135, 134]
    assert SPLITS.test.environment is None
    assert SPLITS.train.inputs.shape == (1079, 2, 8, 8)
    assert SPLITS.train.index.tolist() == list(range(1079))


def gray_rows(splits: Splits) -> list[tuple[float, ...]]:
    gray = splits.grayscale()
    parts = (gray.train, gray.validation, gray.test)
    return [tuple(row) for part in parts for row in part.inputs.flatten(1).tolist()]


def test_every_digit_is_in_exactly_one_split() -> None:
    images = [tuple((row / 16).tolist()) for row in load_digits().images.reshape(1797, 64)]
    assert sorted(gray_rows(SPLITS)) == sorted(images)


def test_one_channel_holds_the_image_and_the_other_is_zero() -> None:
    for part in (SPLITS.train, SPLITS.validation, SPLITS.test):
        used = part.inputs.flatten(2).amax(2) > 0  # (n, 2)
        assert bool((used.sum(1) == 1).all())
        assert float(part.inputs.min()) == 0
        assert float(part.inputs.max()) == 1


def colour_of(part) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return part.inputs.flatten(2).amax(2).argmax(1)


@pytest.mark.parametrize("environment", [0, 1])
def test_training_and_validation_colours_disagree_at_the_rate_of_their_environment(environment: int) -> None:
    rate = (0.1, 0.2)[environment]
    for part in ("train", "validation"):
        batches = [getattr(splits, part) for splits in MANY]
        members = [batch.environment == environment for batch in batches]
        disagree = sum(int((colour_of(b) != b.targets)[m].sum()) for b, m in zip(batches, members, strict=True))
        assert within(disagree, sum(int(m.sum()) for m in members), rate)


def test_test_colours_disagree_nine_times_in_ten() -> None:
    disagree = sum(int((colour_of(splits.test) != splits.test.targets).sum()) for splits in MANY)
    assert within(disagree, 8 * 449, 0.9)


def digit_of_image() -> dict[tuple[float, ...], int]:
    bunch = load_digits()
    return {
        tuple((image / 16).flatten().tolist()): int(digit)
        for image, digit in zip(bunch.images, bunch.target, strict=True)
    }


def test_label_noise_and_facts() -> None:
    digit = digit_of_image()
    total = 0
    for splits in MANY:
        rows = splits.grayscale().train.inputs.flatten(1).tolist()
        clean = torch.tensor([int(digit[tuple(row)] < 5) for row in rows])
        assert torch.equal(splits.facts["label_flipped"], clean != splits.train.targets)
        assert torch.equal(splits.facts["colour_agrees"], colour_of(splits.train) == splits.train.targets)
        total += int(splits.facts["label_flipped"].sum())
    assert within(total, 8 * 1079, 0.25)


def test_splits_and_environments_are_stratified_by_digit() -> None:
    digit = digit_of_image()
    gray = SPLITS.grayscale()
    all_counts = torch.bincount(torch.tensor(load_digits().target))
    for part, share in ((gray.test, 0.25), (gray.validation, 0.15), (gray.train, 0.6)):
        digits = torch.tensor([digit[tuple(row)] for row in part.inputs.flatten(1).tolist()])
        assert bool(((torch.bincount(digits) - share * all_counts).abs() <= 2).all())
        if part.environment is not None:
            per = [torch.bincount(digits[part.environment == e], minlength=10) for e in (0, 1)]
            assert int((per[0] - per[1]).abs().max()) <= 1


def test_a_seed_is_repeatable_and_seeds_differ() -> None:
    again, other = ColouredDigits().load(seed=0), ColouredDigits().load(seed=1)
    assert torch.equal(again.train.inputs, SPLITS.train.inputs)
    assert torch.equal(again.test.targets, SPLITS.test.targets)
    assert not torch.equal(other.train.inputs, SPLITS.train.inputs)


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    ColouredDigits().load(seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_the_oracle_sees_the_same_samples_without_colour() -> None:
    gray = ColouredDigits(grayscale=True).load(seed=0)
    assert gray.train.inputs.shape == (1079, 1, 8, 8)
    assert torch.equal(gray.train.inputs[:, 0], SPLITS.train.inputs.sum(1))
    assert torch.equal(gray.train.targets, SPLITS.train.targets)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_noise": 1.5}, "label_noise"),
        ({"train_flips": (0.1, -0.2)}, "train_flips"),
        ({"train_flips": ()}, "train_flips"),
        ({"test_share": 0.0}, "test_share"),
        ({"validation_share": 1.0}, "validation_share"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ColouredDigits(**settings)


def test_more_environments() -> None:
    splits = ColouredDigits(train_flips=(0.1, 0.2, 0.3)).load(0)
    assert torch.bincount(splits.train.environment).tolist() == [360, 360, 359]
    assert splits.environments == ("colour flip 0.1", "colour flip 0.2", "colour flip 0.3")


@pytest.mark.parametrize(("n", "share"), [(10, 0.3), (100, 0.25), (7, 0.5), (1000, 0.1)])
def test_deal_is_exact_and_stratified(n: int, share: float) -> None:
    strata = torch.arange(n) % 3
    rest, part = deal(strata, share, torch.Generator().manual_seed(1))
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(n))
    assert len(part) == math.floor(n * share + 1e-9)
    expected = torch.bincount(strata) * share
    assert bool(((torch.bincount(strata[part], minlength=3) - expected).abs() <= 1).all())


def test_pictures_put_each_channel_in_its_hue() -> None:
    image = torch.zeros(1, 2, 1, 2)
    image[0, 0, 0, 0] = image[0, 1, 0, 1] = 1.0
    (left, right) = pictures(image)[0, 0]
    assert left[0] > left[1] > left[2]  # orange
    assert right[1] > right[2] > right[0]  # green
    assert torch.equal(pictures(torch.ones(1, 1, 1, 1))[0, 0, 0], torch.ones(3))
    with pytest.raises(ValueError, match="one, two or three channels"):
        pictures(torch.ones(1, 4, 1, 1))


def test_pictures_of_three_channels_are_stretched_each_to_its_own_range() -> None:
    images = torch.tensor([-1.0, 1.0, 3.0]).reshape(1, 3, 1, 1) * torch.tensor([1.0, 5.0]).reshape(2, 1, 1, 1)
    assert pictures(images).flatten(1).tolist() == [[0.0, 0.5, 1.0]] * 2
    assert not pictures(torch.ones(1, 3, 2, 2)).any()  # a flat image has no range


def test_splits_refuse_facts_of_another_length_and_missing_environments() -> None:
    with pytest.raises(ValueError, match="facts"):
        replace(SPLITS, facts={"x": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="environment"):
        replace(SPLITS, train=replace(SPLITS.train, environment=None))
    with pytest.raises(ValueError, match="below 1"):
        replace(SPLITS, environments=("one",))
