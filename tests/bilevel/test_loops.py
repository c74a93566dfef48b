"""Loops as people have them: accumulated and clipped gradients, against central differences of plain retraining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import (
    Batch,
    FiniteDifference,
    Implicit,
    Recorder,
    Storage,
    Truncated,
    Unrolled,
    WeightedLoss,
)
from tests.support.places import GUIDES
from tests.support.problems import CROSS_ENTROPY, OPTIMIZERS, Problem, batch_norm, dropout, mlp, relative

Clip = Callable[[Any, nn.Module], object]


def by_norm(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_norm_(model.parameters(), 0.1)


def by_value(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_value_(model.parameters(), 0.03)


def by_value_then_norm(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_value_(model.parameters(), 0.05, foreach=True)
    clipper.clip_grad_norm_(model.parameters(), 0.1, foreach=False)


def by_norm_then_value(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_norm_(model.parameters(), 0.2, error_if_nonfinite=True, foreach=True)
    clipper.clip_grad_value_(model.parameters(), 0.03)


def by_norms_of_parts(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_norm_(model[0].parameters(), 0.05)
    clipper.clip_grad_norm_(model[-1].weight, 0.05)


def by_largest(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_norm_(model.parameters(), 0.05, norm_type=float("inf"))


def by_third_norm(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_norm_(model.parameters(), 0.05, norm_type=3)


def never(clipper: Any, model: nn.Module) -> None:
    clipper.clip_grad_norm_(model.parameters(), 1e6)
    clipper.clip_grad_norm_(model.parameters(), float("inf"))  # as is written for the norm alone


CLIPS = [by_norm, by_value, by_value_then_norm, by_norm_then_value, by_norms_of_parts, by_largest, by_third_norm, never]


@dataclass
class Loop:
    """`run(weight)` trains from the same start; the weights act in the last `window` steps only.

    Each step accumulates micro-batches of `sizes` rows; samples repeat within and between them.
    """

    make: Callable[[], nn.Module] = mlp
    optimizer: str = "sgd-momentum"
    window: int = 3
    warmup: int = 2
    sizes: tuple[int, ...] = (5,)
    divide: float = 1.0
    scales: tuple[float, ...] | None = None
    clip: Clip | None = None
    normalise: str = "weights"
    options: dict[str, Any] = field(default_factory=dict)
    recorder: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    samples: int = 8

    evaluation = True  # of the outer loss

    data, weight, outer = Problem.data, Problem.start_weight, Problem.outer

    def run(self, weight: Tensor, recorded: bool = True, extra: Callable[[int, int], Any] = lambda step, k: None):
        """Train; `extra(step, micro-batch)` may give one more row, ``(sample, its weight)``, for the micro-batch."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make().to(self.dtype)
            kind, settings = OPTIMIZERS[self.optimizer]
            optimizer = kind(model.parameters(), **{**settings, **self.options})
            objective = WeightedLoss(CROSS_ENTROPY, self.normalise)
            data, ones = self.data(), torch.ones(self.samples, dtype=self.dtype)
            generator = torch.Generator().manual_seed(4)
            with Recorder(model, optimizer, objective, self.window, **self.recorder) as recorder:
                for number in range(self.warmup + self.window):
                    used = weight if number >= self.warmup else ones
                    optimizer.zero_grad()
                    for k, size in enumerate(self.sizes):
                        rows = torch.randint(0, self.samples, (size,), generator=generator)
                        batch, own = data.take(rows), used[rows]
                        more = extra(number - self.warmup, k)
                        if more is not None:
                            batch = data.take(torch.cat([rows, torch.tensor([more[0]])]))
                            own = torch.cat([own, torch.tensor([more[1]], dtype=self.dtype)])
                        scale = self.scales[k] if self.scales else 1.0
                        if recorded:
                            loss = recorder.loss(batch, own, scale=scale)
                        else:
                            loss = objective(model, batch, own) * scale
                        (loss / self.divide).backward()
                    if self.clip is not None:
                        self.clip(recorder if recorded else nn.utils, model)
                    optimizer.step()
                return model, recorder.trajectory() if recorded else None

    def differences(self, at: Callable[[float, int], float], step: float = 1e-6) -> Tensor:
        """Central differences of `at(change, sample)` for every sample."""
        found = [(at(step, i) - at(-step, i)) / (2 * step) for i in range(self.samples)]
        return torch.tensor(found, dtype=torch.float64)

    def truth(self, step: float = 1e-6) -> Tensor:
        """Of plain training with torch's own clips, no recorder anywhere."""

        def at(change: float, sample: int) -> float:
            weight = self.weight()
            weight[sample] += change
            return float(self.outer(self.run(weight, recorded=False)[0]).detach())

        return self.differences(at, step)

    def answer(self, estimator: Callable[..., Tensor], **asked: Any) -> Tensor:
        _, record = self.run(self.weight())
        return estimator(record, self.outer, **(asked or {"index": torch.arange(self.samples)}))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "rmsprop-momentum"])
