"""The page shows the two groups of a run where there are two, and says so where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steelyard.experiments.report.found_groups import groups_section
from steelyard.experiments.report.learned import FACTS, GALLERY
from steelyard.experiments.report.page import render
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import Run, execute, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    sets = ["method.steps=1", "method.folds=1", "method.inner.steps=2"]
    place: Path = tmp_path_factory.mktemp("run") / "seed0"
    return execute(load_recipe("coloured_digits/maple", sets, 0), place, name="coloured_digits/maple")


def with_probabilities(run: Run, probability: np.ndarray) -> Run:
    assert run.samples is not None
    return replace(run, samples=run.samples.assign(probability=probability))


def test_groups_are_shown_with_what_is_known_of_them(run: Run) -> None:
    assert run.samples is not None
    rare = ~run.samples["colour_agrees"].to_numpy()
    noise = np.random.default_rng(0).random(len(rare)) * 0.2
    split = with_probabilities(run, np.where(rare, 0.8 + noise, noise))
    section = groups_section(split, FACTS)
    assert section is not None
    assert not section["refused"]
    assert section["high"] == rare.tolist()
    best = section["lines"][0]
    assert best["name"] == "colour disagrees"
    assert (best["count"], best["of_high"], best["of_low"], best["in_high"]) == (int(rare.sum()), 1.0, 0.0, 1.0)
    assert {line["name"] for line in section["lines"]} > {"target 0", "target 1", "environment 0", "label right"}
    page = render([split])
    assert "have two humps" in page
    assert page.count('class="tile') == 4 * GALLERY  # most and least kept, above and below the cut
    assert page == render([split])


@pytest.mark.parametrize("budget", [300, 170], ids=["both runs are clear", "one of them is"])
def test_groups_that_refined_maple_found_are_in_its_table_and_on_its_page(budget: int, tmp_path: Path) -> None:
    maple = f"{{budget={budget}, steps=12, learn='probabilities', probability_rate=0.2, inner={{steps=40}}}}"
    sets = [f"method={{name='refined_maple', rounds=0, maple={maple}}}", "model.hidden=[16]"]
    recipe = load_recipe("coloured_digits/maple", [*sets, "data.train_flips=[0.05, 0.15]"], 0)
    run = execute(recipe, tmp_path / "seed0", name="coloured_digits/refined_maple")
    samples, figures = run.samples, run.history[-1].extra
    assert samples is not None
    high = samples["found_group"].to_numpy()
    assert (high == (samples["maple_probability"] > figures["cut"])).all()
    assert high.mean() == pytest.approx(figures["high_share"])
    assert (~samples["colour_agrees"].to_numpy() == high).mean() > 0.97
    read = read_run(tmp_path / "seed0")  # as `steelyard report` does
    section = groups_section(read, FACTS)
    assert section is not None
    assert section["lines"][0]["name"] == "colour disagrees"
    assert "have two humps" in render([read])
    assert figures["agreement_0"] > 0.8  # of two runs


def test_one_hump_is_said(run: Run) -> None:
    assert run.samples is not None
    flat = with_probabilities(run, np.linspace(0, 1, len(run.samples)))
    section = groups_section(flat, FACTS)
    assert section is not None
    assert "no two humps" in section["refused"]
    assert section["lines"] == []
    page = render([flat])
    assert "No groups are shown: probabilities have no two humps" in page
    assert page.count('class="tile') == 2 * GALLERY


def test_a_run_without_a_spread_has_no_section(run: Run) -> None:
    assert run.samples is not None
    assert groups_section(with_probabilities(run, np.full(len(run.samples), 0.5)), FACTS) is None
