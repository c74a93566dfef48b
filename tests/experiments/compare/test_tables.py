"""A comparison's files: the same figures in Markdown, CSV, LaTeX and JSON, published ones apart from ours."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.experiments.compare.rows import compare, footnotes
from steelyard.experiments.compare.tables import FILES, comma_separated, markdown, summary, tex, write_comparison
from tests.experiments.compare.test_latex import rows_of
from tests.support.compared import RUNS, grouped, made

IRM = [made(seed, [(0.9, 0.6, 0.2 + seed / 10), (0.8, 0.9, 0.4)], "colored_mnist/irmv1") for seed in (0, 1)]


def test_the_files(tmp_path: Path) -> None:
    rows = compare(RUNS)
    write_comparison(rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert (tmp_path / "comparison.md").read_text() == markdown(rows)
    assert (tmp_path / "comparison.csv").read_text() == comma_separated(rows)
    assert (tmp_path / "comparison.tex").read_text() == tex(rows)
    assert markdown(rows).count("\n") == 5
    table = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    assert float(table[0]["test_accuracy_mean"]) == pytest.approx(0.4)
    assert table[1]["steps"] == "10 20"
    written = json.loads((tmp_path / "summary.json").read_text())
    keys = ["recipe", "dataset", "method", "metric", "selection", "mean", "std", "seeds", "command"]
    assert all(list(row) == keys for row in written)
    assert len(written) == 9
    row = next(row for row in written if row["metric"] == "test_accuracy" and row["selection"] == "last")
    assert (row["mean"], row["seeds"]) == (0.4, [0, 1])
    assert row["command"] == "steelyard run coloured_digits/erm --seeds 0 1 --set a=1"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_markdown_and_latex_have_the_same_cells() -> None:
    rows = compare([*RUNS, *IRM])
    head, _, *lines = markdown(rows).split("\n\n")[0].splitlines()
    assert [cells(head), *map(cells, lines)] == rows_of(tex(rows))
    assert tex(rows).count(r"\midrule") == 2  # below the head and between the two recipes


@pytest.mark.parametrize("name", ["a|b", "[1] & co", "x_y 100 %"])
def test_tables_keep_their_columns_whatever_a_recipe_is_called(name: str) -> None:
    rows = compare([replace(RUNS[0], name=name)])
    lines = markdown(rows).splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines} == {7}
    assert {len(row) for row in rows_of(tex(rows))} == {6}
    assert rows_of(tex(rows))[1][0] == name


def test_notes_of_marked_rows_are_in_markdown_and_latex() -> None:
    rows = compare([made(2, [(0.9, 0.6, 0.2), (0.4, 0.5, 0.5)])])
    (note,) = footnotes(rows)
    assert "| coloured_digits/erm † | last |" in markdown(rows)
    assert markdown(rows).endswith(f"\n{note}\n")
    assert r"coloured\_digits/erm \dag{} & last" in tex(rows)
    assert r"{\footnotesize \dag{} coloured\_digits/erm: 1 of 1 seed ended" in tex(rows)


def test_published_figures_have_columns_of_their_own_with_their_source() -> None:
    rows = compare(IRM)
    head, _, last, selected, best = markdown(rows).split("\n\n")[0].splitlines()
    assert "| test accuracy | as reported: train accuracy | as reported: test accuracy | seeds |" in head
    assert cells(best)[5:7] == ["0.708 ± 0.009 [1]", "0.669 ± 0.025 [1]"]
    assert cells(last)[5:7] == cells(selected)[5:7] == ["", ""]
    assert "[1] as reported: Arjovsky et al. 2019" in markdown(rows)
    assert r"{[}1{]} as reported: Arjovsky et al. 2019" in tex(rows)
    *_, line = csv.DictReader(io.StringIO(comma_separated(rows)))
    assert (line["reported_test_accuracy_mean"], line["reported_test_accuracy_std"]) == ("0.669", "0.025")
    assert line["reported_test_accuracy_source"].startswith("as reported: Arjovsky et al. 2019")
    assert float(line["test_accuracy_mean"]) == pytest.approx(0.4)
    assert all("0.669" not in str(row["mean"]) for row in summary(rows))
    assert "reported" not in markdown(compare(RUNS)) + comma_separated(compare(RUNS)) + tex(compare(RUNS))


def test_groups_have_columns_where_there_are_groups() -> None:
    run = grouped(RUNS[1], [(9, 1), (2, 8), (5, 7)])
    rows = [*compare([run]), *compare([replace(RUNS[1], name="plain")])]
    head, _, first, *_, other = markdown(rows).splitlines()
    assert "| test accuracy | test worst-group accuracy | test adjusted accuracy | seeds |" in head
    assert "| 0.500 | 0.500 | 0.250 | 1 |" in first
    assert other.endswith("|  |  | 1 |")  # the data set of this row has no groups
    table = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    assert float(table[0]["test_worst_group_accuracy_mean"]) == 0.5
    assert table[-1]["test_worst_group_accuracy_mean"] == ""
    assert [row["metric"] for row in summary(rows)[:5]][3:] == ["test_worst_group_accuracy", "test_adjusted_accuracy"]
    assert "worst" not in markdown(compare(RUNS)) + comma_separated(compare(RUNS))
