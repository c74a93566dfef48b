"""The plots of a comparison: drawn from the rows, the same bytes for the same runs, names escaped."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from steelyard.experiments.compare.bars import BAR, Bars, accuracy_bars
from steelyard.experiments.compare.plot_files import test_bars as draw_bars
from steelyard.experiments.compare.plot_files import test_curves as draw_curves
from steelyard.experiments.compare.plot_files import write_plots
from steelyard.experiments.compare.rows import Spread
from steelyard.experiments.runs.recipe import load_recipe
from tests.support.compared import RUNS, grouped, made

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lengths(svg: str) -> list[float]:
    """The widths of the bars, in the order drawn: the shapes that `bars` makes a little transparent."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        style, shape = path.get("style", ""), path.get("d", "")
        if "opacity: 0.8" in style and path.get("clip-path"):
            x = [float(value) for value in re.findall(r"[ML] ([\d.]+)", shape)]
            found.append(max(x) - min(x))
    return found


def dots(svg: str) -> int:
    return sum(element.get("id", "").startswith("PathCollection") for element in ElementTree.fromstring(svg).iter())


def test_bars_are_as_long_as_the_means() -> None:
    means = [0.8, 0.4, 0.2]
    panel = Bars("x", {f"m{k}": {"last step": Spread.of([mean])} for k, mean in enumerate(means)})
    drawn = lengths(accuracy_bars([panel], "t"))
    assert len(drawn) == 3
    assert [round(one / drawn[0], 4) for one in drawn] == [1.0, 0.5, 0.25]


def test_a_method_without_a_second_series_leaves_its_place_empty() -> None:
    one, two = Spread.of([0.5]), Spread.of([0.25])
    svg = accuracy_bars([Bars("x", {"a": {"last step": one}, "b": {"last step": one, "selected": two}})], "t")
    assert [round(length / lengths(svg)[0], 4) for length in lengths(svg)] == [1.0, 1.0, 0.5]
    assert [text for text in texts(svg) if text in ("last step", "selected")] == ["last step", "selected"]
    assert BAR < 0.5  # two bars and a gap fit a line


def test_seeds_are_dots_and_one_seed_is_a_bar_alone() -> None:
    several = draw_bars(RUNS)
    alone = draw_bars(RUNS[:1])
    assert dots(several) == 2  # one collection a bar: last step and selected
    assert dots(alone) == 0
    assert "(one seed)" in " ".join(texts(alone))
    assert "dot: a seed" in " ".join(texts(several))


def test_the_best_last_step_stands_on_top_and_the_oracle_is_named() -> None:
    low, high = made(0, [(0.9, 0.6, 0.2)]), made(0, [(0.9, 0.6, 0.7)], "coloured_digits/oracle")
    names = [text for text in texts(draw_bars([low, high])) if text in ("erm", "oracle (sees no colour)")]
    assert names == ["oracle (sees no colour)", "erm"]
    first = lengths(draw_bars([low, high]))
    assert first[0] > first[1]


def test_groups_have_panels_of_their_own() -> None:
    run = grouped(RUNS[1], [(9, 1), (2, 8), (5, 7)])
    labels = texts(draw_bars([run]))
    assert [text for text in labels if text.endswith("(%)")] == [
        "test accuracy (%)",
        "test, adjusted average (%)",
        "test, worst group (%)",
    ]
    assert "test, worst group (%)" not in texts(draw_bars(RUNS))
    plain, plain_selected, adjusted, _, worst, worst_selected = lengths(draw_bars([run]))
    assert adjusted / plain == pytest.approx(0.5, rel=0.01)
    assert worst / plain == pytest.approx(1.0, rel=0.01)
    assert worst_selected / worst == pytest.approx(plain_selected / plain, rel=0.01)
    assert plain_selected / plain == pytest.approx(0.2, rel=0.01)


def test_names_are_text_and_nothing_else() -> None:
    evil = replace(RUNS[0], name="<script>$x^$ & _y")
    for svg in (draw_bars([evil]), draw_curves([evil])):
        assert svg is not None
        assert "<script" not in svg
        assert any("<script>$x^$ & _y" in text for text in texts(svg))


def test_the_same_runs_give_the_same_bytes() -> None:
    assert draw_bars(RUNS) == draw_bars(RUNS)


def test_the_files_of_two_data_sets(tmp_path: Path) -> None:
    mnist = replace(RUNS[1], name="colored_mnist/oracle", recipe=load_recipe("colored_mnist/oracle"))
    names = ["coloured_digits.svg", "coloured_digits_bars.svg", "colored_mnist_bars.svg"]
    assert write_plots([*RUNS, mnist], tmp_path) == names
    assert {path.name for path in tmp_path.iterdir()} == set(names)
