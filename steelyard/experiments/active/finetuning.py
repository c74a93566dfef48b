"""Fine-tuning on what the model is sure of: confident pool samples, their predicted labels, strong augmentation.

Two ways, and a control:

- `FineTuning`, the default. Labelled samples are in the set, too, all labels are predicted, every epoch sees other
  augmented images, and the model that is measured is trained on the labelled samples once more; the one that selects is
  not.
- `Algorithm2` is the paper's, to the letter: confident pool samples alone, augmented once; the result selects and is
  measured.
- `MoreEpochs` trains on the labelled samples alone: what longer training would have given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.active.fitting import Epochs, Fit, Learned, train_epochs
from steelyard.experiments.active.view import read
from steelyard.experiments.data.augmented import Distortion, check_images
from steelyard.experiments.data.rand_augment import cut_out, rand_augment
from steelyard.experiments.training.seeds import derived, generator, global_state

__all__ = ["Algorithm2", "FineTuned", "FineTuning", "MoreEpochs", "Tuning", "augmented", "pseudo_labelled"]


@dataclass(frozen=True)
class FineTuning:
    """Train on with the labelled samples and all confident ones, under the labels that the model predicts.

    A label that is noise is replaced by a prediction: most of the gain where inputs are blank. It departs from
    Algorithm 2 of the paper in that, in the augmentation, and in training on the labelled samples afterwards, which
    Algorithm 1 does before the next round (its line 14 after line 4).

    Attributes:
        confidence: only pool samples whose likeliest class has more than this probability are used.
        labels: whose predictions the labels are: those of the "main" model or of the moving "average".
        samples: at most so many pool samples, drawn at random from the confident ones; 0 for all.
        distortion: of the images, drawn for every sample at every step.
        epochs: how long. The labelled samples afterwards are trained on as in the round itself.
    """

    name: Literal["with_labelled"] = "with_labelled"
    confidence: float = 0.8
    labels: Literal["main", "average"] = "main"
    samples: int = 0
    distortion: Distortion = field(default_factory=Distortion)
    epochs: Epochs = field(default_factory=lambda: Epochs(learning_rate=1e-2))

    def __post_init__(self) -> None:
        _check.in_range("confidence", self.confidence, low=0.0, high=1.0, open_high=True)
        _check.integer("samples", self.samples, low=0)


@dataclass(frozen=True)
class Algorithm2:
    """The settings of the paper's fine-tuning.

    Attributes:
        confidence: only pool samples whose likeliest class has more than this probability are used.
        operations: RandAugment operations for each sample.
        magnitude: of these, 0 to 30.
        cutout: share of the image's area that Cutout's square covers.
        samples: at most so many, drawn at random from the confident ones; 0 for all.
        epochs: how long.

    References:
        Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, 4.3,
        Algorithm 2 and appendix B; E. D. Cubuk et al., RandAugment, 2020; T. DeVries, G. W. Taylor, Cutout, 2017.
        Magnitude and the square's size are not in the paper; ours are torchvision's default and the quarter of the
        image that FixMatch, its model, uses. The stop at an accuracy is in the authors' code.
    """

    name: Literal["paper"] = "paper"
    confidence: float = 0.8
    operations: int = 4
    magnitude: int = 9
    cutout: float = 0.25
    samples: int = 0
    epochs: Epochs = field(default_factory=lambda: Epochs(learning_rate=1e-2))

    def __post_init__(self) -> None:
        _check.in_range("confidence", self.confidence, low=0.0, high=1.0, open_high=True)
        _check.integer("operations", self.operations, low=0)
        _check.integer("magnitude", self.magnitude, low=0, high=30)
        _check.in_range("cutout", self.cutout, low=0.0, high=1.0, open_high=True)
        _check.integer("samples", self.samples, low=0)


@dataclass(frozen=True)
class MoreEpochs:
    """No fine-tuning: as many more epochs on the labelled samples, the control of what fine-tuning gains.

    Attributes:
        epochs: how long.
    """

    name: Literal["more_epochs"] = "more_epochs"
    epochs: Epochs = field(default_factory=Epochs)


Tuning: TypeAlias = FineTuning | Algorithm2 | MoreEpochs


@dataclass(frozen=True)
class FineTuned:
    """A training followed by fine-tuning: what `first` learned, main model and average, trained on.

    Where no pool sample is confident, or one alone, what `first` learned is returned as it is.

    Attributes:
        first: the training of the round.
        settings: of the fine-tuning.
        after: how `FineTuning` trains on with the labelled samples afterwards, from where it stands.
    """

    first: Fit
    settings: Tuning
    after: Fit

    def __call__(
        self, labelled: Batch, unlabelled: Tensor, start: Learned | None, seed: int, journal: Journal | None = None
    ) -> Learned:
        """Return the fine-tuned models; see `Fit`.

        Facts: those of `first`, and confident (how many of the pool), tuned (samples trained on), tuned_epochs; with
        `FineTuning` also after_epochs.
        """
        journal = journal or Journal()
        base = self.first(labelled, unlabelled, start, seed, journal)
        run = _Run(base.copy(), labelled, unlabelled, seed, journal)
        if isinstance(self.settings, MoreEpochs):
            return run.more(self.settings)
        if isinstance(self.settings, Algorithm2):
            return run.by_the_paper(self.settings)
        return run.with_labelled(self.settings, self.after)


@dataclass(frozen=True)
class _Run:
    """One round's fine-tuning: `learned` is trained on in place."""

    learned: Learned
    labelled: Batch
    unlabelled: Tensor
    seed: int
    journal: Journal

    def more(self, settings: MoreEpochs) -> Learned:
        """Train on with the labelled samples."""
        with global_state(derived(self.seed, 4), self.unlabelled.device):
            order, learned = generator(self.seed, 3), self.learned
            more = settings.epochs
            epochs, _ = train_epochs(learned.model, learned.average, self.labelled, more, order, journal=self.journal)
        return self._with_facts(0, len(self.labelled), epochs)

    def by_the_paper(self, settings: Algorithm2) -> Learned:
        """Train on with the confident samples, augmented once (Algorithm 2, line 7)."""
        order = torch.Generator().manual_seed(derived(self.seed, 3))
        data, confident = pseudo_labelled(self.learned, self.unlabelled, settings, order)
        epochs = 0
        if len(data) > 1:
            with global_state(derived(self.seed, 4), self.unlabelled.device):
                data = Batch.of(augmented(data.inputs, settings), data.targets)
                epochs, _ = train_epochs(
                    self.learned.model, self.learned.average, data, settings.epochs, order, journal=self.journal
                )
        return self._with_facts(confident, len(data), epochs)

    def with_labelled(self, settings: FineTuning, after: Fit) -> Learned:
        """Train on with labelled and confident samples; then a copy with the labelled ones, which is measured."""
        check_images(self.unlabelled)
        chosen, confident = pseudo_labelled(self.learned, self.unlabelled, settings, generator(self.seed, 3))
        if len(chosen) < 2:
            return self._with_facts(confident, 0, 0, after=0)
        predictor = self.learned.average if settings.labels == "average" else self.learned.model
        known = read(predictor, self.labelled.inputs)[0].argmax(1)
        inputs = torch.cat([self.labelled.inputs, chosen.inputs])
        data = Batch.of(inputs, torch.cat([known, chosen.targets]))
        mean = inputs.mean((0, 2, 3))

        def distort(model: nn.Module, batch: Batch, step: int) -> Batch:
            source = generator(self.seed, 4, step)
            return replace(batch, inputs=settings.distortion(batch.inputs, mean, source))

        with global_state(derived(self.seed, 5), self.unlabelled.device):
            model, average, order = self.learned.model, self.learned.average, generator(self.seed, 5, 0)
            epochs, _ = train_epochs(model, average, data, settings.epochs, order, distort, self.journal)
        measured = after(self.labelled, self.unlabelled, self.learned, derived(self.seed, 6), self.journal)
        return self._with_facts(confident, len(data), epochs, after=measured.facts["epochs"], measured=measured)

    def _with_facts(
        self,
        confident: int,
        tuned: int,
        epochs: int,
        *,
        after: float | int | None = None,
        measured: Learned | None = None,
    ) -> Learned:
        facts = {"confident": float(confident), "tuned": float(tuned), "tuned_epochs": float(epochs)}
        facts |= {} if after is None else {"after_epochs": float(after)}
        return replace(self.learned, facts={**self.learned.facts, **facts}, measured=measured)


