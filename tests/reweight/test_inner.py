"""The inner run is ordinary training, is a function of its arguments, and leaves the global random state alone."""

from functools import partial

import pytest
import torch
from torch import nn

from steelyard._support._precision import measured
from steelyard.bilevel import Batch, Truncated, WeightedLoss
from steelyard.reweight import CosineDecay, InnerRun
from tests.support.environments import CROSS_ENTROPY, linear_run, spurious

WEIGHT = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sub(0.4).clamp(min=0)


def noisy_run(**options):
    """Everything that could carry state: dropout, BatchNorm, minibatches, Adam."""
    return InnerRun(
        lambda: nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)),
        partial(torch.optim.Adam, lr=0.01),
        WeightedLoss(CROSS_ENTROPY),
        **{"steps": 12, "batch_size": 32, **options},
    )


def parameters(model):
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def test_is_the_loop_one_would_write():
    train, _ = spurious()
    model, _ = linear_run(steps=7)(train, WEIGHT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(2, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9)
    kept = WEIGHT > 0
    for _ in range(7):
        losses = CROSS_ENTROPY(plain(train.inputs[kept]), train.targets[kept])
        optimizer.zero_grad()
        ((losses * WEIGHT[kept]).sum() / WEIGHT.sum()).backward()
        optimizer.step()
    torch.testing.assert_close(parameters(model), parameters(plain), rtol=1e-12, atol=1e-14)


def test_a_schedule_is_that_of_torch():
    train, _ = spurious()
    model, _ = linear_run(steps=7, schedule=CosineDecay(0.1))(train, WEIGHT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(2, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=0.1)
    for _ in range(7):
        optimizer.zero_grad()
        ((CROSS_ENTROPY(plain(train.inputs), train.targets) * WEIGHT).sum() / WEIGHT.sum()).backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(parameters(model), parameters(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("restart", [True, False])
def test_a_schedule_begins_again_at_every_call(restart):
    train, _ = spurious(dtype=torch.float32)
    inner = noisy_run(restart=restart, schedule=CosineDecay(0.5), window=12)
    for _ in range(2):
        _, trajectory = inner(train, WEIGHT.float())
        rates = [next(iter(step.groups.values()))["lr"] for step in trajectory.steps]
        assert rates == [0.01 * CosineDecay(0.5)(step / 12) for step in range(12)]
    warm = noisy_run(restart=False, schedule=CosineDecay(0.5))
    warm.load_state_dict(inner.state_dict())
    assert warm(train, WEIGHT.float())[1].steps[-1].groups == trajectory.steps[-1].groups


def test_its_hypergradient_is_that_of_the_run():
    train, _ = spurious()
    kept = (WEIGHT > 0).nonzero().flatten()
    inner = linear_run(steps=3, window=3, schedule=CosineDecay(0.1))

    def outer(model):
        return CROSS_ENTROPY(model(train.inputs), train.targets).square().mean()

    found = Truncated(steps=3)(inner(train, WEIGHT)[1], outer)

    def value(sample, move):
        moved = WEIGHT.clone()
        moved[sample] += move
        return outer(inner(train, moved)[0]).item()

    for position in (0, len(kept) // 2, len(kept) - 1):
        sample = int(kept[position])
        expected = (value(sample, 1e-5) - value(sample, -1e-5)) / 2e-5
        assert found[position].item() == pytest.approx(expected, rel=1e-5, abs=1e-10)


def test_restart_is_a_function_of_the_weights():
    train, _ = spurious(dtype=torch.float32)
    inner = noisy_run()
    weight = WEIGHT.float()
    first = parameters(inner(train, weight)[0])
    other = parameters(inner(train, torch.ones(200))[0])
    again = parameters(inner(train, weight)[0])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, parameters(noisy_run()(train, weight)[0]))
    assert not torch.equal(first, parameters(noisy_run(seed=1)(train, weight)[0]))


@pytest.mark.parametrize("restart", [True, False])
def test_global_random_state_is_untouched(restart):
    train, _ = spurious(dtype=torch.float32)
    before = torch.get_rng_state()
    inner = noisy_run(restart=restart)
    inner(train, WEIGHT.float())
    inner(train, WEIGHT.float())
    assert torch.equal(before, torch.get_rng_state())


def test_warm_start_goes_on():
    train, _ = spurious()
    warm = linear_run(steps=5, restart=False)
    warm(train, WEIGHT)
    model, _ = warm(train, WEIGHT)
    long, _ = linear_run(steps=10)(train, WEIGHT)
    torch.testing.assert_close(parameters(model), parameters(long), rtol=1e-12, atol=1e-14)


def test_warm_start_resumes_from_its_state():
    train, _ = spurious(dtype=torch.float32)
    straight = noisy_run(restart=False)
    straight(train, WEIGHT.float())
    saved = straight.state_dict()
    expected = parameters(straight(train, WEIGHT.float())[0])
    resumed = noisy_run(restart=False)
    resumed.load_state_dict(saved)
    assert torch.equal(parameters(resumed(train, WEIGHT.float())[0]), expected)
    assert noisy_run().state_dict() == {}


@pytest.mark.parametrize("window", [1, 3])
def test_records_the_last_steps_of_the_kept_samples(window):
    train, _ = spurious()
    shifted = Batch.of(train.inputs, train.targets)
    shifted = Batch(shifted.inputs, shifted.targets, shifted.index + 1000)
    _, trajectory = linear_run(steps=4, window=window)(shifted, WEIGHT)
    assert len(trajectory.steps) == window
    assert torch.equal(trajectory.index, (WEIGHT > 0).nonzero().flatten() + 1000)


def test_an_epoch_of_minibatches_is_every_kept_sample_once():
    train, _ = spurious()
    kept = int((WEIGHT > 0).sum())
    steps = -(-kept // 32)
    _, trajectory = linear_run(steps=steps, window=steps, batch_size=32)(train, WEIGHT)
    seen = torch.cat([step.batch.index for step in trajectory.steps])
    assert torch.equal(seen.sort().values, (WEIGHT > 0).nonzero().flatten())
    assert not torch.equal(seen, seen.sort().values)
    for step in trajectory.steps:
        assert torch.equal(step.weight, WEIGHT[step.batch.index])


def test_autocast_is_used_and_recorded():
    train, _ = spurious(dtype=torch.float32)
    plain, _ = linear_run(steps=3, dtype=torch.float32)(train, WEIGHT.float())
    cast, trajectory = linear_run(steps=3, dtype=torch.float32, autocast=torch.bfloat16)(train, WEIGHT.float())
    assert trajectory.steps[0].conditions.autocast == ("cpu", torch.bfloat16)
    assert not torch.equal(parameters(plain), parameters(cast))
    torch.testing.assert_close(parameters(plain), parameters(cast), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: linear_run()(t, torch.zeros(200, dtype=torch.float64)), "all 200 weights are 0; raise the budget"),
        (lambda t: linear_run()(t, WEIGHT - 1), "weight must be >= 0"),
        (lambda t: linear_run()(t, WEIGHT / 0), "weight has"),
        (lambda t: linear_run()(t, WEIGHT[:5]), "train has 200, weight has 5"),
        (lambda t: linear_run(steps=2, window=3), "window must be"),
        (lambda t: linear_run(autocast=torch.float16), "autocast must be one of"),
        (lambda t: linear_run(batch_size=0), "batch_size must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(spurious()[0])


def test_auto_precision_is_settled_by_a_measurement_and_stays():
    """Whichever this machine multiplies faster in, the run is that of the precision named."""
    train, _ = spurious()
    narrow = Batch.of(train.inputs.float(), train.targets)
    inner = noisy_run(autocast="auto")
    assert inner.fresh().autocast == "auto"
    model, _ = inner(narrow, WEIGHT.float())
    chosen = torch.bfloat16 if measured("cpu").faster else None
    assert (inner.autocast, inner.fresh().autocast) == (chosen, chosen)
    named, _ = noisy_run(autocast=chosen)(narrow, WEIGHT.float())
    assert torch.equal(parameters(model), parameters(named))


def test_precision_is_none_bfloat16_or_auto():
    with pytest.raises(ValueError, match="autocast must be one of .*, got torch.float16"):
        noisy_run(autocast=torch.float16)
