"""Distortions of batches: what each does alone, by hand, and that draws come from the generator only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steelyard.experiments.data.augmented import Distortion

NONE = {"shear": 0.0, "shift": 0.0, "rotation": 0.0, "cutout": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(n, channels, height, width, generator=seeded(1))


def test_nothing_is_done_where_all_ranges_are_zero() -> None:
    given_ = images()
    assert torch.equal(Distortion(**NONE)(given_, torch.zeros(1), seeded()), given_)


@given(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9), st.integers(0, 99))
def test_a_constant_image_of_the_fill_colour_stays(n: int, height: int, width: int, seed: int) -> None:
    flat = torch.full((n, 3, height, width), 0.25)
    moved = Distortion()(flat, torch.full((3,), 0.25), seeded(seed))
    torch.testing.assert_close(moved, flat)


def test_the_square_that_is_cut_out_has_the_fill_colour_and_at_most_half_a_side() -> None:
    sides = set()
    for seed in range(40):
        cut = Distortion(**{**NONE, "cutout": 0.5})(torch.ones(4, 3, 8, 8), torch.tensor([0.1, 0.2, 0.3]), seeded(seed))
        for image in cut:
            rows, columns = (image[0] != 1).nonzero().unbind(1)
            assert len(rows)
            sides.add(int(max(rows.max() - rows.min(), columns.max() - columns.min())) + 1)
            torch.testing.assert_close(image[:, rows[0], columns[0]], torch.tensor([0.1, 0.2, 0.3]))
    assert sides == {1, 2, 3, 4}


def test_a_shift_moves_the_image_and_fills_what_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images(1)
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(size, 1.0, dtype=kind["dtype"]))
    moved = Distortion(**{**NONE, "shift": 0.125})(whole, torch.tensor([0.5]), seeded())  # by one pixel of eight
    torch.testing.assert_close(moved[0, 0, :-1, :-1], whole[0, 0, 1:, 1:])
    torch.testing.assert_close(moved[0, 0, -1], torch.full((8,), 0.5))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 6)], ids=["even", "other"])
def test_a_quarter_turn_is_that_of_rot90(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images(2, 3, height, width)
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.ones(size, dtype=kind["dtype"]))
    moved = Distortion(**{**NONE, "rotation": 90.0})(whole, torch.zeros(3), seeded())
    assert any(torch.allclose(moved, whole.rot90(k, (2, 3)), atol=1e-5) for k in (1, 3))


def test_a_rotation_keeps_distances_where_sides_differ() -> None:
    """A disc in the middle of a wide image stays a disc."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(32.0), indexing="ij")
    disc = (1 - ((rows - 7.5) ** 2 + (columns - 15.5) ** 2) / 36).clamp(min=0)[None, None]
    for seed in range(5):
        moved = Distortion(**{**NONE, "rotation": 90.0})(disc, torch.zeros(1), seeded(seed))
        torch.testing.assert_close(moved, disc, atol=0.1, rtol=0)


def test_draws_are_the_generators_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (Distortion()(images(), torch.zeros(1), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one[0] - images()[0], one[1] - images()[1])  # an image has draws of its own


@pytest.mark.parametrize("name", ["shear", "shift", "cutout"])
def test_ranges_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Distortion(**{name: 1.5})


def test_rotations_are_of_half_a_turn_at_most_and_images_are_images() -> None:
    with pytest.raises(ValueError, match="rotation"):
        Distortion(rotation=181.0)
    with pytest.raises(ValueError, match="images"):
        Distortion()(torch.zeros(4, 2, 8, 8), torch.zeros(2), seeded())
