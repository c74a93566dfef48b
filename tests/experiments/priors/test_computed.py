"""The prior is computed once, filed with the run, and read back only where it is the same prior."""

import math
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file

from steelyard import reweight, selectors
from steelyard.checkpoint import Stopped
from steelyard.experiments import priors
from steelyard.experiments.errors import RunError
from steelyard.experiments.methods import Subset
from steelyard.experiments.priors import (
    AUM,
    EL2N,
    PRIOR,
    ComputedPrior,
    PriorSettings,
    RankDisagreement,
    ScoreFile,
)
from steelyard.experiments.report.page import render
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.training.misclassified import misclassified
from steelyard.experiments.training.problem import silent
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from tests.experiments.priors.test_scores import PROBLEM, SGD

SHORT = Training(steps=5, optimizer=SGD)
DISAGREEMENT = RankDisagreement(models=3, training=SHORT)
SETTINGS = PriorSettings((DISAGREEMENT, EL2N(models=3, training=SHORT, weight=0.5)))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Training]]:
    """Return a list that grows with every ensemble trained."""
    seen: list[tuple[int, Training]] = []
    real = priors.settings.train_ensemble

    def spy(problem, models, training):  # type: ignore[no-untyped-def]
        seen.append((models, training))
        return real(problem, models, training)

    monkeypatch.setattr(priors.settings, "train_ensemble", spy)
    return seen


def test_scores_of_the_same_proxies_train_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = counted(monkeypatch)
    both = SETTINGS.compute(PROBLEM, 90)
    assert trained == [(3, SHORT)]
    for one, term in zip(both.scores, SETTINGS.scores, strict=True):
        torch.testing.assert_close(one.scores, term.scores(PROBLEM), rtol=0, atol=0)
    other = replace(SETTINGS, scores=(DISAGREEMENT, EL2N(models=4, training=SHORT)))
    trained.clear()
    other.compute(PROBLEM, 90)
    assert trained == [(3, SHORT), (4, SHORT)]


def test_the_certificate_is_that_of_the_same_ensemble() -> None:
    found = SETTINGS.compute(PROBLEM, 90).scores[0]
    expected = selectors.certificate(found.scores, 3, delta=0.05)
    assert found.figures == {
        "gap": expected.gap,
        "radius": expected.radius,
        "holds": float(expected.holds),
        "above_gap": float(expected.keep.double().mean()),
    }
    assert found.figures["radius"] == pytest.approx(math.sqrt(math.log(2 * 300 / 0.05) / 2))
    looser = replace(SETTINGS, scores=(replace(DISAGREEMENT, delta=0.5),)).compute(PROBLEM, 90).scores[0]
    assert looser.figures["radius"] < found.figures["radius"]


def test_filed_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = counted(monkeypatch)
    problem = replace(PROBLEM, directory=tmp_path)
    first, second = SETTINGS.compute(problem, 90), SETTINGS.compute(problem, 90)
    assert len(trained) == 1
    assert [path.name for path in tmp_path.iterdir()] == [PRIOR]
    for one, other in ((first, second), (first, ComputedPrior.load(tmp_path / PRIOR))):
        assert torch.equal(one.probabilities, other.probabilities)
        assert torch.equal(one.index, other.index)
        assert one.digest == other.digest
        for mine, theirs in zip(one.scores, other.scores, strict=True):
            assert (mine.name, mine.weight, mine.keep, mine.figures) == (
                theirs.name,
                theirs.weight,
                theirs.keep,
                theirs.figures,
            )
            assert torch.equal(mine.scores, theirs.scores)
            assert torch.equal(mine.probabilities, theirs.probabilities)
    assert torch.equal(SETTINGS.compute(PROBLEM, 90).probabilities, first.probabilities)  # filing changes nothing


def relabelled():  # type: ignore[no-untyped-def]
    data = PROBLEM.splits.train
    other = data.targets.clone()
    other[0] = (other[0] + 1) % 3
    return replace(PROBLEM, splits=replace(PROBLEM.splits, train=replace(data, targets=other)))


