"""The data sets' corruption: exact shares, in training and validation alone, facts of the labels as they are then."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from steelyard.experiments.data import ColoredMNIST, ColouredDigits
from steelyard.experiments.data.corrupted import Corruption
from steelyard.experiments.runs.recipe import load_recipe

KINDS = ("uniform", "adversarial", "noisy_class")
CLEAN = ColouredDigits().load(3)


def corrupted(kind: str, share: float = 0.2, **settings):  # type: ignore[no-untyped-def]
    return ColouredDigits(corruption=Corruption(kind, share), **settings).load(3)


@pytest.mark.parametrize("kind", KINDS)
def test_only_labels_change_and_only_in_training_and_validation(kind: str) -> None:
    splits = corrupted(kind)
    for part in ("train", "validation", "test"):
        one, other = getattr(splits, part), getattr(CLEAN, part)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.targets, other.targets) == (part == "test")
    assert torch.equal(splits.train.environment, CLEAN.train.environment)
    again = corrupted(kind)
    assert torch.equal(again.train.targets, splits.train.targets)
    assert torch.equal(again.validation.targets, splits.validation.targets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_the_share_is_exact_and_the_facts_are_of_the_new_labels(kind: str, share: float) -> None:
    splits = corrupted(kind, share)
    chosen, changed = splits.facts["label_corrupted"], splits.train.targets != CLEAN.train.targets
    assert int(chosen.sum()) == round(share * 1079)
    assert not (changed & ~chosen).any()
    held_changed = int((splits.validation.targets != CLEAN.validation.targets).sum())
    if kind == "noisy_class":  # a coin toss each
        assert 0.35 < float(changed[chosen].double().mean()) < 0.65
        assert 0.2 < held_changed / (share * 269) < 0.8
    else:
        assert torch.equal(changed, chosen)
        assert held_changed == round(share * 269)
    colour = splits.train.inputs.flatten(2).amax(2).argmax(1)
    assert torch.equal(splits.facts["colour_agrees"], colour == splits.train.targets)
    assert torch.equal(splits.facts["label_flipped"], CLEAN.facts["label_flipped"] ^ changed)


def test_without_corruption_nothing_is_drawn() -> None:
    splits = corrupted("adversarial", 0.0)
    assert torch.equal(splits.train.targets, CLEAN.train.targets)
    assert "label_corrupted" not in splits.facts


def test_the_adversary_attacks_clear_samples() -> None:
    """With right labels and colours that mostly agree: those flipped had the colour and the shape of their label."""
    splits, clean = corrupted("adversarial", 0.2), CLEAN.facts
    chosen = splits.facts["label_corrupted"]
    assert float(clean["colour_agrees"][chosen].double().mean()) > 0.97
    assert float(clean["label_flipped"][chosen].double().mean()) < 0.1
    # The largest error norms of the best linear fit to the labels as they were, by another solver.
    x = torch.cat([CLEAN.train.inputs.flatten(1), torch.ones(1079, 1)], 1).double()
    y = 4.0 * CLEAN.train.targets.double() - 2.0
    ridge = torch.cat([x, (1e-3 * 1079) ** 0.5 * torch.eye(x.shape[1], dtype=torch.float64)])
    fit = torch.linalg.lstsq(ridge, torch.cat([y, torch.zeros(x.shape[1], dtype=torch.float64)])).solution
    margin = (x @ fit) * y.sign()
    assert margin[chosen].min() >= margin[~chosen].max() - 1e-9


def test_noisy_class_is_confined_to_as_many_digits_as_hold_the_share() -> None:
    for share, digits in ((0.05, 1), (0.2, 2), (0.4, 4)):
        made = ColouredDigits(corruption=Corruption("noisy_class", share), label_noise=0.0).load(3)
        rows = {tuple(row) for row in made.grayscale().train.inputs[made.facts["label_corrupted"]].flatten(1).tolist()}
        bunch = load_digits()
        found = {
            int(d) for image, d in zip(bunch.images / 16, bunch.target, strict=True) if tuple(image.flatten()) in rows
        }
        assert len(found) in (digits, digits + 1)  # a digit has a little more or less than a tenth of the images
        assert found <= {9, 4, 8, 3, 7}


@pytest.mark.parametrize("validation", ["t10k", "holdout"])
def test_colored_mnist_is_corrupted_alike(tmp_path: Path, mnist_writer: Callable[..., Path], validation: str) -> None:
    root = mnist_writer(tmp_path, True)
    data = ColoredMNIST(validation=validation, holdout=20)  # type: ignore[arg-type]
    clean = data.load(0, root)
    splits = replace(data, corruption=Corruption("uniform", 0.3)).load(0, root)
    assert torch.equal(splits.test.targets, clean.test.targets)
    assert torch.equal(splits.train.inputs, clean.train.inputs)
    changed = splits.train.targets != clean.train.targets
    assert torch.equal(changed, splits.facts["label_corrupted"])
    held = int((splits.validation.targets != clean.validation.targets).sum())
    if validation == "t10k":
        assert (int(changed.sum()), held) == (60, 12)
    else:  # chosen among all 200, of which the last 20 are then held out
        assert int(changed.sum()) + held == 60


def test_in_a_recipe() -> None:
    recipe = load_recipe("coloured_digits/erm", ['data.corruption={kind="noisy_class", share=0.1}'])
    assert recipe.data.corruption == Corruption("noisy_class", 0.1)


@pytest.mark.parametrize(("settings", "words"), [({"share": 1.5}, "share must be"), ({"kind": "some"}, "kind")])
def test_errors(settings: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):  # TypeError: the type checks of the tests
        Corruption(**settings)
