"""Arrays, lists and pandas at the doors, labels of any integer type, and validation samples of another kind."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.bilevel import Batch, Streamed, WeightedLoss
from steelyard.reweight import (
    GroupDRO,
    GroupWeights,
    InnerRun,
    Maple,
    Mask,
    MeanRisk,
    Prior,
    RelativeDifficulty,
    Reweighting,
    Sqrt,
    VREx,
    bernoulli_kl,
    keep_probabilities,
    pool,
    project_ball,
    project_box_simplex,
)
from steelyard.reweight import result as module

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
X, Y, E = [[0.5, 1.0], [2.0, -1.0], [0.0, 3.0], [1.0, 1.0]], [0, 1, 1, 0], [0, 0, 1, 1]
KINDS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "reversed view": lambda values: np.array(values)[::-1].copy()[::-1],
    "read-only": lambda values: read_only(np.array(values)),
    "big endian": lambda values: (array := np.array(values)).astype(array.dtype.newbyteorder(">")),
    "objects": lambda values: np.array(values, dtype=object),
    "pandas": lambda values: pandas.DataFrame(values) if np.ndim(values) == 2 else pandas.Series(values),
    "nullable pandas": lambda values: (
        pandas.DataFrame(values).convert_dtypes() if np.ndim(values) == 2 else pandas.Series(values).convert_dtypes()
    ),
    "list of tensors": lambda values: [torch.tensor(one) for one in values],
    "list of NumPy's": lambda values: [np.array(one) for one in values],
}


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_batch_of_what_is_no_tensor(kind) -> None:
    batch = Batch.of(kind(X), kind(Y), environment=kind(E), group=kind(Y))
    assert torch.equal(batch.inputs.double(), torch.tensor(X, dtype=torch.float64))
    for found, given in ((batch.targets, Y), (batch.environment, E), (batch.group, Y)):
        assert found.dtype == torch.int64
        assert found.tolist() == given
    assert batch.take(kind([2, 0])).index.tolist() == [2, 0]
    assert batch.take(kind([True, False, False, True])).index.tolist() == [0, 3]
    again = Batch(kind(X), kind(Y), kind([5, 3, 2, 1]))
    assert again.index.tolist() == [5, 3, 2, 1]
    stream = Streamed.of([*torch.tensor(X)], kind(Y), environment=kind(E))
    assert stream.targets.tolist() == Y
    assert stream.take(kind([3])).environment.tolist() == [1]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_weights_and_probabilities_of_what_is_no_tensor(kind) -> None:
    numbers, half = kind([1.0, 2.0, 0.0, 1.0]), kind([0.5, 0.5, 0.5, 0.5])
    batch = Batch.of(torch.tensor(X), Y, environment=E)
    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    model = nn.Linear(2, 2)
    expected = objective(model, batch, torch.tensor([1.0, 2.0, 0.0, 1.0]))
    torch.testing.assert_close(objective(model, batch, numbers), expected, check_dtype=False)
    inner = InnerRun(lambda: nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), objective, steps=2)
    assert inner(batch, numbers)[1].index.tolist() == [0, 1, 3]
    result = Maple(inner, Sqrt(VREx()), budget=2, steps=1, prior=Prior(half)).fit(batch)
    assert len(result) == 4
    state = Maple(inner, Sqrt(VREx()), budget=2, steps=1).begin(batch, probabilities=half)
    assert state.probabilities.tolist() == [0.5] * 4
    saved = Reweighting(numbers, half, [], kind([4, 2, 0, 1]))
    assert saved.index.dtype == torch.int64
    assert saved.expected_weights.tolist() == [0.5, 1.0, 0.0, 0.5]
    assert keep_probabilities(numbers, 2, strata=kind(E)).sum().item() == pytest.approx(2)
    assert pool([half, numbers / 2 if isinstance(numbers, np.ndarray) else half], 2).sum().item() == pytest.approx(2)
    assert bernoulli_kl(half, half) == 0
    assert float(project_box_simplex(numbers, 2).sum()) == pytest.approx(2)
    assert float(project_ball(numbers, 1).norm()) == pytest.approx(1)
    assert Mask()(half, torch.Generator().manual_seed(0)).shape == (4,)
    assert GroupWeights(kind([2, 2]), by="environment")(torch.ones(4), batch).tolist() == [2.0] * 4
    assert GroupDRO(kind([2, 2]), by="environment")(torch.ones(4), batch).shape == (4,)
    assert RelativeDifficulty(kind(Y))(torch.ones(4), torch.ones(4), batch).shape == (4,)


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_labels_of_any_integer_type(name: str) -> None:
    """As tensors too: torch's losses, and indexing, take int64 alone."""
    labels = torch.tensor(Y).to(getattr(torch, name))
    batch = Batch.of(torch.tensor(X), labels, environment=labels, group=labels)
    model, objective = nn.Linear(2, 2), WeightedLoss(partial(F.cross_entropy, reduction="none"))
    same = Batch.of(torch.tensor(X), torch.tensor(Y))
    assert torch.equal(objective(model, batch, torch.ones(4)), objective(model, same, torch.ones(4)))
    assert torch.isfinite(VREx()(model(batch.inputs), batch, objective.loss))
    assert RelativeDifficulty(labels)(torch.ones(4), torch.ones(4), batch).shape == (4,)
    assert Batch(batch.inputs, labels, torch.arange(4).to(labels.dtype)).index.dtype == torch.int64
    assert Reweighting(torch.ones(4), torch.ones(4), [], torch.arange(4).to(labels.dtype)).index.dtype == torch.int64
    maps = Batch.of(torch.zeros(4, 2, 3, 3), torch.zeros(4, 3, 3, dtype=labels.dtype)).targets
    assert maps.dtype == (torch.uint8 if name == "uint8" else torch.int64)  # images stay bytes


