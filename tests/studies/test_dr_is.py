"""The DR-IS measurement: its figures by brute force, its claims on tables made to hold or not, its files."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from steelyard.experiments.active.images import Digits
from steelyard.experiments.models import MLP
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from studies.dr_is import measure as module
from studies.dr_is.__main__ import main
from studies.dr_is.measure import SCORES, DisagreementSettings, Proxies, disagreement_tables
from studies.dr_is.study import claims, disagreement

TINY = DisagreementSettings(
    seeds=(3,),
    sizes=(2, 3),
    reference=2,
    attacker=2,
    shares=(0.5, 1.0),
    training=Training(steps=30, batch_size=64, evaluate_every=10, optimizer=OptimizerSettings("adam", 1e-2)),
)


@pytest.fixture(scope="module")
def tables() -> dict[str, pandas.DataFrame]:
    return disagreement_tables(TINY)


def test_tables_have_a_row_for_every_case(tables: dict[str, pandas.DataFrame]) -> None:
    assert len(tables["kept"]) == 2 * len(SCORES) * 2
    assert len(tables["drawn"]) == 2 * 2
    assert len(tables["gaps"]) == 2
    everything = tables["kept"][tables["kept"]["share"] == 1.0]
    count = len(Digits().load(3).train)
    assert everything["corruption"].tolist() == pytest.approx([round(0.2 * count) / count] * len(everything))
    assert bool((everything["boundary"] == 1).all())
    trained = tables["kept"]["test"].notna()
    assert trained.tolist() == (tables["kept"]["models"] == 3).tolist()


def test_scores_and_gaps_by_brute_force(tables: dict[str, pandas.DataFrame]) -> None:
    case = module.corrupted(TINY, 3)
    labels, n = case.problem.splits.train.targets, len(case.wrong)
    seeds = [module.derived(3, module.PROXIES, k) for k in range(5)]
    proxies = Proxies.of(case.problem, TINY.training, seeds)
    ranks = torch.stack([losses.argsort().argsort().double() + 1 for losses in proxies.losses]) / n
    d = {
        size: torch.stack([(ranks[a] - ranks[b]).abs() for a, b in itertools.combinations(models, 2)]).mean(0)
        for size, models in ((2, (0, 1)), (3, (0, 1, 2)), (-2, (3, 4)))
    }
    g = (proxies.probabilities - torch.nn.functional.one_hot(labels, 10)).norm(dim=2)
    for row in tables["gaps"].to_dict("records"):
        size = int(row["models"])
        assert row["bulk"] == pytest.approx(float(d[size][case.bulk].mean()), abs=1e-3)  # ties share ranks there
        assert row["gap"] == pytest.approx(row["boundary"] - row["bulk"])
        assert row["deviation"] == pytest.approx(float((d[size] - d[-2]).abs().max()), abs=1e-2)
        assert row["radius"] == pytest.approx(math.sqrt(math.log(2 * n / 0.05) / (2 * (size // 2))))
        assert row["certified"] == (row["widest"] > 2 * row["radius"])
    for size in (2, 3):
        chance = g[:size].mean(0) * d[size]
        row = tables["drawn"].query(f"models == {size} and form == 'g D'").iloc[0]
        assert row["corruption"] == pytest.approx(float(chance[case.wrong].sum() / chance.sum()), abs=1e-3)
        kept = g[:size].mean(0).topk(round(0.5 * n)).indices
        row = tables["kept"].query(f"models == {size} and score == 'el2n' and share == 0.5").iloc[0]
        assert row["corruption"] == pytest.approx(float(case.wrong[kept].double().mean()), abs=2 / n)


def test_who_is_who(tables: dict[str, pandas.DataFrame]) -> None:
    case, clean = module.corrupted(TINY, 3), Digits().load(3).train
    assert torch.equal(case.problem.splits.train.targets != clean.targets, case.wrong)
    assert not bool((case.bulk & ~case.wrong).any())
    assert not bool((case.boundary & case.wrong).any())
    assert int(case.boundary.sum()) == pytest.approx(0.25 * int((~case.wrong).sum()), abs=1)


def test_smaller_ensembles_are_parts_of_larger_ones() -> None:
    problem = Problem(Digits().load(0), MLP(hidden=(4,), head="softmax"), 0)
    run = Training(steps=2, batch_size=64)
    three, two = (Proxies.of(problem, run, seeds) for seeds in ((5, 6, 7), (5, 6)))
    assert torch.equal(three.first(2).losses, two.losses)
    assert torch.equal(three.first(2).margins, two.margins)
    assert not torch.equal(two.losses[0], two.losses[1])


def made_up(dr_is: float, el2n: float) -> dict[str, pandas.DataFrame]:
    figures = {"random": 0.2, "el2n": el2n, "el2n_low": 0.1, "aum": 0.05, "dr_is": dr_is, "product": 0.2}
    kept = [
        {"seed": 0, "models": k, "score": s, "share": h, "corruption": c / (1 + k / 100), "boundary": c, "test": 1 - c}
        for k in (2, 3)
        for s, c in figures.items()
        for h in (0.5, 1.0)
    ]
    drawn = [
        {"seed": 0, "models": k, "form": f, "corruption": c} for k in (2, 3) for f, c in (("g", el2n), ("g D", dr_is))
    ]
    sides = {"certified_jackknife": 0.5 if dr_is < 0.1 else 0.0, "wrong_jackknife": dr_is}
    gap = {"bulk": dr_is, "boundary": 0.2, "gap": 0.2 - dr_is, "order": 0.5, "widest": 1 - dr_is, "radius": 0.4}
    gaps = [{"seed": 0, "models": k, **gap, "certified": False, "deviation": dr_is, **sides} for k in (2, 3)]
    return {"kept": pandas.DataFrame(kept), "drawn": pandas.DataFrame(drawn), "gaps": pandas.DataFrame(gaps)}


def test_claims_follow_the_tables() -> None:
    good = [claim.held for claim in claims(made_up(dr_is=0.01, el2n=0.4), TINY)]
    bad = [claim.held for claim in claims(made_up(dr_is=0.5, el2n=0.1), TINY)]
    assert good == [True, True, True, True, True, True, False, True, True, True, True, True, True]
    assert bad == [False, False, False, False, False, True, True, False, False, False, False, False, False]


def test_the_folder_is_written(tmp_path: Path, tables: dict[str, pandas.DataFrame], monkeypatch) -> None:
    monkeypatch.setattr("studies.dr_is.study.disagreement_tables", lambda s, p: tables)
    written = disagreement(tmp_path, TINY, "python -m studies.dr_is")
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    rows = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert all(row["std"] is None and np.isfinite(row["mean"]) and row["seeds"] == [3] for row in rows)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert all(f"| {label} |" in page for label in SCORES.values())
    assert "Made by `python -m studies.dr_is`" in page
    assert (tmp_path / "dr_is.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="shares must have 0.5 among them"):
        disagreement(tmp_path, DisagreementSettings(shares=(0.2,)), "")
    with pytest.raises(ValueError, match="sizes must be >= 2, got 1"):
        DisagreementSettings(sizes=(1,))
    with pytest.raises(ValueError, match="at least one entry"):
        DisagreementSettings(seeds=())
    assert main(["--share", "1.5", "--out", str(tmp_path)]) == 2
    assert "share must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "-1"], "--seeds must be in [0, 9223372036854775807], got -1"),
        (["--seeds", "0", "99999999999999999999"], "--seeds must be in [0, 922"),
        (["--seeds", "4", "4"], "--seeds names 4 twice"),
        (["--out", "/proc/x"], "--out /proc/x cannot be written"),
    ],
)
def test_user_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
