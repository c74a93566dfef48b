"""The inner loss: what an ordinary run minimises, with a weight for every sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._nested import Nested, named_tensors
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.outputs import ModelCall, Outputs, call_model, chosen, outputs_to_choose
from steelyard.distributed import ALONE, Ranks

__all__ = ["Divisor", "Objective", "SampleLoss", "WeightedLoss", "check_rows", "summed_by_weight"]

SampleLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(outputs, targets) -> (batch,)``, for example ``partial(F.cross_entropy, reduction="none")``."""

_TRIED = 7  # rows whose losses are taken alone too

Shapes: TypeAlias = tuple[torch.Size, torch.Size]

Normalise: TypeAlias = Literal["weights", "batch", "none"]

Divisor: TypeAlias = Tensor | float | int


@runtime_checkable
class Objective(Protocol):
    """Any inner loss: ``(model, batch, weight) -> scalar``. `WeightedLoss` is the one with a fast path."""

    def __call__(self, model: nn.Module, batch: Batch, weight: Tensor) -> Tensor:
        """Return the scalar that the run differentiates."""
        ...


class WeightedLoss:
    """A weighted sum of per-sample losses, plus a regulariser that no sample weight touches.

    With l_i the loss of sample i, w_i its weight, b the number of rows:

    | ``normalise`` | value | ``d<u, grad>/dw_i``, with ``t_i = <u, grad l_i>`` |
    |---|---|---|
    | ``"weights"`` (default) | sum w_i l_i / sum w_i | (t_i - sum w t / sum w) / sum w |
    | ``"batch"`` | sum w_i l_i / b | t_i / b |
    | ``"none"`` | sum w_i l_i | t_i |

    With `ranks` the sums and b are over the batch of all ranks, of which each has a share, of any size. What a rank
    gets is its share of that sum times the number of ranks, so that the average which DistributedDataParallel takes of
    the gradients is the gradient of the value above.

    Args:
        loss: `SampleLoss`, ``(outputs, targets) -> (batch,)``.
        normalise: the divisor, as above.
        regulariser: ``model -> scalar``, added as it is (an L2 term, say).
        ranks: the processes that train the model together, see `Processes`.
        outputs: what of the model's answer `loss` is given: a key or an attribute ("logits"), a position, or a function
            of the answer (whose value may be a tuple or a dict, for a loss that reads one). None: the model answers
            with a tensor.
        call: ``(model, inputs) -> answer``; by default ``model(x)`` for a tensor, ``model(*x)`` for a tuple,
            ``model(**x)`` for a dict.

    Raises:
        ValueError: unknown `normalise`; at the call: a loss that is not one number a sample, or that takes every output
            with every target (``(n, 1)`` and ``(n,)`` broadcast); weights that are not ``(batch,)``, or (for
            ``"weights"``) whose sum is not positive and finite, with the weight that is to blame.
        TypeError: at the call, on several ranks and for ``"weights"``: weights that require a gradient; an answer of
            the model that is no tensor where `outputs` does not say what to take of it.

    Example:
        >>> from functools import partial
        >>> import torch, torch.nn.functional as F
        >>> objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> data = Batch.of(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> objective(torch.nn.Linear(3, 2), data, torch.ones(4)).shape
        torch.Size([])

        A loss a token, averaged over those that count (targets of -100 do not), is one number a sample:

        >>> def mean_over_tokens(logits, targets):  # (batch, tokens, classes), (batch, tokens)
        ...     losses = F.cross_entropy(logits.mT, targets, reduction="none")  # 0 where the target is -100
        ...     return losses.sum(1) / (targets != -100).sum(1).clamp(min=1)
        >>> tokens = Batch.of({"input": torch.randn(2, 5, 3)}, torch.tensor([[0, 1, 1, -100, -100], [1, 0, 1, 0, 1]]))
        >>> WeightedLoss(mean_over_tokens)(torch.nn.Linear(3, 2), tokens, torch.ones(2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        loss: SampleLoss,
        normalise: Normalise = "weights",
        regulariser: Callable[[nn.Module], Tensor] | None = None,
        ranks: Ranks = ALONE,
        *,
        outputs: Outputs = None,
        call: ModelCall = call_model,
    ) -> None:
        self.loss = _check.function("loss", loss, "a function of outputs and targets")
        self.normalise = _check.choice("normalise", normalise, ("weights", "batch", "none"))
        if regulariser is not None:
            _check.function("regulariser", regulariser, "a function of the model")
        self.regulariser = regulariser
        self.ranks = ranks
        self.outputs = outputs_to_choose("outputs", outputs)
        self.call = _check.function("call", call, "a function of a model and its inputs")
        self._matched: set[Shapes] = set()

    def __call__(self, model: nn.Module, batch: Batch, weight: Tensor | Numbers) -> Tensor:
        """Return the scalar inner loss of `batch` under `weight` ``(batch,)``."""
        weight = _check.tensor("weight", weight, ("batch",))
        if len(weight) != len(batch):
            raise ValueError(f"weight must have an entry for each of the {len(batch)} samples, got {len(weight)}")
        return self.reduce(model, self.sample_losses(model, batch), weight)

    def reduce(self, model: nn.Module, losses: Tensor, weight: Tensor, divisor: Divisor | None = None) -> Tensor:
        """Return the scalar inner loss of samples whose losses ``(batch,)`` are at hand; `model` is regularised.

        `divisor` is what `divisor` returned for `weight` before, so that a rank replays a step without the others;
        None: ask again.
        """
        total = (weight * losses).sum() / (self.divisor(weight) if divisor is None else divisor)
        return total if self.regulariser is None else total + self.regulariser(model)

    def outputs_of(self, model: nn.Module, inputs: Nested) -> Any:
        """Return the outputs of `model` for `inputs` (those of a batch), as `loss` is given them: by `call`, `outputs`.

        Raises:
            TypeError: the model returns no tensor, and `outputs` does not say what to take.
        """
        try:
            outputs = self.call(model, inputs)
        except RuntimeError as error:
            if said := _other_dtype(model, inputs):
                raise TypeError(f"{said}: {error}") from error
            raise
        return chosen(outputs, self.outputs)

    def sample_losses(self, model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the unweighted loss of every sample ``(batch,)``, taken in float32 at least.

        (Under autocast a loss of bfloat16 outputs would round each sample's derivative to eight bits.)
        """
        outputs = _at_least_float32(self.outputs_of(model, batch.inputs))
        check_rows(self.loss, outputs, batch.targets, self._matched)
        try:
            losses = self.loss(outputs, batch.targets)
        except IndexError as error:
            if said := _no_such_class(outputs, batch):
                raise ValueError(said) from error
            raise
        if losses.shape != (len(batch),):
            raise ValueError(
                f"loss must give one number a sample, shape ({len(batch)},), got {tuple(losses.shape)}; "
                'use reduction="none" and average over any other axis'
            )
        return losses

    def divisor(self, weight: Tensor) -> Divisor:
        """Return what the weighted sum is divided by; on several ranks that of all over the number of ranks."""
        if self.ranks.size > 1:
            return self._total(weight) / self.ranks.size
        if self.normalise == "weights":
            total = weight.detach().sum() if not weight.requires_grad else weight.sum()
            _check_total(total, weight, "the batch", '; leave out empty batches or use normalise="batch"')
            return total
        return len(weight) if self.normalise == "batch" else 1

    def _total(self, weight: Tensor) -> Divisor:
        """Return the divisor of the sum over all ranks, of which `weight` is this one's share."""
        if self.normalise == "none":
            return 1
        if self.normalise == "batch":
            return max(1, self.ranks.count(len(weight)))
        if weight.requires_grad:
            raise TypeError('on several ranks normalise="weights" takes weights that require no gradient: detach them')
        total = self.ranks.sum(weight.sum())
        _check_total(total, weight, "the batch of all ranks")
        return total

    def pull(self, tangents: Tensor, recorded: Tensor, weight: Tensor) -> Tensor:
        """Turn ``t_i = <u, grad l_i>`` into ``d<u, grad objective>/dw_i``, by the table above.

        Args:
            tangents: ``(k,)`` t_i of the samples asked for.
            recorded: ``(batch,)`` t_i of the batch that the step was taken on.
            weight: ``(batch,)`` weights of that batch.

        Returns:
            ``(k,)``. A sample outside of the batch gets its derivative at weight 0, as if it had been a row.
        """
        weight, recorded = weight.to(tangents.dtype), recorded.to(tangents.dtype)
        if self.normalise == "weights":
            total, moment = self.ranks.sum(torch.stack([weight.sum(), weight @ recorded])).unbind()
            return (tangents - moment / total) / total
        return tangents / (self._total(weight) if self.ranks.size > 1 else self.divisor(weight))