NO_TENSORS = {
    "names": (lambda: Batch.of(torch.tensor(X), pandas.Series(["a", "b", "b", "a"])), "targets"),
    "categories": (lambda: Batch.of(torch.tensor(X), pandas.Series([*"abba"], dtype="category")), "targets"),
    "missing": (lambda: Batch.of(torch.tensor(X), [0, None, 1, 0]), "targets"),
    "missing in pandas": (
        lambda: Batch.of(torch.tensor(X), Y, group=pandas.Series([0, None, 1, 0], dtype="Int64")),
        "",
    ),
    "ragged": (lambda: Batch.of([[1.0], [1.0, 2.0]], [0, 1]), "inputs"),
    "masked": (lambda: Batch.of(np.ma.array(X, mask=[[1, 0]] * 4), Y), "inputs"),
    "dates": (lambda: Batch.of(np.zeros((4, 2), dtype="datetime64[s]"), Y), "inputs"),
    "128 bits": (lambda: Batch.of(np.array(X, dtype=np.longdouble), Y), "inputs"),
    "strings as weights": (lambda: Reweighting(["1", "2"], [0.5, 0.5]), "weights"),
    "a dict of names": (lambda: Batch.of({"x": X, "name": ["a", "b", "b", "a"]}, Y), r"inputs\['name'\]"),
    "a dict by numbers": (lambda: Batch.of({0: X}, Y), "a key of inputs"),
    "a tuple with names": (lambda: Batch.of((np.array(X), np.array([*"abba"])), Y), r"inputs\[1\]"),
    "large numbers": (lambda: Batch.of(torch.tensor(X), [2**70, 0, 0, 0]), "targets"),
    "a long list": (lambda: Batch.of(torch.tensor(X), ["a"] * 100_000), "targets"),
    "a long table": (lambda: Batch.of(pandas.DataFrame({"a": ["x"] * 100_000}), Y), "inputs"),
}


