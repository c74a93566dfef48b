"""The virtual last step: derivatives for samples that were not in the last batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import Batch, FiniteDifference, Recorder, Trajectory, Truncated, WeightedLoss
from tests.support.problems import CROSS_ENTROPY, OPTIMIZERS, Problem, batch_norm, convolution, dropout, relative


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
    for estimator in (Truncated(coupled="chunk"), Truncated(coupled="batch"), Truncated(memory=1, coupled="batch")):
        answer = estimator(record, case.outer, samples=case.data())
        assert torch.isfinite(answer).all()
        seen = record.index
        assert torch.allclose(answer[seen], Truncated()(record, case.outer, seen), rtol=1e-12)


def as_rows(case: Problem, record: Trajectory, samples: Batch) -> Tensor:
    """d outer / d w_i at w_i = 0 for samples outside of the last batch, each as one more row of it, by torch alone.

    The step itself, and with it u, is the recorded one: the derivative of what SGD does with a gradient is -lr.
    """
    last, weight = record.steps[-1], record.steps[-1].weight
    final = case.make().double()
    final.load_state_dict(record.module.state_dict())
    adjoint = torch.autograd.grad(case.outer(final), list(final.parameters()))
    rates = [last.groups[name]["lr"] for name, _ in final.named_parameters()]

    def along(batch: Batch, row: int | None) -> Tensor:
        model = case.make().double()
        model.load_state_dict({**last.parameters, **last.conditions.buffers})
        losses = CROSS_ENTROPY(model.train()(batch.inputs), batch.targets)
        of = losses[row] if row is not None else (weight * losses).sum() / weight.sum()
        slopes = torch.autograd.grad(of, list(model.parameters()))
        return torch.stack([-r * (v * g).sum() for r, v, g in zip(rates, adjoint, slopes, strict=True)]).sum()

    data, mean = case.data(), along(last.batch, None)
    rows = [data.take(torch.cat([last.batch.index, one[None]])) for one in samples.index]
    return torch.stack([along(batch, -1) - mean for batch in rows]) / weight.sum()


@pytest.mark.parametrize("make", [batch_norm, convolution])
@pytest.mark.parametrize("kind", [Truncated, partial(Truncated, memory=1), FiniteDifference])
def test_a_sample_outside_of_a_normalised_batch_is_one_more_row_of_it(make, kind) -> None:
    estimator = kind(coupled="batch")
    case = Problem(make=make, optimizer="sgd", window=1, samples=30, batch=5)
    _, record = case.run(case.start_weight())
    outside = case.data().take(~torch.isin(torch.arange(30), record.index))
    answer = estimator(record, case.outer, samples=case.data())[outside.index]
    assert relative(answer, as_rows(case, record, outside)) < (1e-10 if type(estimator) is Truncated else 1e-6)


def test_rows_that_a_model_folds_into_the_batch_axis_belong_to_their_sample() -> None:
    """Two rows a sample: the statistics of BatchNorm1d are those of 2 (B + 1) rows."""
    case = Problem(make=folded, optimizer="sgd", window=1, samples=20, batch=5)
    _, record = case.run(case.start_weight())
    outside = case.data().take(~torch.isin(torch.arange(20), record.index))
    answer = Truncated(coupled="batch")(record, case.outer, samples=case.data())[outside.index]
    assert relative(answer, as_rows(case, record, outside)) < 1e-10


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(x.reshape(-1, 2))))
        return self.last(hidden).unflatten(0, (len(x), 2)).sum(1)


def folded() -> nn.Module:
    return Folded()


def test_nearer_to_training_again_than_chunks() -> None:
    """With more layers than one, and a step that moves with the row, it is an approximation: the better one."""

    def deep() -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh()),
            *(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh()),
            nn.Linear(5, 3),
        )

    case = Problem(make=deep, optimizer="adam", window=1, samples=60, batch=30, full_state=True)
    _, record = case.run(case.start_weight())
    rows = torch.arange(60)[~torch.isin(torch.arange(60), record.index)]
    truth = torch.stack([extended_truth(case, row[None]) for row in rows]).flatten()
    errors = {
        coupled: relative(Truncated(coupled=coupled)(record, case.outer, samples=case.data())[rows], truth)
        for coupled in ("batch", "chunk")
    }
    assert errors["batch"] < 0.1
    assert errors["batch"] < errors["chunk"]


def test_samples_that_couple_by_more_than_batch_norm_are_refused_still() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    def centred() -> nn.Module:
        return nn.Sequential(batch_norm(), Centred())

    case = Problem(make=centred, window=1)
    _, record = case.run(case.start_weight())
    with pytest.raises(ValueError, match=r"not by layers of BatchNorm alone.*coupled=\"chunk\""):
        Truncated(coupled="batch")(record, case.outer, samples=case.data())


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