def _at_least_float32(outputs: Any) -> Any:
    """Return outputs (of a function, perhaps several) with those of half precision in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
    if isinstance(outputs, dict):
        return {key: _at_least_float32(one) for key, one in outputs.items()}
    return tuple(map(_at_least_float32, outputs)) if type(outputs) is tuple else outputs


def summed_by_weight(objective: Objective) -> WeightedLoss | None:
    """Return `objective` where it is a `WeightedLoss` that is summed up as those are; else None."""
    if isinstance(objective, WeightedLoss) and type(objective).__call__ is WeightedLoss.__call__:
        return objective
    return None


def _check_total(total: Tensor, weight: Tensor, of: str, remedy: str = "") -> None:
    """Raise ValueError if `total` is no divisor: one look a step, so a negative weight may hide among others."""
    value = float(total.detach())
    if 0 < value < math.inf:
        return
    _check.finite("weight", weight.detach())
    if len(weight) and (least := float(weight.detach().min())) < 0:
        raise ValueError(f"weight must be >= 0, the smallest is {least}, and the sum {value}")
    raise ValueError(f'the weights of {of} sum to {value}: normalise="weights" needs a positive, finite sum{remedy}')


def check_rows(loss: SampleLoss, outputs: object, targets: Tensor, matched: set[Shapes] | None = None) -> None:
    """Raise ValueError if `loss` would take the outputs of one sample with the targets of others, by broadcasting.

    ``outputs - targets`` of the shapes ``(n, 1)`` and ``(n,)`` is ``(n, n)``, and a mean over its columns one number a
    sample, of nothing that was meant. Shapes alone do not tell, for a loss may squeeze the outputs. So where they can
    broadcast the loss is tried on a few rows.

    Args:
        loss: the loss of every sample.
        outputs: of the model.
        targets: ``(n, ...)``.
        matched: shapes of a row for which this loss is known to take the rows one by one; those found are added.
    """
    count = len(targets)
    if not isinstance(outputs, Tensor) or count < 2:
        return
    if not outputs.ndim or (len(outputs) == 1 and count not in outputs.shape):
        raise ValueError(
            f"the model gave outputs of the shape {tuple(outputs.shape)} for {count} samples: it must give each a row"
        )
    shapes = outputs.shape[1:], targets.shape[1:]
    if not _can_broadcast(outputs, targets) or (matched is not None and shapes in matched):
        return
    devices = [outputs.device] if outputs.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, that two sizes differ
        crossed = _crosses_rows(loss, outputs.detach(), targets)
    if crossed:
        both = tuple(torch.broadcast_shapes(outputs.shape, targets.shape))
        raise ValueError(
            f"loss takes every output with every target: outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)} broadcast to {both}; give them one shape, by outputs.reshape(targets.shape) in "
            "the loss, say"
        )
    if crossed is False and matched is not None:
        matched.add(shapes)


def _can_broadcast(outputs: Tensor, targets: Tensor) -> bool:
    """Whether torch would broadcast the rows of the one along a later axis of the other."""
    few, many = sorted((outputs.shape, targets.shape), key=len)
    aligned = many[len(many) - len(few) :]
    return len(few) < len(many) and all(
        one == two or one == 1 or two == 1 for one, two in zip(few, aligned, strict=True)
    )


def _crosses_rows(loss: SampleLoss, outputs: Tensor, targets: Tensor) -> bool | None:
    """Return whether a loss mixes rows that can broadcast; None if these rows cannot tell (their targets are alike)."""
    wide = outputs if outputs.ndim > targets.ndim else targets
    single = wide.shape[abs(outputs.ndim - targets.ndim)] == 1
    try:  # One row of outputs is missing. Who takes the rows one by one cannot go on.
        loss(outputs[[0, 0]], targets[[0, 0, 0]]) if single else loss(outputs[:-1], targets)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return False
    unlike = (targets != targets[:1]).reshape(len(targets), -1).any(1).nonzero()[:_TRIED, 0].tolist()
    few = [0, *unlike]
    together = loss(outputs[few], targets[few]) if single else loss(outputs, targets)
    apart = [loss(outputs[[row]], targets[[row]]) for row in few]
    if together.shape != (len(few if single else targets),) or any(one.shape != (1,) for one in apart):
        return True  # the pairs themselves
    if not torch.allclose(together if single else together[few], torch.cat(apart), equal_nan=True):
        return True
    return False if unlike else None


def _other_dtype(model: nn.Module, inputs: Nested) -> str:
    """Return in what dtypes floating inputs and the model differ; empty where they do not."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for name, one in named_tensors("inputs", inputs):
        if own is not None and one.is_floating_point() and one.dtype != own:
            return f"{name} are {one.dtype}, the model's parameters {own}; convert one of them, x.to({own}) say"
    return ""


def _no_such_class(outputs: Any, batch: Batch) -> str:
    """Return which target is no class of outputs ``(batch, classes)``; empty where all are."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or batch.targets.is_floating_point():
        return ""
    classes = outputs.shape[1]
    wrong = ((batch.targets < 0) | (batch.targets >= classes)) & (batch.targets != -100)  # torch's ignore_index
    wrong = wrong.flatten(1).any(1) if wrong.ndim > 1 else wrong
    if not bool(wrong.any()):
        return ""
    row = int(wrong.nonzero()[0])
    label = batch.targets[row].tolist()
    return (
        f"sample {int(batch.index[row])} has the label {label}, and the model has outputs for the classes 0 to "
        f"{classes - 1}: give the model more outputs, or mend the label"
    )
