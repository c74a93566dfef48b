"""The table of the photographs: chosen on validation, measured on other data; methods beside plain implementations."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from steelyard._support._errors import UserError
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.errors import RecipeError, RunError
from steelyard.experiments.methods.found_groups import ErrorGroups
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.tuning.tuning import Tuning
from studies.photographs import finders
from studies.photographs.__main__ import main
from studies.photographs.report import figures, overview, report, shuffled_table, table
from studies.photographs.rows import ROWS, TABLES, Row, rows_of
from studies.photographs.search import CHOSEN_BY, Search, carry_out, trained_on
from studies.photographs.sets import Sets, shares_of, source, tables_of
from studies.photographs.shuffled import within_groups
from studies.photographs.table import Job, carry_out_all, read, rows_named
from tests.support.layouts import write_compas
from tests.support.places import RESULTS

COUNTS = ((300, 24, 12, 100), (40, 40, 20, 20), (400, 400, 400, 400))


def splits_of(seed: int) -> Splits:
    """Gaussian features: one of the object, one, stronger, of the place, six of nothing."""
    generator = torch.Generator().manual_seed(seed)

    def part(counts: tuple[int, ...]) -> Batch:
        group = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
        inputs = torch.randn(len(group), 8, generator=generator)
        inputs[:, 0] += 1.5 * (2 * (group // 2) - 1)
        inputs[:, 1] += 2.0 * (2 * (group % 2) - 1)
        return Batch.of(inputs, group // 2, environment=group % 2, group=group)

    train, validation, test = map(part, COUNTS)
    names = tuple(f"{label} on {place}" for label in ("car", "frog") for place in ("land", "water"))
    return Splits("waterbirds", train, validation, test, ("car", "frog"), ("land", "water"), groups=names)


SMALL = ("method.training.steps=20", "method.training.evaluate_every=10")


ONE_HUMP = (
    *("method.groups.maple.steps=1", "method.groups.maple.inner.steps=2"),
    "method.groups.maple.probability_rate=1e-9",  # all keep-probabilities stay alike
)


def row_titled(title: str) -> Row:
    return next(row for row in ROWS if row.title == title)


ERM = Row("ERM", "waterbirds/features/erm", SMALL)


def test_settings_are_chosen_on_validation_and_measured_on_other_data(tmp_path: Path) -> None:
    asked: list[int] = []

    def sets(seed: int) -> Splits:
        asked.append(seed)
        return splits_of(seed)

    found = carry_out(ERM, sets, Search(trials=3, tuned_on=7, seeds=(8, 9)), tmp_path)
    assert asked[0] == 7
    assert set(asked[1:]) == {8, 9}
    assert set(found["choices"]) == set(CHOSEN_BY)  # ERM reads no groups
    tuning = Tuning.of(ERM.recipe, Search().settings(ERM), tmp_path, count=3, seeds=(7,))
    best = dict.fromkeys(CHOSEN_BY, -1.0)
    for trial in tuning.trials:
        recipe = load_recipe(tuning.name, tuning.settings(trial), 7)
        for seen in histories(recipe, splits_of(7)):
            scores = (seen.validation.worst_group_accuracy, seen.validation.worst_class_accuracy)
            best = {name: max(best[name], score) for name, score in zip(CHOSEN_BY, scores, strict=True)}
    assert {name: choice["score"] for name, choice in found["choices"].items()} == best
    chosen = load_recipe(str(tmp_path / "chosen.toml"), (), 8)
    run = found["choices"][CHOSEN_BY[0]]["runs"][0]
    steps = {seen.step: seen for seen in histories(chosen, splits_of(8))}
    assert run["seed"] == 8
    assert run["validation"]["right"] == list(steps[run["step"]].validation.group_right)
    assert run["step"] == max(steps, key=lambda step: (steps[step].validation.worst_group_accuracy, -step))


def histories(recipe: Any, splits: Splits) -> list[Any]:
    from steelyard.experiments.training.evaluation import evaluate

    problem, found = Problem(splits, recipe.model, recipe.seed), []
    recipe.method.fit(problem, lambda *step: found.append(evaluate(problem, step[1], step[0], step[2]).visible))
    return found


def test_choices_do_not_move_when_test_figures_do(tmp_path: Path) -> None:
    def reversed_test(seed: int) -> Splits:
        splits = splits_of(seed)
        return replace(splits, test=replace(splits.test, targets=1 - splits.test.targets))

    search = Search(trials=2, tuned_on=7, seeds=(8,))
    ours, other = (
        carry_out(ERM, sets, search, tmp_path / name) for name, sets in (("a", splits_of), ("b", reversed_test))
    )
    for name in CHOSEN_BY:
        one, two = (found["choices"][name] for found in (ours, other))
        assert (one["trial"], one["score"], one["runs"][0]["step"]) == (
            two["trial"],
            two["score"],
            two["runs"][0]["step"],
        )
        assert one["runs"][0]["test"]["accuracy"] == pytest.approx(1 - two["runs"][0]["test"]["accuracy"])


def test_one_setting_is_not_searched_for(tmp_path: Path) -> None:
    asked: list[int] = []

    def sets(seed: int) -> Splits:
        asked.append(seed)
        return splits_of(seed)

    found = carry_out(ERM, sets, Search(trials=1, tuned_on=7, seeds=(8, 9)), tmp_path)
    assert set(asked) == {8, 9}
    worst = []
    for run in found["choices"][CHOSEN_BY[0]]["runs"]:
        seen = histories(load_recipe(ERM.recipe, SMALL, run["seed"]), splits_of(run["seed"]))
        worst.append(max(one.validation.worst_group_accuracy for one in seen))
        assert (
            min(r / n for r, n in zip(*(run["validation"][of] for of in ("right", "count")), strict=True)) == worst[-1]
        )
    assert found["choices"][CHOSEN_BY[0]]["score"] == pytest.approx(sum(worst) / 2)
    noted = table([found], "training", None).notes[0]
    assert "Settings: the recipes', which nobody tuned" in noted


def test_rows_trained_on_validation_are_judged_by_what_they_did_not_see() -> None:
    splits = splits_of(0)
    alone, both = (trained_on(splits, samples, halve=True) for samples in ("validation", "both"))
    assert len(alone.train) == len(alone.validation) == 60
    assert len(both.train) == len(splits.train) + 60
    rows = torch.cat([alone.train.inputs, alone.validation.inputs])
    assert torch.equal(rows.sort(0).values, splits.validation.inputs.sort(0).values)
    assert alone.train.index.tolist() == list(range(60))
    whole = trained_on(splits, "both")
    assert torch.equal(whole.train.group, torch.cat([splits.train.group, splits.validation.group]))
    assert trained_on(splits, "given") is splits


def test_a_row_that_fails_in_every_trial_says_why(tmp_path: Path) -> None:
    humps = row_titled("up-weighting on groups by maple")
    row = replace(humps, overrides=(*humps.overrides, *ONE_HUMP, *SMALL))
    with pytest.raises(RecipeError, match=r"no trial can be chosen: \w+Error: "):
        carry_out(row, splits_of, Search(trials=1, tuned_on=1, seeds=(2,)), tmp_path)


def test_weights_are_shuffled_within_groups() -> None:
    weights, groups = torch.rand(50, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    found = within_groups(weights, groups, torch.Generator().manual_seed(1))
    assert not torch.equal(found, weights)
    for group in range(3):
        assert torch.equal(found[groups == group].sort().values, weights[groups == group].sort().values)


def test_maple_has_its_shuffled_weights_measured(tmp_path: Path) -> None:
    row = row_titled("MAPLE, groups on validation")
    short = replace(row, overrides=("method.steps=3", "method.inner.steps=5"))
    found = carry_out(short, splits_of, Search(trials=1, tuned_on=1, seeds=(2,)), tmp_path)
    (run,) = found["choices"][CHOSEN_BY[0]]["runs"]
    assert set(found["choices"]) == {CHOSEN_BY[0]}
    assert run["shuffled"]["test"]["count"] == list(COUNTS[2])
    assert len(shuffled_table([found]).lines) == 1


def test_weights_of_inner_runs_that_go_on_are_not_shuffled(tmp_path: Path) -> None:
    more = ("method.steps=2", "method.inner.steps=5", "method.inner.restart=false")
    row = replace(row_titled("MAPLE, groups on validation"), overrides=more)
    found = carry_out(row, splits_of, Search(trials=1, seeds=(2,)), tmp_path)
    (run,) = found["choices"][CHOSEN_BY[0]]["runs"]
    assert "shuffled" not in run
    assert shuffled_table([found]).lines == []


@pytest.mark.parametrize(
    ("title", "known"),
    [
        *(("ERM", "nowhere"), ("Group DRO", "training"), ("DFR on validation", "validation"), ("V-REx", "training")),
        *(("validation rows alone", "validation"), ("training and validation together", "training")),
        *(("MAPLE, groups on validation", "validation"), ("Group DRO on groups by xrm", "nowhere")),
        *(
            ("DFR on groups by maple", "validation"),
            ("JTT", "nowhere"),
            ("Learning to Reweight", "validation"),
            ("classes weighed alike", "nowhere"),
        ),
    ],
)
def test_where_a_row_reads_groups(title: str, known: str) -> None:
    assert row_titled(title).known == known


def test_every_row_is_a_recipe_and_has_a_folder_of_its_own() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS) >= 25
    for row in ROWS:
        row.load()
    assert rows_named(["V-REx"]) == tuple(row for row in ROWS if row.title == "V-REx")
    with pytest.raises(RecipeError, match="unknown row 'Erm'; there are ERM, "):
        rows_named(["Erm"])


def run_of(seed: int, worst: int, validation: int) -> dict[str, Any]:
    test = {
        "accuracy": 0.9,
        "right": [90, worst, 80, 95],
        "count": [100] * 4,
        "calibration error": 0.05,
        "adjusted": 0.8,
    }
    held = {"accuracy": 0.9, "right": [9, validation, 9, 9], "count": [10] * 4, "calibration error": 0.05}
    return {"seed": seed, "seconds": 2.0, "step": 5, "test": test, "validation": held}


def row_of(title: str, known: str, worst: tuple[int, int], score: float) -> dict[str, Any]:
    runs = [run_of(seed, value, 6) for seed, value in enumerate(worst)]
    choices = {name: {"trial": 0, "score": score, "settings": {}, "runs": runs} for name in CHOSEN_BY}
    return {"row": title, "known": known, "trials": 2, "failed": 0, "search seconds": 30.0, "choices": choices}


def test_figures_and_tables_of_rows(tmp_path: Path) -> None:
    sizes = (3498, 184, 56, 1057)
    found = figures(run_of(0, 70, 6), sizes)
    assert found["worst"] == pytest.approx(70)
    assert found["validation worst"] == pytest.approx(60)
    assert found["balanced"] == pytest.approx((90 + 70 + 80 + 95) / 4)
    assert found["adjusted"] == pytest.approx(np.average([90, 70, 80, 95], weights=sizes))
    rows = [row_of("ERM", "nowhere", (70, 74), 0.6), row_of("Group DRO", "training", (76, 78), 0.8)]
    lines = table(rows, "training", sizes, "waterbirds").lines
    assert [line[0] for line in lines] == ["Group DRO", "ERM"]
    assert lines[1][2] == "72.0 ± 2.8"
    assert list(lines[1][-2:]) == ["72.6", "97.3"]
    assert [line[0] for line in table(rows, "nowhere", sizes).lines] == ["ERM"]
    assert table(rows, "validation", sizes).lines[0][0] == "ERM"
    sources = [Sets(tmp_path, "waterbirds", share) for share in (0.0, 0.2)]
    refused = {"row": "JTT", "known": "nowhere", "refused": "JTT: no trial can be chosen", "choices": {}}
    report(tmp_path, sources, [[*rows, refused], rows[:1]])
    assert "JTT: no trial can be chosen" in (tmp_path / "waterbirds_training.md").read_text()
    assert (tmp_path / "waterbirds_flipped20_nowhere.csv").exists()
    whole = overview(sources, [rows, rows[:1]]).lines
    assert [line[0] for line in whole] == ["Group DRO", "ERM"]
    assert whole[1][2:] == whole[1][2:5] * 2
    assert whole[0][5:] == [""] * 3
    assert (tmp_path / "overview.md").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    worst = next(
        one for one in summary if one["method"] == "Group DRO" and one["metric"] == "test worst-group accuracy"
    )
    assert worst["mean"] == pytest.approx(0.77)
    assert worst["command"] == "python -m studies.photographs table"
    with pytest.raises(RunError, match="no row is carried out"):
        report(tmp_path, sources[:1], [[]])


def test_tables_of_people_have_the_rows_that_they_have_recipes_of(tmp_path: Path) -> None:
    for name in TABLES:
        rows = rows_of(name)
        assert {"ERM", "Group DRO", "DFR on validation", "Group DRO on groups by xrm"} <= {row.title for row in rows}
        assert all(row.recipe.startswith(f"{name}/") and row.load().data.name == name for row in rows)
    assert rows_of("waterbirds") == ROWS == rows_of("hard")
    assert figures(run_of(0, 70, 6), None)["adjusted"] == pytest.approx(80)
    with pytest.raises(UserError, match="flips training labels, which adult has no table of"):
        source(tmp_path, "adult", 0.2, None)


def test_the_same_protocol_on_a_table_of_people(tmp_path: Path) -> None:
    write_compas(tmp_path, rows=400)
    search = Search(trials=2, tuned_on=1, seeds=(2,), steps=20)
    people = source(tmp_path, "compas", 0.0, tmp_path)
    jobs = [Job(row, people, search, tmp_path / "runs") for row in rows_named(["ERM", "up-weighting"], "compas")]
    carry_out_all(jobs)
    report(tmp_path / "out", [people], [read(jobs)])
    lines = (tmp_path / "out" / "compas_training.md").read_text().splitlines()
    assert "Waterbirds" not in lines[0]
    assert {line.split(" | ")[0] for line in lines[2:4]} == {"| ERM", "| up-weighting"}


def test_the_page_shows_the_table_that_was_written() -> None:
    folder = RESULTS / "photographs"
    page, written = ((folder / name).read_text(encoding="utf-8") for name in ("README.md", "overview.md"))
    assert written in page
    titles = {row.title for row in ROWS}
    assert {line.split(" | ")[0].removeprefix("| ") for line in written.splitlines()[2:]} <= titles


def test_what_is_filed_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(trials=1, tuned_on=1, seeds=(2,), steps=20)
    job = Job(rows_named(["ERM"])[0], Sets(tmp_path / "sets"), search, tmp_path / "runs")
    monkeypatch.setattr(Sets, "load", lambda self, seed: splits_of(seed))
    told: list[str] = []
    carry_out_all([job], 1, told.append)
    written = job.file.read_bytes()
    carry_out_all([job], 1, told.append)
    assert told == ["ERM (waterbirds): done"]
    assert job.file.read_bytes() == written
    (row,) = read([job])
    assert row["row"] == "ERM"
    lost = replace(job, row=replace(row_titled("DFR on groups by maple"), title="lost"))
    lost = replace(lost, row=replace(lost.row, overrides=(*lost.row.overrides, *ONE_HUMP)))
    carry_out_all([lost], 1, told.append)
    assert told[-1].startswith("lost (waterbirds): lost: no trial can be chosen: ")
    assert read([lost])[0]["choices"] == {}
    job.file.write_text("[]")
    with pytest.raises(RunError, match="remove it and the row is carried out again"):
        read([job])


# The methods beside short implementations that share no code with them.


def accuracies(predicted: np.ndarray, splits: Splits) -> list[float]:
    right = predicted == splits.test.targets.numpy()
    return [float(right[splits.test.group.numpy() == group].mean()) for group in range(4)]


def ours(recipe: str, overrides: tuple[str, ...], splits: Splits) -> list[float]:
    loaded = load_recipe(recipe, overrides, 0)
    problem = Problem(splits, loaded.model, 0)
    model = loaded.method.fit(problem, silent).model
    with torch.no_grad():
        return accuracies(problem.head.predict(model(splits.test.inputs)).numpy(), splits)


def arrays(data: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return data.inputs.double().numpy(), data.targets.numpy(), data.group.numpy()


def up_weighting(splits: Splits) -> np.ndarray:
    x, y, group = arrays(splits.train)
    model = LogisticRegression(C=1e6).fit(x, y, sample_weight=1 / np.bincount(group)[group])
    return model.predict(splits.test.inputs.double().numpy())


def group_dro(splits: Splits, rate: float, step: float, steps: int) -> np.ndarray:
    """Sagawa et al. 2020, Algorithm 1, full batches, the gradient of the logistic loss by hand."""
    x, y, group = arrays(splits.train)
    x, signs = np.hstack([x, np.ones((len(x), 1))]), 2 * y - 1
    theta, q = np.zeros(x.shape[1]), np.full(4, 0.25)
    for _ in range(steps):
        margin = signs * (x @ theta)
        risks = np.array([np.logaddexp(0, -margin[group == g]).mean() for g in range(4)])
        q = q * np.exp(step * risks)
        q /= q.sum()
        weight = q[group] / np.bincount(group)[group]
        theta += rate * (x * (weight * signs / (1 + np.exp(margin)))[:, None]).sum(0)
    test = splits.test.inputs.double().numpy()
    return (test @ theta[:-1] + theta[-1] > 0).astype(int)


def deep_feature_reweighting(splits: Splits) -> np.ndarray:
    """Balanced subsets of validation, standardised by training, averaged coefficients of L1 fits."""
    x, _, _ = arrays(splits.train)
    held, y, group = arrays(splits.validation)
    mean, deviation, rng = x.mean(0), x.std(0), np.random.default_rng(0)
    found = []
    for _ in range(20):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(group == g), np.bincount(group).min(), False) for g in range(4)]
        )
        model = LogisticRegression(C=0.7, l1_ratio=1.0, solver="liblinear", random_state=0)
        model.fit((held[rows] - mean) / deviation, y[rows])
        found.append(np.append(model.coef_[0], model.intercept_))
    theta = np.mean(found, axis=0)
    test = (splits.test.inputs.double().numpy() - mean) / deviation
    return (test @ theta[:-1] + theta[-1] > 0).astype(int)


_FULL: tuple[str, ...] = ("method.training.batch_size=0", "method.training.optimizer.weight_decay=0.0")
_PLAIN = ("method.training.optimizer.name=sgd", "method.training.optimizer.learning_rate=0.5")
CASES: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "upweighting": (
        (*_FULL, "method.training.steps=600", "method.training.optimizer.learning_rate=0.05"),
        up_weighting,
    ),
    "group_dro": (
        (*_FULL, *_PLAIN, "method.training.steps=400", "method.balanced=false"),
        lambda splits: group_dro(splits, 0.5, 0.01, 400),
    ),
    "dfr": (("method.strengths=[0.7]",), deep_feature_reweighting),
}


@pytest.mark.parametrize("method", CASES)
def test_within_two_points_of_an_independent_implementation(method: str) -> None:
    overrides, theirs = CASES[method]
    splits = splits_of(3)
    one, two = ours(f"waterbirds/features/{method}", overrides, splits), accuracies(theirs(splits), splits)
    assert min(one) == pytest.approx(min(two), abs=0.02)
    assert one == pytest.approx(two, abs=0.02)


@pytest.mark.parametrize("name", ["celeba", "adult", "compas"])
def test_flips_of_a_set_without_them_are_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make", "--name", name, "--shares", "0.2"]) == 2
    assert f"--shares: 0.2 flips training labels, which {name} has no table of; take --shares 0" in " ".join(
        capsys.readouterr().err.split()
    )
    assert shares_of(name) == (0.0,)


def test_celebas_layout_has_its_own_recipes_and_no_flips() -> None:
    rows = rows_of("celeba")
    assert {"ERM", "Group DRO", "DFR on validation", "MAPLE, groups on validation", "validation rows alone"} <= {
        row.title for row in rows
    }
    assert all(row.load().data.name == "celeba" for row in rows)
    assert tables_of("celeba") == Path("results/photographs/celeba")
    assert tables_of("adult") == Path("results/adult/tuned")
    assert tables_of("waterbirds") == Path("results/photographs")


def test_what_is_found_is_held_against_the_groups() -> None:
    splits = {"plain": splits_of}
    (line, other) = finders.table(splits, (3,), lambda said: None).lines
    assert [line[1], other[1]] == ["xrm", "errors"]
    seen = splits_of(3)
    problem = Problem(seen, load_recipe("waterbirds/features/upweighting").model, 3)
    wrong = ErrorGroups().rare(problem)
    small = (seen.train.group == 1) | (seen.train.group == 2)
    expected = [
        wrong.double().mean(),
        wrong[small].double().mean(),
        small[wrong].double().mean(),
        small.double().mean(),
    ]
    assert other[2:] == [f"{100 * one:.1f}" for one in expected]


def records(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def test_published_figures_beside_are_those_of_the_layout(tmp_path: Path) -> None:
    rows = [row_of("ERM", "nowhere", (70, 74), 0.6)]
    for name, head in (("celeba", "CelebA: worst group"), ("hard", "Waterbirds: worst group")):
        report(tmp_path / name, [Sets(tmp_path, name)], [rows])
        (written,) = records(tmp_path / name / f"{name}_training.csv")
        assert written[head] == {"celeba": "47.2", "hard": "72.6"}[name]
        assert f"--name {name}" in (tmp_path / name / "summary.json").read_text()


def test_a_row_is_tuned_in_its_own_range(tmp_path: Path) -> None:
    row = replace(row_titled("CORAL"), overrides=SMALL)
    found = carry_out(row, splits_of, Search(trials=4, tuned_on=7, seeds=(8,)), tmp_path)
    drawn = [float(trial["gamma"]) for trial in records(tmp_path / "trials.csv")]
    assert min(drawn) < 0.1
    assert max(drawn) <= 10
    assert found["trials"] == 4