@pytest.mark.parametrize("clip", CLIPS)
def test_a_clip_is_differentiated(clip: Clip, optimizer: str, steps: int) -> None:
    loop = Loop(clip=clip, optimizer=optimizer, window=steps, recorder={"reuse": steps == 1})
    assert relative(loop.answer(Truncated(steps)), loop.truth()) < 1e-6


@pytest.mark.parametrize("clip", CLIPS)
def test_the_recorders_clips_are_torchs(clip: Clip) -> None:
    loop = Loop(clip=clip, sizes=(3, 4), divide=2)
    watched, record = loop.run(loop.weight())
    plain, _ = loop.run(loop.weight(), recorded=False)
    assert all(torch.equal(one, other) for one, other in zip(watched.parameters(), plain.parameters(), strict=True))
    assert [len(step.clips) > 0 for step in record.steps] == [clip is not never] * 3


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd-nesterov", "adam-decay", "adagrad"])
@pytest.mark.parametrize(
    "how",
    [
        {"sizes": (5, 3), "divide": 2.0},
        {"sizes": (4, 4, 2), "divide": 3.0, "normalise": "batch"},
        {"sizes": (5, 3), "normalise": "none"},
        {"sizes": (5, 2), "scales": (5 / 7, 2 / 7), "normalise": "batch"},
        {"sizes": (4, 3), "scales": (0.3, -0.1), "divide": 2.0, "clip": by_value_then_norm},
        {"sizes": (5,), "divide": 4.0},
    ],
    ids=["mean of two", "batch", "sums", "shares", "scaled and clipped", "divided"],
)
def test_accumulated_gradients(how: dict[str, Any], optimizer: str, steps: int) -> None:
    loop = Loop(optimizer=optimizer, window=steps, recorder={"reuse": steps == 1}, **how)
    assert relative(loop.answer(Truncated(steps)), loop.truth()) < 1e-6


@pytest.mark.parametrize("make", [batch_norm, dropout])
@pytest.mark.parametrize("estimator", [Truncated(3), FiniteDifference(3)], ids=["truncated", "difference"])
def test_every_micro_batch_has_its_own_statistics_and_masks(estimator, make) -> None:
    loop = Loop(make, sizes=(5, 4), divide=2.0, clip=by_norm)
    assert relative(loop.answer(estimator), loop.truth()) < 1e-6


@pytest.mark.parametrize("every", [2, 3])
def test_checkpoints_repeat_accumulation_and_clips_bit_for_bit(every: int) -> None:
    loop = Loop(optimizer="adam", window=5, sizes=(4, 3), divide=2.0, clip=by_value_then_norm)
    whole = loop.answer(Truncated(5))
    loop.recorder = {"storage": Storage(checkpoint_every=every)}
    assert torch.equal(loop.answer(Truncated(5)), whole)


@pytest.mark.parametrize("clip", [None, by_norm])
def test_samples_outside_of_the_step_join_any_of_its_micro_batches(clip: Clip | None) -> None:
    loop = Loop(window=1, sizes=(3, 2), divide=2.0, clip=clip, normalise="weights", optimizer="adam")
    _, record = loop.run(loop.weight())
    inside = set(record.index.tolist())
    assert 0 < len(inside) < loop.samples
    found = Truncated()(record, loop.outer, samples=loop.data())
    by_index = Truncated()(record, loop.outer, index=torch.arange(loop.samples))

    def joining(change: float, sample: int) -> float:
        def value(k: int) -> float:
            model, _ = loop.run(
                loop.weight(), False, lambda step, at: (sample, change) if (step, at) == (0, k) else None
            )
            return float(loop.outer(model).detach())

        return (value(0) + value(1)) / 2

    outside = torch.tensor([i not in inside for i in range(loop.samples)])
    assert relative(found[~outside], by_index[~outside]) < 1e-9
    assert relative(found[outside], loop.differences(joining)[outside]) < 1e-6


