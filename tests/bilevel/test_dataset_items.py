"""Data sets whose items hold inputs and target, in pairs or dicts, and ragged sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Subset, TensorDataset

from steelyard.bilevel import Batch, FiniteDifference, Recorder, Streamed, Truncated
from tests.bilevel.nested import CASES, COUNT, start_weight

EVERYTHING = torch.arange(COUNT)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Pairs(Dataset[Any]):
    """Items as `make` has them, one at a time; notes which were asked for."""

    def __init__(self, make: Any, count: int = COUNT) -> None:
        self.make, self.count, self.asked = make, count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        self.asked.append(row)
        return self.make(row)


def test_pairs_of_inputs_and_target() -> None:
    x, y = numbers(COUNT, 3), torch.arange(COUNT) % 3
    for dataset in (
        TensorDataset(x, y),
        Subset(TensorDataset(x, y), list(range(COUNT))),
        [[*one] for one in zip(x, y, strict=True)],
    ):
        data = Streamed.of_dataset(dataset, chunk=3)
        assert torch.equal(data.targets, y)
        assert torch.equal(data.take(EVERYTHING).inputs, x)
        assert data.inputs.is_meta
        assert [len(piece) for piece in data.chunks(None)] == [3, 3, 2]
    first = Streamed.of_dataset(TensorDataset(y, x), target=0)
    assert torch.equal(first.targets, y)
    assert torch.equal(first.take([5]).inputs, x[[5]])


def test_several_inputs_a_target_that_is_a_number_and_arrays() -> None:
    data = Streamed.of_dataset(Pairs(lambda row: (np.full((2,), row, dtype=np.float32), np.bool_(row > 3), row % 2)))
    assert data.targets.tolist() == [row % 2 for row in range(COUNT)]
    taken = data.take([6, 1])
    assert [one.dtype for one in taken.inputs] == [torch.float32, torch.bool]
    assert (taken.inputs[0][:, 0].tolist(), taken.inputs[1].tolist()) == ([6.0, 1.0], [True, False])
    ages = Streamed.of_dataset(Pairs(lambda row: (20 + row, 0.5, (1.0, 2.0), row % 2))).take([6, 1])
    assert [one.tolist() for one in ages.inputs] == [[26, 21], [0.5, 0.5], [[1.0, 2.0], [1.0, 2.0]]]
    both = Streamed.of_dataset(Pairs(lambda row: ((torch.ones(2), torch.zeros(1)), 0.5 * row)))
    assert both.targets.tolist() == [0.5 * row for row in range(COUNT)]
    assert [one.shape for one in both.take([0]).inputs] == [(1, 2), (1, 1)]


def item(row: int) -> dict[str, Any]:
    return {"image": torch.full((2, 2), float(row)), "age": row, "text": "words", "label": row % 3, "site": row % 2}


def test_dicts_by_key() -> None:
    data = Streamed.of_dataset(Pairs(item), "label", inputs=["image", "age"], environment="site", chunk=4)
    assert data.targets.tolist() == [row % 3 for row in range(COUNT)]
    assert data.environment.tolist() == [row % 2 for row in range(COUNT)]
    taken = data.take([3, 7])
    assert sorted(taken.inputs) == ["age", "image"]
    assert (taken.inputs["age"].dtype, taken.inputs["age"].tolist()) == (torch.int64, [3, 7])
    alone = Streamed.of_dataset(Pairs(item), "label", inputs="image", group=EVERYTHING)
    assert alone.take([3]).inputs.tolist() == [[[3.0, 3.0], [3.0, 3.0]]]
    assert alone.group.tolist() == EVERYTHING.tolist()
    rest = Streamed.of_dataset(Pairs(lambda row: {"age": row, "label": 0, "site": 1}), "label", environment="site")
    assert list(rest.take([2]).inputs) == ["age"]


def test_known_targets_save_the_pass() -> None:
    dataset = Pairs(item)
    data = Streamed.of_dataset(dataset, "label", inputs="image", targets=EVERYTHING % 3)
    assert dataset.asked in ([0, 0], [0])
    assert data.targets.tolist() == (EVERYTHING % 3).tolist()


def test_dicts_of_inputs_alone() -> None:
    x = numbers(COUNT, 3)
    data = Streamed.of([{"x": row, "scale": 2.0} for row in x], torch.zeros(COUNT), chunk=3)
    assert torch.equal(data.take(EVERYTHING).inputs["x"], x)
    assert data.to("cpu").take(torch.arange(0)).inputs["x"].shape == (0, 3)
    assert [len(piece.inputs["scale"]) for piece in data.at(iter([torch.tensor([1]), torch.arange(0)]))] == [1, 0]


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_such_dataset_is_named() -> None:
    with pytest.raises(TypeError, match=r"a dict of 'image', .*: say which of them is the target"):
        Streamed.of_dataset(Pairs(item))
    with pytest.raises(ValueError, match="target must be one of .*'label'.*got 'labels'; did you mean 'label'"):
        Streamed.of_dataset(Pairs(item), "labels")
    with pytest.raises(ValueError, match=r"inputs must be one of .*got 'picture'"):
        Streamed.of_dataset(Pairs(item), "label", inputs=["picture"])
    with pytest.raises(TypeError, match=r"inputs\['text'\] must be a tensor"):
        Streamed.of_dataset(Pairs(item), "label")
    with pytest.raises(TypeError, match=r"an item of dataset must be a tuple or a dict .*Streamed\.of\(dataset, t"):
        Streamed.of_dataset([*torch.ones(3, 2)])
    with pytest.raises(ValueError, match=r"dataset gave inputs\['x'\] of torch.int64 \(1,\) and \(2,\).*collate="):
        Streamed.of([{"x": [0]}, {"x": [0, 1]}], [0, 1]).take([0, 1])
    with pytest.raises(ValueError, match="inputs is a dict of 'x' in one sample and a dict of 'y' in another"):
        Streamed.of([{"x": [0]}, {"y": [0]}], [0, 1]).take([0, 1])
    with pytest.raises(ValueError, match=r"dataset gave inputs\['y'\], where item 0 is inputs\['x'\]"):
        Streamed.of([{"x": [0]}, {"y": [0]}], [0, 1]).take([1])
    with pytest.raises(ValueError, match=r"collate gave the 2 items' inputs of shape \(1, 3\): it must give a row"):
        Streamed.of([*torch.ones(2, 3)], [0, 1], collate=lambda items: torch.stack(items)[:1]).take([0, 1])


def padded(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = pad_sequence([one["input_ids"] for one in items], batch_first=True)
    mask = pad_sequence([torch.ones(len(one["input_ids"])) for one in items], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask.double()}


def ragged() -> tuple[Batch, list[dict[str, Any]]]:
    """The same texts, padded to one length, and as long as they are."""
    data = CASES["a dict, a dataclass"].data()
    ids, mask = data.inputs["input_ids"], data.inputs["attention_mask"]
    rows = [{"input_ids": one[keep > 0], "label": int(y)} for one, keep, y in zip(ids, mask, data.targets, strict=True)]
    return data, rows


def test_ragged_sequences_are_padded_by_the_users_collate() -> None:
    data, rows = ragged()
    lengths = torch.tensor([len(one["input_ids"]) for one in rows])
    assert len(lengths.unique()) > 2
    stream = Streamed.of_dataset(rows, "label", collate=padded, chunk=2)
    assert torch.equal(stream.targets, data.targets)
    for piece in stream.chunks(None):
        assert piece.inputs["input_ids"].shape == (2, int(lengths[piece.index].max()))
    assert torch.equal(stream.take(EVERYTHING).inputs["input_ids"], data.inputs["input_ids"][:, : int(lengths.max())])


@pytest.mark.parametrize("estimator", [Truncated(), FiniteDifference()])
def test_the_sweep_over_ragged_sequences_is_that_of_padded_ones(estimator: Truncated) -> None:
    case = CASES["a dict, a dataclass"]
    data, rows = ragged()
    stream = Streamed.of_dataset(rows, "label", collate=padded, chunk=3)
    torch.manual_seed(0)
    model = case.make().double().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with Recorder(model, optimizer, case.objective) as recorder:
        recorder.loss(stream.take([4, 1, 6]), start_weight()[:3]).backward()
        optimizer.step()
        record = recorder.trajectory()
    found, expected = (estimator(record, case.outer, samples=one) for one in (stream, data))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)
    assert (expected != 0).all()


def test_workers_give_what_this_process_gives() -> None:
    data, rows = ragged()
    stream = Streamed.of_dataset(rows, "label", collate=padded, chunk=4, workers=1)
    pieces, alone = list(stream.chunks(None)), Streamed.of_dataset(rows, "label", collate=padded, chunk=4)
    assert torch.equal(stream.targets, data.targets)
    for one, other in zip(pieces, alone.chunks(None), strict=True):
        assert all(torch.equal(one.inputs[key], other.inputs[key]) for key in other.inputs)
