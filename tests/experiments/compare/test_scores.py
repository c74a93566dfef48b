"""Figures of ranking and balance in a comparison: read off the metrics, spread over seeds, intervals over samples."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from steelyard.experiments.compare.rows import compare
from steelyard.experiments.compare.tables import comma_separated, markdown, scores_table, summary, tex
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.calibration import binomial_interval
from steelyard.experiments.training.class_scores import ClassScores
from tests.support.compared import RUNS, grouped


def scored(run: Run, shift: float = 0.0) -> Run:
    """The run with figures of two classes, two attributes and two groups of one class each."""
    history = []
    for evaluation in run.history:
        whole = ClassScores((30, 10), (27, 6), (31, 9), 0.9 - shift, 0.03, 0.6, 0.1)
        inside = tuple(
            replace(whole, auroc=area - shift, class_count=(15, 5), class_right=(12, 4), class_predicted=(13, 7))
            for area in (0.8, 0.7)
        )
        groups = tuple(
            ClassScores((20, 0), (right, 0), (right, 20 - right), calibration_error=gap)
            for right, gap in ((18, 0.05), (9, 0.2))
        )
        test = replace(
            evaluation.test,
            class_accuracy=(0.9, 0.6),
            calibration_error=0.1,
            scores=whole,
            environment_scores=inside,
            group_scores=groups,
        )
        history.append(replace(evaluation, test=test))
    return replace(run, history=tuple(history))


ROWS = compare([scored(RUNS[0]), scored(RUNS[1], 0.02)])


def test_figures_are_those_of_the_test_split_over_seeds() -> None:
    row = ROWS[0]
    assert row.scores["test AUROC"].mean == pytest.approx(0.89)
    assert row.scores["test AUROC"].values == (0.88, 0.9)  # by seed: 0 is the second run
    assert row.scores["test worst-environment AUROC"].mean == pytest.approx(0.69)
    assert row.scores["test balanced accuracy"].mean == pytest.approx(0.75)
    assert row.scores["test worst-class accuracy"].mean == pytest.approx(0.6)
    assert row.scores["test worst-group calibration error"].mean == pytest.approx(0.2)
    assert "test worst-group AUROC" not in row.scores  # a group is of one class


def test_intervals_are_means_over_seeds_of_each_end() -> None:
    row = ROWS[0]
    one, two = (
        ClassScores((1, 1), (1, 1), (1, 1), auroc=area, auroc_error=0.03).auroc_interval() for area in (0.9, 0.88)
    )
    assert one is not None
    assert two is not None
    assert row.intervals["test AUROC"] == pytest.approx(((one[0] + two[0]) / 2, (one[1] + two[1]) / 2))
    assert row.intervals["test worst-class accuracy"] == pytest.approx(binomial_interval(6, 10))
    assert "test F1" not in row.intervals
    (first, *_) = compare([grouped(scored(RUNS[1]), [(9, 1), (2, 8), (5, 7)])])
    assert first.intervals["test worst-group accuracy"] == pytest.approx(binomial_interval(5, 10))


def test_the_table_stands_below_the_comparison_with_a_note_and_never_has_the_step_best_on_test() -> None:
    table = scores_table(ROWS)
    assert table is not None
    assert markdown(ROWS).endswith(table.markdown())
    assert [line[1] for line in table.lines] == ["last", "validation_mean"]
    place = table.head.index("AUROC")
    low, high = ROWS[0].intervals["test AUROC"]
    assert table.lines[0][place] == f"{ROWS[0].scores['test AUROC']} [{low:.3f}, {high:.3f}]"
    assert table.lines[0][table.head.index("F1")] == "0.758 ± 0.000"  # 54 / 61 and 12 / 19
    assert "AUROC" not in tex(ROWS)


def test_csv_and_summary_have_them() -> None:
    (line, *_) = csv.DictReader(io.StringIO(comma_separated(ROWS)))
    assert float(line["test_AUROC_mean"]) == pytest.approx(0.89)
    row = next(row for row in summary(ROWS) if row["metric"] == "test_AUROC" and row["selection"] == "last")
    assert row["mean"] == pytest.approx(0.89)
    assert row["interval"] == pytest.approx(ROWS[0].intervals["test AUROC"], abs=1e-6)


def test_runs_of_earlier_versions_have_no_such_table_and_mixtures_empty_cells() -> None:
    assert scores_table(compare(RUNS)) is None
    assert all("interval" not in row for row in summary(compare(RUNS)))
    both = [*compare([replace(RUNS[0], name="older")]), *compare([scored(RUNS[1])])]
    table = scores_table(both)
    assert table is not None
    assert table.lines[0][2:-1] == ("",) * (len(table.head) - 3)
    assert scores_table(compare([RUNS[0], scored(RUNS[1])])) is None  # a seed that lacks them: no mean of the others
