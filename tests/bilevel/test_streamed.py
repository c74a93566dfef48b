"""Samples whose inputs are not in memory: the same samples as those that are, a chunk at a time."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from steelyard.bilevel import Batch, FiniteDifference, MemoryMapped, Recorder, Streamed, Truncated, WeightedLoss
from tests.support.counted import Counted
from tests.support.problems import CROSS_ENTROPY, batch_norm, mlp

COUNT = 23


def in_memory(count: int = COUNT) -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (count,), generator=generator)
    return Batch.of(inputs, targets, environment=torch.arange(count) % 2, group=torch.arange(count) % 3)


def streamed(data: Batch, **options) -> tuple[Streamed, Counted]:
    dataset = Counted(data.inputs)
    made = Streamed.of(dataset, data.targets, environment=data.environment, group=data.group, **{"chunk": 5, **options})
    dataset.asked.clear()
    return made, dataset


def same(one: Batch, other: Batch) -> bool:
    names = ("inputs", "targets", "index", "environment", "group")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_labels_are_in_memory_and_inputs_are_not() -> None:
    data = in_memory()
    stream, dataset = streamed(data)
    assert stream.inputs.shape == data.inputs.shape
    assert stream.inputs.dtype == torch.float64
    assert stream.inputs.is_meta
    assert len(stream) == COUNT
    assert stream.device == torch.device("cpu")
    assert torch.equal(stream.targets, data.targets)
    assert dataset.asked == []


@pytest.mark.parametrize("size", [None, 1, 4, 100])
def test_chunks_are_the_samples_in_order_and_never_more_than_a_chunk(size) -> None:
    data = in_memory()
    stream, dataset = streamed(data)
    pieces = list(stream.chunks(size))
    assert same(pieces[0], next(data.chunks(min(size or 5, 5))))
    assert torch.equal(torch.cat([piece.index for piece in pieces]), data.index)
    assert torch.equal(torch.cat([piece.inputs for piece in pieces]), data.inputs)
    assert max(dataset.asked) == min(size or 5, 5)


@pytest.mark.parametrize("rows", [torch.tensor([22, 0, 0, 7]), torch.arange(COUNT) % 2 == 0, torch.arange(0)])
def test_take_gives_what_a_batch_gives(rows) -> None:
    data = in_memory()
    stream, dataset = streamed(data)
    assert same(stream.take(rows), data.take(rows))
    assert type(stream.take(rows)) is Batch
    assert max(dataset.asked, default=0) <= 5


def test_streams_are_the_samples_asked_for_and_draw_no_random_number() -> None:
    data = in_memory()
    stream, _ = streamed(data)
    rows = [torch.tensor([3, 1]), torch.tensor([22])]
    before = torch.get_rng_state()
    for found in (list(stream.stream(iter(rows), seed=1)), list(stream.at(iter(rows)))):
        assert all(same(one, data.take(at)) for one, at in zip(found, rows, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_device_is_that_of_the_labels() -> None:
    moved = streamed(in_memory())[0].to("meta")
    assert moved.device.type == moved.targets.device.type == "meta"
    assert streamed(Batch.of(torch.randn(3, 4), torch.arange(3)))[0].to("cpu").environment is None


def test_any_map_style_dataset_of_tensors_does() -> None:
    data = in_memory()
    by_item = Streamed.of([*data.inputs], data.targets)  # a sequence, one item at a time
    subset = Streamed.of(Subset(Counted(data.inputs), list(range(COUNT))), data.targets)  # a list from __getitems__
    for made in (by_item, subset):
        assert torch.equal(made.take(torch.arange(COUNT)).inputs, data.inputs)


def test_what_is_not_a_dataset_of_inputs_is_refused() -> None:
    data = in_memory()
    with pytest.raises(TypeError, match="must be a tensor, the inputs of a sample, got tuple"):
        Streamed.of(TensorDataset(data.inputs, data.targets), data.targets)
    with pytest.raises(ValueError, match="targets has 22 entries, but dataset has 23"):
        Streamed.of(Counted(data.inputs), data.targets[:22])
    with pytest.raises((ValueError, TypeError), match="environment"):  # jaxtyping's, while tests run
        Streamed.of(Counted(data.inputs), data.targets, environment=torch.zeros(3, dtype=torch.int64))
    ragged = Streamed.of([torch.zeros(2), torch.zeros(3)], torch.zeros(2), chunk=1)
    with pytest.raises(ValueError, match=r"gave inputs of torch.float32 \(3,\), where item 0 is torch.float32 \(2,\)"):
        list(ragged.chunks(None))
    for name in ("chunk", "workers"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            Streamed.of(Counted(data.inputs), data.targets, **{name: -1})


def test_memory_mapped_rows(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    np.save(tmp_path / "a.npy", array)
    rows = MemoryMapped(tmp_path / "a.npy", dtype=torch.float32)
    assert len(rows) == 6
    assert torch.equal(rows[4], torch.from_numpy(array[4]).float())
    assert torch.equal(rows.__getitems__([5, 0]), torch.from_numpy(array[[5, 0]]).float())
    assert MemoryMapped(tmp_path / "a.npy")[0].dtype == torch.uint8
    again = pickle.loads(pickle.dumps(rows))
    assert len(pickle.dumps(rows)) < 400
    assert torch.equal(again[1], rows[1])


def test_files_that_are_no_arrays_of_rows(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MemoryMapped(tmp_path / "none.npy")
    np.save(tmp_path / "number.npy", np.float32(1))
    with pytest.raises(ValueError, match=r"number\.npy holds a single number"):
        MemoryMapped(tmp_path / "number.npy")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}, None]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle|Python objects"):
        MemoryMapped(tmp_path / "objects.npy")


def test_workers_give_what_this_process_gives(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    data = in_memory()
    np.save(tmp_path / "a.npy", data.inputs.numpy())
    stream = Streamed.of(MemoryMapped(tmp_path / "a.npy"), data.targets, chunk=5, workers=1)
    before = torch.get_rng_state()
    pieces = list(stream.chunks(None))
    assert torch.equal(torch.cat([piece.inputs for piece in pieces]), data.inputs)
    assert torch.equal(torch.get_rng_state(), before)


def recorded(model: torch.nn.Module, batch: Batch):
    model = model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    objective = WeightedLoss(CROSS_ENTROPY)
    with Recorder(model, optimizer, objective) as recorder:
        recorder.loss(batch, torch.full((len(batch),), 0.7, dtype=torch.float64)).backward()
        optimizer.step()
        return recorder.trajectory()


@pytest.mark.parametrize("kind", [Truncated, FiniteDifference])
def test_the_sweep_over_all_samples_is_that_of_a_batch(kind) -> None:
    data = in_memory()
    stream, dataset = streamed(data)
    rows = torch.tensor([3, 9, 4])
    torch.manual_seed(0)
    record = recorded(mlp(), data.take(rows))

    def outer(model):
        return CROSS_ENTROPY(model(data.inputs), data.targets).mean()

    expected = kind()(record, outer, samples=data)
    found = kind()(record, outer, samples=stream)
    torch.testing.assert_close(found, expected, rtol=1e-12 if kind is Truncated else 1e-6, atol=0)
    assert max(dataset.asked) <= 5
    assert (expected[rows] != 0).all()


def test_a_recorded_batch_that_is_not_the_streams_is_replayed_as_it_was() -> None:
    data = in_memory()
    augmented = data.take(torch.tensor([3, 9, 4]))
    other = Batch(augmented.inputs + 1, augmented.targets, augmented.index)
    torch.manual_seed(0)
    record = recorded(mlp(), other)

    def outer(model):
        return CROSS_ENTROPY(model(data.inputs), data.targets).mean()

    expected = Truncated()(record, outer, samples=data)
    torch.testing.assert_close(Truncated()(record, outer, samples=streamed(data)[0]), expected, rtol=1e-12, atol=0)


def test_a_coupled_step_is_refused_of_a_stream_too() -> None:
    data = in_memory()
    torch.manual_seed(0)
    record = recorded(batch_norm(), data)
    with pytest.raises(ValueError, match="BatchNorm"):
        Truncated(coupled="refuse")(record, lambda model: model(data.inputs).sum(), samples=streamed(data)[0])


def test_a_coupled_step_answers_for_a_stream_as_for_a_batch() -> None:
    data = in_memory()
    torch.manual_seed(0)
    record = recorded(batch_norm(), data.take(torch.arange(6)))

    def outer(model):
        return CROSS_ENTROPY(model(data.inputs), data.targets).mean()

    expected = Truncated(coupled="batch")(record, outer, samples=data)
    found = Truncated(coupled="batch")(record, outer, samples=streamed(data)[0])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_an_error_of_the_data_is_not_taken_for_one_of_differentiation() -> None:
    class Broken(Counted):
        def __getitems__(self, rows: list[int]) -> Tensor:
            if 20 in rows:
                raise RuntimeError("a broken disk")
            return super().__getitems__(rows)

    data = in_memory()
    record = recorded(mlp(), data.take(torch.arange(3)))
    stream = Streamed.of(Broken(data.inputs), data.targets, chunk=5)
    with pytest.raises(RuntimeError, match="^a broken disk"):
        Truncated()(record, lambda model: model(data.inputs).square().sum(), samples=stream)
