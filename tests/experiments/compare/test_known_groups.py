"""A table for each thing that may be known of groups: which methods are in it, and the step that is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from steelyard.experiments.compare.known_groups import KNOWN_GROUPS, allowed, known_table, write_known
from steelyard.experiments.errors import UserError
from steelyard.experiments.methods import CRT, DFR, LISA, MMD, GroupDRO, Maple, Method, SqrtReweighting, UpWeighting
from steelyard.experiments.methods.found_groups import XRM, MapleGroups
from steelyard.experiments.methods.maple import OuterRisk
from steelyard.experiments.runs.recipe import load_recipe, recipe_names
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.evaluation import Evaluation, SplitMetrics, Visible
from steelyard.experiments.training.selection import KNOWN
from tests.support.compared import RUNS


def made(name: str, seed: int = 0) -> Run:
    """A run whose worst group on validation is best at the first step, the worst class at the second, the mean at
    the third; the test accuracy says which."""

    def seen(accuracy: float, groups: tuple[int, int], classes: tuple[float, float]) -> SplitMetrics:
        return SplitMetrics(accuracy, 0.5, group_right=groups, group_count=(10, 10), class_accuracy=classes)

    history = []
    for step, (mean, groups, classes) in enumerate(
        [(0.6, (8, 7), (0.9, 0.5)), (0.6, (9, 3), (0.8, 0.7)), (0.9, (9, 4), (0.9, 0.4))], 1
    ):
        validation = seen(mean, groups, classes)
        test = seen(step / 10, (step, 9), (0.9, step / 20))
        history.append(Evaluation(Visible(step, SplitMetrics(0.9, 0.1), validation), test, {}))
    recipe = load_recipe(name, seed=seed)
    return Run(Path(f"run{seed}"), name, (), recipe, tuple(history), {"seconds": 1.0}, None)


MAPLE = Maple(budget=10, risk=OuterRisk("group_worst", "plain"), outer_split="train")
NAMES = ("adult/erm", "adult/upweighting", "adult/irmv1", "adult/dfr", "adult/focal")
RUNS_OF_ALL = [made(name, seed) for name in NAMES for seed in (0, 1)]


def labels(known: str) -> list[str]:
    return [line[0].removeprefix("adult/") for line in known_table(RUNS_OF_ALL, known).lines]


def test_each_table_has_the_methods_that_read_no_more() -> None:
    assert labels("training") == ["erm", "upweighting", "irmv1", "dfr", "focal"]
    assert labels("validation") == ["erm", "dfr", "focal"]
    assert labels("nowhere") == ["erm", "focal"]
    assert "not known then: adult/upweighting, adult/irmv1, adult/dfr." in known_table(RUNS_OF_ALL, "nowhere").notes[1]


def test_the_step_is_chosen_by_what_is_known() -> None:
    for known, place in (("training", 1), ("validation", 1), ("nowhere", 2)):
        table = known_table(RUNS_OF_ALL, known)
        assert all(line[table.head.index("accuracy")] == f"{place / 10:.3f} ± 0.000" for line in table.lines)
        assert all(
            line[table.head.index("worst-group accuracy")].startswith(f"{place / 10:.3f} ± 0.000 [")
            for line in table.lines
        )
        assert KNOWN[known] in table.notes[0]


@pytest.mark.parametrize(
    ("method", "tables"),
    [
        (GroupDRO(), ["training"]),
        (GroupDRO(by="environment"), ["training"]),
        (GroupDRO(groups=XRM()), ["training", "validation", "nowhere"]),
        (GroupDRO(groups=MapleGroups(replace(MAPLE, outer_split="validation"))), ["training", "validation"]),
        (UpWeighting(groups=MapleGroups(MAPLE)), ["training"]),
        (UpWeighting(by="class"), ["training", "validation", "nowhere"]),
        (SqrtReweighting(by="environment"), ["training"]),
        (CRT(by="group"), ["training"]),
        (CRT(by="environment", balance="none"), ["training", "validation", "nowhere"]),
        (DFR(), ["training", "validation"]),
        (DFR(fit_on="train"), ["training"]),
        (LISA(), ["training"]),
        (MMD(), ["training"]),
        (MMD(by="group", groups=XRM()), ["training", "validation", "nowhere"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_a_method_reads_decides(method: Method, tables: list[str]) -> None:
    assert [known for known in KNOWN if allowed(method, known)] == tables


def test_every_method_says_what_it_reads() -> None:
    """A method that is added without the three properties would stand in tables that it must not."""
    for kind in get_args(Method):
        assert all(
            hasattr(kind, name) for name in ("needs_training_groups", "needs_validation_groups", "needs_environments")
        )
    of_environments = {name for name in recipe_names() if load_recipe(name).method.needs_environments}
    assert {"coloured_digits/irmv1", "coloured_digits/maple", "adult/vrex", "adult/lisa"} <= of_environments
    assert not {"coloured_digits/erm", "adult/focal", "adult/dfr"} & of_environments


def test_the_file_has_a_table_each(tmp_path: Path) -> None:
    write_known(RUNS_OF_ALL, tmp_path, list(KNOWN))
    text = (tmp_path / KNOWN_GROUPS).read_text()
    assert [text.count(f"| {head} |") for head in ("Groups known in validation alone", "Groups known nowhere")] == [
        1,
        1,
    ]
    assert text.count("| adult/erm |") == 3


def test_runs_without_groups_are_refused_by_their_folder() -> None:
    with pytest.raises(UserError, match="run1 has no accuracies of groups on validation"):
        known_table([replace(RUNS[0])], "training")