@pytest.mark.parametrize(
    ("problem", "settings", "budget"),
    [
        (replace(PROBLEM, seed=1), SETTINGS, 90),
        (relabelled(), SETTINGS, 90),
        (PROBLEM, replace(SETTINGS, temperature=0.3), 90),
        (PROBLEM, replace(SETTINGS, within="errors"), 90),
        (PROBLEM, replace(SETTINGS, scores=SETTINGS.scores[:1]), 90),
        (PROBLEM, SETTINGS, 91),
        (replace(PROBLEM, model_settings=replace(PROBLEM.model_settings, hidden=(17,))), SETTINGS, 90),
    ],
)
def test_a_prior_of_something_else_is_refused(tmp_path: Path, problem, settings, budget) -> None:  # type: ignore[no-untyped-def]
    SETTINGS.compute(replace(PROBLEM, directory=tmp_path), 90)
    before = (tmp_path / PRIOR).read_bytes()
    with pytest.raises(RunError, match=r"prior of other data, settings, or another seed.*--overwrite"):
        settings.compute(replace(problem, directory=tmp_path), budget)
    assert (tmp_path / PRIOR).read_bytes() == before


def test_other_splits_are_no_part_of_the_digest(tmp_path: Path) -> None:
    SETTINGS.compute(replace(PROBLEM, directory=tmp_path), 90)
    blind = replace(PROBLEM.splits, test=replace(PROBLEM.splits.test, inputs=torch.zeros(300, 2)))
    SETTINGS.compute(replace(PROBLEM, splits=blind, directory=tmp_path), 90)


def test_a_table_of_scores_that_changed_is_another_prior(tmp_path: Path) -> None:
    table = pandas.DataFrame({"index": PROBLEM.splits.train.index.tolist(), "score": range(300)})
    path, place = tmp_path / "scores.csv", tmp_path / "run"
    settings, problem = PriorSettings((ScoreFile(path=str(path)),)), replace(PROBLEM, directory=place)
    table.to_csv(path, index=False)
    settings.compute(problem, 90)
    settings.compute(problem, 90)
    table.assign(score=range(1, 301)).to_csv(path, index=False)
    with pytest.raises(RunError, match="prior of other data"):
        settings.compute(problem, 90)


def rewrite(path: Path, *, drop: str = "", **header: str) -> None:
    """Write the file at `path` again without the tensor `drop`, its header changed."""
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    found = ComputedPrior.load(path)
    fixed = {"format": "steelyard.prior", "version": "1", "digest": found.digest, "scores": "[]"}
    save_file(tensors, path, {**fixed, **header})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read as a prior"),
        (lambda path: path.write_bytes(b""), "cannot be read as a prior"),
        (lambda path: rewrite(path, version="2"), "not a prior of version 1"),
        (lambda path: rewrite(path, format="steelyard.reweighting"), "not a prior"),
        (lambda path: rewrite(path, drop="index"), "KeyError: 'index'"),
        (lambda path: rewrite(path, scores="{"), "JSONDecodeError"),
        (lambda path: rewrite(path, scores='[{"name": "lhd"}]'), "KeyError"),
    ],
)
def test_damaged_files(tmp_path: Path, damage, message) -> None:  # type: ignore[no-untyped-def]
    problem = replace(PROBLEM, directory=tmp_path)
    SETTINGS.compute(problem, 90)
    damage(tmp_path / PRIOR)
    with pytest.raises(RunError, match=message) as caught:
        SETTINGS.compute(problem, 90)
    assert "remove it and it will be computed again" in str(caught.value)
    assert str(tmp_path / PRIOR) in str(caught.value)


def test_within_the_errors_of_a_short_run() -> None:
    run = Training(steps=4, optimizer=OptimizerSettings("sgd", 0.05))
    errors = misclassified(PROBLEM, train(PROBLEM, run, silent))
    assert 10 < int(errors.sum()) < 290
    aum = AUM(training=Training(steps=10, evaluate_every=2, optimizer=SGD))
    found = PriorSettings((aum,), within="errors", identification=run).compute(PROBLEM, 90)
    expected = reweight.keep_probabilities(aum.scores(PROBLEM), 90, strata=errors.long())
    assert torch.equal(found.scores[0].probabilities, expected)
    share = float(found.probabilities[errors].sum()) / 90
    assert share == pytest.approx(float(errors.double().mean()), rel=1e-6)
    even = PriorSettings((aum,), within="balanced_errors", identification=run).compute(PROBLEM, 30)
    assert float(even.probabilities[errors].sum()) == pytest.approx(15, rel=1e-6)