@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_no_tensor_can_be_made_of_is_said_in_one_short_line(name: str) -> None:
    call, argument = NO_TENSORS[name]
    with pytest.raises((TypeError, ValueError), match=f"{argument}.* must ") as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def linear(features: int = 3) -> InnerRun:
    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    return InnerRun(lambda: nn.Linear(features, 2), partial(torch.optim.SGD, lr=0.1), objective, steps=1)


def data(n: int, features: int = 3, dtype: torch.dtype = torch.float32, targets: torch.Tensor | None = None) -> Batch:
    labels = torch.arange(n) % 2 if targets is None else targets
    return Batch.of(torch.ones(n, features).to(dtype), labels, environment=torch.arange(n) % 2)


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        (data(4, features=5), r"inputs of torch.float32 \(n, 5\), where train has torch.float32 \(n, 3\)"),
        (data(4, features=2), r"inputs of torch.float32 \(n, 2\)"),
        (data(4, dtype=torch.float64), r"inputs of torch.float64 \(n, 3\), where train has torch.float32 \(n, 3\)"),
        (data(4, dtype=torch.float16), "inputs of torch.float16"),
        (data(4, dtype=torch.int64), "inputs of torch.int64"),
        (data(4, targets=torch.zeros(4, 7)), r"targets of torch.float32 \(n, 7\), where train has torch.int64 \(n\)"),
        (data(4, targets=torch.zeros(4)), r"targets of torch.float32 \(n\), where train has torch.int64 \(n\)"),
        (data(4, features=5, targets=torch.zeros(4)), r"inputs of .* \(n, 5\).* and targets of torch.float32"),
    ],
)
def test_validation_of_another_kind_is_named(validation: Batch, words: str) -> None:
    maple = Maple(linear(), MeanRisk(), budget=4, steps=1)
    with pytest.raises(ValueError, match=f"validation does not fit the model and the loss: it has {words}") as caught:
        maple.fit(data(8), validation)
    assert "\n" not in str(caught.value)


def test_streamed_validation_of_another_kind_is_named() -> None:
    stream = Streamed.of([*torch.ones(4, 5)], torch.zeros(4, dtype=torch.long), environment=torch.arange(4) % 2)
    with pytest.raises(ValueError, match=r"validation does not fit .* \(n, 5\)"):
        Maple(linear(), MeanRisk(), budget=4, steps=1).fit(data(8), stream)


def test_validation_of_another_size_that_the_model_takes_is_taken() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layer(inputs.float().mean(1, keepdim=True))

    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    inner = InnerRun(Pooled, partial(torch.optim.SGD, lr=0.1), objective, steps=1)
    result = Maple(inner, MeanRisk(), budget=4, steps=1).fit(data(8), data(4, features=5, dtype=torch.float64))
    assert len(result) == 8


def test_a_sampler_of_more_samples_than_torch_draws_from() -> None:
    n = (1 << 24) + 5
    weights = torch.zeros(n)
    weights[[0, 7, 1 << 24, n - 1]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    drawn = list(Reweighting(weights, torch.ones(n)).sampler(4000, torch.Generator().manual_seed(0)))
    counts = [drawn.count(place) for place in (0, 7, 1 << 24, n - 1)]
    assert sum(counts) == 4000
    assert [count / 400 for count in counts] == pytest.approx([1, 2, 3, 4], abs=0.25)  # five standard deviations
    again = Reweighting(weights, torch.ones(n)).sampler(4000, torch.Generator().manual_seed(0))
    assert list(again) == drawn
    assert len(again) == 4000


def test_the_way_of_many_samples_draws_as_that_of_few_does(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Reweighting(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]), torch.ones(5), [], torch.tensor([9, 8, 7, 6, 5]))
    few = list(result.sampler(20_000, torch.Generator().manual_seed(0)))
    monkeypatch.setattr(module, "_CATEGORIES", 4)
    many = list(result.sampler(20_000, torch.Generator().manual_seed(0)))
    for drawn in (few, many):
        assert set(drawn) == {8, 6}
        assert drawn.count(6) / 20_000 == pytest.approx(0.75, abs=0.02)
