"""The tests' own check of types and shapes sees what jaxtyping's would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError
from torch import Tensor

from steelyard.bilevel import Batch
from steelyard.theory import top_q_loss
from tests.support.shapes import jaxtyped


@jaxtyped(typechecker=None)
def paired(
    a: Float[Tensor, "n d"], b: Float[Tensor, "*n d"] | None = None, *rest: int, **named: str
) -> Float[Tensor, " d"]:
    return a.sum(0) if b is None else b


@jaxtyped(typechecker=None)
@dataclass
class Pair:
    a: Float[Tensor, " n"]
    b: Int[Tensor, " n"]

    @jaxtyped(typechecker=None)
    @property
    def size(self) -> int:
        return len(self.a)

    @jaxtyped(typechecker=None)
    @classmethod
    def of(cls, later: Later) -> Pair:
        return cls(torch.zeros(later.size), torch.zeros(later.size, dtype=torch.int64))


@jaxtyped(typechecker=None)
@dataclass
class Later:
    size: int


def local(size: int):
    @jaxtyped(typechecker=None)
    def doubled(x: Float[Tensor, "n n"], *more: Float[Tensor, " n"], size: int = size) -> Float[Tensor, " n"]:
        return x.flatten()[:size]

    return doubled


@jaxtyped(typechecker=None)
def counting(n: int) -> Iterator[Float[Tensor, " n"]]:
    yield from torch.zeros(n, 2)


A = torch.zeros(3, 2)


def test_what_is_right_passes() -> None:
    assert paired(A).shape == paired(A, torch.zeros(2), 1, 2, word="x").shape == (2,)
    assert Pair(torch.zeros(2), torch.tensor([1, 2])).size == 2
    assert Pair.of(Later(4)).size == 4
    for size in (2, 3):
        assert local(size)(torch.zeros(size, size), torch.zeros(size), torch.zeros(size)).shape == (size,)
    assert len(list(counting(3))) == 3
    assert paired.__name__ == "paired"


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired(A.long()),
        lambda: paired(A[0]),
        lambda: paired(A, torch.zeros(3)),
        lambda: paired(A, None, 1, "2"),
        lambda: paired(A, word=1),
        lambda: paired(A, torch.zeros(1, 2)),  # the result: a dimension too many
        lambda: Pair(torch.zeros(2), torch.tensor([1])),
        lambda: Pair.of(4),
        lambda: local(2)(torch.zeros(2, 3)),
        lambda: local(2)(torch.zeros(2, 2), torch.zeros(2), torch.zeros(3)),
        lambda: local(1)(torch.zeros(2, 2)),  # the result
        lambda: local(2)(torch.zeros(2, 2), size="2"),
        lambda: counting("3"),
    ],
)
def test_what_is_wrong_is_seen(call) -> None:
    with pytest.raises(TypeCheckError):
        call()


def test_where_the_checks_are_off_nothing_is(unchecked_shapes: None) -> None:
    assert paired(A.long()).tolist() == [0, 0]
    assert local(1)(torch.zeros(2, 2)).tolist() == [0]


def test_the_package_is_under_it() -> None:
    assert Batch.take.__code__.co_filename == Batch.of.__func__.__code__.co_filename == paired.__code__.co_filename
    with pytest.raises(TypeCheckError):
        Batch(A, A[:, 0], torch.zeros(2))
    with pytest.raises(TypeError):
        top_q_loss("losses", 0.5)
