"""Accuracy under a standard attack library: IBM's Adversarial Robustness Toolbox (ART), the extra `attacks`.

Our own PGD is one attack with one step length; a model that merely hides its gradients from it looks robust. ART brings
three that were made to find that out, and share no code with ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.errors import UserError

__all__ = ["AttackLibraryError", "art_classifier", "library_accuracy"]


class AttackLibraryError(UserError, ImportError):
    """The attack library is not installed; the message says how to install it."""


def library_accuracy(
    model: nn.Module,
    data: Batch,
    epsilon: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    queries: int = 1000,
) -> float:
    """Return the share of `data` that no attack of the library moves to a wrong class, in an L-infinity ball.

    The attacks are AutoAttack's without FAB: APGD on cross-entropy and APGD on the difference-of-logits ratio (100
    steps, 5 random starts each) and the black-box Square attack; each has only the samples that are left to fool.

    Args:
        model: inputs ``(n, ...)`` -> logits ``(n, classes)``, at least 4 classes (the ratio needs them). A copy of it
            is attacked, in evaluation mode.
        data: at least one sample; inputs in [low, high], class ids as targets.
        epsilon: > 0, radius of the ball.
        low: the least value that an input may have.
        high: the greatest.
        seed: of the attacks' draws. (ART draws from numpy's global state, which is put back afterwards.)
        queries: forward passes of the Square attack for each sample.

    Raises:
        AttackLibraryError: ART is not installed.
        ValueError: no samples, fewer than 4 classes, or a setting out of range.

    References:
        F. Croce, M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks, ICML 2020, arXiv:2003.01690. M.-I. Nicolae et al., Adversarial Robustness Toolbox, arXiv:1807.01069.
    """
    _check.in_range("epsilon", epsilon, low=0.0, open_low=True)
    _check.integer("queries", queries, low=1)
    if not len(data):
        raise ValueError("data has no samples; accuracy is not defined")
    classifier = art_classifier(model, data, low=low, high=high)
    if classifier.nb_classes < 4:
        raise ValueError(f"the attacks need at least 4 classes, the model's outputs have {classifier.nb_classes}")
    inputs, targets = data.inputs.cpu().numpy(), data.targets.cpu().numpy()
    left = np.flatnonzero(_predicted(classifier, inputs) == targets)
    with _numpy_seed(seed):
        for attack in _attacks(classifier, epsilon, queries):
            if len(left):
                moved = attack.generate(inputs[left], targets[left])
                left = left[_predicted(classifier, moved) == targets[left]]
    return len(left) / len(data)


def art_classifier(model: nn.Module, data: Batch, *, low: float = 0.0, high: float = 1.0) -> Any:
    """Return ART's `PyTorchClassifier` around a copy of `model`, for inputs like those of `data`.

    Raises:
        AttackLibraryError: ART is not installed.
    """
    try:
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise AttackLibraryError(
            f"the attack library cannot be imported ({error}); it is adversarial-robustness-toolbox: "
            "pip install 'steelyard[attacks]'"
        ) from error
    attacked = copy.deepcopy(model).eval()  # ART changes modes, and leaves gradients behind
    with torch.no_grad():
        classes = attacked(data.inputs[:1]).shape[1]
    return PyTorchClassifier(
        attacked,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(data.inputs.shape[1:]),
        nb_classes=classes,
        clip_values=(low, high),
        device_type="cpu" if data.inputs.device.type == "cpu" else "gpu",
    )


def _attacks(classifier: Any, epsilon: float, queries: int) -> list[Any]:
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack

    common = {"norm": np.inf, "eps": epsilon, "batch_size": 1000, "verbose": False}
    ascents = [
        AutoProjectedGradientDescent(
            classifier, eps_step=epsilon / 5, max_iter=100, nb_random_init=5, loss_type=loss, **common
        )
        for loss in ("cross_entropy", "difference_logits_ratio")
    ]
    return [*ascents, SquareAttack(classifier, max_iter=queries, nb_restarts=1, **common)]


def _predicted(classifier: Any, inputs: np.ndarray) -> np.ndarray:
    return classifier.predict(inputs, batch_size=1000).argmax(1)


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    before = np.random.get_state()  # noqa: NPY002 - the generator that ART draws from
    np.random.seed(_check.integer("seed", seed, low=0, high=2**32 - 1))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
