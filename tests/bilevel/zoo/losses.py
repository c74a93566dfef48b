"""Every loss of `torch.nn.functional` with ``reduction="none"``, and the loss modules of `torch.nn`, on a small net."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bilevel.zoo.case import CLASSES, FEATURES, Case, Draw, classes, normal

__all__ = ["loss_cases", "public_losses"]


def public_losses() -> set[str]:
    """Return the names of all functions with an argument ``reduction``, in this version of torch."""
    found = {name for name, function in vars(F).items() if not name.startswith("_") and inspect.isfunction(function)}
    return {name for name in found if "reduction" in inspect.signature(getattr(F, name)).parameters}


Loss = Callable[[Tensor, Tensor], Tensor]


def rows_of(values: Tensor) -> Tensor:
    """One number a sample: the mean over all other axes."""
    return values.reshape(len(values), -1).mean(1)


def signs(generator: torch.Generator, rows: int) -> Tensor:
    return torch.randint(0, 2, (rows,), generator=generator).float() * 2 - 1


def uniform(*shape: int) -> Draw:
    return lambda generator, rows: torch.rand(rows, *shape, generator=generator)


def distribution(*shape: int) -> Draw:
    return lambda generator, rows: torch.randn(rows, *shape, generator=generator).softmax(1)


def binary(*shape: int) -> Draw:
    return lambda generator, rows: torch.randint(0, 2, (rows, *shape), generator=generator).float()


def counts(*shape: int) -> Draw:
    return lambda generator, rows: torch.randint(0, 4, (rows, *shape), generator=generator).float()


def sometimes_ignored(generator: torch.Generator, rows: int) -> Tensor:
    labels = classes()(generator, rows)
    labels[1] = -100
    return labels


def label_sets(generator: torch.Generator, rows: int) -> Tensor:
    """Some labels of 4, then -1."""
    found = torch.stack([torch.randperm(4, generator=generator) for _ in range(rows)])
    found[:, 2] = -1
    return found


def ctc(outputs: Tensor, targets: Tensor, loss: Loss | None = None) -> Tensor:
    scores = outputs.view(len(outputs), 4, 3).log_softmax(2).transpose(0, 1)
    frames, labels = torch.full((len(outputs),), 4), torch.full((len(outputs),), 2)
    if loss is not None:
        return loss(scores, targets, frames, labels)
    return F.ctc_loss(scores, targets, frames, labels, reduction="none")


def labels_for_ctc(generator: torch.Generator, rows: int) -> Tensor:
    return torch.randint(1, 3, (rows, 2), generator=generator)


def gaussian(outputs: Tensor, targets: Tensor, loss: Any) -> Tensor:
    mean, spread = outputs.chunk(2, 1)
    return rows_of(loss(mean, targets, F.softplus(spread)))


def distances(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().pow(1.5).sum(1)


def constant_head(outputs: Tensor, targets: Tensor, **kw: Any) -> Tensor:
    """The classifier's weight is fixed: only the hidden layer is trained (the module has a weight of its own)."""
    weight = torch.linspace(-1, 1, CLASSES * outputs.shape[1], dtype=outputs.dtype).view(CLASSES, -1)
    return F.linear_cross_entropy(outputs, weight.sin(), targets, reduction="none", **kw)


def elementwise(function: Any, **kw: Any) -> Loss:
    return lambda outputs, targets: rows_of(function(outputs, targets, **kw))


def sigmoid_then(function: Any, **kw: Any) -> Loss:
    return lambda outputs, targets: rows_of(function(outputs.sigmoid(), targets, **kw))


def log_softmax_then(function: Any, **kw: Any) -> Loss:
    return lambda outputs, targets: rows_of(function(outputs.log_softmax(1), targets, **kw))


def halves_and(function: Any, **kw: Any) -> Loss:
    return lambda outputs, targets: rows_of(function(*outputs.chunk(2, 1), targets, **kw))


def thirds(function: Any, **kw: Any) -> Loss:
    return lambda outputs, targets: rows_of(function(*outputs.chunk(3, 1), **kw))


def in_space(function: Any, **kw: Any) -> Loss:
    """Classes along axis 1, two places along axis 2."""
    return lambda outputs, targets: rows_of(function(outputs.view(len(outputs), CLASSES, 2), targets, **kw))


