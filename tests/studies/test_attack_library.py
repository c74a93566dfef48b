"""The attack library: agrees with our PGD, is no weaker, leaves the model alone; and the error where it is absent."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import ColouredDigits
from steelyard.experiments.models import HEADS, MLP, cross_entropy
from steelyard.experiments.training.adversarial import PGD, Adversary, robust_accuracy
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from studies.robust.attack_library import AttackLibraryError, art_classifier, library_accuracy

needs_art = pytest.mark.skipif(
    importlib.util.find_spec("art") is None, reason="adversarial-robustness-toolbox, the extra `attacks`, is absent"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:art.*")


def problem() -> Problem:
    return Problem(ColouredDigits(label_noise=0.0, grayscale=True).load(0), MLP(hidden=(16,), head="softmax"), 0)


def four_classes(model: nn.Module) -> nn.Module:
    """Two more classes that never win: the difference-of-logits ratio needs four."""
    return nn.Sequential(model, nn.ConstantPad1d((0, 2), -20.0))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Batch]:
    made = problem()
    adversary = Adversary(PGD(epsilon=0.1, step=0.05, steps=3), made.loss, 0)
    run = Training(steps=150, batch_size=100, optimizer=OptimizerSettings("adam", 0.01))
    model = train(made, run, lambda step, model, extra: None, perturb=adversary)
    return model, made.splits.validation.take(torch.arange(60))


@needs_art
def test_our_pgd_is_the_librarys(trained: tuple[nn.Module, Batch]) -> None:
    from art.attacks.evasion import ProjectedGradientDescent

    model, data = trained
    settings = {"norm": np.inf, "eps": 0.1, "eps_step": 0.01, "max_iter": 50, "batch_size": 1000, "verbose": False}
    theirs = ProjectedGradientDescent(art_classifier(model, data), **settings).generate(
        data.inputs.numpy(), data.targets.numpy()
    )
    attack = PGD(epsilon=0.1, step=0.01, steps=50, random_start=False)
    ours = attack(model, data, cross_entropy, generator=torch.Generator())
    assert not torch.equal(ours.inputs, data.inputs)
    np.testing.assert_allclose(theirs, ours.inputs.numpy(), atol=1e-6)


@needs_art
def test_the_library_is_no_weaker_than_pgd_and_bounded_by_what_is_right(trained: tuple[nn.Module, Batch]) -> None:
    model, data = trained
    wide, mode = four_classes(model).train(), np.random.get_state()[1].copy()  # noqa: NPY002
    gradients = [p.grad.clone() for p in wide.parameters()]
    clean, pgd = (
        robust_accuracy(model, data, PGD(epsilon=e, step=0.01, steps=50), HEADS["softmax"]) for e in (0.0, 0.1)
    )
    found = library_accuracy(wide, data, 0.1, queries=50)
    assert 0.2 < found <= pgd + 1e-9 < clean
    assert library_accuracy(wide, data, 0.1, queries=50) == found  # seeded
    assert library_accuracy(wide, data, 1e-6, queries=2) == pytest.approx(clean)
    assert wide.training
    assert all(torch.equal(p.grad, g) for p, g in zip(wide.parameters(), gradients, strict=True))
    assert np.array_equal(np.random.get_state()[1], mode)  # noqa: NPY002


@needs_art
def test_what_is_refused(trained: tuple[nn.Module, Batch]) -> None:
    model, data = trained
    with pytest.raises(ValueError, match="at least 4 classes, the model's outputs have 2"):
        library_accuracy(model, data, 0.1)
    with pytest.raises(ValueError, match="epsilon must be"):
        library_accuracy(model, data, 0.0)
    with pytest.raises(ValueError, match="data has no samples"):
        library_accuracy(model, data.take(torch.zeros(len(data), dtype=torch.bool)), 0.1)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "art", None)  # importing it now raises ImportError
    for name in [name for name in sys.modules if name.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    made = problem()
    with pytest.raises(AttackLibraryError, match=r"pip install 'steelyard\[attacks\]'"):
        library_accuracy(made.model(), made.splits.test, 0.1)