def test_any_tensor_through_accumulation_and_a_clip() -> None:
    def run(shift: Tensor, recorded: bool):
        torch.manual_seed(0)
        model = mlp().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        data, weight = Loop().data(), Loop().weight()

        def objective(m: nn.Module, batch: Batch, w: Tensor) -> Tensor:
            return (w * CROSS_ENTROPY(m(batch.inputs * shift.exp()), batch.targets)).mean()

        with Recorder(model, optimizer, objective, steps=2) as recorder:
            for _ in range(2):
                optimizer.zero_grad()
                for rows in (slice(0, 5), slice(3, 8)):
                    place = torch.arange(8)[rows]
                    (recorder.loss(data.take(place), weight[place]) / 2).backward()
                by_norm(recorder, model)
                optimizer.step()
            return model, recorder.trajectory()

    shift = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    _, record = run(shift, True)
    (found,) = Truncated(2).tensors(record, Loop().outer, [shift])
    values = [
        float(Loop().outer(run(torch.tensor(0.2 + h, dtype=torch.float64), True)[0]).detach()) for h in (1e-6, -1e-6)
    ]
    assert abs(float(found) - (values[0] - values[1]) / 2e-6) < 1e-6 * abs(float(found))


def test_implicit_takes_the_scaled_sum_of_micro_batches() -> None:
    """The minimum of a ridge regression of all rows, in one batch and in two of different size."""
    data = Batch.of(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6).double())

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square()

    found = []
    for rows in ([slice(0, 6)], [slice(0, 4), slice(4, 6)]):
        torch.manual_seed(0)
        model = nn.Linear(3, 1, bias=False).double()
        with torch.no_grad():
            gram = data.inputs.T @ data.inputs / 6
            model.weight[0] = torch.linalg.solve(gram + 0.05 * torch.eye(3), data.inputs.T @ data.targets / 6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=0.1)
        with Recorder(model, optimizer, WeightedLoss(squares, "batch")) as recorder:
            for one in rows:
                place = torch.arange(6)[one]
                recorder.loss(data.take(place), torch.ones(len(place)).double(), scale=len(place) / 6).backward()
            optimizer.step()
            found.append(Implicit(tolerance=1e-12)(recorder.trajectory(), lambda m: m.weight.pow(3).sum()))
    assert relative(found[1], found[0]) < 1e-9


def record_of(body: Callable[[Recorder, nn.Module, torch.optim.Optimizer], None], steps: int = 1):
    torch.manual_seed(0)
    model = mlp().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            body(recorder, model, optimizer)
            optimizer.step()
        return recorder.trajectory()


DATA, ONES = Loop().data(), torch.ones(8, dtype=torch.float64)


def _factor(factor: float):
    return lambda recorder, model, optimizer: (recorder.loss(DATA, ONES) * factor).backward()


def _exponential(recorder, model, optimizer) -> None:
    recorder.loss(DATA, ONES).exp().backward()


def _uneven(recorder, model, optimizer) -> None:
    (recorder.loss(DATA, ONES) / 2).backward()
    (recorder.loss(DATA, ONES) / 3).backward()


def _clip_unseen(recorder, model, optimizer) -> None:
    for _ in range(2):
        (recorder.loss(DATA, ONES) / 2).backward()
    by_norm(nn.utils, model)


def _clip_between(recorder, model, optimizer) -> None:
    (recorder.loss(DATA, ONES) / 2).backward()
    by_norm(recorder, model)
    (recorder.loss(DATA, ONES) / 2).backward()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_factor(0.3), r"multiplied by 0.3 .*scale=0.3"),
        (_factor(2.0), r"multiplied by 2 .*scale=2"),
        (_exponential, r"nothing says whether that is a constant"),
        (_uneven, r"multiplied by 0.333333"),
        (_clip_unseen, r"multiplied by 0\.\d+ .*nothing says whether that is a constant"),
        (_clip_between, "clipped between the micro-batches"),
    ],
)
@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_not_known_to_be_right_is_refused(body, message: str, steps: int) -> None:
    record = record_of(body, steps)
    for estimator in (Truncated(steps), Implicit()):
        with pytest.raises(RuntimeError, match=message):
            estimator(record, Loop().outer)


