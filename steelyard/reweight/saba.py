"""SABA: SOBA's directions with SAGA's memory of every minibatch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard.bilevel import Batch
from steelyard.reweight.minibatches import block_positions
from steelyard.reweight.sample_weights import SampleWeights
from steelyard.reweight.single_loop import descend
from steelyard.reweight.soba import WithSystem

__all__ = ["SABA", "Memory", "RowMemory"]


class Memory:
    """SAGA's memory of a mean over samples: of each block of samples the last value that was seen, 0 at first.

    `update` returns (new - old of this block) + mean of the old ones, whose expectation over blocks (each drawn by its
    share of the samples) is the mean of the new ones, and whose variance vanishes as the values settle.

    Args:
        shares: ``(blocks,)`` of the samples in each block; they sum to 1.
        like: a value, for its shape and type.

    Attributes:
        values: ``(blocks, *shape)``, the last value of every block.
        mean: their mean, by shares.

    References:
        Defazio, Bach and Lacoste-Julien, "SAGA: A Fast Incremental Gradient Method", NeurIPS 2014.
    """

    def __init__(self, shares: Float[Tensor, " blocks"], like: Tensor) -> None:
        self.shares = shares
        self.values = like.new_zeros(len(shares), *like.shape)
        self.mean = torch.zeros_like(like)

    def update(self, block: int, value: Tensor) -> Tensor:
        """Return the estimate of the mean that block number `block` gives, and remember its `value`."""
        moved = value - self.values[block]
        estimate = moved + self.mean
        self.mean = self.mean + float(self.shares[block]) * moved
        self.values[block] = value
        return estimate

    def state_dict(self) -> dict[str, Any]:
        """Return the values and their mean."""
        return {"values": self.values.clone(), "mean": self.mean.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.values, self.mean = state["values"].clone(), state["mean"].clone()


class RowMemory(Memory):
    """A `Memory` of values ``(n,)`` that are 0 but in the block's own rows: n numbers for all blocks together.

    Args:
        shares, like: see `Memory`.
        rows: of each block, distinct from those of the others.
    """

    def __init__(self, shares: Float[Tensor, " blocks"], like: Float[Tensor, " n"], rows: list[Tensor]) -> None:
        self.shares, self.rows = shares, rows
        self.values, self.mean = torch.zeros_like(like), torch.zeros_like(like)

    def update(self, block: int, value: Tensor) -> Tensor:
        """Return the estimate of the mean that block number `block` gives, and remember its `value`."""
        rows = self.rows[block]
        moved = value[rows] - self.values[rows]
        estimate = self.mean.index_add(0, rows, moved)
        self.mean = self.mean.index_add(0, rows, moved, alpha=float(self.shares[block]))
        self.values[rows] = value[rows]
        return estimate


class SABA(WithSystem):
    """SOBA, each of its five means over samples estimated with SAGA's memory: constant steps converge.

    The memory is by minibatch, as in the paper's experiments: `fit` cuts the samples into the same minibatches in every
    epoch. Beside what SOBA has it takes (2 minibatches + clean minibatches) x parameters numbers, so it is for models
    of some ten thousand parameters; and for the weights 2 n with `SampleWeights`, else minibatches x outer parameters.

    Args:
        model, optimizer, objective, clean, weights, outer_optimizer, system_step, clean_size, risk, seed: see `SOBA`.

    Raises (at a step):
        ValueError: before `begin`, or a minibatch that is none of those that `begin` made.

    References:
        Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and global
        variance reduction algorithms", NeurIPS 2022, section 2.
    """

    _inner: dict[int, tuple[int, Tensor]]
    _outer: dict[int, tuple[int, Tensor]]
    _memories: dict[str, list[Memory]]

    def begin(self, train: Batch, batch_size: int) -> tuple[Batch, int]:
        """Cut both levels into minibatches, and forget what was remembered of others.

        Args:
            train: all samples of the inner problem.
            batch_size: of its minibatches.
        """
        train, batch_size = super().begin(train, batch_size)
        clean_size = min(self.clean_size or batch_size, len(self.clean))
        positions = block_positions(len(train), batch_size, self.seed)
        inner, shares = _named(train.index, positions)
        outer, clean_shares = _named(self.clean.index, block_positions(len(self.clean), clean_size, self.seed + 1))
        if hasattr(self, "_inner") and _same(self._inner, inner) and _same(self._outer, outer):
            return train, batch_size
        self._inner, self._outer = inner, outer
        self._memories = {
            "gradient": [Memory(shares, p.detach()) for p in self._parameters],
            "curvature": [Memory(shares, p.detach()) for p in self._parameters],
            "weights": self._memory_of_weights(shares, [train.index[rows] for rows in positions]),
            "risk": [Memory(clean_shares, p.detach()) for p in self._parameters],
        }
        return train, batch_size

    def _memory_of_weights(self, shares: Tensor, ids: list[Tensor]) -> list[Memory]:
        """Return a memory for each outer parameter: where each sample has one of its own, a block moves its own."""
        own = isinstance(self.weights, SampleWeights) and self.weights.shared is None
        return [
            RowMemory(shares, p.detach(), ids) if own else Memory(shares, p.detach()) for p in self._outer_parameters
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what the solver has beside the model and its optimizer: tensors, numbers, lists and dicts only."""
        memories = getattr(self, "_memories", {})
        kept = {name: [one.state_dict() for one in some] for name, some in memories.items()}
        return {**super().state_dict(), "memories": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the minibatches must be there: call `begin` before."""
        super().load_state_dict(state)
        if state["memories"] and not hasattr(self, "_memories"):
            raise ValueError("SABA's memory is of minibatches: call begin(train, batch_size) before load_state_dict")
        for name, some in state["memories"].items():
            for memory, one in zip(self._memories[name], some, strict=True):
                memory.load_state_dict(one)

    def _advance(self, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "_inner"):
            raise ValueError("SABA remembers minibatches: call begin(train, batch_size) before step, or take fit")
        block, clean_block = _number("inner", self._inner, inner), _number("outer", self._outer, outer)
        weight = self._weigh(inner)
        found = self._products(inner, weight, self.direction)
        value, slope = self._risk(outer, self.model, self._parameters)
        through = self._estimates("weights", block, self._through(weight, found.tangents))
        gradient = self._estimates("gradient", block, found.gradient)
        curvature = self._estimates("curvature", block, found.curvature)
        slope = self._estimates("risk", clean_block, slope)
        rate = self._step_of_system()
        for v, curved, one in zip(self.direction, curvature, slope, strict=True):
            v.sub_(curved + one, alpha=rate)
        descend(self.optimizer, self._parameters, gradient)
        self._move_weights(through)
        return found.loss, value

    def _estimates(self, name: str, block: int, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(memory.update(block, one) for memory, one in zip(self._memories[name], values, strict=True))


def _named(
    index: Int[Tensor, " n"], positions: tuple[Tensor, ...]
) -> tuple[dict[int, tuple[int, Tensor]], Float[Tensor, " blocks"]]:
    """Return number and ids of each block by the id of its first sample, and the blocks' shares of the samples."""
    ids = [index[rows].cpu() for rows in positions]
    shares = torch.tensor([len(rows) / len(index) for rows in positions], dtype=torch.float64)
    return {int(own[0]): (number, own) for number, own in enumerate(ids)}, shares


def _same(one: dict[int, tuple[int, Tensor]], other: dict[int, tuple[int, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[first][1], other[first][1]) for first in one)


def _number(name: str, known: dict[int, tuple[int, Tensor]], batch: Batch) -> int:
    """Return the number of a block."""
    number, ids = known.get(int(batch.index[0]), (-1, batch.index))
    if number < 0 or not torch.equal(ids, batch.index.cpu()):
        raise ValueError(
            f"{name} is none of the minibatches that SABA remembers (its first sample is {int(batch.index[0])}): step "
            "with those of begin(train, batch_size), or take fit"
        )
    return number
