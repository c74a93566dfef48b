"""A search end to end, what it chooses by, and that no test figure comes there."""

from __future__ import annotations

import inspect
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from steelyard.cli import main
from steelyard.experiments.compare.table import Table
from steelyard.experiments.errors import RecipeError, RunError
from steelyard.experiments.runs.jobs import Failed
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.evaluation import Evaluation, SplitMetrics, Visible
from steelyard.experiments.training.selection import CRITERIA, Scored
from steelyard.experiments.tuning import choice
from steelyard.experiments.tuning.tuning import Tuning
from tests.support.own import write_patients

ERM = "coloured_digits/erm"
TINY = ["method.training.steps=4", "method.training.evaluate_every=2", "model.hidden=[8]"]
WORDS = [word for field in TINY for word in ("--set", field)]


def run_of(tuning: Tuning, number: int, figures: list[tuple[float, float]]) -> Run:
    """A run with (validation, test) accuracies at steps 1, 2, ..."""
    plan = tuning.planned[number]
    history = tuple(
        Evaluation(
            Visible(k, SplitMetrics(0.9, 0.1), SplitMetrics(seen, 0.1, class_accuracy=(1.0, seen / 2))),
            SplitMetrics(test, 0.1),
            {},
        )
        for k, (seen, test) in enumerate(figures, start=1)
    )
    return Run(plan.directory, plan.name, plan.overrides, plan.recipe, history, {"seconds": 1.0}, None)


def planned(tmp_path: Path, **more: object) -> Tuning:
    overrides = [*TINY, "selection=validation_mean"]
    return Tuning.of(ERM, overrides, tmp_path, **{"count": 3, **more})  # type: ignore[arg-type]


def test_the_trial_with_the_best_step_is_chosen_and_ties_go_to_the_recipe_as_it_stands(tmp_path: Path) -> None:
    tuning = planned(tmp_path)
    runs = [
        run_of(tuning, 0, [(0.5, 0.0), (0.7, 0.0)]),
        run_of(tuning, 1, [(0.8, 0.0), (0.1, 0.0)]),
        run_of(tuning, 2, [(0.6, 0.0)]),
    ]
    tuned = tuning.tuned(runs)
    assert tuned.chosen == 1
    assert [one.chosen[0].step for one in tuned.reached if one is not None] == [2, 1, 1]
    assert [line[0] for line in tuned.table.lines] == ["1 (chosen)", "0", "2"]
    assert tuning.tuned([runs[0], run_of(tuning, 1, [(0.7, 0.0)]), runs[2]]).chosen == 0


def test_scores_are_averaged_over_seeds(tmp_path: Path) -> None:
    tuning = planned(tmp_path, seeds=(0, 1), count=2)
    figures = [[(0.9, 0.0)], [(0.3, 0.0)], [(0.7, 0.0)], [(0.6, 0.0)]]
    tuned = tuning.tuned([run_of(tuning, k, one) for k, one in enumerate(figures)])
    assert tuned.chosen == 1
    assert [round(one.score, 6) for one in tuned.reached if one is not None] == [0.6, 0.65]


def test_choices_of_trials_do_not_move_when_test_figures_do(tmp_path: Path) -> None:
    tuning = planned(tmp_path)

    def tuned(tests: list[float]) -> tuple[int, Table, str]:
        found = tuning.tuned([run_of(tuning, k, [(0.5 + k / 10, test)]) for k, test in enumerate(tests)])
        return found.chosen, found.table, found.recipe(tmp_path / "chosen.toml")

    assert tuned([0.9, 0.1, 0.1]) == tuned([0.1, 0.9, 0.2]) == tuned([math.nan, 0.0, 1.0])


def test_what_chooses_is_never_given_an_evaluation() -> None:
    """By their types: `Visible` has no test figures, and nothing of this module names what has."""
    for function in (choice.reached, choice.best, choice.scored):
        assert Evaluation not in get_type_hints(function).values()
        assert "Evaluation" not in str(get_type_hints(function))
    assert "Evaluation" not in {name for name, _ in inspect.getmembers(choice)}
    assert all(isinstance(one, Scored) for name, one in CRITERIA.items() if name != "last")


def test_trials_that_failed_or_diverged_are_not_chosen(tmp_path: Path) -> None:
    tuning = planned(tmp_path)
    wild = run_of(tuning, 1, [(0.99, 0.0)])
    visible = replace(wild.history[0].visible, validation=SplitMetrics(0.99, math.nan))
    wild = replace(wild, history=(replace(wild.history[0], visible=visible),))
    failed = Failed(tuning.planned[2], "step 3: the loss is NaN")
    tuned = tuning.tuned([run_of(tuning, 0, [(0.5, 0.0)]), wild, failed])
    assert tuned.chosen == 0
    assert "Trial 2 failed: step 3: the loss is NaN" in tuned.table.notes
    with pytest.raises(RunError, match="none of 3 trials can be chosen: step 3"):
        tuning.tuned([failed, wild, failed])