def test_the_remedies_work() -> None:
    """What the refusals say to write instead."""

    def scaled(recorder, model, optimizer) -> None:
        recorder.loss(DATA, ONES, scale=0.3).backward()

    plain = Truncated()(record_of(_factor(1.0)), Loop().outer)
    assert Truncated()(record_of(scaled), Loop().outer).abs().sum() > 0
    assert plain.abs().sum() > 0

    def torchs(recorder, model, optimizer) -> None:
        recorder.loss(DATA, ONES).backward()
        by_norm(nn.utils, model)

    with pytest.raises(RuntimeError, match=r"clip by recorder\.clip_grad_norm_"):
        Truncated()(record_of(torchs), Loop().outer)


def test_losses_added_up_before_one_backward_and_losses_only_read() -> None:
    def apart(recorder, model, optimizer) -> None:
        recorder.loss(DATA.take(slice_of(0, 5)), ONES[:5]).backward()
        recorder.loss(DATA.take(slice_of(3, 8)), ONES[3:]).backward()

    def together(recorder, model, optimizer) -> None:
        recorder.loss(DATA, ONES).item()  # only read
        one = recorder.loss(DATA.take(slice_of(0, 5)), ONES[:5])
        (one + recorder.loss(DATA.take(slice_of(3, 8)), ONES[3:])).backward()

    def cleared(recorder, model, optimizer) -> None:
        recorder.loss(DATA, ONES).backward()
        by_norm(recorder, model)
        optimizer.zero_grad(set_to_none=False)
        apart(recorder, model, optimizer)

    def once_more(recorder, model, optimizer) -> None:
        one = recorder.loss(DATA.take(slice_of(0, 5)), ONES[:5])
        one.backward(retain_graph=True)
        optimizer.zero_grad()
        one.backward()
        recorder.loss(DATA.take(slice_of(3, 8)), ONES[3:]).backward()

    bodies = (apart, together, cleared, once_more)
    first, *others = [Truncated(2)(record_of(body, 2), Loop().outer) for body in bodies]
    assert all(torch.allclose(first, other, rtol=1e-12) for other in others)
    assert [len(step.micro_batches) for step in record_of(cleared, 2).steps] == [2, 2]


def slice_of(start: int, end: int) -> Tensor:
    return torch.arange(8)[start:end]


def test_unrolling_refuses_by_name() -> None:
    def accumulated(recorder, model, optimizer) -> None:
        (recorder.loss(DATA, ONES) / 2).backward()
        (recorder.loss(DATA, ONES) / 2).backward()

    for loop, message in ((accumulated, "accumulated micro-batches"), (_with_clip, "clipped its gradient")):
        torch.manual_seed(0)
        model = mlp().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), full_state=True) as recorder:
            loop(recorder, model, optimizer)
            optimizer.step()
            with pytest.raises(RuntimeError, match=f"{message}.*use Truncated"):
                Unrolled()(recorder.trajectory(), Loop().outer)


def _with_clip(recorder, model, optimizer) -> None:
    recorder.loss(DATA, ONES).backward()
    by_norm(recorder, model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, m: r.clip_grad_norm_(m.parameters(), -1.0), "max_norm must be"),
        (lambda r, m: r.clip_grad_norm_(m.parameters(), 1.0, norm_type=0.5), "norm_type must be at least 1"),
        (lambda r, m: r.clip_grad_norm_([m[0].weight, m[0].weight], 1.0), "holds a parameter twice"),
        (lambda r, m: r.clip_grad_value_(m.parameters(), 0.0), "clip_value must be"),
        (lambda r, m: r.clip_grad_norm_(m.parameters(), 1.0), "'0.weight' is clipped, but not trained"),
        (lambda r, m: r.loss(DATA, ONES, scale=0.0), "scale is 0"),
    ],
)
def test_misuse_is_named(call, message: str) -> None:
    model = mlp().double()
    trained = model[2].parameters() if "not trained" in message else model.parameters()
    optimizer = torch.optim.SGD(trained, lr=0.1)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY)) as recorder:
        recorder.loss(DATA, ONES).backward()
        with pytest.raises(ValueError, match=message):
            call(recorder, model)


