"""The study of found groups: what it files, what it tabulates, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steelyard.experiments import load_recipe
from steelyard.experiments.errors import RecipeError, RunError
from steelyard.experiments.training.problem import Problem
from studies.groups import case, hint, rates, tables
from studies.groups.case import CASES
from studies.groups.tables import study


def row(name: str, seed: int, accepted: bool) -> dict[str, object]:
    figures = {f"{cut} {figure}": 0.5 for cut in ("valley", "two_means") for figure in ("precision", "recall")}
    accuracies = {"ERM accuracy": 0.4 + 0.01 * seed, "ERM wrong labels": 0.25, "ERM balanced accuracy": 0.6}
    return {"case": name, "seed": seed, "accepted": accepted, "share_between": 0.8, "valley_ratio": 7.0} | (
        {**figures, **accuracies} if name == "digits" else {}
    )


def test_tables_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def carry_out(
        name: str, seed: int, root: Path | None, there: dict[str, object], file: Callable[..., None], *_: object
    ) -> None:
        if not there:
            asked.append((name, seed))
            file(row(name, seed, name == "digits"))

    monkeypatch.setattr(tables, "carry_out", carry_out)
    for _ in range(2):  # the second time all is there
        found = study(tmp_path / "out", tmp_path / "runs", ["Adult", "digits"], [1, 2])
    assert asked == [("Adult", 1), ("Adult", 2), ("digits", 1), ("digits", 2)]
    assert [one["case"] for one in found] == ["digits", "digits", "Adult", "Adult"]
    recovery = (tmp_path / "out" / "recovery.md").read_text()
    assert "| digits | 2 | 2 of 2 | 2 of 2 | 0.80 to 0.80 | 7 to 7 | 0.50 ± 0.00 | 0.50 ± 0.00 |" in recovery
    assert "| Adult | 2 | 0 of 2 | 0 of 2 |" in recovery
    assert (
        "| digits | ERM | 2 | 41.5 ± 0.7 | 60.0 ± 0.0 | 25.0 ± 0.0 |" in (tmp_path / "out" / "accuracy.md").read_text()
    )
    (summary,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["seeds"] == [1, 2]
    assert summary["mean"] == pytest.approx(0.415)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown case 'digit'; there are digits, "):
        study(tmp_path / "out", tmp_path / "runs", ["digit"], [1])
    with pytest.raises(RecipeError, match="unknown method 'erm'; there are 'found groups, balanced', "):
        study(tmp_path / "out", tmp_path / "runs", ["digits"], [1], methods=["erm"])
    with pytest.raises(RunError, match="no case under"):
        study(tmp_path / "out", tmp_path / "runs", [], [1])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "adult_seed1.json").write_text("[]")
    with pytest.raises(RunError, match="remove it and the case is carried out again"):
        study(tmp_path / "out", tmp_path / "runs", [], [1])


def test_cases_are_of_recipes_that_ship() -> None:
    methods = {name: load_recipe(recipe, sets, 0).method.name for name, (recipe, sets) in CASES.items()}
    assert methods == {name: "refined_maple" if name.startswith("Colored MNIST") else "maple" for name in CASES}


def test_a_case_is_carried_out_figure_by_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ("method.steps=2", "method.inner.steps=3", "method.folds=2")
    monkeypatch.setitem(case.CASES, "digits", ("coloured_digits/maple", short))
    place, filed = tmp_path / "digits_seed1", []
    first = case.carry_out("digits", 1, None, {}, filed.append, place, ["ERM"])
    quick = [one for one in case.TRAINED if one not in ("Refine, short nets", "disagreement alone")]
    whole = case.carry_out("digits", 1, None, first, filed.append, place, quick)
    assert filed[-1] == whole
    assert ["ERM accuracy" in one for one in filed[:3]] == [False, True, True]
    assert {name: whole[name] for name in first} == first  # MAPLE was taken from its checkpoint, the net from the row
    assert whole["known groups, balanced against the shortcut"] == pytest.approx(0.5)
    assert whole["ERM against the shortcut"] == pytest.approx(0.15, abs=0.03)
    assert whole["LHD alone against the shortcut"] > 0.2  # high ||lh||: who contradicts the colour
    accepted = whole["accepted"] or whole["accepted with a repeat"]
    for trained in ("found groups, balanced", "Refine"):  # on groups that are accepted, and no others
        assert (f"{trained} accuracy" in whole) == accepted
    assert case.carry_out("digits", 1, None, whole, filed.append, place, ["ERM"]) == whole


def test_a_net_that_reads_the_colour_has_a_half_when_colours_are_balanced() -> None:
    recipe = load_recipe("coloured_digits/maple", seed=1)
    problem = Problem(recipe.data.load(1, None), recipe.model, 1)

    class Colour(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ink = images.sum((2, 3))
            return (ink[:, 1:] - ink[:, :1]).sign()

    found = case.figures(problem, Colour(), "colour")
    assert found["colour balanced accuracy"] == 0.5
    assert found["colour accuracy"] < 0.15


def test_the_hint_tells_chosen_labels_in_breast_cancer() -> None:
    plain, chosen = (hint.figure("breast cancer", kind, 310) for kind in ("none", "adversarial"))
    assert plain < 0.3  # as filed: 0.11 and 0.61
    assert chosen > 0.5


def test_a_seed_that_is_named_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert hint.main(["--seeds", "310", "310"]) == 2
    assert capsys.readouterr().err == "steelyard: error: --seeds names 310 twice; name each seed once\n"


def test_rates_of_a_law_with_a_group_and_of_one_without() -> None:
    with_group, without = (rates.judged(name, 90) for name in ("shortcut", "no column, few samples"))
    assert with_group["accepted"]
    assert with_group["Rand"] > 0.95
    assert not without["accepted"]
    assert not without["repeated"]
    table = rates.tables([with_group, without]).markdown()
    assert f"| shortcut | yes | 1 of 1 | {int(with_group['repeated'])} of 1 | " in table
    assert "| no column, few samples | no | 0 of 1 | 0 of 1 | " in table
    assert {law.grouped for law in rates.LAWS.values()} == {True, False}
