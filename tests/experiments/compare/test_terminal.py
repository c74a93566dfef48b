"""The printed table: one line a method, groups and published figures where there are any."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from steelyard.experiments.compare.rows import compare
from steelyard.experiments.compare.terminal import show_comparison
from steelyard.experiments.data import Waterbirds
from steelyard.experiments.runs.run import Run
from tests.support.compared import RUNS, grouped, made


def shown(runs: list[Run], width: int = 200) -> str:
    text = io.StringIO()
    show_comparison(Console(file=text, width=width), compare(runs))
    return text.getvalue()


def figures(text: str, name: str) -> list[str]:
    """The columns of the line that begins with `name`."""
    (line,) = (line for line in text.splitlines() if line.startswith(f" {name} "))
    return [column for column in line.replace(" ± ", "±").replace(" [", "[").split() if column]


def test_a_line_has_the_three_selections() -> None:
    assert figures(shown(RUNS), "erm") == ["erm", "70.0±0.0", "50.0±0.0", "40.0±14.1", "25.0±21.2", "50.0±14.1", "2"]
    assert "adjusted" not in shown(RUNS)
    assert "reported" not in shown(RUNS).replace("papers that report it", "")


def test_groups_have_the_adjusted_average_and_the_worst_group_at_both_steps() -> None:
    run = replace(grouped(RUNS[1], [(9, 1), (2, 8), (5, 7)]), name="g")
    text = shown([run, replace(RUNS[1], name="p")])
    (head,) = (line for line in text.splitlines() if line.startswith(" recipe"))
    assert head.split("  ")[0] == " recipe"
    names = ["train", "validation", "test", "adjusted", "worst group", "selected", "sel. adjusted", "sel. worst group"]
    assert [name for name in (part.strip() for part in head.split("  ")) if name] == ["recipe", *names, "best", "seeds"]
    assert figures(text, "g") == ["g", "70.0", "50.0", "50.0", "25.0", "50.0", "10.0", "5.0", "10.0", "60.0", "1"]
    assert figures(text, "p") == ["p", "70.0", "50.0", "50.0", "10.0", "60.0", "1"]
    assert "weighs the groups' accuracies by their sizes in training" in " ".join(text.split())


def test_published_figures_have_their_source_below() -> None:
    text = shown([made(0, [(0.9, 0.6, 0.2), (0.8, 0.9, 0.4)], "colored_mnist/irmv1")])
    assert "reported train" in text
    assert figures(text, "irmv1")[-3:-1] == ["70.8±0.9[1]", "66.9±2.5[1]"]
    assert "[1] as reported: Arjovsky et al. 2019" in text


def test_second_hand_figures_say_so() -> None:
    run = replace(RUNS[0], name="b")
    birds = replace(run, recipe=replace(run.recipe, data=Waterbirds()))
    text = shown([birds])
    assert "97.3 [1]" in text
    assert "72.6 [1]" in text
    assert "[1] as reported, second-hand: " in text


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_cuts_no_figure(width: int) -> None:
    run = grouped(made(0, [(0.9, 0.6, 0.2), (0.8, 0.9, 0.4)], "colored_mnist/irmv1"), [(9, 1), (2, 8)])
    assert figures(shown([run], width), "irmv1") == figures(shown([run]), "irmv1")
