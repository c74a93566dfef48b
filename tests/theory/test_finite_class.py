"""Theorem 1 for every hypothesis of a finite class: its terms, its conditions, what it says."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from steelyard.theory import (
    HypothesisBound,
    complexity,
    factor_draw,
    finite_class_bounds,
    finite_class_complexity,
    top_q_loss,
)


def bounds(losses: Any, clean: Any = None, **options: Any) -> list[HypothesisBound]:
    given = {"s": 4, "q": 2, "delta": 0.05, "loss_range": 1.0, "draws": 50, **options}
    return finite_class_bounds(losses, clean, **given, generator=torch.Generator().manual_seed(0))


def values(one: HypothesisBound) -> dict[object, Any]:
    return {row["term"]: row["value"] for row in one.rows()}


def test_every_term_is_the_rooms_own() -> None:
    rng = np.random.default_rng(0)
    clean = rng.random((3, 12))
    seen = clean.copy()
    seen[:, :3] = 1 - seen[:, :3]
    found = bounds(seen, clean, delta=0.06, fixed=True)
    assert [one.hypothesis for one in found] == [0, 1, 2]
    first = values(found[1])
    corrupted, reference = torch.from_numpy(seen), torch.from_numpy(clean)
    assert first["training"] == pytest.approx(float(top_q_loss(corrupted, 4, 2)[1]))
    assert first["complexity"] == pytest.approx(2 * finite_class_complexity(reference, draws="all").value)
    assert first["deviation"] == pytest.approx(4 * (np.log(3 / 0.06) / 24) ** 0.5)  # delta shared by three
    spread = 3 * (np.log(3 / 0.06) / 24) ** 0.5
    assert -first["top-q-biased factor"] == pytest.approx(float(factor_draw(reference, corrupted, 4, 2)) - spread)
    assert first["right-hand side"] == pytest.approx(sum(list(first.values())[:4]))
    assert all(row["certificate"] is True for one in found for row in one.rows())


def test_without_clean_losses_there_is_no_corruption_and_q_costs_nothing() -> None:
    losses = torch.rand(2, 40, generator=torch.Generator().manual_seed(0))
    rows = [row for one in bounds(losses, delta=0.1) for row in one.rows()]
    factor = [row for row in rows if row["term"] == "top-q-biased factor"]
    assert [row["value"] for row in factor] == [0.0, 0.0]
    assert {row["note"] for row in factor} == {"Q >= 0 without corruption"}
    assert all(str(row["nature"]).startswith("Monte Carlo") for row in rows if row["term"] == "complexity")


def test_the_bound_covers_as_often_as_it_says() -> None:
    """Clean risks are 1/2 for each of 3 hypotheses; 20% of the losses replaced: holds in at least 90% of 200 draws."""
    generator, holds = torch.Generator().manual_seed(1), 0
    for _ in range(200):
        clean = torch.rand(3, 60, generator=generator)
        seen = torch.where(torch.rand(60, generator=generator) < 0.2, 1 - clean, clean)
        found = bounds(seen, clean, q=4, delta=0.1, draws=20)
        holds += all(one.bound.total.value >= 0.5 for one in found)
    assert holds >= 180


@pytest.mark.parametrize(
    ("change", "message"),
    [({"q": 5}, "q <= s"), ({"s": 99}, "s <= n"), ({"delta": 1.5}, "delta in"), ({"loss_range": None}, "bounded loss")],
)
def test_conditions_of_the_theorem_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bounds(torch.rand(2, 8), **change)


@pytest.mark.parametrize(
    ("losses", "clean", "message"),
    [
        (torch.zeros(2, 8), torch.zeros(3, 8), r"clean losses have shape \(3, 8\), the losses \(2, 8\)"),
        (torch.full((2, 8), float("nan")), None, "losses"),
        (torch.zeros(2, 8), torch.full((2, 8), float("inf")), r"contradicted|finite"),
    ],
)
def test_losses_that_do_not_fit_are_refused(
    losses: torch.Tensor, clean: torch.Tensor | None, message: str, unchecked_shapes: None
) -> None:
    with pytest.raises(ValueError, match=message):
        bounds(losses, clean)


def test_no_certificate_for_models_that_have_seen_the_data() -> None:
    """1-nearest-neighbour on labels by chance: no error on its own samples, and half of all others wrong."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.random((2000, 2)), rng.integers(0, 2, 2000)
    nearest = np.array([np.square(inputs - one).sum(1).argmin() for one in inputs])
    losses = (labels[nearest] != labels).astype(np.float64)[None]
    (one,) = bounds(losses, q=4)
    assert one.is_certificate is False
    assert not any(row["certificate"] for row in one.rows())
    assert one.bound.total.value < 0.2  # far below the real error, one half: the theorem is not about this model
    assert "if all hypotheses were fixed before the data (which was not said: no certificate)" in one.sentence
    (fixed,) = bounds(losses, q=4, fixed=True)
    assert fixed.is_certificate
    assert "no certificate" not in fixed.sentence


@pytest.mark.parametrize(
    ("losses", "options", "words"),
    [
        (np.zeros((1, 4000)), {"fixed": True}, r"risk at most 0\.0\d+ with probability 0.95, if the samples are indep"),
        (np.zeros((1, 4000)), {"delta": 0.1}, r"risk at most 0\.0\d+ with probability 0.9, if all hypotheses"),
        (np.ones((1, 4000)), {}, r"says nothing, since 1\.\d+ >= 1, the most that a loss can be"),
        (np.zeros((1, 20)), {"q": 1}, r"says nothing, since 1\.\d+ >= 1, the most"),
        (np.full((1, 4000), 5.0), {}, r"risk at most 5\.0\d+ with"),  # M is of differences: up to 6
        (np.full((1, 20), 5.0), {"q": 1}, r"says nothing, since 6\.\d+ >= 6, the most"),
        (np.full((1, 20), -5.0), {"q": 1}, r"says nothing, since -3\.\d+ >= -4, the most"),
    ],
)
def test_what_the_bound_says_in_a_sentence(losses: np.ndarray, options: dict[str, Any], words: str) -> None:
    (one,) = bounds(losses, **{"q": 4, **options})
    assert re.match(words, one.sentence)
    assert ("nobody corrupted them" in one.sentence) == one.sentence.startswith("risk")


def test_the_mean_loss_stands_beside_the_top_q_loss() -> None:
    losses = np.random.default_rng(0).random((3, 50))
    found = bounds(losses, s=8)
    assert [one.mean_loss for one in found] == pytest.approx(losses.mean(1))
    top = [one.bound.training.value for one in found]
    assert top == pytest.approx(top_q_loss(torch.from_numpy(losses), 8, 2).numpy())
    assert all(one.bound.training.value > one.mean_loss for one in found)
    assert [values(one)["mean loss"] for one in found] == pytest.approx(losses.mean(1))
    assert [values(one)["right-hand side"] for one in found] == [one.bound.total.value for one in found]


def test_wide_losses_have_the_terms_of_narrow_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = torch.zeros(4, 200_000)
    losses[:, ::7] = 1
    whole = bounds(losses, q=4, draws=2)
    monkeypatch.setattr(complexity, "_WIDE", 1 << 16)
    pieces = bounds(losses, q=4, draws=2)
    assert [one.mean_loss for one in pieces] == pytest.approx([1 / 7] * 4, rel=1e-4)
    # Both take two draws of signs, other ones: each R^_n is within its own errors of the same number, near 0.
    assert all(abs(a.bound.total.value - b.bound.total.value) < 0.01 for a, b in zip(whole, pieces, strict=True))
