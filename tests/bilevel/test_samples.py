"""The virtual last step: derivatives for samples that were not in the last batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steelyard.bilevel import Batch, FiniteDifference, Recorder, Truncated, WeightedLoss
from tests.bilevel.problems import CROSS_ENTROPY, OPTIMIZERS, Problem, batch_norm, dropout, relative


def extended_truth(case: Problem, rows: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of the last step taken on its batch plus every other sample as a row of weight 0."""
    _, record = case.run(case.start_weight())
    last, data = record.steps[-1], case.data()
    others = rows[~torch.isin(rows, last.batch.index)]
    both = data.take(torch.cat([last.batch.index, others]))
    base = torch.cat([last.weight, torch.zeros(len(others), dtype=case.dtype)])
    result = []
    for sample in rows.tolist():
        values = []
        for sign in (1.0, -1.0):
            weight = base + sign * step * (both.index == sample).to(case.dtype)
            values.append(_last_step(case, record, both, weight))
        result.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(result, dtype=case.dtype)


def _last_step(case: Problem, record, batch: Batch, weight: Tensor) -> float:
    """Take the recorded last step again, from its start, with torch's own optimizer."""
    model, last = case.make().to(case.dtype), record.steps[-1]
    model.load_state_dict({**last.parameters, **last.conditions.buffers})
    kind, settings = OPTIMIZERS[case.optimizer]
    named = dict(model.named_parameters())
    optimizer = kind([{"params": [p], "lr": last.groups[n]["lr"]} for n, p in named.items()], **settings)
    for name, p in named.items():
        optimizer.state[p] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in last.full_state[name].items()}
    WeightedLoss(CROSS_ENTROPY, "weights")(model, batch, weight).backward()
    optimizer.step()
    with torch.no_grad():
        return float(case.outer(model))


@pytest.mark.parametrize("optimizer", ["sgd-nesterov", "adam-decay", "rmsprop-momentum", "adagrad"])
@pytest.mark.parametrize("estimator", [Truncated(), FiniteDifference(), Truncated(memory=1)])
def test_all_samples_from_one_sweep(optimizer: str, estimator: Truncated) -> None:
    case = Problem(optimizer=optimizer, window=1, samples=9, batch=4, full_state=True)
    _, record = case.run(case.start_weight())
    order = torch.tensor([3, 1, 8, 0, 2, 7, 5, 6, 4])
    answer = estimator(record, case.outer, samples=case.data().take(order))
    assert relative(answer, extended_truth(case, order)) < 1e-6


def test_recorded_samples_agree_with_the_window_and_repeats_add_up() -> None:
    case = Problem(window=1, samples=5, batch=12)
    _, record = case.run(case.start_weight())
    assert record.steps[0].batch.index.unique(return_counts=True)[1].max() > 1
    seen = record.index
    by_sweep = Truncated()(record, case.outer, samples=case.data())
    assert torch.allclose(by_sweep[seen], Truncated()(record, case.outer, seen), rtol=1e-12)


def test_samples_need_not_contain_the_batch() -> None:
    case = Problem(window=1, samples=9, batch=4)
    _, record = case.run(case.start_weight())
    whole = Truncated()(record, case.outer, samples=case.data())
    part = torch.tensor([8, 2])
    assert torch.allclose(Truncated()(record, case.outer, samples=case.data().take(part)), whole[part], rtol=1e-12)


def test_dropout_rows_of_the_batch_keep_their_masks() -> None:
    case = Problem(make=dropout, window=1, samples=9, batch=4)
    _, record = case.run(case.start_weight())
    seen = record.index
    by_sweep = Truncated(memory=1)(record, case.outer, samples=case.data())
    assert torch.allclose(by_sweep[seen], Truncated()(record, case.outer, seen), rtol=1e-12)


def test_batch_norm_is_refused_or_answered_by_chunks() -> None:
    case = Problem(make=batch_norm, window=1)
    _, record = case.run(case.start_weight())
    with pytest.raises(ValueError, match="normalised by its batch"):
        Truncated()(record, case.outer, samples=case.data())
    answer = Truncated(coupled="chunk")(record, case.outer, samples=case.data())
    assert torch.isfinite(answer).all()
    seen = record.index
    assert torch.allclose(answer[seen], Truncated()(record, case.outer, seen), rtol=1e-12)


def test_eval_mode_batch_norm_is_exact() -> None:
    """Fine-tuning with frozen statistics does not couple samples, and is not refused."""
    torch.manual_seed(0)
    model, data = batch_norm().double(), Problem().data()
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY)) as recorder:
        recorder.loss(data, torch.ones(8, dtype=torch.float64)).backward()
        optimizer.step()
        record = recorder.trajectory()
    sweep = Truncated()(record, Problem().outer, samples=data)
    assert torch.allclose(sweep, Truncated()(record, Problem().outer), rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "index", "message"),
    [(2, None, "samples need steps=1"), (1, torch.arange(2), "index or samples, not both")],
)
def test_what_does_not_fit_together(steps: int, index: Tensor | None, message: str) -> None:
    case = Problem(window=2)
    _, record = case.run(case.start_weight())
    with pytest.raises(ValueError, match=message):
        Truncated(steps=steps)(record, case.outer, index, samples=case.data())