def pseudo_labelled(
    learned: Learned,
    inputs: Float[Tensor, "m *shape"],
    settings: FineTuning | Algorithm2,
    generator: torch.Generator,
) -> tuple[Batch, int]:
    """Return the confident samples with their pseudo-labels, and how many were confident.

    The main model's probability must be above the threshold; the label is the moving average's in Algorithm 2 (lines 4
    to 6), the main model's by default in `FineTuning`. At most `settings.samples` are kept, drawn by `generator`.
    """
    if not len(inputs):
        return Batch.of(inputs, torch.zeros(0, dtype=torch.long, device=inputs.device)), 0
    logits, _ = read(learned.model, inputs)
    chosen = (logits.softmax(1).amax(1) > settings.confidence).nonzero().flatten()
    count = len(chosen)
    if settings.samples and count > settings.samples:
        kept = torch.randperm(count, generator=generator)[: settings.samples].sort().values
        chosen = chosen[kept.to(chosen.device)]
    if not len(chosen):
        return Batch.of(inputs[chosen], chosen), 0
    by_main = isinstance(settings, FineTuning) and settings.labels == "main"
    labels = (logits[chosen] if by_main else read(learned.average, inputs[chosen])[0]).argmax(1)
    return Batch.of(inputs[chosen], labels), count


def augmented(images: Float[Tensor, "m *shape"], settings: Algorithm2) -> Float[Tensor, "m *shape"]:
    """Return the images, pixels in [0, 1], each through RandAugment and Cutout once, as Algorithm 2 has it (line 7).

    Draws from torch's global random state; see `steelyard.experiments.training.seeds.global_state`.

    Raises:
        ValueError: inputs that are no images of one or three channels.
    """
    check_images(images)
    moved = rand_augment(images, settings.operations, settings.magnitude)
    return cut_out(moved, settings.cutout)
