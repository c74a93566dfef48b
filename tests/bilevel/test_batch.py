"""`Batch`: ids travel with the samples."""

from __future__ import annotations

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


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match="ids >= 0, got -1"):
        Batch(torch.zeros(1, 1), torch.zeros(1), torch.tensor([-1]))
    with pytest.raises(ValueError, match="size must be >= 1"):
        list(example().chunks(0))
