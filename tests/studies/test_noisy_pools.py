"""The claims, judged: on the paper's own tables by hand, and on figures made to break each."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.checkpoint import Stopped
from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.active.tables import cells
from steelyard.experiments.compare.rows import Spread
from studies._claims import Claim, markdown
from studies.noisy_pools.__main__ import main
from studies.noisy_pools.claims import (
    REPORTED_ACCURACY,
    REPORTED_CLEAN,
    REPORTED_SVHN,
    REPORTED_SVHN_CLEAN,
    claims,
    moons_claims,
)
from studies.noisy_pools.report import claims_section


def test_the_papers_own_tables() -> None:
    random, blank, helped, best = claims(REPORTED_ACCURACY, REPORTED_CLEAN)
    # by hand: CONF on Noisy-Diverse (46.99 to 20.53) and MARG on Noisy-Blank (21.98 to 20.25) are above random
    assert [judged.held for judged in random.judgements] == [True, False, True, False, True, True]
    assert not random.held
    assert len(blank.judgements) == 3
    assert len(helped.judgements) == 21
    assert len(best.judgements) == 3
    assert blank.held
    assert helped.held
    assert best.held
    assert "best of the others is BALD + FT, noisy_blank" in [judged.case for judged in best.judgements]


def test_the_papers_second_table_contradicts_that_fine_tuning_helps_all() -> None:
    _, blank, helped, best = claims(REPORTED_SVHN, REPORTED_SVHN_CLEAN)
    assert sum(judged.held for judged in helped.judgements) == 18
    against = [judged.case for judged in helped.judgements if not judged.held]
    assert against == ["RAND, noisy_diverse", "RAND, noisy_class", "BALD, noisy_diverse"]  # by hand
    assert blank.held
    assert best.held


def test_a_claim_that_one_case_breaks_is_not_held() -> None:
    lower = {**REPORTED_ACCURACY, ("lhd", True, "noisy_class"): 0.5}
    _, _, helped, best = claims(lower, REPORTED_CLEAN)
    assert helped.held  # 0.5 is still above LHD without fine-tuning
    assert [judged.held for judged in best.judgements] == [True, True, False]
    equal = {**REPORTED_ACCURACY, ("rand", True, "noisy_blank"): REPORTED_ACCURACY[("rand", False, "noisy_blank")]}
    assert not claims(equal, REPORTED_CLEAN)[2].held
    assert not claims(REPORTED_ACCURACY, {**REPORTED_CLEAN, ("lhd", False, "noisy_blank"): 0.9})[1].held


def test_a_claim_without_figures_is_not_held() -> None:
    assert not Claim("something", ()).held
    judged = claims({("rand", False, "noisy_blank"): 0.5}, {})
    assert [len(claim.judgements) for claim in judged] == [0, 0, 0, 0]
    assert not any(claim.held for claim in judged)


LHD, CONF = ("lhd", False, "none"), ("conf", False, "none")


@pytest.mark.parametrize(
    ("lhd", "learnable", "held"),
    [
        ((0.80, 0.82, 0.85), 0.96, [True, True, True, False]),  # 0.8468 between, CONF's 0.5367 below all
        ((0.80, 0.82, 0.84), 0.94, [False, True, True, False]),
        ((0.90, 0.91, 0.92), 0.95, [True, False, True, False]),
        ((0.55, 0.56, 0.57), 0.95, [True, False, False, False]),
    ],
    ids=["as expected", "not solved", "too good", "no better"],
)
def test_four_moons(lhd: tuple[float, ...], learnable: float, held: list[bool]) -> None:
    test = {LHD: Spread.of(lhd), CONF: Spread.of([0.6, 0.7])}
    assert [claim.held for claim in moons_claims(test, {LHD: Spread.of([learnable])})] == held


def test_the_papers_figures_of_four_moons_stand_beside_the_nearest_run() -> None:
    test = {LHD: Spread.of([0.8, 0.85]), CONF: Spread.of([0.5, 0.6])}
    page = markdown(moons_claims(test, {}))
    assert "| LHD as reported, nearest of 2 runs | 84.7 | 85.0 | yes |" in page
    assert "| CONF as reported, nearest of 2 runs | 53.7 | 50.0 | yes |" in page
    assert "**not judged** (no run is about it): LHD is right on at least 95 %" in page
    one = moons_claims({LHD: Spread.of([0.8125])}, {})
    assert not one[1].judgements  # one run has no standard error


def course(selector: str, tuned: bool, test: tuple[float, float, float], clean: tuple[float, float]) -> ActiveRun:
    """A run of two selections: test accuracies of its rounds, shares of clean samples among what was picked."""
    recipe = replace(load_active_recipe("digits"), selector=selector, fine_tune=tuned)
    shares = (0.2, *clean)
    overall = (math.nan, clean[0], sum(clean) / 2)
    rows = [
        {"test": one, "clean_share": share, "clean_share_selected": of}
        for one, share, of in zip(test, shares, overall, strict=True)
    ]
    return ActiveRun(Path(), "digits", (), recipe, tuple(rows), (), {})


def test_a_claim_that_does_not_hold_says_why_by_the_runs() -> None:
    runs = [
        course("rand", False, (0.5, 0.6, 0.7), (0.2, 0.2)),
        course("marg", False, (0.5, 0.6, 0.8), (0.7, 0.1)),
        course("lhd", False, (0.5, 0.7, 0.9), (1.0, 0.7)),
        course("rand", True, (0.3, 0.6, 0.6), (0.2, 0.2)),
        course("lhd", True, (0.3, 0.7, 0.86), (1.0, 1.0)),
    ]
    page = claims_section(cells(runs))
    assert "Per cent of clean samples, selection by selection: MARG on noisy_blank 70, 10." in page
    assert "noisy samples picked in a round, on average: LHD 7.5." in page  # 15 % of 50
    assert (
        "changes the accuracy by -20.0 points on average, down on 1 of 1 kinds of noise: the training alone does it."
        in page
    )
    assert "the best rival is not fine-tuned in 1 of 1 cases, and fine-tuning changes LHD itself by -4.0 points" in page
    better = [*runs[:1], course("marg", False, (0.5, 0.6, 0.8), (0.1, 0.1)), *runs[2:3]]
    assert "selection by selection" not in claims_section(cells(better))  # it holds
    up = [*runs[:3], course("rand", True, (0.6, 0.6, 0.6), (0.2, 0.2))]
    assert "by +10.0 points on average, down on 0 of 1 kinds of noise: what is selected by it later" in claims_section(
        cells(up)
    )


def test_the_command_adds_the_claims_to_the_tables_of_active_learning(tmp_path: Path) -> None:
    small = ["--set", "data.samples=200", "--set", "epochs.epochs=1", "--set", "schedule.rounds=1"]
    small += ["--set", "schedule.per_round=10", "--out", str(tmp_path)]
    assert main(["four_moons", *small, "--selectors", "conf", "lhd"]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "Made by `python -m studies.noisy_pools four_moons --set data.samples=200" in page
    assert page.count("LHD is above CONF") == 1
    assert json.loads((tmp_path / "summary.json").read_text())[0]["command"].startswith("python -m studies.noisy_pools")


def test_the_command_says_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise Stopped(2)

    monkeypatch.setattr("steelyard.experiments.active.grid.Grid.execute", stopped)
    assert main(["four_moons", "--out", str(tmp_path)]) == 130
    assert f"python -m studies.noisy_pools four_moons --out {tmp_path} --resume" in capsys.readouterr().err
