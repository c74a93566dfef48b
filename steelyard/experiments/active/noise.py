"""Heteroskedastic noise: samples with random labels, added to the training samples of any image data set.

A fact named "noisy" says which they are; only figures read it. Where the noise lies can be learned from the inputs,
which sets these benchmarks apart from labels that are wrong at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.splits import Splits

__all__ = ["NoNoise", "Noise", "NoisyBlank", "NoisyClass", "NoisyDiverse", "added"]


def added(n: int, share: float) -> int:
    """Return N, the samples to add to `n` so that they make up `share` of all: round(n share / (1 - share)).

    Example:
        >>> added(100, 0.8)
        400
    """
    return round(n * share / (1 - share))


@dataclass(frozen=True)
class _Shared:
    """What every kind of noise has.

    Attributes:
        share: of the noisy samples among all training samples once they are added, in [0, 1).
        unique: how many different images the noise has, at most: copied samples of Noisy-Class, colours of
            Noisy-Diverse (of Noisy-Blank there is always one). 0: as many as the kind says. The paper has 100 where a
            round labels 1,000; with one of each for every label of a round the problem is another.

    References:
        Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, section 3.
    """

    share: float = 0.8
    unique: int = 0

    def __post_init__(self) -> None:
        _check.integer("unique", self.unique, low=0)
        _check.in_range("share", self.share, low=0.0, high=1.0, open_high=True)


@dataclass(frozen=True)
class NoNoise:
    """The data set as it is. One that has noise of its own (Four-Moons) keeps it."""

    name: Literal["none"] = "none"

    def apply(self, splits: Splits, generator: torch.Generator) -> Splits:
        """Return the splits with the fact "noisy", false everywhere unless the data set has it already."""
        none = torch.zeros(len(splits.train), dtype=torch.bool)
        return replace(splits, facts={"noisy": none, **splits.facts})


@dataclass(frozen=True)
class NoisyBlank(_Shared):
    """Noisy-Blank: N all-black images, each with a label drawn uniformly from all classes."""

    name: Literal["noisy_blank"] = "noisy_blank"

    def apply(self, splits: Splits, generator: torch.Generator) -> Splits:
        """Return the splits with the noise added to training."""
        count = added(len(splits.train), self.share)
        blank = torch.zeros_like(splits.train.inputs[:1]).expand(count, *splits.train.inputs.shape[1:])
        return _extended(splits, blank, _uniform(splits, count, generator))


@dataclass(frozen=True)
class NoisyDiverse(_Shared):
    """Noisy-Diverse: N images, each of one of `unique` (0: 100) random solid colours, which have `labels` classes each.

    A colour is uniform in [0, 1]^channels (a gray for one channel), its classes are drawn without replacement; each
    image takes a colour and one of its classes at random.
    """

    name: Literal["noisy_diverse"] = "noisy_diverse"
    labels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.integer("labels", self.labels, low=1)

    def apply(self, splits: Splits, generator: torch.Generator) -> Splits:
        """Return the splits with the noise added to training.

        Raises:
            ValueError: inputs that are no images, or more labels a colour than there are classes.
        """
        inputs, classes = splits.train.inputs, len(splits.classes)
        if inputs.ndim != 4:
            raise ValueError(f"noisy_diverse needs images (n, channels, h, w), got inputs {tuple(inputs.shape)}")
        _check.integer("labels", self.labels, low=1, high=classes)
        count = added(len(splits.train), self.share)
        colours = self.unique or 100
        colour = torch.rand(colours, inputs.shape[1], generator=generator)
        order = torch.rand(colours, classes, generator=generator).argsort(1)[:, : self.labels]
        which = torch.randint(colours, (count,), generator=generator)
        label = order[which, torch.randint(self.labels, (count,), generator=generator)]
        solid = colour[which].to(inputs)[:, :, None, None].expand(count, *inputs.shape[1:])
        return _extended(splits, solid, label)


@dataclass(frozen=True)
class NoisyClass(_Shared):
    """Noisy-Class: N copies of training samples of one class, each copy with a label drawn uniformly from all classes.

    Each of the class's samples is copied nearly equally often, in random order; the samples themselves keep their
    labels. The paper leaves open how many different ones are copied.

    Attributes:
        label: the class. `unique` = 0 copies all samples that it has.
    """

    name: Literal["noisy_class"] = "noisy_class"
    label: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.integer("label", self.label, low=0)

    def apply(self, splits: Splits, generator: torch.Generator) -> Splits:
        """Return the splits with the noise added to training; ValueError if the class has too few samples."""
        members = (splits.train.targets == self.label).cpu().nonzero().flatten()
        _check.integer("label", self.label, low=0, high=len(splits.classes) - 1)
        if not len(members):
            raise ValueError(f"noisy_class: no training sample has the label {self.label}")
        members = members[torch.randperm(len(members), generator=generator)][: self.unique or None]
        count = added(len(splits.train), self.share)
        copied = members.repeat(-(-count // len(members)))[:count]
        return _extended(splits, splits.train.inputs[copied], _uniform(splits, count, generator))


Noise: TypeAlias = NoNoise | NoisyBlank | NoisyDiverse | NoisyClass


def _uniform(splits: Splits, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(splits.classes), (count,), generator=generator)


def _extended(splits: Splits, inputs: Tensor, targets: Tensor) -> Splits:
    """Return the splits with samples added at the end of training; they belong to environment 0 and to no fact."""
    train = splits.train
    if train.group is not None:
        raise ValueError("noise is added to data without groups: what group a noisy sample has is not defined")
    labels = torch.cat([train.targets, targets.to(train.targets)])
    old = torch.zeros_like(train.targets) if train.environment is None else train.environment
    environment = torch.cat([old, torch.zeros_like(targets).to(old)])
    batch = Batch.of(torch.cat([train.inputs, inputs.to(train.inputs)]), labels, environment=environment)
    new = torch.arange(len(labels)) >= len(train)
    facts = {
        name: torch.cat([fact, torch.zeros(len(targets), dtype=torch.bool)]) for name, fact in splits.facts.items()
    }
    return replace(splits, train=batch, facts={**facts, "noisy": new | facts.get("noisy", False)})
