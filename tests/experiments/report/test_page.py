"""The report: complete, self-contained, and nothing from data gets out of its place."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from steelyard.experiments.compare import plots
from steelyard.experiments.compare.rows import compare
from steelyard.experiments.errors import DataError
from steelyard.experiments.report.page import render, write_report
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import Run, execute
from tests.support.layouts import write_waterbirds

EVIL = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """Collects the tags, the addresses that a browser would fetch, and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fast: dict) -> list[Run]:
    place = tmp_path_factory.mktemp("runs")
    return [
        execute(load_recipe(name, sets, seed), place / name / str(seed), name=name, overrides=tuple(sets))
        for name, sets in fast.items()
        for seed in (0, 1)
    ]


def test_the_page(runs: list[Run], tmp_path: Path) -> None:
    write_report(runs, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    for run in runs:
        assert f"steelyard run {run.name} --seeds 0 1" in page.text
    for words in ("colour agrees with the label", "label flipped by noise", "Most kept", "Least kept", "papers only"):
        assert words in page.text
    assert "over 2 seeds" in page.text
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)  # nothing is loaded from elsewhere
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    rows = 2 + 2 * ("Found group: above the cut" in page.text)
    assert page.tags.count("figure") == rows * 24
    assert "url(" not in (tmp_path / "page.html").read_text()


def test_the_figures_in_the_table_are_those_of_the_runs(runs: list[Run]) -> None:
    two = [run for run in runs if run.name == "coloured_digits/erm"]
    text = re.sub(r"\s+", " ", Page(render(two)).text)
    tests = [100 * run.history[-1].test.accuracy for run in two]
    assert f"{np.mean(tests):.1f} ± {np.std(tests, ddof=1):.1f}" in text


def test_ranking_and_balance_have_a_table_with_its_note(runs: list[Run]) -> None:
    page = Page(render(runs))
    rows = compare(runs)
    assert "Ranking, balance and calibration on the test split" in page.text
    low, high = rows[0].intervals["test AUROC"]
    assert f"{rows[0].scores['test AUROC']} [{low:.3f}, {high:.3f}]" in page.text
    assert "Brackets: a 95 % interval over the test samples" in page.text


def test_a_run_that_ends_below_the_floor_is_marked(runs: list[Run]) -> None:
    first = runs[0]
    strict = [replace(run, recipe=replace(run.recipe, train_floor=1.0)) for run in runs[:2]]
    text = Page(render(strict)).text
    assert "erm †" in text
    assert "2 of 2 seeds ended with a training accuracy below the recipe's floor of 1" in text
    free = replace(first, recipe=replace(first.recipe, train_floor=0.0))
    assert "†" not in Page(render([free])).text


def test_variants_of_one_recipe_have_lines_of_their_own(runs: list[Run]) -> None:
    first, other = runs[0], runs[1]
    changed = replace(
        other, recipe=replace(other.recipe, train_floor=0.1), overrides=(*other.overrides, "train_floor=0.1")
    )
    page = Page(render([first, changed]))
    for run, name in ((first, "erm"), (changed, "erm train_floor=0.1")):
        text = re.sub(r"\s+", " ", page.text)
        figures = [
            f"{100 * m.accuracy:.1f}" for m in (run.history[-1].visible.train, run.history[-1].visible.validation)
        ]
        assert re.search(rf"{re.escape(name)}( †)?\s*{figures[0]}\s*{figures[1]}", text)


def test_groups_of_different_size_and_selection(runs: list[Run]) -> None:
    two = [replace(run, recipe=replace(run.recipe, selection="last")) for run in runs[:2]]
    text = re.sub(r"\s+", " ", Page(render([*two, runs[2]])).text)
    assert "over the seeds of each row" in text
    assert "last (for erm), validation_vrex (for irmv1) prefers" in text


def test_the_outer_steps_of_a_method_that_learns_weights(runs: list[Run]) -> None:
    maple = [run for run in runs if run.samples is not None]
    assert "How it was learned" in Page(render(maple)).text
    assert "The inner runs were trained as one." in Page(render(maple)).text
    assert "How it was learned" not in Page(render(runs[:2])).text
    bare = [replace(run, history=tuple(replace(e, extra={}) for e in run.history)) for run in maple]
    assert "How it was learned" not in Page(render(bare)).text
    rows = [{"step": float(k), "outer_loss": 0.1, "kept": 3.0, "weights_gradient_norm": 0.0} for k in range(3)]
    drawn = plots.outer_steps({"seed 7": rows}, 10)
    assert all(words in drawn for words in ("seed 7", "outer step", "outer risk", "samples kept (%)", "gradient norm"))


def test_images_without_colour_have_no_caption_about_it(runs: list[Run]) -> None:
    maple = next(run for run in runs if run.samples is not None)
    gray = replace(maple, recipe=replace(maple.recipe, data=replace(maple.recipe.data, grayscale=True)))
    assert "Green is" in Page(render([maple])).text
    assert "Green is" not in Page(render([gray])).text


def test_one_run_alone(runs: list[Run]) -> None:
    page = Page(render(runs[:1]))
    assert "single seed" in page.text
    assert "Most kept" not in page.text


def test_strings_from_outside_are_escaped(runs: list[Run]) -> None:
    hostile = [
        replace(run, name=EVIL, overrides=(EVIL,), environment={**run.environment, "platform": EVIL}) for run in runs
    ]
    html = render(hostile)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "script" not in Page(html).tags


