"""The plots' axes and names: plain text, nothing cut off, and room for what is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pandas
import pytest
from matplotlib.figure import Figure

from steelyard.experiments.compare import bars, plots
from steelyard.experiments.compare.bars import Bars, accuracy_bars
from steelyard.experiments.compare.plots import STYLE, accuracy_curves, outer_steps, svg
from steelyard.experiments.compare.rows import Spread
from studies.theorem1.figures import FIGURES, draw
from tests.support.places import RESULTS


def norms(size: float, growth: float, seeds: int = 1) -> str:
    """An outer optimisation whose gradients begin at `size` and grow by a factor a step."""
    rows = [
        {"step": float(k), "outer_loss": 0.1, "kept": 3.0, "weights_gradient_norm": size * growth**k} for k in range(9)
    ]
    return outer_steps({f"seed {k}": rows for k in range(seeds)}, 10)


def texts(drawn: str) -> list[str]:
    return re.findall(r">([^<>]+)</(?:text|tspan)>", drawn)  # matplotlib before 3.11 wraps them once more


@pytest.mark.parametrize(
    ("size", "growth", "labels"),
    [
        (1e-3, 2.0, ["0.001", "0.01", "0.1"]),
        (0.2, 1.3, ["0.2", "0.3", "0.4", "0.6", "1"]),  # a decade and less: the ticks between, too
        (3e-9, 1.2, ["10⁻⁸", "4×10⁻⁹"]),
        (1.0, 30.0, ["1", "100", "10,000", "10⁶", "10⁸"]),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers(size: float, growth: float, labels: list[str]) -> None:
    drawn = norms(size, growth)
    assert "math" not in drawn
    assert "$" not in drawn
    assert set(labels) <= set(texts(drawn))


def test_so_has_any_axis_of_any_figure_as_svg() -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        for axes, scale in zip(figure.subplots(1, 3), ("log", "symlog", "linear"), strict=True):
            axes.plot([1e-6, 1, 1e6], [-1e6, 1, 1e6])
            axes.set(xscale="log", yscale=scale)
        axes.set_xscale("log", base=2)
        drawn = svg(figure)
    assert "math" not in drawn
    assert {"10⁻⁶", "10⁶", "−10⁶", "0"} <= set(texts(drawn))


LONG = [
    "erm",
    'maple_100 risk.shape="log" method.beta1=0.9',
    "maple " + " ".join(f"method.option_{k}={k / 7}" for k in range(12)),
    "m" * 300,
    *(f"method {k}" for k in range(14)),
]
SPREADS = {"last step": Spread.of([0.5, 0.6]), "selected on validation": Spread.of([0.4, 0.5])}
DRAWN: dict[str, Callable[[], Any]] = {
    "curves": lambda: accuracy_curves(
        {name: [([1, 2, 3], [0.1, 0.4, 0.3])] for name in LONG}, f"Test accuracy {'while training ' * 4}", "y", 0.7
    ),
    "one curve": lambda: accuracy_curves({"erm": [([1, 2, 3], [0.1, 0.4, 0.3])]}, "Test accuracy", "y"),
    "bars": lambda: accuracy_bars([Bars("test (%)", dict.fromkeys(LONG, SPREADS))] * 3, "Accuracy"),
    "one bar": lambda: accuracy_bars([Bars("test (%)", {"erm": SPREADS})], "Accuracy on coloured_digits"),
    "outer steps": partial(norms, 1e-7, 2.0, seeds=20),
}


def assert_whole(figure: Figure) -> None:
    """Nothing that is drawn lies outside of the figure."""
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= width
    assert drawn.y1 <= height


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_off_and_names_leave_the_plot_its_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []

    def look(figure: Figure) -> str:
        figures.append(figure)
        return svg(figure)

    for module in (plots, bars):
        monkeypatch.setattr(module, "svg", look)
    DRAWN[name]()
    (figure,) = figures
    with matplotlib.rc_context(STYLE):
        assert_whole(figure)
    width, height = figure.get_size_inches()
    places = [axes.get_position() for axes in figure.axes]
    assert width * sum(place.width for place in places) > 3.5  # inches
    assert height * min(place.height for place in places) > 0.3


THEORY = RESULTS / "theory"


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_the_bound_hide_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Legends lie beside the lines, marks not on the edge: half of one on the axis would be cut off."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), path.write_bytes(b"")))
    draw(name, pandas.read_csv(THEORY / f"{name}.csv", keep_default_na=False), tmp_path / "figure.png")
    (figure,) = figures
    figure.draw_without_rendering()
    assert_whole(figure)
    for axes in figure.axes:
        inside, legend = axes.get_window_extent(), axes.get_legend()
        assert legend is None or not legend.get_window_extent().overlaps(inside)
        for line in axes.get_lines():
            if line.get_marker() not in ("", "None", None, "_"):
                marks = line.get_transform().transform(line.get_xydata())
                assert (marks[:, 0] - line.get_markersize() / 2 > inside.x0).all()
                assert (marks[:, 0] + line.get_markersize() / 2 < inside.x1).all()
