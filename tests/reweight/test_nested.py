"""MAPLE on inputs of several tensors: what it finds on the same numbers in one tensor."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import Batch, Streamed, WeightedLoss
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.reweight import InnerRun, LearningToReweight, Maple, MeanRisk, OuterRisk, Sqrt, VREx
from tests.support.environments import CROSS_ENTROPY, spurious

RISK = Sqrt(VREx())


class Apart(nn.Module):
    """A linear layer whose inputs come apart; the answer is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, core: Tensor, others: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"logits": self.layer(torch.stack([core, others[0]], 1)), "rows": core}


class Together(Apart):
    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        return self.layer(inputs)


def apart(data: Batch) -> Batch:
    return replace(data, inputs={"core": data.inputs[:, 0], "others": (data.inputs[:, 1],)})


def stream(data: Batch, chunk: int = 16) -> Streamed:
    rows = [
        {"core": core, "others": (other,), "label": label, "site": site}
        for core, other, label, site in zip(
            data.inputs["core"], data.inputs["others"][0], data.targets, data.environment, strict=True
        )
    ]
    return Streamed.of_dataset(rows, "label", environment="site", chunk=chunk)


def inner(model: Any = Apart, **options: Any) -> InnerRun:
    objective = WeightedLoss(CROSS_ENTROPY, outputs=None if model is Together else "logits")
    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    return InnerRun(model, optimizer, objective, **{"steps": 6, **options})


@pytest.mark.parametrize("options", [{}, {"folds": 2}, {"outer_chunk": 7}, {"learn": "weights"}])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_the_result_is_that_of_one_tensor(options: dict[str, Any], batch_size: int | None) -> None:
    data, validation = spurious(60)[0], spurious(40, seed=5)[0]
    held = () if "folds" in options else (validation,)
    settings = {"risk": RISK, "budget": 20, "steps": 3, **options}
    expected = Maple(inner(Together, batch_size=batch_size), **settings).fit(data, *held)
    found = Maple(inner(batch_size=batch_size), **settings).fit(apart(data), *map(apart, held))
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-12, atol=1e-12)
    assert max((expected.probabilities - 1 / 3).abs().max(), (expected.weights - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("batch_size", [None, 16])
def test_the_result_of_a_stream_is_that_of_a_batch(batch_size: int | None) -> None:
    data = apart(spurious(60)[0])
    settings = {"risk": RISK, "budget": 20, "steps": 3}
    expected = Maple(inner(batch_size=batch_size), **settings).fit(data)
    found = Maple(inner(batch_size=batch_size), **settings).fit(stream(data))
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_risk_and_its_gradient(chunk: int | None) -> None:
    data = spurious(50)[0]
    torch.manual_seed(0)
    model, plain = Apart(), Together()
    plain.load_state_dict(model.state_dict())
    forward = WeightedLoss(CROSS_ENTROPY, outputs="logits").outputs_of
    expected = torch.autograd.grad(OuterRisk(RISK, data, CROSS_ENTROPY)(plain), list(plain.parameters()))
    for samples in (apart(data), stream(apart(data))):
        risk = OuterRisk(RISK, samples, CROSS_ENTROPY, chunk, forward=forward)
        found = torch.autograd.grad(risk(model), list(model.parameters()))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_online_weights_are_those_of_one_tensor() -> None:
    data, clean = spurious(60)[0], spurious(20, seed=5)[0]
    found = []
    for make, change in ((Together, lambda batch: batch), (Apart, apart)):
        torch.manual_seed(0)
        model, objective = make(), inner(make).objective
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        online = LearningToReweight(model, optimizer, objective, change(clean))
        found.append(online.fit(change(data), epochs=2, batch_size=16).expected_weights)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
    assert found[0].std() > 0.1


def test_a_risk_of_outputs_that_are_no_tensor_is_refused() -> None:
    objective = WeightedLoss(
        lambda both, targets: CROSS_ENTROPY(both[0], targets), outputs=lambda answer: (answer["logits"],)
    )
    run = InnerRun(Apart, partial(torch.optim.SGD, lr=0.1), objective, steps=1)
    with pytest.raises(TypeError, match=r"a risk is a function of outputs that are one tensor.*outputs=\.\.\."):
        Maple(run, MeanRisk(), learn="weights", steps=1).fit(apart(spurious(8)[0]))


def test_nans_are_named_by_their_place() -> None:
    for make in (lambda data: data, stream):
        data = apart(spurious(60)[0])
        data.inputs["others"][0][41] = float("nan")
        with pytest.raises(
            FloatingPointError, match=r"NaN or infinite in train: the inputs\['others'\]\[0\] of sample 41"
        ):
            Maple(inner(batch_size=16), RISK, budget=20, steps=1).fit(make(data))


def test_a_journal_knows_every_tensor(tmp_path: Any) -> None:
    data = apart(spurious(60)[0])

    def fit(train: Batch) -> Any:
        return Maple(inner(), RISK, budget=20, steps=2).fit(train, journal=Journal(tmp_path / "run.safetensors"))

    result = fit(data)
    assert fit(data) == result
    moved = data.inputs["others"][0].clone()
    moved[3] += 1e-9
    with pytest.raises(CheckpointError, match=r"its train\.inputs\['others'\]\[0\] is"):
        fit(replace(data, inputs={**data.inputs, "others": (moved,)}))
    with pytest.raises(CheckpointError, match=r"its train\.inputs\['core'\] is .* here it is None|train\.inputs"):
        fit(replace(data, inputs={"others": data.inputs["others"]}))


def test_validation_of_another_kind_is_named() -> None:
    train, other = apart(spurious(20)[0]), apart(spurious(10)[0])
    wrong = replace(other, inputs={"core": other.inputs["core"].float(), "more": other.inputs["core"]})
    words = (
        r"inputs\['core'\] of torch.float32 \(n\), where train has torch.float64 .* and inputs\['others'\]\[0\] of none"
    )
    with pytest.raises(ValueError, match=f"validation does not fit the model and the loss: it has {words}"):
        Maple(inner(), MeanRisk(), budget=4, steps=1).fit(train, wrong)


def test_token_ids_alone_learn_float32_weights() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(5, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    data = Batch.of({"ids": torch.arange(24).reshape(8, 3) % 5}, torch.arange(8) % 2)
    run = InnerRun(
        Words, partial(torch.optim.SGD, lr=0.1), WeightedLoss(CROSS_ENTROPY, call=lambda m, x: m(x["ids"])), 2
    )
    result = Maple(run, MeanRisk(), learn="weights", steps=1).fit(data)
    assert (result.weights.dtype, len(result)) == (torch.float32, 8)