@dataclass
class Ordinary:
    """`train(weight)` is a loop with the recorder in it; the truth is what it ends with under other weights."""

    train: Callable[[Tensor], tuple[nn.Module, Any]]
    steps: int
    outer: Callable[[nn.Module], Tensor] = Loop().outer

    def check(self, limit: float = 1e-6, step: float = 1e-6) -> None:
        start = Loop().weight()
        _, record = self.train(start)
        found = Truncated(self.steps)(record, self.outer, torch.arange(8))
        truth = torch.zeros(8, dtype=torch.float64)
        for i in range(8):
            values = []
            for sign in (1, -1):
                weight = start.clone()
                weight[i] += sign * step
                values.append(float(self.outer(self.train(weight)[0]).detach()))
            truth[i] = (values[0] - values[1]) / (2 * step)
        assert truth.abs().max() > 0
        assert relative(found, truth) < limit


def rows_of(number: int, size: int = 5) -> Tensor:
    return torch.randint(0, 8, (size,), generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("initial", [2.0**10, 1000.0])
def test_a_gradient_scaler_with_accumulation_and_a_clip(steps: int, kind, initial: float) -> None:
    def train(weight: Tensor):
        torch.manual_seed(0)
        model = mlp().double()
        cold = {"eps": 1e-3} if kind is torch.optim.AdamW else {}  # the truth is lost in rounding under a smaller one
        optimizer = kind(model.parameters(), lr=0.05, **cold)
        scaler = torch.amp.GradScaler("cpu", init_scale=initial, growth_interval=2)
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps) as recorder:
            for number in range(steps):
                optimizer.zero_grad()
                for part in range(2):
                    rows = rows_of(2 * number + part)
                    scaler.scale(recorder.loss(DATA.take(rows), weight[rows]) / 2).backward()
                scaler.unscale_(optimizer)
                by_norm(recorder, model)
                scaler.step(optimizer)
                scaler.update()
            return model, recorder.trajectory()

    Ordinary(train, steps).check()


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_that_skips_a_step(fused: bool) -> None:
    def train(weight: Tensor):
        torch.manual_seed(0)
        model = mlp().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 2) as recorder:
            for number in range(3):
                optimizer.zero_grad()
                rows = rows_of(number)
                scaler.scale(recorder.loss(DATA.take(rows), weight[rows])).backward()
                if number == 1:
                    model[0].weight.grad[0, 0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
            return model, recorder.trajectory()

    Ordinary(train, 2).check()


def test_parameters_that_are_trained_from_a_later_step_on() -> None:
    def train(weight: Tensor):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        model[0].requires_grad_(False)
        optimizer = torch.optim.Adam(model[4].parameters(), lr=0.05)
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 4) as recorder:
            for number in range(4):
                if number == 1:
                    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02})
                if number == 3:
                    model[0].requires_grad_(True)
                    optimizer.add_param_group({"params": model[0].parameters(), "weight_decay": 0.1})
                rows = rows_of(number)
                optimizer.zero_grad()
                recorder.loss(DATA.take(rows), weight[rows]).backward()
                optimizer.step()
            return model, recorder.trajectory()

    Ordinary(train, 4).check()


def test_an_average_beside_the_model_and_a_cycle_of_rates_and_momenta() -> None:
    def train(weight: Tensor, kind: type[torch.optim.Optimizer], **settings: Any):
        torch.manual_seed(0)
        model = batch_norm().double()
        optimizer = kind(model.parameters(), lr=0.05, **settings)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=6)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 3) as recorder:
            for number in range(5):
                rows = rows_of(number)
                optimizer.zero_grad()
                loss = recorder.loss(DATA.take(rows), weight[rows] if number > 1 else ONES[rows])
                loss.backward()
                optimizer.step()
                schedule.step()
                average.update_parameters(model)
            return model, recorder.trajectory()

    for kind, settings in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"eps": 1e-3})):
        Ordinary(lambda weight, kind=kind, settings=settings: train(weight, kind, **settings), 3).check()


