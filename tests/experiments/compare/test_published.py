"""Published figures: read whole, each with a source, beside the right rows and no others."""

import math
import re
from dataclasses import replace

import pytest

from steelyard.experiments.compare.published import Beside, Figure, Problem, Published, Source, beside, published
from steelyard.experiments.compare.rows import BEST_ON_TEST, Row, compare
from steelyard.experiments.data import Waterbirds
from steelyard.experiments.methods import DFR, GroupDRO
from steelyard.experiments.runs.recipe import load_recipe
from tests.support.compared import RUNS, made
from tests.support.places import RESULTS


def rows(name: str, *changes: str, selection: str = "validation_mean") -> list[Row]:
    """The rows of one run of a recipe."""
    run = made(0, [(0.9, 0.6, 0.2), (0.8, 0.9, 0.4)], name)
    recipe = replace(load_recipe(name, changes, 0), selection=selection)
    return compare([replace(run, recipe=recipe)])


def test_what_is_shipped_is_whole() -> None:
    known = published()
    assert len(known.figures) > 30
    assert {figure.dataset for figure in known.figures} == {"colored_mnist", "cifar_mnist", "waterbirds", "celeba"}
    used = {figure.source for figure in known.figures}
    assert used == {source.key for source in known.sources}
    for problem in known.problems:
        defaults = {"colored_mnist": "label_noise", "cifar_mnist": "train_agreements"}
        assert (defaults.get(problem.dataset) in problem.settings) == bool(problem.settings)
    notes = {known.note(figure) for figure in known.figures}
    assert all(re.match(r"as reported(, second-hand)?: ", note) for note in notes)
    memory = [note for note in notes if "memory" in note]
    assert memory
    assert all("second-hand" in note and "not checked" in note for note in memory)


def test_a_figure_selected_on_test_stands_in_the_row_best_on_test() -> None:
    irm = rows("colored_mnist/irmv1")
    others = beside(irm)
    assert [row.selection for row in irm] == ["last", "validation_mean", BEST_ON_TEST]
    assert [others.cell(k, "test accuracy") for k in range(3)] == ["", "", "0.669 ± 0.025 [1]"]
    assert others.of(irm[0].label, "train accuracy") == "70.8 ± 0.9 [1]"
    assert others.metrics == ("train accuracy", "test accuracy")
    (note,) = others.notes
    assert note.startswith("[1] as reported: Arjovsky et al. 2019")
    assert note.endswith("selected on: TEST.")


def test_another_figure_stands_in_the_selected_row_or_the_last() -> None:
    assert [beside(rows("colored_mnist/erm")).cell(k, "test accuracy") for k in range(3)] == [
        "",
        "0.171 ± 0.007 [1]",
        "",
    ]
    without = rows("colored_mnist/erm", selection="last")
    assert [beside(without).cell(k, "test accuracy") for k in range(2)] == ["0.171 ± 0.007 [1]", ""]


def test_the_oracle_has_its_own_figures() -> None:
    oracle = rows("colored_mnist/oracle")
    assert beside(oracle).of(oracle[0].label, "test accuracy") == "73.0 [1]"
    gray = rows("colored_mnist/irmv1", "data.grayscale=true")
    assert beside(gray).metrics == ()


def test_another_problem_has_no_published_figure() -> None:
    assert beside(rows("colored_mnist/irmv1", "data.train_flips=[0.1, 0.3]")).notes == ()
    assert beside(rows("colored_mnist/irmv1", "data.holdout=4000", "data.validation=holdout")).notes != ()
    assert beside(compare(RUNS)).notes == ()  # a data set that nobody else has


@pytest.mark.parametrize("method", [GroupDRO, DFR])
def test_group_problems_have_the_average_by_training_sizes_and_the_worst_group(method: type) -> None:
    recipe = load_recipe("coloured_digits/group_dro" if method is GroupDRO else "coloured_digits/dfr")
    birds = replace(recipe, data=Waterbirds(), selection="last")
    assert isinstance(birds.method, method)
    others = beside(compare([replace(RUNS[0], recipe=birds, name="birds")]))
    figures = others.figures[0]
    assert set(figures) == {"test adjusted accuracy", "test worst-group accuracy"}
    assert figures["test worst-group accuracy"].value < figures["test adjusted accuracy"].value


def test_rows_of_several_methods_share_the_note_of_one_source() -> None:
    known = Published(
        (Problem("coloured_digits", ()),),
        (Source("a", "A"), Source("b", "B", True)),
        (
            Figure("coloured_digits", "erm", "test accuracy", 10.0, "a"),
            Figure("coloured_digits", "irmv1", "test accuracy", 20.0, "b", note="of 5"),
            Figure("coloured_digits", "vrex", "test accuracy", 30.0, "a"),
        ),
    )
    made_rows = [row for name in ("erm", "irmv1", "vrex") for row in rows(f"coloured_digits/{name}")]
    others: Beside = beside(made_rows, known)
    cells = [others.of(f"coloured_digits/{name}", "test accuracy") for name in ("erm", "irmv1", "vrex")]
    assert cells == ["10.0 [1]", "20.0 [2]", "30.0 [1]"]
    assert others.notes[1] == "[2] as reported, second-hand: B; of 5; selected on: not stated here."


def test_what_cannot_be_right_is_refused() -> None:
    problem, source = (Problem("d", ()),), (Source("a", "A"),)
    figure = Figure("d", "erm", "test accuracy", 10.0, "a")
    with pytest.raises(ValueError, match="two figures for the test accuracy of erm on d"):
        Published(problem, source, (figure, replace(figure, value=11.0)))
    with pytest.raises(ValueError, match="source must be one of"):
        Published(problem, source, (replace(figure, source="b"),))
    with pytest.raises(ValueError, match="dataset must be one of"):
        Published(problem, source, (replace(figure, dataset="e"),))
    for value in (-1.0, 100.5, math.nan):
        with pytest.raises(ValueError, match="value must be"):
            replace(figure, value=value)


def test_the_reference_irm_table_is_as_the_results_have_it() -> None:
    irm = {f.metric: f.percent() for f in published().figures if (f.dataset, f.method) == ("colored_mnist", "irmv1")}
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert all(text in page for text in irm.values())
