"""One case of the study: a data set, a seed; MAPLE, the groups in its s, and nets trained on what follows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steelyard import reweight
from steelyard._support._modules import evaluating
from steelyard.checkpoint import Journal
from steelyard.experiments import load_recipe
from steelyard.experiments.data import Splits
from steelyard.experiments.methods import Maple, RefinedMaple, Subset
from steelyard.experiments.methods.found_groups import second_run
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.problem import Problem, silent
from steelyard.reweight import FoundGroups, Reweighting
from studies.photographs.features import options
from studies.photographs.sets import Sets
from studies.priors.plan import METHODS, MNIST_DR_IS, MNIST_LHD, prior

__all__ = ["CASES", "GROUPED", "PHOTOGRAPHS", "TRAINED", "carry_out", "figures"]

PHOTOGRAPHS = "photographs"
"""Waterbirds' shape: a set of each seed, as `python -m studies.photographs make` writes it."""

_NOISE = "data.corruption.share=0.2"
_UNIFORM = ("data.corruption.kind=uniform", _NOISE)
_ADVERSARIAL = ("data.corruption.kind=adversarial", _NOISE)
_NOISY_CLASS = ("data.corruption.kind=noisy_class", _NOISE)
_MNIST = "colored_mnist/refined_maple"
# What a machine finds faster is measured when a run begins; here all seeds are to have the same arithmetic.
_BFLOAT16 = "method.maple.inner.bfloat16=true"
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("coloured_digits/maple", ()),
    "digits, 20 % uniform": ("coloured_digits/maple", _UNIFORM),
    "digits, 20 % adversarial": ("coloured_digits/maple", _ADVERSARIAL),
    "digits, 20 % Noisy-Class": ("coloured_digits/maple", _NOISY_CLASS),
    "digits without colour": ("coloured_digits/maple", ("data.grayscale=true",)),
    "digits, colour by chance": ("coloured_digits/maple", ("data.train_flips=[0.5, 0.5]",)),
    "COMPAS": ("compas/maple", ()),
    "COMPAS, V-REx": ("compas/maple", ("method.risk.penalty=vrex", "method.risk.shape=sqrt")),
    "Adult": ("adult/maple", ()),
    "Colored MNIST": (_MNIST, (_BFLOAT16,)),
    "Colored MNIST, 20 % uniform": (_MNIST, (_BFLOAT16, *_UNIFORM)),
    "Colored MNIST, 20 % adversarial": (_MNIST, (_BFLOAT16, *_ADVERSARIAL)),
    "Colored MNIST, 20 % Noisy-Class": (_MNIST, (_BFLOAT16, *_NOISY_CLASS)),
    "CIFAR-MNIST": ("cifar_mnist/maple", ()),
    PHOTOGRAPHS: ("waterbirds/features/maple", ()),
}
"""By name: a recipe, and what is set in it."""

GROUPED = (*tuple(CASES)[:4], *(name for name in CASES if name.startswith("Colored MNIST")), "CIFAR-MNIST")
"""The cases with a shortcut, where nets are trained on what follows."""

TRAINED = (
    "found groups, balanced",
    "calibrated share",
    "Refine",
    "Refine, short nets",
    "MAPLE, s w",
    "known groups, balanced",
    "ERM",
    "LHD alone",
    "disagreement alone",
)
"""What nets are trained on, in the order in which they are."""

_PRIORS = {
    "LHD alone": {
        "coloured_digits": METHODS["LHD alone"][1],
        "colored_mnist": prior(MNIST_LHD.replace('keep = "low", ', ""), within="all"),
    },
    "disagreement alone": {
        "coloured_digits": METHODS["DR-IS alone"][1],
        "colored_mnist": prior(MNIST_DR_IS, within="all"),
    },
}
"""The scores of `studies.priors`, by data set: without MAPLE, they choose as many samples as MAPLE keeps."""