def _functional() -> Iterator[tuple[str, str, Loss, int, Draw]]:
    """(function, option, loss, width of the net's outputs, targets)."""
    none = {"reduction": "none"}
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def weighted(function: Any, name: str = "weight") -> Loss:
        return lambda outputs, targets: rows_of(
            function(outputs, targets, **{name: scale.to(outputs.dtype)}, reduction="none")
        )

    yield "binary_cross_entropy", "", sigmoid_then(F.binary_cross_entropy, **none), 3, uniform(3)
    yield "binary_cross_entropy", "labels", sigmoid_then(F.binary_cross_entropy, **none), 3, binary(3)
    logits = F.binary_cross_entropy_with_logits
    yield "binary_cross_entropy_with_logits", "", elementwise(logits, **none), 3, uniform(3)
    yield "binary_cross_entropy_with_logits", "positive weight", weighted(logits, "pos_weight"), 3, binary(3)
    yield "cosine_embedding_loss", "", halves_and(F.cosine_embedding_loss, margin=-0.5, **none), 6, signs
    yield "cross_entropy", "", elementwise(F.cross_entropy, **none), 3, classes()
    yield "cross_entropy", "probabilities", elementwise(F.cross_entropy, **none), 3, distribution(3)
    yield "cross_entropy", "smoothing", elementwise(F.cross_entropy, label_smoothing=0.2, **none), 3, classes()
    yield "cross_entropy", "ignored", elementwise(F.cross_entropy, **none), 3, sometimes_ignored
    yield "cross_entropy", "class weights", weighted(F.cross_entropy), 3, classes()
    yield "cross_entropy", "in space", in_space(F.cross_entropy, **none), 6, classes(3, 2)
    yield "ctc_loss", "", ctc, 12, labels_for_ctc
    yield "gaussian_nll_loss", "", partial(gaussian, loss=partial(F.gaussian_nll_loss, **none)), 4, normal(2)
    full = partial(F.gaussian_nll_loss, full=True, **none)
    yield "gaussian_nll_loss", "full", partial(gaussian, loss=full), 4, normal(2)
    hinge = lambda outputs, targets: F.hinge_embedding_loss(outputs.square().sum(1), targets, 2.0, **none)  # noqa: E731
    yield "hinge_embedding_loss", "", hinge, 2, signs
    yield "huber_loss", "", elementwise(F.huber_loss, delta=0.7, **none), 3, normal(3)
    yield "kl_div", "", log_softmax_then(F.kl_div, **none), 3, distribution(3)
    log = lambda generator, rows: distribution(3)(generator, rows).log()  # noqa: E731
    yield "kl_div", "log targets", log_softmax_then(F.kl_div, log_target=True, **none), 3, log
    yield "l1_loss", "", elementwise(F.l1_loss, **none), 3, normal(3)
    if hasattr(F, "linear_cross_entropy"):  # of torch 2.13
        yield "linear_cross_entropy", "", constant_head, 4, classes()
        yield "linear_cross_entropy", "smoothing", partial(constant_head, label_smoothing=0.1), 4, classes()
    ranking = lambda outputs, targets: F.margin_ranking_loss(*outputs.unbind(1), targets, 0.5, **none)  # noqa: E731
    yield "margin_ranking_loss", "", ranking, 2, signs
    yield "mse_loss", "", elementwise(F.mse_loss, **none), 3, normal(3)
    yield "multi_margin_loss", "", elementwise(F.multi_margin_loss, **none), 3, classes()
    yield "multi_margin_loss", "squared", elementwise(F.multi_margin_loss, p=2, **none), 3, classes()
    yield "multilabel_margin_loss", "", elementwise(F.multilabel_margin_loss, **none), 4, label_sets
    yield "multilabel_soft_margin_loss", "", elementwise(F.multilabel_soft_margin_loss, **none), 3, binary(3)
    yield "nll_loss", "", log_softmax_then(F.nll_loss, **none), 3, classes()
    yield "nll_loss", "ignored", log_softmax_then(F.nll_loss, **none), 3, sometimes_ignored
    space = lambda outputs, targets: in_space(log_softmax_then(F.nll_loss, **none))(outputs, targets)  # noqa: E731
    flat = lambda outputs, targets: rows_of(  # noqa: E731
        F.nll_loss(outputs.view(len(outputs), CLASSES, 2).log_softmax(1), targets, **none)
    )
    del space
    yield "nll_loss", "in space", flat, 6, classes(3, 2)
    yield "poisson_nll_loss", "", elementwise(F.poisson_nll_loss, **none), 3, counts(3)
    rate = lambda outputs, targets: rows_of(  # noqa: E731
        F.poisson_nll_loss(F.softplus(outputs), targets, log_input=False, full=True, **none)
    )
    yield "poisson_nll_loss", "rates, full", rate, 3, counts(3)
    yield "smooth_l1_loss", "", elementwise(F.smooth_l1_loss, beta=0.7, **none), 3, normal(3)
    yield "soft_margin_loss", "", lambda o, t: rows_of(F.soft_margin_loss(o.squeeze(1), t, **none)), 1, signs
    yield "triplet_margin_loss", "", thirds(F.triplet_margin_loss, margin=2.0, **none), 6, normal()
    yield (
        "triplet_margin_loss",
        "swap, norm 1",
        thirds(F.triplet_margin_loss, margin=3.0, p=1, swap=True, **none),
        6,
        (normal()),
    )
    own = partial(F.triplet_margin_with_distance_loss, distance_function=distances, margin=2.0, **none)
    yield "triplet_margin_with_distance_loss", "", thirds(own), 6, normal()
    plain = partial(F.triplet_margin_with_distance_loss, margin=2.0, swap=True, **none)
    yield "triplet_margin_with_distance_loss", "swap", thirds(plain), 6, normal()


