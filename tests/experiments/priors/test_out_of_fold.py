"""Out-of-fold scores: no model judges what it learned, wrong labels come first, confusion is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard.bilevel import Batch
from steelyard.checkpoint import Journal, Stopped
from steelyard.experiments.data import Splits
from steelyard.experiments.methods import Online, SelfCleaning
from steelyard.experiments.models import MLP
from steelyard.experiments.priors import PRIOR, ComputedPrior
from steelyard.experiments.priors.label_noise import label_noise, label_noise_by_clean
from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings, out_of_fold
from steelyard.experiments.priors.suspicion import SUSPICION, suspicion
from steelyard.experiments.training.problem import Fitted, Problem
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from steelyard.experiments.weigh.suspecting import auroc

TRAINING = Training(steps=40, batch_size=64, evaluate_every=20, optimizer=OptimizerSettings("adam", 0.02))
SETTINGS = OutOfFoldSettings(folds=3, repeats=2, readings=4, training=TRAINING)


def rows(count: int, seed: int) -> Batch:
    """Two clouds, one a class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    inputs = torch.randn(count, 3, generator=generator) + 3.0 * targets[:, None]
    return Batch.of(inputs, targets, environment=torch.zeros_like(targets))


def noisy(count: int = 150, share: float = 0.2) -> tuple[Problem, torch.Tensor]:
    """A problem with wrong labels, and which these are."""
    train = rows(count, 0)
    wrong = torch.rand(count, generator=torch.Generator().manual_seed(1)) < share
    train = replace(train, targets=torch.where(wrong, 1 - train.targets, train.targets))
    splits = Splits("clouds", train, rows(40, 2), rows(60, 3), ("a", "b"), ("all",))
    return Problem(splits, MLP(hidden=(8,), head="softmax"), 0), wrong


def ignore(step, model, extra) -> None:  # type: ignore[no-untyped-def]
    """Observe nothing."""


def test_no_model_judges_what_it_was_trained_on() -> None:
    """Labels that are coin tosses can be learned by heart, and not predicted."""
    problem, _ = noisy(60, 0.5)
    problem = replace(problem, model_settings=MLP(hidden=(64,), head="softmax"))
    found = out_of_fold(problem, replace(SETTINGS, training=replace(TRAINING, steps=150)))
    labels = problem.splits.train.targets
    assert found.probabilities.shape == (60, 2)
    assert 0.3 < float((found.probabilities.argmax(1) == labels).float().mean()) < 0.7


def test_wrong_labels_are_the_most_suspect() -> None:
    problem, wrong = noisy()
    found = out_of_fold(problem, SETTINGS)
    labels = problem.splits.train.targets
    for score, least in ((found.confidence, 0.9), (found.aum, 0.9), (-found.lhd, 0.75)):
        assert auroc(-score, wrong) > least
    assert auroc(suspicion(found, labels), wrong) > 0.95
    assert found.others is None


def test_others_are_judged_by_every_model() -> None:
    problem, _ = noisy()
    told: list[int] = []
    found = out_of_fold(problem, SETTINGS, told.append, others=problem.splits.validation)
    assert told == [1, 2, 3, 4, 5, 6]
    assert found.others is not None
    assert float((found.others.argmax(1) == problem.splits.validation.targets).float().mean()) > 0.9


def test_a_class_with_fewer_samples_than_folds() -> None:
    problem, _ = noisy(5, 0.0)
    with pytest.raises(ValueError, match="the class 'b' has 2 training samples, and each of 3 folds needs one"):
        out_of_fold(problem, SETTINGS)


@pytest.mark.parametrize("flips", [(0.0, 0.0), (0.2, 0.2), (0.05, 0.4)], ids=["none", "alike", "one class"])
def test_the_confusion_of_labels_is_found(flips: tuple[float, float]) -> None:
    """Classes that hardly overlap, labels of each wrong with a chance of its own, and their true probabilities."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(4000) % 2
    sure = torch.where(true == 1, 0.99, 0.01).double()
    eta = torch.stack([1 - sure, sure], 1)
    confusion = torch.tensor([[1 - flips[0], flips[0]], [flips[1], 1 - flips[1]]]).double()
    given = torch.multinomial(confusion[true], 1, generator=generator)[:, 0]
    found = label_noise((eta @ confusion).float(), given)
    clean = label_noise_by_clean((eta @ confusion).float(), given, (eta @ confusion).float()[:200], true[:200])
    assert torch.allclose(found.confusion, confusion, atol=0.1)
    assert torch.allclose(clean.confusion, confusion, atol=0.15)  # drawn to anchors, from 200 samples
    wrong = given != true
    for one in (found, clean):
        assert abs(one.share - float(wrong.double().mean())) < 0.06
        assert not wrong.any() or float(one.right[wrong].mean()) < 0.2 < 0.9 < float(one.right[~wrong].mean())


@pytest.mark.parametrize("trusted", [False, True])
def test_self_cleaning_leaves_out_or_lightens_wrong_labels(trusted: bool, tmp_path: Path) -> None:
    problem, wrong = noisy()
    method = SelfCleaning(trusted=trusted, scoring=SETTINGS, training=TRAINING)
    fitted = method.fit(replace(problem, directory=tmp_path), ignore)
    assert fitted.reweighting is not None
    kept = fitted.reweighting.probabilities
    assert float(kept[wrong].mean()) < 0.4 < 0.8 < float(kept[~wrong].mean())
    filed = ComputedPrior.load(tmp_path / PRIOR)
    assert [one.name for one in filed.scores][-1] == SUSPICION
    assert filed.index.tolist() == problem.splits.train.index.tolist()


def test_without_wrong_labels_nothing_is_left_out() -> None:
    problem, _ = noisy(share=0.0)
    fitted = SelfCleaning(scoring=SETTINGS, training=TRAINING).fit(problem, ignore)
    assert fitted.reweighting is not None
    assert float(fitted.reweighting.probabilities.mean()) > 0.97


METHODS = [SelfCleaning(scoring=SETTINGS, training=TRAINING), Online(epochs=3, batch_size=30)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_stop_and_a_resume_end_in_the_same_bits(method: SelfCleaning | Online, tmp_path: Path) -> None:
    problem, _ = noisy()
    whole = method.fit(problem, ignore)
    path, found = tmp_path / "run.safetensors", []
    for steps in (3, 37, 160, 10**9):
        asked = iter(range(10**9))
        journal = Journal(path, every=7, stop=lambda asked=asked, steps=steps: int(next(asked) >= steps))
        try:
            found.append(method.fit(replace(problem, journal=journal), ignore))
        except Stopped:
            continue
    assert _same(found[-1], whole)


def _same(one: Fitted, other: Fitted) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return one.reweighting == other.reweighting and all(torch.equal(a, b) for a, b in pairs)


def test_online_observes_each_epoch_and_finds_wrong_labels() -> None:
    problem, wrong = noisy()
    seen: list[int] = []
    method = Online(epochs=8, batch_size=30, optimizer=OptimizerSettings("adam", 0.01))
    fitted = method.fit(problem, lambda step, model, extra: seen.append(step))
    assert seen == list(range(1, 9))
    assert seen[-1] == method.last_step
    assert fitted.reweighting is not None
    assert auroc(-fitted.reweighting.probabilities, wrong) > 0.9
