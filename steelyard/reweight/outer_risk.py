"""One draw's hypergradient and outer risk, and their mean and spread over draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steelyard._support import _check
from steelyard._support._finite import named_culprits, some_ids
from steelyard._support._nested import Nested, mapped
from steelyard.bilevel import Batch, Outer, SampleLoss, Streamed, Trajectory
from steelyard.bilevel.outputs import ModelCall, call_model
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.risk import Risk

__all__ = ["Drawn", "Estimator", "NotFiniteRiskError", "OuterRisk", "Spread", "hypergradient", "labels_of_all"]


@runtime_checkable
class Estimator(Protocol):
    """A hypergradient estimator of `steelyard.bilevel`."""

    def __call__(
        self, trajectory: Trajectory, outer: Outer, index: Tensor | None = None, samples: Batch | None = None
    ) -> Tensor:
        """Return d outer / d weight_i."""
        ...


class Drawn(NamedTuple):
    """What one draw gives: d risk / d a_i for all samples ``(n,)``, a the inner weights, and the risk itself."""

    gradient: Float[Tensor, " n"]
    value: float


class NotFiniteRiskError(FloatingPointError):
    """The outer risk is NaN or infinite; `value` is what it is."""

    def __init__(self, value: float) -> None:
        super().__init__(f"the outer loss is {value}")
        self.value = value


class OuterRisk:
    """A risk on given samples as a function of the model alone.

    Args:
        risk: the outer objective.
        samples: ``n`` samples that it is evaluated on.
        loss: per-sample loss.
        chunk: evaluate the model on so many samples at a time and recompute activations on the way back (memory of
            one chunk, a third more time); None: all at once, but of a `Streamed` its own ``chunk``. Of such samples the
            inputs are read again for the recomputation.
        autocast: precision of the model; the risk itself is taken in at least float32.
        forward: ``(model, inputs) -> outputs``, one tensor with a row for each sample, such as a `WeightedLoss`'s
            ``outputs_of``.
        ranks: the processes of which each has a share of the samples. The model's outputs for all of them are gathered
            on every rank, with targets, environments and groups (not the inputs), so any risk is that of one process.
    """

    def __init__(
        self,
        risk: Risk,
        samples: Batch,
        loss: SampleLoss,
        chunk: int | None = None,
        autocast: torch.dtype | None = None,
        ranks: Ranks = ALONE,
        forward: ModelCall = call_model,
    ) -> None:
        self.risk, self.samples, self.loss, self.chunk, self.autocast = risk, samples, loss, chunk, autocast
        self._forward = forward
        self.ranks, self._everywhere = ranks, labels_of_all(samples, ranks)
        self._start, _ = ranks.place(len(samples))

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the risk of `model`, a scalar with a graph to its parameters.

        On several ranks the graph is that through this rank's samples, such that the mean over ranks of the gradients
        is the gradient of the risk.
        """
        return self.of(self.outputs(model, self.samples))

    def outputs(self, model: nn.Module, samples: Batch, rows: Tensor | None = None) -> Tensor:
        """Return the outputs of `model` for `samples`, or those at `rows` ``(k,)``, evaluated as this risk does.

        They are at least float32.
        """
        # The cache would keep casts of parameters that a functional call has swapped in.
        with torch.autocast(
            samples.device.type, dtype=self.autocast, enabled=self.autocast is not None, cache_enabled=False
        ):
            if isinstance(samples, Streamed):
                outputs = _joined(list(_streamed(self._one_tensor, model, samples, rows, self.chunk)))
            else:
                asked = samples if rows is None else samples.take(rows)
                if self.chunk is None:
                    outputs = self._one_tensor(model, asked.inputs)
                else:
                    pieces = asked.chunks(self.chunk)
                    outputs = _joined(
                        [checkpoint(self._one_tensor, model, one.inputs, use_reentrant=False) for one in pieces]
                    )
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _one_tensor(self, model: nn.Module, inputs: Nested) -> Tensor:
        outputs = self._forward(model, inputs)
        if isinstance(outputs, Tensor):
            return outputs
        raise TypeError(
            f"a risk is a function of outputs that are one tensor, got {_check.shown(outputs)}: have WeightedLoss(..., "
            "outputs=...) return one, such as torch.stack([mean, variance], 1), which the loss takes apart"
        )

    def of(self, outputs: Tensor) -> Tensor:
        """Return the risk of outputs for all the samples (of this rank)."""
        return self.risk(self.ranks.join(outputs, self._start), self._everywhere, self.loss)


def labels_of_all(samples: Batch, ranks: Ranks) -> Batch:
    """Return the samples of all ranks with inputs that have a shape and no values."""
    if ranks.size == 1:
        return samples

    def maybe(labels: Tensor | None) -> Tensor | None:
        return None if labels is None else ranks.gather(labels)

    index = ranks.gather(samples.index)

    def empty(one: Tensor) -> Tensor:
        return torch.empty(len(index), *one.shape[1:], dtype=one.dtype, device="meta")

    inputs = mapped(empty, samples.inputs)
    return Batch(inputs, ranks.gather(samples.targets), index, maybe(samples.environment), maybe(samples.group))


