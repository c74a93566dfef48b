"""`steelyard suspects`: the order, the table, the page, the check with planted errors, and a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from steelyard.cli import main
from steelyard.experiments.weigh import suspecting
from tests.experiments.weigh.recomputed import figures_on
from tests.experiments.weigh.test_weigh import table

COLUMNS = ["suspect_rank", "id", "row", "label", "predicted", "suspicion", "label_probability", "right_probability"]


@pytest.fixture(autouse=True)
def patients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    table().to_csv("patients.csv", index=False)


def suspects(*words: str) -> int:
    return main(["suspects", "patients.csv", "--target", "ill", "--id", "patient", "--epochs", "1", *words])


def test_every_row_is_ranked_and_the_page_says_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert suspects("--out", "found") == 0
    assert "labels that seemed right and were made wrong on purpose" in capsys.readouterr().out
    found, frame = pandas.read_csv("found/suspects.csv"), table()
    assert list(found) == [*COLUMNS, "aum", "lhd", "disagreement"]
    assert found["suspect_rank"].tolist() == list(range(1, len(frame) + 1))
    assert found["suspicion"].is_monotonic_decreasing
    assert found["id"].tolist() == frame["patient"][found["row"]].tolist()
    assert found["label"].tolist() == frame["ill"][found["row"]].tolist()
    shown = figures_on(Path("found/page.html").read_text(encoding="utf-8"))
    wrong = 1 - found["right_probability"]
    assert shown["share"] == {f"{100 * wrong.mean():.1f}"}
    for number, name in enumerate(["no", "yes"]):
        own = found[found["label"] == name]
        assert shown[f"class/{number}/count"] == {str(len(own))}
        assert shown[f"class/{number}/judged/1"] == {f"{100 * (own['predicted'] == 'yes').mean():.1f}"}
    for rank, row in found.head(20).set_index("suspect_rank").iterrows():
        agrees = row["label"] == row["predicted"]
        (text,) = shown[f"suspect/{rank}/{'predicted' if agrees else 'given'}"]
        assert abs(float(text) - 100 * row["label_probability"]) < 0.051
    assert not list(Path("found").glob("*.safetensors"))


def test_a_stop_and_a_resume_end_in_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suspects("--out", "whole", "--no-check") == 0
    steps = iter(range(10**9))
    real = suspecting.Journal

    def stopped(path: Path, **options: object) -> object:
        options["stop"] = lambda: 15 * (next(steps) >= 70)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(suspecting, "Journal", stopped)
    stopped.files = real.files  # type: ignore[attr-defined]
    assert suspects("--out", "again", "--no-check") == 128 + 15
    monkeypatch.setattr(suspecting, "Journal", real)
    assert suspects("--out", "again", "--no-check") == 2
    assert suspects("--out", "again", "--no-check", "--seed", "1", "--resume") == 2
    assert suspects("--out", "again", "--no-check", "--resume") == 0
    assert Path("again/suspects.csv").read_bytes() == Path("whole/suspects.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folds", "1"], "--folds must be at least 2, got 1"),
        (["--drop", "ages"], "patients.csv, line 1: there is no column 'ages'"),
        (["--folds", "90"], "the class 'no' has"),
    ],
    ids=["folds", "column", "class"],
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert suspects("--out", "wrong", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    scores, positive = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]), torch.tensor([True, False, True, False, False])
    pairs = [
        (1.0 if a > b else 0.5 if a == b else 0.0)
        for a in scores[positive].tolist()
        for b in scores[~positive].tolist()
    ]
    assert suspecting.auroc(scores, positive) == pytest.approx(np.mean(pairs))