def carry_out(
    name: str,
    seed: int,
    data_root: Path | None = None,
    row: Mapping[str, Any] | None = None,
    file: Callable[[dict[str, Any]], None] = lambda row: None,
    journals: Path | None = None,
    methods: Collection[str] = TRAINED,
) -> dict[str, Any]:
    """Return the figures of a case and a seed as plain numbers by name.

    Args:
        name: of `CASES`.
        seed: of the recipe: data, initial parameters and masks.
        data_root: where COMPAS, Adult and MNIST lie; of the photographs the folder that holds the sets of all seeds.
        row: figures of this case and seed that are there; they are not computed again.
        file: is given the row after each figure that comes to it.
        journals: a path whose name, with a suffix, is that of the checkpoints; None: no checkpoints.
        methods: of `TRAINED`, those to carry out.
    """
    row = dict(row or {})
    wanted = [one for one in TRAINED if name in GROUPED and one in methods and f"{one} accuracy" not in row]
    if "accepted" in row and not wanted:
        return row
    recipe_name, overrides = CASES[name]
    if name == PHOTOGRAPHS:
        data_root = Sets(data_root or Path()).root(seed)
        overrides = options(data_root)
    recipe = load_recipe(recipe_name, overrides, seed=seed)
    splits = recipe.data.load(recipe.seed, data_root)
    problem = Problem(splits, recipe.model, recipe.seed, journal=_journal(journals, "maple"))
    method = recipe.method
    assert isinstance(method, Maple | RefinedMaple)
    refined = method if isinstance(method, RefinedMaple) else RefinedMaple(maple=method)
    fitted = refined.maple.fit(problem, silent)
    result = fitted.reweighting
    assert result is not None
    train = splits.train
    rare = _rare(name, splits)
    row |= {"case": name, "seed": seed, "samples": len(train), **_recovered(result, train.targets, rare)}
    found = _accepted(result, train.targets)
    if found is None:
        other = second_run(refined.maple, problem)
        found = _accepted(result, train.targets, other)
        row |= _repeated(result, other, found, rare)
    if name in GROUPED:
        row |= figures(problem, fitted.model, "MAPLE, last step")
    file(dict(row))
    for one, weight, notes in _weights(problem, recipe_name, result, found, refined, wanted, journals, rare):
        model, _ = _inner(problem, _settings(refined, one))(train, weight)
        row |= {**notes, **figures(problem, model, one), **_given(weight, splits, rare, one)}
        file(dict(row))
    return row


def _rare(name: str, splits: Splits) -> Tensor | None:
    """Return who contradicts the shortcut, for the cases with one."""
    if name == PHOTOGRAPHS:  # groups 2 label + place; the place mostly goes with the label
        assert splits.train.group is not None
        return (splits.train.group == 1) | (splits.train.group == 2)
    if name not in GROUPED:
        return None
    return ~splits.facts["digit_agrees" if name == "CIFAR-MNIST" else "colour_agrees"]


def _accepted(result: Reweighting, targets: Tensor, *repeats: Reweighting) -> FoundGroups | None:
    """Return the groups, or None where they are refused."""
    try:
        return result.groups(targets, repeats)
    except reweight.OneHumpError:
        return None


def _repeated(
    one: Reweighting, two: Reweighting, found: FoundGroups | None, rare: Tensor | None
) -> dict[str, float | bool]:
    """Return whether both runs together are accepted, how their groups agree, and how the deeper cut recovers them."""
    first, second = (run.groups(level=1, least_ratio=0) for run in (one, two))
    high = min((first, second), key=lambda run: (run.valley.p_value, -run.valley.ratio)).high
    row: dict[str, float | bool] = {
        "accepted with a repeat": found is not None,
        "repeat p": second.valley.p_value,
        "agreement": reweight.adjusted_rand(first.high, second.high),
    }
    return row if rare is None else row | _agreement("deeper", high, rare)


def _recovered(result: Reweighting, targets: Tensor, rare: Tensor | None) -> dict[str, Any]:
    """Return whether the test accepts the groups, its figures, and how the two cuts agree with the rare group."""
    found = result.groups(targets, level=1, least_ratio=0, least_share=0)
    row: dict[str, Any] = {**found.figures(), "accepted": _accepted(result, targets) is not None}
    if rare is not None:
        for cut, high in (("valley", found.high), ("two_means", result.probabilities.double() > found.two_means.at)):
            row |= _agreement(cut, high, rare)
    return row


def _agreement(cut: str, high: Tensor, rare: Tensor) -> dict[str, float]:
    """Return how a cut recovers the rare group."""
    both = float((high & rare).sum())
    return {
        f"{cut} precision": both / max(1.0, float(high.sum())),
        f"{cut} recall": both / float(rare.sum()),
        f"{cut} adjusted Rand": reweight.adjusted_rand(high, rare),
    }