def _modules() -> Iterator[tuple[str, Loss, int, Draw]]:
    """Loss modules, as users pass them to `WeightedLoss`."""

    def none(kind: Any, *args: Any, **kw: Any) -> Any:
        return kind(*args, reduction="none", **kw)

    yield "BCELoss", sigmoid_then(none(nn.BCELoss)), 3, binary(3)
    yield "BCEWithLogitsLoss", elementwise(none(nn.BCEWithLogitsLoss)), 3, binary(3)
    yield "CTCLoss", partial(ctc, loss=none(nn.CTCLoss)), 12, labels_for_ctc
    yield "CosineEmbeddingLoss", halves_and(none(nn.CosineEmbeddingLoss)), 6, signs
    yield "CrossEntropyLoss", none(nn.CrossEntropyLoss), 3, classes()
    yield "GaussianNLLLoss", partial(gaussian, loss=none(nn.GaussianNLLLoss)), 4, normal(2)
    hinge = none(nn.HingeEmbeddingLoss, 2.0)
    yield "HingeEmbeddingLoss", lambda outputs, targets: hinge(outputs.square().sum(1), targets), 2, signs
    yield "HuberLoss", elementwise(none(nn.HuberLoss)), 3, normal(3)
    yield "KLDivLoss", log_softmax_then(none(nn.KLDivLoss)), 3, distribution(3)
    yield "L1Loss", elementwise(none(nn.L1Loss)), 3, normal(3)
    yield "MSELoss", elementwise(none(nn.MSELoss)), 3, normal(3)
    ranking = none(nn.MarginRankingLoss, 0.5)
    yield "MarginRankingLoss", lambda outputs, targets: ranking(*outputs.unbind(1), targets), 2, signs
    yield "MultiLabelMarginLoss", none(nn.MultiLabelMarginLoss), 4, label_sets
    yield "MultiLabelSoftMarginLoss", none(nn.MultiLabelSoftMarginLoss), 3, binary(3)
    yield "MultiMarginLoss", none(nn.MultiMarginLoss), 3, classes()
    yield "NLLLoss", log_softmax_then(none(nn.NLLLoss)), 3, classes()
    yield "PoissonNLLLoss", elementwise(none(nn.PoissonNLLLoss)), 3, counts(3)
    yield "SmoothL1Loss", elementwise(none(nn.SmoothL1Loss)), 3, normal(3)
    soft = none(nn.SoftMarginLoss)
    yield "SoftMarginLoss", lambda outputs, targets: soft(outputs.squeeze(1), targets), 1, signs
    yield "TripletMarginLoss", thirds(none(nn.TripletMarginLoss, margin=2.0)), 6, normal()
    yield "TripletMarginWithDistanceLoss", thirds(none(nn.TripletMarginWithDistanceLoss, margin=2.0)), 6, normal()


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, width))


def loss_cases() -> list[Case]:
    found = [
        Case(f"F.{name} ({option})" if option else f"F.{name}", name, partial(net, width), loss, targets=targets)
        for name, option, loss, width, targets in _functional()
    ]
    found += [Case(name, name, partial(net, width), loss, targets=targets) for name, loss, width, targets in _modules()]
    return found
