"""Inputs that are a dict or a tuple of tensors, and models whose answer is no tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from steelyard.bilevel import Batch, FiniteDifference, Implicit, Recorder, Storage, Truncated, Unrolled, WeightedLoss
from tests.bilevel.nested import CASES, COUNT, CROSS_ENTROPY, Case, ImageAndTable, Text, start_weight
from tests.support.problems import relative

WINDOWS = (1, 3)


@pytest.fixture(scope="module")
def truths() -> dict[Any, torch.Tensor]:
    return {}


def truth(truths: dict[Any, torch.Tensor], name: str, window: int, **options: Any) -> torch.Tensor:
    key = (name, window, *options.items())
    if key not in truths:
        truths[key] = CASES[name].truth(start_weight(), window, **options)
    return truths[key]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("estimator", [Truncated, FiniteDifference])
def test_the_derivative_is_that_of_training_again(name: str, window: int, estimator: Any, truths: Any) -> None:
    case = CASES[name]
    _, record = case.run(start_weight(), window)
    answer = estimator(steps=window)(record, case.outer, torch.arange(COUNT))
    assert relative(answer, truth(truths, name, window)) < 1e-6


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["torch", "torchopt", "higher"])
def test_unrolled(name: str, backend: Any, truths: Any) -> None:
    case = CASES[name]
    options = {"full_state": True, "adaptive": False}
    _, record = case.run(start_weight(), 3, **options)
    answer = Unrolled(steps=3, backend=backend)(record, case.outer, torch.arange(COUNT))
    assert relative(answer, truth(truths, name, 3, **options)) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_the_record_of_the_forward_pass_and_checkpoints(name: str, truths: Any) -> None:
    case = CASES[name]
    _, record = case.run(start_weight(), 1, reuse=True)
    estimator = Truncated()
    assert relative(estimator(record, case.outer, torch.arange(COUNT)), truth(truths, name, 1)) < 1e-6
    assert set(estimator.answered) <= {"row products of the record", "forward over the record"}
    _, record = case.run(start_weight(), 3, storage=Storage(checkpoint_every=2))
    assert relative(Truncated(3)(record, case.outer, torch.arange(COUNT)), truth(truths, name, 3)) < 1e-6


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("estimator", [Truncated(), Truncated(memory=1), FiniteDifference()])
def test_all_samples_by_a_virtual_step(name: str, estimator: Truncated) -> None:
    """The samples of the batch as asked for by their ids; the others as rows of weight 0 of the same step."""
    case = CASES[name]
    _, record = case.run(start_weight(), 1)
    data, seen = case.data(), record.index
    answer = estimator(record, case.outer, samples=data)
    torch.testing.assert_close(answer[seen], Truncated()(record, case.outer), rtol=1e-7, atol=1e-12)
    if not case.dropout:  # noise of another batch is other noise
        others = [i for i in range(COUNT) if i not in seen.tolist()]
        both = data.take(torch.cat([record.steps[-1].batch.index, torch.tensor(others)]))
        base = torch.cat([record.steps[-1].weight, torch.zeros(len(others), dtype=torch.float64)])
        for sample in others:
            row = base + 1e-6 * (both.index == sample).double(), base - 1e-6 * (both.index == sample).double()
            up, down = (_last_step(case, record, both, one) for one in row)
            assert float(answer[sample]) == pytest.approx((up - down) / 2e-6, rel=2e-5, abs=1e-9)


def _last_step(case: Case, record: Any, batch: Batch, weight: torch.Tensor) -> float:
    model, last = case.make().double(), record.steps[-1]
    model.load_state_dict(last.parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for name, p in model.named_parameters():
        state = {key: value.clone() for key, value in last.state[name].items() if isinstance(value, torch.Tensor)}
        optimizer.state[p] = {**state, "step": torch.tensor(2.0)}
    case.objective(model, batch, weight).backward()
    optimizer.step()
    with torch.no_grad():
        return float(case.outer(model))


def test_implicit_at_a_minimum() -> None:
    """Against the minimum found again with other weights."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"value": (self.first(one) + self.second(other)).squeeze(1)}

    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    data = Batch.of(
        {"one": wide[:, :2], "other": wide[:, 2:]}, torch.randn(9, generator=generator, dtype=torch.float64)
    )
    objective = WeightedLoss(lambda outputs, targets: (outputs - targets).square(), outputs="value")
    weight = 0.5 + torch.rand(9, generator=generator, dtype=torch.float64)

    def solved(weight: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(wide.T @ (weight[:, None] * wide), wide.T @ (weight * data.targets))

    def value(theta: torch.Tensor) -> torch.Tensor:
        return (theta - 1).square().sum()

    model = Two().double()
    with torch.no_grad():
        model.first.weight.copy_(solved(weight)[None, :2])
        model.second.weight.copy_(solved(weight)[None, 2:])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    with Recorder(model, optimizer, objective) as recorder:
        recorder.loss(data, weight).backward()
        optimizer.step()
        record = recorder.trajectory()
    answer = Implicit()(record, lambda m: value(torch.cat([m.first.weight[0], m.second.weight[0]])))
    start = weight.clone().requires_grad_()
    value(solved(start)).backward()
    assert relative(answer, start.grad) < 1e-6


def test_float32_is_answered_by_a_replay_in_float64() -> None:
    """A cold step of Adam: its derivative hangs on the rounding of the gradient, tokens and masks included."""
    case = CASES["a dict, a dataclass"]
    torch.manual_seed(0)
    wide, data = Text().double().eval(), case.data()
    narrow = Text().eval()
    narrow.load_state_dict(wide.state_dict())
    narrow_data = Batch.of({**data.inputs, "attention_mask": data.inputs["attention_mask"].float()}, data.targets)
    wide.load_state_dict(narrow.state_dict())
    found = []
    for model, batch in ((wide, data), (narrow, narrow_data)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        weight = start_weight().to(model.head.weight.dtype)
        with Recorder(model, optimizer, case.objective) as recorder:
            recorder.loss(batch, weight).backward()
            optimizer.step()
            record = recorder.trajectory()
        found.append(Truncated()(record, lambda m: m.head.weight.square().sum() + m.table.weight.sum()))
    assert found[1].dtype == torch.float32
    assert relative(found[1].double(), found[0]) < 1e-4


@pytest.mark.usefixtures("unchecked_shapes")
def test_the_answer_of_a_model_is_asked_for_by_name() -> None:
    data, loss = CASES["a tuple, a tuple"].data(), CROSS_ENTROPY
    model, weight = ImageAndTable().double(), torch.ones(COUNT, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"returned a tuple of 2, no tensor: .*outputs='logits'.*outputs=0"):
        WeightedLoss(loss)(model, data, weight)
    with pytest.raises(TypeError, match=r"outputs='logits', but the model returned a tuple of 2, which has no such"):
        WeightedLoss(loss, outputs="logits")(model, data, weight)
    with pytest.raises(TypeError, match="outputs=2, but the model returned a tuple of 2"):
        WeightedLoss(loss, outputs=2)(model, data, weight)
    for outputs in (0, "T"):  # which a tensor has
        with pytest.raises(TypeError, match="but the model returned one tensor: leave out outputs"):
            WeightedLoss(loss, outputs=outputs)(
                nn.Linear(3, 3).double(), Batch.of(data.inputs[1], data.targets), weight
            )
    text, answer = CASES["a dict, a dataclass"].data(), Text().double()
    with pytest.raises(TypeError, match="returned a Answer of 'logits', 'hidden', no tensor"):
        WeightedLoss(loss)(answer, text, weight)
    for outputs in (1.5, True):
        with pytest.raises(TypeError, match="outputs must be a key, an attribute or a position"):
            WeightedLoss(loss, outputs=outputs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="call must be a function of a model and its inputs"):
        WeightedLoss(loss, call="forward")  # type: ignore[arg-type]


def test_a_loss_may_read_several_outputs() -> None:
    """A mean and a variance, say; those of half precision are widened one by one."""
    seen = []

    def loss(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        seen.extend(one.dtype for one in outputs)
        return CROSS_ENTROPY(outputs[0], targets) + outputs[1].square().sum(1)

    data = CASES["a tuple, a tuple"].data()
    data = Batch.of(tuple(one.bfloat16() for one in data.inputs), data.targets)
    value = WeightedLoss(loss, outputs=lambda answer: answer)(ImageAndTable().bfloat16(), data, torch.ones(COUNT))
    assert torch.isfinite(value)
    assert seen == [torch.float32, torch.float32]


def nested(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "ids": torch.randint(0, 9, (count, 4), generator=generator),
        "both": (torch.rand(count), torch.ones(count, 2)),
    }
    return Batch.of(inputs, torch.arange(count) % 2, environment=torch.arange(count) % 3)


def test_take_chunks_and_to_go_through_all_tensors() -> None:
    data = nested()
    taken = data.take([4, 1])
    assert torch.equal(taken.inputs["ids"], data.inputs["ids"][[4, 1]])
    assert torch.equal(taken.inputs["both"][0], data.inputs["both"][0][[4, 1]])
    assert taken.index.tolist() == [4, 1]
    pieces = list(data.chunks(4))
    assert [len(piece.inputs["both"][1]) for piece in pieces] == [4, 2]
    assert pieces[0].inputs["ids"].data_ptr() == data.inputs["ids"].data_ptr()  # a view
    assert torch.equal(data.to("cpu").inputs["both"][1], data.inputs["both"][1])
    assert data.device == torch.device("cpu")
    assert len(data) == 6


@pytest.mark.usefixtures("unchecked_shapes")
def test_arrays_and_columns_of_a_table() -> None:
    frame = pandas.DataFrame(
        {"age": [20, 30, 40], "owns": [True, False, True], "income": pandas.array([1, 2, 3], dtype="Int64")}
    )
    frame["known"] = pandas.array([True, True, False], dtype="boolean")
    data = Batch.of(
        {name: frame[name] for name in frame}, frame["known"], environment=frame["owns"], group=frame["age"]
    )
    assert {name: one.dtype for name, one in data.inputs.items()} == {
        "age": torch.int64,
        "owns": torch.bool,
        "income": torch.int64,
        "known": torch.bool,
    }
    assert (data.targets.dtype, data.targets.tolist()) == (torch.int64, [1, 1, 0])
    assert (data.environment.dtype, data.environment.tolist()) == (torch.int64, [1, 0, 1])
    assert data.group.tolist() == [20, 30, 40]
    arrays = Batch.of((np.ones((3, 2), dtype=np.float32), np.array([True, False, True])), np.array([True, False, True]))
    assert [one.dtype for one in arrays.inputs] == [torch.float32, torch.bool]
    assert arrays.targets.tolist() == [1, 0, 1]
    assert Batch.of(torch.ones(2, 1), torch.tensor([True, False])).targets.dtype == torch.bool  # a tensor is as it is


class Encoding(dict):
    """What a tokenizer returns is a mapping of its own class."""


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_batch_is_named_by_its_place() -> None:
    good = torch.zeros(3, 2)
    assert type(Batch.of(Encoding(ids=good), torch.zeros(3)).inputs) is dict
    with pytest.raises(
        ValueError, match=r"inputs\['a'\] has 3, inputs\['b'\]\[0\] has 3, inputs\['b'\]\[1\] has 2, targets has 3"
    ):
        Batch.of({"a": good, "b": (good, good[:2])}, torch.zeros(3))
    with pytest.raises(ValueError, match=r"inputs\['a'\] must have a row for each sample, got a number"):
        Batch.of({"a": torch.tensor(1.0)}, torch.zeros(1))
    with pytest.raises(ValueError, match=r"inputs\['a'\] is an empty dict"):
        Batch.of({"a": {}}, torch.zeros(1))
    with pytest.raises(TypeError, match=r"inputs\['none'\] must be a tensor, got None"):
        Batch.of({"a": good, "none": None}, torch.zeros(3))


@pytest.mark.parametrize("name", CASES)
def test_a_write_to_one_of_the_tensors_is_noticed(name: str) -> None:
    case = CASES[name]
    model, data = case.make().double(), case.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, case.objective) as recorder:
        recorder.loss(data, start_weight()).backward()
        optimizer.step()
        record = recorder.trajectory()
    last = data.inputs
    while not isinstance(last, torch.Tensor):
        last = list(last.values() if isinstance(last, dict) else last)[-1]
    last.mul_(1)
    with pytest.raises(RuntimeError, match=r"inputs\[.*\] of a recorded step was written to"):
        Truncated()(record, case.outer)