def test_where_groups_are_known_decides_the_criterion_and_the_methods(tmp_path: Path) -> None:
    def of(name: str, groups: str, *more: str) -> Tuning:
        return Tuning.of(name, more, tmp_path, count=1, groups=groups)

    assert of("adult/group_dro", "training").selection == "validation_worst_group"
    assert of("adult/erm", "validation").selection == "validation_worst_group"
    assert of("adult/erm", "nowhere").selection == "validation_worst_class"
    assert of("adult/erm", "nowhere").planned[0].recipe.selection == "validation_worst_class"
    for groups in ("validation", "nowhere"):
        with pytest.raises(RecipeError, match=r"'group_dro' as it is set reads the groups of training samples"):
            of("adult/group_dro", groups)
    with pytest.raises(RecipeError, match="reads the groups of validation samples"):
        of("adult/dfr", "nowhere")
    with pytest.raises(RecipeError, match="selection 'last' prefers nothing"):
        of("adult/erm", "recipe", "selection=last")


def test_the_worst_class_chooses_where_groups_are_known_nowhere(tmp_path: Path) -> None:
    tuning = Tuning.of(ERM, TINY, tmp_path, count=2, groups="nowhere")
    tuned = tuning.tuned([run_of(tuning, k, [(seen, 0.0)]) for k, seen in enumerate((0.5, 0.8))])
    assert tuned.chosen == 1
    assert tuned.reached[1] is not None
    assert tuned.reached[1].score == 0.4


def test_a_search_by_commands_is_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    search = ["tune", ERM, *WORDS, "--trials", "2", "--groups", "nowhere"]
    assert main([*search, "--out", "here"]) == 0
    said = capsys.readouterr().out
    assert "2 trials by validation_worst_class" in said
    assert "To run it: steelyard run here/chosen.toml" in said
    assert main([*search, "--out", "there", "--print-commands"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    assert main(shlex.split(commands[0])[1:]) == 0
    assert main([*search, "--out", "there", "--collect"]) == 0
    assert "Trial 1 failed: it is not finished" in " ".join(capsys.readouterr().out.split())
    assert main(shlex.split(commands[1])[1:]) == 0
    assert main([*search, "--out", "there", "--collect"]) == 0
    for name in ("trials.md", "trials.csv", "chosen.toml"):
        assert Path("here", name).read_text() == Path("there", name).read_text()
    assert main([*search, "--out", "here", "--resume"]) == 0
    assert main([*search, "--out", "here"]) == 2
    assert "here/trials.md is there already; give another --out, --resume to go on" in capsys.readouterr().err
    chosen = load_recipe("here/chosen.toml")
    assert chosen.selection == "validation_worst_class"
    assert chosen.method.training.steps == 4  # type: ignore[union-attr]
    assert Path("here/chosen.toml").read_text().splitlines()[1] == f'base = "{ERM}"'


def test_a_recipe_of_ones_own_is_a_base_from_its_own_folder_and_complete_elsewhere(tmp_path: Path) -> None:
    write_patients(tmp_path / "patients.csv")
    mine = tmp_path / "mine.toml"
    mine.write_text(
        f'base = "{ERM}"\n[data]\nname = "table"\nfile = "{tmp_path / "patients.csv"}"\n'
        'target = "ill"\nid = "patient"\nenvironment = "hospital"\n'
    )
    tuning = Tuning.of(str(mine), [*TINY, "selection=validation_mean"], tmp_path / "out", count=1)
    tuned = tuning.tuned([run_of(tuning, 0, [(0.5, 0.0)])])
    wanted = load_recipe(str(mine), tuning.settings(tuning.trials[0]))
    for place, base in ((tmp_path / "near.toml", True), (tmp_path / "out" / "far.toml", False)):
        place.parent.mkdir(exist_ok=True)
        place.write_text(tuned.recipe(place))
        assert ('base = "mine.toml"' in place.read_text()) is base
        assert load_recipe(str(place)) == wanted


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--trials", "0"], "--trials must be 1 to 10000, got 0"),
        (["--collect", "--overwrite"], "exclude each other"),
        (["--range", "method.training.l2"], "a range is field=U(a, b)"),
        (["--range", "method.training.l2=U(1"], "a range must be U(a, b)"),
        (["--vary", "method.training.steps"], "no range is declared for it"),
    ],
    ids=["no trials", "two ways", "no equals", "no range", "fixed"],
)
def test_user_errors(more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", ERM, *more]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