def _weights(
    problem: Problem,
    recipe: str,
    result: Reweighting,
    found: FoundGroups | None,
    refined: RefinedMaple,
    wanted: Collection[str],
    journals: Path | None,
    rare: Tensor | None,
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Yield what is to be trained on: its name of `TRAINED`, weights, further figures.

    Where the groups are refused, what needs them is not tried.
    """
    train = problem.splits.train
    ones = torch.ones(len(train))
    for one in wanted:
        assert rare is not None
        if one == "ERM":
            yield one, ones, {}
        elif one == "MAPLE, s w":
            yield one, result.expected_weights, {}
        elif one == "known groups, balanced":
            yield one, reweight.balance(ones, 2 * train.targets + rare.long()), {}
        elif one in _PRIORS:
            if own := _PRIORS[one].get(recipe.partition("/")[0]):
                yield one, _chosen(problem, refined.maple, own), {}
        elif found is not None and one == "found groups, balanced":
            yield one, reweight.balance(ones, found.cells), {}
        elif found is not None:
            calibrated = one == "calibrated share"
            settings = _settings(refined, one)
            settings = replace(settings, rounds=0 if calibrated else 2, shares="calibrated" if calibrated else "equal")
            place = _journal(journals, "".join(letter for letter in one.lower() if letter.isalpha()))
            learned = settings.refine(_inner(problem, settings)).fit(train, found, journal=place)
            notes: dict[str, Any] = {f"{one} history": learned.history}
            if calibrated:
                notes["calibrated share of the rare"] = float(learned.expected_weights[found.high].sum() / len(train))
            yield one, learned.expected_weights, notes


def _chosen(problem: Problem, maple: Maple, overrides: tuple[str, ...]) -> Tensor:
    """Return 1 for the samples that a prior puts first, as many as MAPLE keeps, and 0 for the others."""
    settings = load_recipe("coloured_digits/subset", overrides, seed=problem.seed).method
    assert isinstance(settings, Subset)
    assert maple.budget is not None
    kept = round(reweight.budget_of(maple.budget, len(problem.splits.train)))
    first = settings.prior.compute(problem, kept).probabilities.argsort(descending=True, stable=True)[:kept]
    return torch.zeros(len(problem.splits.train)).index_fill_(0, first.cpu(), 1.0)


def _settings(refined: RefinedMaple, name: str) -> RefinedMaple:
    """Return how the nets of an entry of `TRAINED` are trained, those that score and the last one.

    The short ones see nine tenths of the samples, for half as long: chosen on Colored MNIST with 20 % uniform wrong
    labels, seed 41, by the true labels of the training and the validation images.
    """
    return replace(refined, folds=10, steps=400) if name == "Refine, short nets" else refined


def _inner(problem: Problem, refined: RefinedMaple) -> reweight.InnerRun:
    """Return the run of the nets that score and of the last training."""
    return refined.inner_run(problem).fresh()


def _journal(place: Path | None, suffix: str) -> Journal:
    return Journal() if place is None else Journal(place.with_name(f"{place.name}_{suffix}.safetensors"), every=600)


def _given(weight: Tensor, splits: Splits, rare: Tensor | None, name: str) -> dict[str, float]:
    """Return which share of the mass has a wrong label, and which contradicts the shortcut."""
    assert rare is not None
    return {
        f"{name} wrong labels": float(weight[splits.facts["label_flipped"]].sum() / weight.sum()),
        f"{name} against the shortcut": float(weight[rare].sum() / weight.sum()),
    }


def figures(problem: Problem, model: torch.nn.Module, name: str) -> dict[str, float]:
    """Return the accuracies on the test split and on validation, which is of the training environments.

    Of coloured images also the mean of the test accuracies where the colour agrees with the label and where it does
    not: a net that has learned the colour backwards is good where the colour is reversed, as in the test split, and has
    a half here.
    """
    found = {}
    for split, suffix in ((problem.splits.test, "accuracy"), (problem.splits.validation, "validation accuracy")):
        with evaluating(model), torch.no_grad():
            right = (problem.head.predict(model(split.inputs)) == split.targets).double()
        found[f"{name} {suffix}"] = float(right.mean())
        if suffix == "accuracy" and split.inputs.ndim == 4 and split.inputs.shape[1] == 2:
            agrees = group_labels.with_groups(split).group == 3 * split.targets  # 2 label + colour
            found[f"{name} balanced accuracy"] = float((right[agrees].mean() + right[~agrees].mean()) / 2)
    return found