def several_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Imbalanced: a label that few samples have counts more."""
    frequent = torch.tensor([4.0, 1.0, 9.0], dtype=outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=frequent, reduction="none").mean(1)


def spread_and_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """Heteroskedastic regression: the model gives the mean and the logarithm of the variance."""
    return F.gaussian_nll_loss(outputs[:, 0], targets, outputs[:, 1].exp(), reduction="none")


def rare_values(outputs: Tensor, targets: Tensor) -> Tensor:
    """Regression where large targets are rare: their errors count more, large errors linearly."""
    return (1 + targets.square()) * F.huber_loss(outputs[:, 0], targets, delta=0.5, reduction="none")


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("loss", [several_labels, spread_and_mean, rare_values])
def test_losses_of_several_labels_and_of_numbers(loss: Callable[[Tensor, Tensor], Tensor], steps: int) -> None:
    generator = torch.Generator().manual_seed(5)
    labels = (torch.rand(8, 3, generator=generator) < 0.3).double()
    numbers = torch.randn(8, generator=generator, dtype=torch.float64)
    data = Batch.of(DATA.inputs, labels if loss is several_labels else numbers)

    def train(weight: Tensor):
        torch.manual_seed(0)
        model = mlp().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05, eps=1e-3)
        with Recorder(model, optimizer, WeightedLoss(loss), steps) as recorder:
            for number in range(steps):
                optimizer.zero_grad()
                for part in range(2):
                    rows = rows_of(2 * number + part, 6)
                    (recorder.loss(data.take(rows), weight[rows]) / 2).backward()
                by_norm(recorder, model)
                optimizer.step()
            return model, recorder.trajectory()

    Ordinary(train, steps, lambda model: loss(model.eval()(data.inputs), data.targets).mean()).check()


@pytest.mark.parametrize("steps", [2, 3])
def test_batch_norm_under_bfloat16(steps: int) -> None:
    """As near to float64 as eight bits get; a bias before BatchNorm, whose gradient is rounding: `test_float64.py`."""

    def train(make: Callable[[], nn.Module], dtype: torch.dtype, kind: type[torch.optim.Optimizer]):
        torch.manual_seed(0)
        model, data = make().to(dtype), Batch.of(DATA.inputs.to(dtype), DATA.targets)
        optimizer = kind(model.parameters(), lr=0.05)
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps) as recorder:
            for number in range(steps):
                optimizer.zero_grad()
                rows = rows_of(number, 8)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
                    loss = recorder.loss(data.take(rows), ONES[rows].to(dtype))
                loss.backward()
                optimizer.step()
            return recorder.trajectory()

    def outer(model: nn.Module) -> Tensor:
        inputs = torch.linspace(-1, 1, 28).reshape(7, 4).to(next(model.parameters()).dtype)
        return F.cross_entropy(model.eval()(inputs), torch.arange(7) % 3)

    def without_bias() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    for make, kind in ((batch_norm, torch.optim.SGD), (without_bias, torch.optim.AdamW)):
        low, high = (train(make, dtype, kind) for dtype in (torch.float32, torch.float64))
        assert relative(Truncated(steps)(low, outer).double(), Truncated(steps)(high, outer)) < 0.2


LOOPS = {
    "accumulated gradients: `(recorder.loss(...) / 2).backward()`, or any constant as `scale=`": (
        test_accumulated_gradients
    ),
    "clips by norm or by value, of all parameters or some: `recorder.clip_grad_norm_`, `recorder.clip_grad_value_`": (
        test_a_clip_is_differentiated
    ),
    "BatchNorm and dropout in each micro-batch": test_every_micro_batch_has_its_own_statistics_and_masks,
    "BatchNorm under bfloat16": test_batch_norm_under_bfloat16,
    "`GradScaler`, also where it skips a step": test_a_gradient_scaler_with_accumulation_and_a_clip,
    "parameter groups that are added later": test_parameters_that_are_trained_from_a_later_step_on,
    "an average of the parameters beside the model, and `OneCycleLR`": (
        test_an_average_beside_the_model_and_a_cycle_of_rates_and_momenta
    ),
    "losses of several labels and of numbers": test_losses_of_several_labels_and_of_numbers,
}


def test_the_guide_lists_the_loops_that_are_tested() -> None:
    listed = (GUIDES / "own_loop.md").read_text(encoding="utf-8").split("These loops are answered:\n\n")[1]
    assert listed.split("\n\n")[0].splitlines() == [f"- {loop}" for loop in LOOPS]
