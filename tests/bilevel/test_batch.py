"""`Batch`: ids travel with the samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steelyard.bilevel import Batch


def example() -> Batch:
    return Batch.of(torch.randn(7, 2), torch.arange(7) % 2, environment=torch.arange(7) % 3)


def test_take_and_chunks_keep_ids() -> None:
    batch = example()
    assert batch.take(torch.tensor([6, 0])).index.tolist() == [6, 0]
    assert batch.take(batch.environment == 1).index.tolist() == [1, 4]
    pieces = list(batch.chunks(3))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    assert torch.equal(torch.cat([piece.inputs for piece in pieces]), batch.inputs)
    assert torch.equal(torch.cat([piece.environment for piece in pieces]), batch.environment)
    assert pieces[0].inputs.data_ptr() == batch.inputs.data_ptr()  # a view
    assert next(batch.chunks(None)) is batch


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Batch.of("1", torch.zeros(1)), r"inputs must be a tensor, got '1' \(str\)"),
        (
            lambda: Batch.of(torch.zeros(1, 2), ["cat"]),
            r"targets must be a tensor, .*got \['cat'\] \(list\)",
        ),
        (
            lambda: Batch.of(torch.tensor(1.0), torch.zeros(1)),
            "inputs must have a row for each sample, got a number, 1",
        ),
        (lambda: Batch.of(torch.zeros(2, 1), torch.zeros(2), environment=[0, None]), "environment must be a tensor"),
        (lambda: Batch.of(torch.zeros(2, 1), torch.zeros(2), environment=torch.zeros(2)), "environment must hold int"),
        (lambda: Batch.of(torch.zeros(2, 1), torch.zeros(2), group=torch.zeros(2, 1).long()), r"group .*got \(2, 1\)"),
        (
            lambda: Batch(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2)),
            "index must hold integers, got torch.float32",
        ),
        (lambda: Batch(torch.zeros(2, 1), torch.zeros(2), None), "index must be a tensor, got None"),
        (lambda: example().take(3), r"positions must be a tensor, got 3 \(int\)"),
        (lambda: example().take([0.0, 1.0]), "positions must hold integers, got torch.float32"),
        (lambda: example().take([True]), "positions is a mask of 1 entries, but there are 7 samples"),
    ],
)
def test_what_is_no_batch_is_named(call: Callable[[], Batch], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match="ids >= 0, got -1"):
        Batch(torch.zeros(1, 1), torch.zeros(1), torch.tensor([-1]))
    with pytest.raises(ValueError, match="size must be >= 1"):
        list(example().chunks(0))
