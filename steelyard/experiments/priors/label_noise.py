"""From out-of-fold probabilities to the probability that a given label is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["LabelNoise", "label_noise", "label_noise_by_clean"]

_SUREST = 0.05  # share of a class' samples that are taken to be of that class
_FEWEST = 20  # samples, where there are as many
_FITS = 200  # steps of the confusion's fit; it has a few parameters
_ANCHORED = 5.0  # samples a class that the anchor points count for beside clean ones


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """How labels seem to have been confused, and what that says of each.

    Attributes:
        confusion: ``(classes, classes)`` the probability that a sample of class c was given label j.
        right: ``(n,)`` the probability that the given label is right.
        share: the mean of ``1 - right``: the share of labels that seem wrong.
    """

    confusion: Float[Tensor, "classes classes"]
    right: Float[Tensor, " n"]

    @property
    def share(self) -> float:
        """The share of labels that seem wrong."""
        return float((1 - self.right.double()).mean())


def label_noise(probabilities: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> LabelNoise:
    """Estimate how labels were confused, and how probable it is that each is right.

    1. The probabilities are sharpened or softened by one exponent, so that they predict the given labels best. (Models
       at the end of a training are too sure of themselves.)
    2. T[c, j] is the share with the given label j among the samples that the models are surest are of class c (anchor
       points: the surest twentieth of those predicted c). Where even these have other labels, labels are wrong; where
       they have none, T is the identity and every label is taken to be right.
    3. With eta the class probabilities that T turns into those of the given labels, P(right) = T[y, y] eta_y / p_y.

    That takes confusion to depend on the class alone. Errors that are systematic in the features are learned by the
    models as if they were right, and are not seen here.

    Args:
        probabilities: ``(n, classes)`` of the given labels, from models that were not trained on the sample.
        labels: ``(n,)`` class ids, as given.

    References:
        Anchor points: Liu and Tao, Classification with noisy labels by importance reweighting, TPAMI 2016; Patrini et
        al., Making deep neural networks robust to label noise, CVPR 2017. The weight P(right) is the former's.

    Example:
        >>> p = torch.tensor([[0.8, 0.2]] * 50 + [[0.2, 0.8]] * 50)
        >>> y = torch.tensor(([0] * 4 + [1]) * 10 + ([1] * 4 + [0]) * 10)
        >>> found = label_noise(p, y)
        >>> [round(one, 2) for one in found.right[[0, 4]].tolist()]
        [1.0, 0.0]
    """
    exponent = _exponent(probabilities.double(), labels)
    sharpened = _raised(probabilities.double(), exponent)
    return _of(sharpened, labels, _confusion(sharpened, labels))


def label_noise_by_clean(
    probabilities: Float[Tensor, "n classes"],
    labels: Int[Tensor, " n"],
    clean: Float[Tensor, "m classes"],
    clean_labels: Int[Tensor, " m"],
) -> LabelNoise:
    """Estimate how labels were confused from samples whose labels are right, and how probable it is that each is right.

    As `label_noise`, but T is the one under which the clean labels are most probable, given what models that were
    trained on the noisy labels alone say of the clean samples: eta of these has to predict them. A penalty draws T to
    that of `label_noise`, as strongly as five samples a class would. (Chosen by how near P(right) is to the truth on
    training rows whose labels were made wrong: 0, 2, 5, 10, 20, 50 samples, five data sets.)

    Args:
        probabilities: ``(n, classes)`` of the given labels, from models that were not trained on the sample.
        labels: ``(n,)`` class ids, as given.
        clean: ``(m, classes)`` from such models, of the clean samples.
        clean_labels: ``(m,)`` their class ids.

    References:
        A confusion matrix from trusted samples: Hendrycks et al., Using trusted data to train deep networks on labels
        corrupted by severe noise, NeurIPS 2018. The likelihood is ours: theirs takes the classes not to overlap.
    """
    exponent = _exponent(probabilities.double(), labels)
    sharpened, judged = (_raised(one.double(), exponent) for one in (probabilities, clean))
    anchors = 0.98 * _confusion(sharpened, labels) + 0.02 / sharpened.shape[1]  # no entry is 0: it could not grow
    free = anchors.log().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(_FITS):
        confusion = free.softmax(1)
        eta = _classes(judged, confusion).clamp(min=1e-3)
        loss = -(eta / eta.sum(1, keepdim=True)).gather(1, clean_labels[:, None]).log().sum()
        loss = loss - _ANCHORED * (anchors * confusion.log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _of(sharpened, labels, free.detach().softmax(1))


def _of(probabilities: Tensor, labels: Tensor, confusion: Tensor) -> LabelNoise:
    """Return P(right) of each label under a confusion."""
    classes = _classes(probabilities, confusion).clamp(min=0)
    classes = classes / classes.sum(1, keepdim=True).clamp(min=1e-12)
    given = (classes @ confusion).gather(1, labels[:, None])[:, 0]
    right = confusion.diagonal()[labels] * classes.gather(1, labels[:, None])[:, 0] / given.clamp(min=1e-12)
    return LabelNoise(confusion, right.clamp(0, 1).float())


def _classes(probabilities: Tensor, confusion: Tensor) -> Tensor:
    """Return what `confusion` turns into `probabilities`; entries may be below 0."""
    eye = 1e-6 * torch.eye(len(confusion), dtype=confusion.dtype)  # two classes that are confused for each other
    return torch.linalg.solve(confusion.T + eye, probabilities.T).T


def _raised(probabilities: Tensor, exponent: float) -> Tensor:
    return (exponent * probabilities.clamp(1e-9, 1).log()).softmax(1)


def _exponent(probabilities: Tensor, labels: Tensor) -> float:
    """Return the a in [1/20, 4] with which p^a, normalised, predicts the labels best; the loss is convex in a."""
    logits = probabilities.clamp(1e-9, 1).log()
    low, high = 0.05, 4.0
    for _ in range(40):  # golden section
        inner = [high - (high - low) / 1.618033988749895, low + (high - low) / 1.618033988749895]
        one, other = (float(torch.nn.functional.cross_entropy(a * logits, labels)) for a in inner)
        low, high = (low, inner[1]) if one <= other else (inner[0], high)
    return 0.5 * (low + high)


def _confusion(probabilities: Tensor, labels: Tensor) -> Float[Tensor, "classes classes"]:
    count, classes = probabilities.shape
    predicted = probabilities.argmax(1)
    rows = []
    for one in range(classes):
        members = int((predicted == one).sum())
        surest = min(max(_FEWEST, round(_SUREST * members)), max(members, 1), count)
        top = probabilities[:, one].argsort(descending=True, stable=True)[:surest]
        rows.append(torch.bincount(labels[top], minlength=classes).double() / surest)
    confusion = torch.stack(rows)
    # A class that even its surest samples mostly contradict was not learned: nothing is said of its labels.
    unknown = confusion.argmax(1) != torch.arange(classes)
    confusion[unknown] = torch.eye(classes, dtype=confusion.dtype)[unknown]
    return confusion
