"""DONE against the objective that it minimises, in its limits, and where a minority is easy to attack."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Stopped
from steelyard.experiments.methods import DONE
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.training.adversarial import PGD, Adversary, robust_accuracy
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from steelyard.reweight import KLDRO
from tests.support.biased import biased_problem

PROBLEM = biased_problem(n=80, hidden=6)
ATTACK = PGD(epsilon=0.4, step=0.2, steps=4, low=-20.0, high=20.0)
SGD = OptimizerSettings("sgd", 0.5)
ignore = lambda step, model, extra: None  # noqa: E731


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_a_full_batch_step_is_one_on_r_log_mean_exp_of_adversarial_losses(temperature: float, memory: float) -> None:
    """The first step: the moving average starts at the batch's own normaliser, so `memory` does not show yet."""
    method = DONE(temperature=temperature, memory=memory, attack=ATTACK, training=Training(steps=1, optimizer=SGD))
    ours = method.fit(PROBLEM, ignore).model
    data, model = PROBLEM.splits.train, PROBLEM.model()
    attacked = Adversary(ATTACK, PROBLEM.loss, PROBLEM.seed)(model, data, 0)
    losses = PROBLEM.loss(model(attacked.inputs), data.targets)
    objective = temperature * (torch.logsumexp(losses / temperature, 0) - math.log(len(data)))
    gradient = torch.autograd.grad(objective, list(model.parameters()))
    expected = parameters(model) - 0.5 * torch.cat([g.flatten() for g in gradient])
    torch.testing.assert_close(parameters(ours), expected, rtol=1e-4, atol=1e-6)


def test_a_high_temperature_is_plain_adversarial_training_and_radius_zero_is_kl_dro() -> None:
    run = Training(steps=6, batch_size=20, optimizer=SGD)
    plain = train(PROBLEM, run, ignore, perturb=Adversary(ATTACK, PROBLEM.loss, PROBLEM.seed))
    ours = DONE(temperature=1e6, memory=0.0, attack=ATTACK, training=run).fit(PROBLEM, ignore).model
    torch.testing.assert_close(parameters(ours), parameters(plain), rtol=1e-3, atol=1e-4)
    weighted = train(PROBLEM, run, ignore, rule=KLDRO(0.5, 0.7))
    ours = DONE(temperature=0.5, memory=0.7, attack=replace(ATTACK, epsilon=0.0), training=run).fit(PROBLEM, ignore)
    assert torch.equal(parameters(ours.model), parameters(weighted))


def weights(rule: KLDRO, losses: torch.Tensor) -> torch.Tensor:
    return rule(losses, Batch.of(torch.zeros(len(losses), 1), torch.zeros(len(losses))))


def test_the_moving_average_in_its_limits() -> None:
    losses = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    own = weights(KLDRO(0.5), losses)
    barely, fixed, settled = KLDRO(0.5, 1e-12), KLDRO(0.5, 1 - 1e-12), KLDRO(0.5, 0.9)
    for rule in (barely, fixed, settled):
        weights(rule, losses / 3)  # another scale first
    first = weights(KLDRO(0.5), losses / 3)
    torch.testing.assert_close(weights(barely, losses), own)  # no memory: the batch's own normaliser
    old = torch.exp(losses / 3 / 0.5).mean()  # full memory: that of the first batch for ever
    torch.testing.assert_close(weights(fixed, losses), torch.exp(losses / 0.5) / (400 * old))
    for _ in range(300):  # the same losses again and again: the average forgets where it began, as memory^k
        seen = weights(settled, losses)
    torch.testing.assert_close(seen, own, rtol=1e-9, atol=0)
    torch.testing.assert_close(first.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_on_small_batches_the_moving_average_lowers_the_bias_of_the_weights() -> None:
    """Batches of 4 of 2,000 losses: with its own normaliser a batch's weights always sum to one, with the right one
    they sum to one on average only, and the mean gradient is that of the whole."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(2000, generator=generator, dtype=torch.float64) * 1.5
    whole = weights(KLDRO(1.0), losses)
    hardest = losses.topk(100).indices
    share = {}
    for memory in (0.0, 0.99):
        rule, got = KLDRO(1.0, memory), torch.zeros(2000, dtype=torch.float64)
        for _ in range(5):
            for rows in torch.randperm(2000, generator=generator).split(4):
                got[rows] += weights(rule, losses[rows])
        share[memory] = float(got[hardest].sum() / (5 * 500))
    target = float(whole[hardest].sum())
    assert abs(share[0.99] - target) < 0.25 * abs(share[0.0] - target)


def test_the_hardest_samples_resist_better_than_under_plain_adversarial_training() -> None:
    """A fifth of the samples have another sign in feature 0: feature 1 alone, at half the size, tells their class."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(600) % 2
    sign = 2.0 * targets - 1
    few = (torch.arange(600) % 10 == 1) | (torch.arange(600) % 10 == 2)
    inputs = torch.stack([torch.where(few, -1.0, 1.0) * sign, 0.5 * sign], 1)
    data = Batch.of(inputs + 0.25 * torch.randn(600, 2, generator=generator), targets, environment=targets)
    small = biased_problem(n=40)
    problem = Problem(replace(small.splits, train=data), small.model_settings, 0)
    attack = PGD(epsilon=0.25, step=0.1, steps=5, low=-20.0, high=20.0)
    run = Training(steps=150, batch_size=60, evaluate_every=150, optimizer=OptimizerSettings("adam", 0.02))
    worst = {}
    for temperature in (1e4, 0.3):
        model = DONE(temperature=temperature, attack=attack, training=run).fit(problem, ignore).model
        worst[temperature] = robust_accuracy(model, data.take(few), replace(attack, steps=50), problem.head)
    assert worst[0.3] > worst[1e4] + 0.1


RECIPE = """data = { name = "coloured_digits", grayscale = true }
model = { name = "mlp", hidden = [8] }
[method]
name = "done"
temperature = 0.5
attack = { epsilon = 0.1, step = 0.05, steps = 2 }
training = { steps = 4, batch_size = 64, evaluate_every = 2 }
"""


def test_a_recipe_runs_end_to_end_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "done.toml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path))
    run = execute(recipe, tmp_path / "run", name="done")
    assert [evaluation.visible.step for evaluation in run.history] == [2, 4]
    for evaluation in run.history:
        assert 0 <= evaluation.extra["robust_validation"] <= evaluation.visible.validation.accuracy
        assert 0 <= evaluation.extra["robust_test"] <= evaluation.test.accuracy
    asked: list[int] = []

    def after_three() -> int:
        asked.append(1)
        return int(len(asked) == 3)

    with pytest.raises(Stopped):
        execute(recipe, tmp_path / "stopped", name="done", stop=after_three)
    execute(recipe, tmp_path / "stopped", name="done", resume=True)
    one, two = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("run", "stopped"))
    assert one == two


@pytest.mark.parametrize(("field", "value"), [("temperature", 0.0), ("memory", 1.0)])
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        DONE(**{field: value})  # type: ignore[arg-type]
