"""Fine-tuning on what the model is sure of: confident pool samples, their pseudo-labels, strong augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.active.fitting import Epochs, Fit, Learned, train_epochs
from steelyard.experiments.active.view import read
from steelyard.experiments.data.transforms import load_v2
from steelyard.experiments.training.seeds import derived, global_state

__all__ = ["FineTuned", "FineTuning", "augmented", "pseudo_labelled"]


@dataclass(frozen=True)
class FineTuning:
    """The settings of Algorithm 2.

    Attributes:
        confidence: only samples whose likeliest class has more than this probability are used.
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
class FineTuned:
    """A training followed by Algorithm 2: what `first` learned, main model and average, trained on on the pool.

    Where no sample is confident, or one alone, what `first` learned is returned as it is.

    Attributes:
        first: the training of the round.
        settings: of the fine-tuning.
    """

    first: Fit
    settings: FineTuning

    def __call__(
        self, labelled: Batch, unlabelled: Tensor, start: Learned | None, seed: int, journal: Journal | None = None
    ) -> Learned:
        """Return the fine-tuned models; see `Fit`. Facts: those of `first`, confident, tuned, tuned_epochs."""
        journal = journal or Journal()
        base = self.first(labelled, unlabelled, start, seed, journal)
        learned = base.copy()
        order = torch.Generator().manual_seed(derived(seed, 3))
        data, confident = pseudo_labelled(learned, unlabelled, self.settings, order)
        epochs = 0
        if len(data) > 1:
            with global_state(derived(seed, 4), unlabelled.device):
                data = Batch.of(augmented(data.inputs, self.settings), data.targets)
                tuned = self.settings.epochs
                epochs, _ = train_epochs(learned.model, learned.average, data, tuned, order, journal=journal)
        facts = {"confident": float(confident), "tuned": float(len(data)), "tuned_epochs": float(epochs)}
        return Learned(learned.model, learned.average, {**learned.facts, **facts})


def pseudo_labelled(
    learned: Learned, inputs: Float[Tensor, "m *shape"], settings: FineTuning, generator: torch.Generator
) -> tuple[Batch, int]:
    """Return the confident samples with their pseudo-labels, and how many were confident.

    The main model's probability must be above the threshold; the label is the moving average's (Algorithm 2, lines 4
    to 6). At most `settings.samples` are kept, drawn by `generator`.
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
    labels = read(learned.average, inputs[chosen])[0].argmax(1)
    return Batch.of(inputs[chosen], labels), count


def augmented(images: Float[Tensor, "m *shape"], settings: FineTuning) -> Float[Tensor, "m *shape"]:
    """Return the images, pixels in [0, 1], each through RandAugment and Cutout once, as Algorithm 2 has it (line 7).

    Draws from torch's global random state; see `steelyard.experiments.training.seeds.global_state`.

    Raises:
        ValueError: inputs that are no images of one or three channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"fine-tuning augments images (m, 1 or 3 channels, h, w), got inputs of shape {tuple(images.shape)}"
        )
    transform = _transform(settings)
    return torch.stack([transform(image) for image in images])


def _transform(settings: FineTuning) -> nn.Module:
    v2 = load_v2()
    cutout = [v2.RandomErasing(p=1.0, scale=(settings.cutout,) * 2, ratio=(1.0, 1.0), value=0.5)]
    randaugment = [v2.RandAugment(settings.operations, settings.magnitude)] if settings.operations else []
    return nn.Sequential(*randaugment, *(cutout if settings.cutout else []))