def test_strings_in_plots_are_escaped() -> None:
    svg = plots.accuracy_curves({EVIL: [([1, 2], [0.1, 0.2])]}, EVIL, EVIL)
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


def test_without_the_data_the_page_says_so(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: object, *arguments: object) -> None:
        raise DataError("the <b>disk</b> is gone")

    maple = [run for run in runs if run.samples is not None]
    monkeypatch.setattr(type(maple[0].recipe.data), "load", missing)
    html = render(maple)
    assert "No images: the &lt;b&gt;disk&lt;/b&gt; is gone" in html


def test_plots_are_the_same_bytes_for_the_same_data() -> None:
    frame = pandas.DataFrame({"probability": [0.0, 0.5, 1.0], "weight": [0.0, 1.0, 2.0], "fact": [True, False, True]})
    draw = lambda: plots.distributions(frame, "fact", {True: "yes", False: "no"})  # noqa: E731
    assert draw() == draw()
    assert "yes (n = 2)" in draw()


def test_a_page_of_two_data_sets(runs: list[Run]) -> None:
    other = load_recipe("colored_mnist/erm")
    page = Page(render([runs[0], replace(runs[0], name="colored_mnist/erm", recipe=other)]))
    assert "coloured_digits and colored_mnist" in page.text


def table_rows(html: str) -> list[str]:
    """The rows of the page's first table."""
    return re.findall(r"<tr.*?</tr>", html.split("<table>")[1].split("</table>")[0], re.S)


def test_groups_and_published_figures_have_columns_of_their_own(runs: list[Run]) -> None:
    recipe = replace(runs[0].recipe, data=load_recipe("colored_mnist/irmv1").data)
    mnist = [replace(run, name="colored_mnist/erm", recipe=replace(recipe, seed=run.recipe.seed)) for run in runs[:2]]
    last = mnist[0].history[-1]
    worst = replace(last.test, group_right=(1, 9), group_count=(40, 10), adjusted_accuracy=0.345)
    shifted = [replace(run, history=(replace(last, test=worst),)) for run in mnist]
    for case, width in ((runs[:2], 9), (mnist, 11), (shifted, 15)):
        html = render(case)
        assert {len(re.findall(r"<t[hd]", row)) for row in table_rows(html)[1:]} == {width}
        first = table_rows(html)[0]
        spans = [int(span) for span in re.findall(r'colspan="(\d+)"', first)]
        assert sum(spans) + first.count("<th") - len(spans) == width
    text = re.sub(r"\s+", " ", Page(render(shifted)).text)
    assert re.search(r"34\.5 ± 0\.0\s*2\.5 ± 0\.0", text)  # adjusted average, worst group
    assert re.search(r"87\.4 ± 0\.2 \[1\]\s*17\.1 ± 0\.7 \[1\]", text)
    assert "[1] as reported: Arjovsky et al. 2019" in text
    assert "as reported" not in Page(render(runs[:2])).text


def test_the_words_below_the_table_are_not_as_wide_as_the_table(runs: list[Run]) -> None:
    """In the table they would be cut off with it on a narrow screen."""
    last = runs[0].history[-1]
    grouped = replace(last.test, group_right=(1, 9), group_count=(40, 10), adjusted_accuracy=0.345)
    html = render([replace(runs[0], history=(replace(last, test=grouped),))])
    below = html.split("<tbody>")[1].split("</tbody>")[1]
    assert below.index("</table>") < below.index("“Selected on validation” takes the step")
    assert "the lowest accuracy of a group. Seconds are of one run" in re.sub(r"\s+", " ", Page(html).text)


def test_the_bar_chart_is_on_the_page(runs: list[Run]) -> None:
    assert 'alt="Test accuracy of each method: mean, standard deviation and every seed"' in render(runs[:1])


def test_more_methods_than_colours_have_other_lines() -> None:
    curves = {f"method {k}": [([1, 2], [0.1, 0.2 + k / 20])] for k in range(len(plots.COLOURS) + 1)}
    styles = set(re.findall(r'style="fill: none; (stroke[^"]*)"', plots.accuracy_curves(curves, "", "")))
    both = {style for style in styles if plots.COLOURS[0].lower() in style}
    assert len({"dasharray" in style for style in both}) == 2


def test_photographs_that_stay_on_disk_are_shown_small(tmp_path: Path) -> None:
    write_waterbirds(tmp_path / "data", counts=((2, 1, 1, 2), (1, 1, 1, 1), (1, 1, 1, 1)))
    small = ["model={name='logistic'}", "data.workers=0", "method.budget=3", "method.steps=1"]
    small += ["method.inner.steps=1", "method.inner.batch_size=2"]
    run = execute(load_recipe("waterbirds/maple", small), tmp_path / "run", name="maple", data_root=tmp_path / "data")
    html = render([run], tmp_path / "data")
    shown = [address for address in Page(html).addresses if address.startswith("data:image/png")]
    assert len(shown) == 2 * 6  # the most and the least kept: all of them, twice
    pixels = [Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) for address in shown]
    assert {image.size for image in pixels} == {(64, 64)}
    assert len({image.tobytes() for image in pixels}) == 6
    assert "colour of the label" not in html
    assert "No images: Waterbirds needs a data root" in render([run])
