"""Batches that are augmented at once, against torchvision's transforms on one image at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steelyard.experiments.data.rand_augment import cut_out, rand_augment
from steelyard.experiments.data.transforms import load_v2
from steelyard.experiments.training.seeds import global_state

DRAWS = 1000


def image(channels: int) -> Tensor:
    return torch.rand(channels, 9, 8, generator=torch.Generator().manual_seed(3))


def outcomes(seed: int, make: Callable[[], list[Tensor]]) -> Counter[bytes]:
    """Return how often each image came out, rounded to 1e-4."""
    with global_state(seed, torch.device("cpu")):
        return Counter((1e4 * one).round().to(torch.int32).numpy().tobytes() for one in make())


def same_distribution(one: Counter[bytes], other: Counter[bytes], draws: int) -> None:
    """Both have the same outcomes, each as often within five standard deviations of the difference."""
    assert set(one) == set(other)
    for key in one:
        share = (one[key] + other[key]) / (2 * draws)
        assert abs(one[key] - other[key]) <= 5 * (2 * draws * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(("channels", "magnitude"), [(1, 9), (3, 9), (3, 30)])
def test_one_operation_gives_torchvisions_images_as_often(channels: int, magnitude: int) -> None:
    one = image(channels)
    transform = load_v2().RandAugment(1, magnitude)
    theirs = outcomes(0, lambda: [transform(one) for _ in range(DRAWS)])
    ours = outcomes(1, lambda: list(rand_augment(one.expand(DRAWS, *one.shape), 1, magnitude)))
    assert len(theirs) >= 20  # fourteen operations, eight of them of both signs; some leave a gray image as it is
    same_distribution(ours, theirs, DRAWS)


def test_operations_follow_each_other_and_are_drawn_for_each_image_alone() -> None:
    """Shares of the images that end as one operation alone, twice, leaves them: those of two independent draws."""
    one = image(3)
    single = outcomes(0, lambda: list(rand_augment(one.expand(DRAWS, *one.shape), 1, 9)))
    double = outcomes(0, lambda: list(rand_augment(one.expand(DRAWS, *one.shape), 2, 9)))
    assert len(double) > 5 * len(single)
    still = (1e4 * one).round().to(torch.int32).numpy().tobytes()
    share = single[still] / DRAWS  # identity, twice: also a shift back, with 2 of 14 x 14 x 4 chances each
    assert abs(double[still] / DRAWS - share**2) < 5 * (share**2 / DRAWS) ** 0.5 + 4 / (14 * 14 * 2)


def test_neighbours_do_not_change_an_image() -> None:
    """What comes of an image is what comes of it beside others: means and extremes are its own."""
    images = (
        torch.rand(60, 3, 9, 8, generator=torch.Generator().manual_seed(0))
        * torch.linspace(0.1, 1, 60)[:, None, None, None]
    )
    with global_state(0, torch.device("cpu")):
        together = rand_augment(images, 1, 9)
    for k in range(60):  # the same draws, every other image replaced by the one asked about
        with global_state(0, torch.device("cpu")):
            alone = rand_augment(images[k : k + 1].expand(60, -1, -1, -1), 1, 9)[k]
        torch.testing.assert_close(together[k], alone)


def test_squares_are_where_torchvision_cuts_them_as_often() -> None:
    one = torch.ones(1, 6, 5)
    transform = load_v2().RandomErasing(p=1.0, scale=(0.3, 0.3), ratio=(1.0, 1.0), value=0.5)
    theirs = outcomes(0, lambda: [transform(one) for _ in range(DRAWS)])
    ours = outcomes(1, lambda: list(cut_out(one.expand(DRAWS, 1, 6, 5), 0.3)))
    assert len(theirs) == 4 * 3  # a side of 3 in 6 x 5
    same_distribution(ours, theirs, DRAWS)


def test_no_square_where_none_fits_and_the_images_given_stay() -> None:
    images = torch.ones(3, 1, 4, 8)
    assert torch.equal(cut_out(images, 0.5), images)  # a side of 4 is all of the height
    assert torch.equal(cut_out(images, 0.0), images)
    cut_out(images, 0.1)
    rand_augment(images, 3, 9)
    assert torch.equal(images, torch.ones(3, 1, 4, 8))
    assert len(rand_augment(images[:0], 2, 9)) == 0


def test_a_magnitude_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"magnitude must be .* 30"):
        rand_augment(torch.zeros(1, 1, 4, 4), 1, 31)