def test_a_subset_is_the_first_by_the_prior_and_trains_alone() -> None:
    seen = []
    settings = PriorSettings((AUM(training=Training(steps=10, evaluate_every=2, optimizer=SGD)),))
    method = Subset(budget=60, prior=settings, training=Training(steps=7, optimizer=SGD))
    fitted = method.fit(PROBLEM, lambda step, model, extra: seen.append(step))
    kept = fitted.reweighting.probabilities.bool()
    prior = settings.compute(PROBLEM, 60).probabilities
    assert int(kept.sum()) == 60
    assert prior[kept].min() >= prior[~kept].max()
    data = PROBLEM.splits.train.take(kept.nonzero().flatten())
    model = train(replace(PROBLEM, splits=replace(PROBLEM.splits, train=data)), method.training, silent)
    for mine, other in zip(fitted.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert seen == [7]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Subset(budget=3), "name the scores"),
        (lambda: Subset(budget=0, prior=SETTINGS), "budget must be"),
        (lambda: Subset(budget=3, prior=replace(SETTINGS, anchor=0.1)), "chosen once"),
        (lambda: RankDisagreement(delta=0.0), "delta must be"),
    ],
)
def test_errors(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


MAPLE = [
    'method.prior.scores=[{name="lhd", training={steps=4}}, {name="rank_disagreement", models=2, training={steps=2}}]',
    "method.steps=2",
    "method.inner.steps=3",
    "model.hidden=[8]",
    'data.corruption={kind="uniform", share=0.2}',
]


def test_a_run_files_its_prior_and_the_report_shows_it(tmp_path: Path) -> None:
    recipe = load_recipe("coloured_digits/maple", MAPLE, seed=1)
    run = execute(recipe, tmp_path / "run", name="coloured_digits/maple", overrides=tuple(MAPLE))
    prior = ComputedPrior.load(tmp_path / "run" / PRIOR)
    assert prior.probabilities.sum().item() == pytest.approx(324, rel=1e-6)
    text = " ".join(render([run]).split())
    assert "The prior it began with" in text
    corrupted = torch.tensor(run.samples["label_corrupted"].tolist())
    for one in (*prior.scores, prior):
        assert f"<td>{float(one.probabilities[corrupted].mean()):.3f}</td>" in text
    assert "label corrupted" in text
    need = 2 * math.sqrt(math.log(2 * 1079 / 0.05) / 2)
    assert f"the certificate needs more than 2 t = {need:.3f}: it does not hold" in text
    again = execute(recipe, tmp_path / "run", name="coloured_digits/maple", overwrite=True)  # the prior is a run's file
    assert torch.equal(ComputedPrior.load(again.directory / PRIOR).probabilities, prior.probabilities)
    bare = execute(load_recipe("coloured_digits/maple", MAPLE[1:], seed=1), tmp_path / "bare", name="bare")
    assert not (tmp_path / "bare" / PRIOR).exists()
    assert "The prior it began with" not in render([bare])


def test_a_run_that_is_gone_on_with_reads_its_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("coloured_digits/maple", MAPLE, seed=1)
    whole = execute(recipe, tmp_path / "whole", name="maple")
    trained, steps = counted(monkeypatch), []
    cut = {"name": "maple", "checkpoint_every": 1, "progress": steps.append}
    with pytest.raises(Stopped):
        execute(recipe, tmp_path / "cut", **cut, stop=lambda: len(steps))
    filed = (tmp_path / "cut" / PRIOR).read_bytes()
    assert (len(steps), len(trained)) == (1, 1)
    again = execute(recipe, tmp_path / "cut", name="maple", resume=True)
    assert len(trained) == 1
    assert (tmp_path / "cut" / PRIOR).read_bytes() == filed
    pandas.testing.assert_frame_equal(again.samples, whole.samples, check_exact=True)
    damaged = tmp_path / "damaged"
    steps.clear()
    with pytest.raises(Stopped):
        execute(recipe, damaged, **cut, stop=lambda: len(steps))
    (damaged / PRIOR).write_bytes(filed[:-9])
    with pytest.raises(RunError, match="cannot be read as a prior"):
        execute(recipe, damaged, name="maple", resume=True)