def _joined(pieces: list[Tensor]) -> Tensor:
    """Return the outputs of all pieces ``(n, ...)``."""
    other = next((one for one in pieces if one.shape[1:] != pieces[0].shape[1:]), None)
    if other is not None:
        raise ValueError(
            f"the model gave outputs {tuple(pieces[0].shape)} and {tuple(other.shape)} for two chunks of samples: a "
            "risk needs outputs of one shape; pad all samples to one length in collate"
        )
    return torch.cat(pieces)


def _streamed(
    forward: ModelCall, model: nn.Module, samples: Streamed, rows: Tensor | None, size: int | None
) -> Iterator[Tensor]:
    """Yield outputs a chunk at a time; of a chunk the graph keeps the positions, and reads its inputs again."""
    rows = torch.arange(len(samples)) if rows is None else rows
    pieces = rows.split(min(size or samples.chunk, samples.chunk))
    again = _Backwards(samples, pieces)
    for number, piece in enumerate(samples.at(iter(pieces))):
        loaded = [piece.inputs]  # by the workers, for the first call

        def run(positions: Tensor, number: int = number, loaded: list[Tensor] = loaded) -> Tensor:
            outputs: Tensor = forward(model, loaded.pop() if loaded else again.inputs(number))
            return outputs

        yield checkpoint(run, pieces[number], use_reentrant=False)


class _Backwards:
    """The pieces' inputs for the way back, which wants the last piece first: loaded ahead by the workers in that order.

    Args:
        samples: of which the pieces are.
        pieces: their positions.
    """

    def __init__(self, samples: Streamed, pieces: Sequence[Tensor]) -> None:
        self._samples, self._pieces, self._next = samples, pieces, -1
        self._ahead: Iterator[Batch] = iter(())

    def inputs(self, number: int) -> Nested:
        """Return the inputs of piece `number`."""
        if number == len(self._pieces) - 1:
            self._ahead, self._next = self._samples.at(iter(self._pieces[::-1])), number
        if number != self._next:  # a graph of which only a part is gone back through
            return self._samples.take(self._pieces[number]).inputs
        found = next(self._ahead).inputs
        self._next -= 1
        if self._next < 0:
            self._ahead = iter(())  # the workers go home, though the graph may be kept
        return found


def hypergradient(estimator: Estimator, model: nn.Module, trajectory: Trajectory, outer: Outer, train: Batch) -> Drawn:
    """Return d outer / d a_i for all samples of `train` ``(n,)``, a the inner weights, and `outer`; in eval mode.

    With one recorded step that step is replayed virtually over all of `train`; with more, samples that the window
    has not seen get 0.

    Raises:
        NotFiniteRiskError: `outer` is not finite.
        FloatingPointError: the gradient is not.
    """
    model.eval()
    values: list[float] = []

    def noted(module: nn.Module) -> Tensor:
        value = outer(module)
        values.append(float(value.detach()))
        return value

    asked = {"samples": train} if len(trajectory.steps) == 1 else {"index": train.index}
    try:
        gradient = estimator(trajectory, noted, **asked)
    except FloatingPointError:
        _check_risk(values)
        raise
    _check_risk(values)
    trajectory.ranks.together(lambda: _check_finite(gradient, model, train))
    return Drawn(gradient, values[0])  # (it may be asked more than once, in another precision)


def _check_risk(values: list[float]) -> None:
    if values and not math.isfinite(values[0]):
        raise NotFiniteRiskError(values[0])


def _check_finite(gradient: Tensor, model: nn.Module, train: Batch) -> None:
    bad = ~torch.isfinite(gradient)
    if bool(bad.any()):
        pieces = train.chunks(train.chunk if isinstance(train, Streamed) else None)
        culprits = next(filter(None, (named_culprits(model, one.inputs, one.index) for one in pieces)), "")
        raise FloatingPointError(
            f"the hypergradient of {some_ids(train.index[bad])} is {gradient[bad][0].item()}"
            + (f"; NaN or infinite after the inner run: {culprits}" if culprits else "")
        )


class Spread:
    """Running mean and variance, over draws, of tensors by name (Welford). Of one draw nothing but the mean is kept.

    Example:
        >>> spread = Spread()
        >>> for value in (1.0, 3.0):
        ...     spread.add({"weights": torch.tensor([value])})
        >>> spread.mean["weights"].item(), spread.variance("weights")
        (2.0, 2.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Take in one draw."""
        self.count += 1
        for name, value in values.items():
            if self.count == 1:
                self.mean[name] = value.clone()
                continue
            mean, squares = self.mean[name], self._squares.setdefault(name, torch.zeros_like(value))
            before = value - mean
            mean += before / self.count
            squares += before * (value - mean)

    def variance(self, name: str, ranks: Ranks = ALONE) -> float | None:
        """Return the variance over draws (of one draw, unbiased), averaged over entries (of all `ranks`).

        None for one draw.
        """
        if self.count < 2:
            return None
        return ranks.average(self._squares[name]) / (self.count - 1)
