"""`Splits`: the three parts of a data set in memory, and what is known of them beyond the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.encoding import Encoding

__all__ = ["Splits", "deal", "pictures"]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test samples of one data set, in memory.

    Attributes:
        name: the data set's name.
        train: the samples that are learned from, the ones that a method may weigh. Targets are int64 class ids, or
            float32 numbers where `target_scale` is given,
            `environment` ids are 0 .. len(environments) - 1.
        validation: samples of the TRAINING environments that no model is fitted to; all selection looks here.
        test: samples of the shifted environment. They are measured and reported; nothing decides by them.
        classes: a name for each class id.
        environments: a name for each environment id of `train` and `validation`.
        groups: a name for each group id (label x attribute), where validation and test have group ids, and training
            unless they are not known there (`groups_hidden`); otherwise empty.
        facts: boolean facts about the training samples, ``(n_train,)`` each, known because the data set was
            made by us ("label_flipped", "colour_agrees"). Reports draw them; no method or criterion receives them.
        ids: the name that the user's data give each training sample; empty where its position is all it has.
        notes: what a reader has to know of how the samples were made: sentences for reports.
        sources: the SHA-256 of each file of the user's that they were made of, by its path as given. A run is not
            resumed on others.
        target_scale: of a regression, the mean and the standard deviation by which the targets were standardised;
            there are then no classes. None: classification.
        rows: the row of the user's table (from 0) that each sample of each split is, under "train", "validation" and
            "test"; empty where there is no table.
        encoding: how the columns of the user's table became the inputs; None where there is no table.

    Raises:
        ValueError: a split is empty, an environment has no sample in training or validation, ids do not fit.
    """

    name: str
    train: Batch
    validation: Batch
    test: Batch
    classes: tuple[str, ...]
    environments: tuple[str, ...]
    facts: Mapping[str, Bool[Tensor, " n_train"]] = field(default_factory=lambda: MappingProxyType({}))
    groups: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    target_scale: tuple[float, float] | None = None
    rows: Mapping[str, Int[Tensor, " n"]] = field(default_factory=lambda: MappingProxyType({}))
    encoding: Encoding | None = None

    def __post_init__(self) -> None:
        if self.ids and len(self.ids) != len(self.train):
            raise ValueError(f"ids needs one entry for each of {len(self.train)} training samples, got {len(self.ids)}")
        for name, fact in self.facts.items():
            if fact.shape != self.train.index.shape:
                raise ValueError(f"facts[{name!r}] needs one entry for each of {len(self.train)} training samples")
        for name, part in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            if not len(part):
                raise ValueError(f"the {name} split has no samples; give it a larger share of the data")
        for name, part in (("training", self.train), ("validation", self.validation)):
            if part.environment is None:
                raise ValueError("training and validation samples need environment ids")
            counts = torch.bincount(part.environment, minlength=len(self.environments))
            if len(counts) > len(self.environments):
                raise ValueError(f"environment ids must be below {len(self.environments)}")
            if not counts.all():
                empty = self.environments[int(counts.argmin())]
                raise ValueError(f"the {name} split has no sample of the environment {empty!r}; give it a larger share")
        for part in (self.train, self.validation, self.test):
            if not self.groups or (part is self.train and part.group is None):
                continue
            if part.group is None or (len(part) and int(part.group.max()) >= len(self.groups)):
                raise ValueError(f"all samples need group ids below {len(self.groups)}, the number of group names")

    @property
    def groups_hidden(self) -> bool:
        """Whether groups are known on validation and test alone."""
        return bool(self.groups) and self.train.group is None

    def to(self, device: torch.device | str) -> Splits:
        """Return the same splits on `device` (the facts, which only reports read, stay where they are)."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )

    def grayscale(self) -> Splits:
        """Return the oracle's view: channels ``(n, channels, h, w)`` summed to ``(n, 1, h, w)``, colour gone."""

        def gray(part: Batch) -> Batch:
            return replace(part, inputs=part.inputs.sum(1, keepdim=True))

        return replace(self, train=gray(self.train), validation=gray(self.validation), test=gray(self.test))


def deal(
    strata: Int[Tensor, " n"], share: float, generator: torch.Generator
) -> tuple[Int[Tensor, " rest"], Int[Tensor, " part"]]:
    """Split positions 0 .. n-1 at random into the rest and a part of exactly ``floor(n * share)``, stratified.

    The positions are shuffled within each stratum and every (1/share)-th is dealt into the part, so that each stratum
    gives its share to within one sample.

    Returns:
        Positions of the rest and of the part, each in random order.

    Example:
        >>> rest, part = deal(torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), 0.5, torch.Generator().manual_seed(0))
        >>> len(rest), sorted((part // 2 % 2).tolist())
        (4, [0, 0, 1, 1])
    """
    _check.in_range("share", share, low=0.0, high=1.0)
    shuffled = torch.randperm(len(strata), generator=generator)
    order = shuffled[torch.argsort(strata[shuffled], stable=True)]
    steps = (torch.arange(len(strata) + 1, dtype=torch.float64) * share + 1e-9).floor()  # 1e-9: 0.3 * 10 is 3
    chosen = steps[1:] > steps[:-1]
    rest, part = order[~chosen], order[chosen]
    return (
        rest[torch.randperm(len(rest), generator=generator)],
        part[torch.randperm(len(part), generator=generator)],
    )


def pictures(inputs: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n h w 3"]:
    """Render images for a report: two channels in a vermilion and a bluish green, one in gray, three as colours.

    The two hues are those of Okabe and Ito's palette, which readers with any common colour vision tell apart;
    the published data set's red and green are not. Images of three channels are standardised in all our data sets, so
    each is stretched from its own lowest value to its own highest.
    """
    if inputs.shape[1] == 3:
        low, high = inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True)
        return ((inputs - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1)
    hues = {1: [[1.0, 1.0, 1.0]], 2: [[0.90, 0.42, 0.05], [0.0, 0.75, 0.55]]}
    if inputs.shape[1] not in hues:
        raise ValueError(f"pictures takes one, two or three channels, got inputs of shape {tuple(inputs.shape)}")
    palette = torch.tensor(hues[inputs.shape[1]], dtype=inputs.dtype, device=inputs.device)
    return torch.einsum("nchw,cr->nhwr", inputs, palette).clamp(0, 1)
