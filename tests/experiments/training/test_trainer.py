"""The trainer against hand-written loops, and the methods' behaviour on a tiny problem with a shortcut."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard import reweight
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.errors import DataError
from steelyard.experiments.methods import ERM, IRMv1, Maple, VREx
from steelyard.experiments.methods.maple import InnerSettings, OuterRisk
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.training.evaluation import evaluate
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import Anneal, OptimizerSettings, Training, train
from steelyard.reweight import Custom
from tests.support.biased import biased_problem, worst_group


def shortcut_problem(n: int = 400, seed: int = 0) -> Problem:
    """Two features: a cause that fits 80% of the labels, a shortcut that fits 95% and 75%, but 10% at the test."""
    generator = torch.Generator().manual_seed(seed)

    def part(count: int, agree: torch.Tensor, environment: torch.Tensor | None) -> Batch:
        targets = torch.randint(0, 2, (count,), generator=generator)
        sign = 2.0 * targets - 1
        causal = torch.where(torch.rand(count, generator=generator) < 0.8, sign, -sign)
        shortcut = torch.where(torch.rand(count, generator=generator) < agree, sign, -sign)
        return Batch.of(torch.stack([causal, shortcut], 1), targets, environment=environment)

    environment = torch.arange(n) % 2
    agree = torch.tensor([0.95, 0.75])[environment]
    splits = Splits(
        "tiny",
        part(n, agree, environment),
        part(n, agree, environment),
        part(n, torch.full((n,), 0.1), None),
        ("no", "yes"),
        ("first", "second"),
    )
    return Problem(splits, Logistic(), seed)


PROBLEM = shortcut_problem()
ignore = lambda step, model, extra: None  # noqa: E731
SGD = OptimizerSettings("sgd", 0.5)


def test_full_batch_training_is_the_plain_loop() -> None:
    model = train(PROBLEM, Training(steps=5, l2=0.01, optimizer=SGD), ignore)
    expected = PROBLEM.model()
    data = PROBLEM.splits.train
    for _ in range(5):
        loss = F.binary_cross_entropy_with_logits(expected(data.inputs)[:, 0], data.targets.float())
        loss = loss + 0.01 * sum(p.square().sum() for p in expected.parameters())
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_penalty_is_annealed_and_the_loss_divided() -> None:
    losses = []
    observe = lambda step, model, extra: losses.append(extra["loss"])  # noqa: E731
    frozen = OptimizerSettings("sgd", 1e-30)
    train(
        PROBLEM,
        Training(steps=3, evaluate_every=1, optimizer=frozen),
        observe,
        penalty=reweight.VREx(),
        anneal=Anneal(weight=50.0, before=0.5, at=2),
    )
    data, model = PROBLEM.splits.train, PROBLEM.model()
    mean = float(PROBLEM.loss(model(data.inputs), data.targets).mean().detach())
    variance = float(reweight.VREx()(model(data.inputs), data, PROBLEM.loss).detach())
    assert losses == pytest.approx([mean + 0.5 * variance] * 2 + [(mean + 50 * variance) / 50], rel=1e-5)
    with pytest.raises(ValueError, match="come together"):
        train(PROBLEM, Training(), ignore, penalty=reweight.VREx())


@pytest.mark.parametrize("batch_size", [0, 100])
def test_bfloat16_follows_single_precision_and_keeps_the_parameters_and_the_loss_in_it(batch_size: int) -> None:
    problem = replace(PROBLEM, model_settings=MLP(hidden=(16,)))
    kinds: list[tuple[torch.dtype, ...]] = []

    class Spy(reweight.Risk):
        def __call__(self, outputs, batch, loss):  # type: ignore[no-untyped-def]
            kinds.append((outputs.dtype, loss(outputs, batch.targets).dtype))
            return reweight.IRMv1()(outputs, batch, loss)

    def trained(bfloat16: bool) -> tuple[nn.Module, list[float]]:
        losses: list[float] = []
        settings = Training(
            40, batch_size, evaluate_every=1, bfloat16=bfloat16, optimizer=OptimizerSettings("adam", 0.02)
        )
        observe = lambda step, model, extra: losses.append(extra["loss"])  # noqa: E731
        return train(problem, settings, observe, penalty=Spy(), anneal=Anneal(100.0, 1.0, 10)), losses

    (plain, expected), (low, losses) = trained(False), trained(True)
    assert set(kinds) == {(torch.float32, torch.float32)}
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    assert losses != expected  # the forward pass is another one
    assert losses == pytest.approx(expected, rel=0.05)
    for ours, theirs in zip(low.parameters(), plain.parameters(), strict=True):
        assert float((ours - theirs).detach().norm()) < 0.05 * float(theirs.detach().norm()) + 0.02


def test_a_rule_weighs_the_samples() -> None:
    data = PROBLEM.splits.train
    wrong = (data.inputs[:, 1] > 0).long() != data.targets

    def only_where_the_shortcut_fails(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert not losses.requires_grad
        return wrong[batch.index].float()

    model = train(PROBLEM, Training(steps=200, optimizer=SGD), ignore, rule=Custom(only_where_the_shortcut_fails))
    assert float(model[1].weight[0, 1].detach()) < -1  # there the shortcut points the other way


def test_minibatches_cover_an_epoch_and_repeat_by_seed() -> None:
    seen = []

    def spy(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(batch.index)
        return torch.ones_like(losses)

    settings = Training(steps=8, batch_size=100, optimizer=SGD)
    one = train(PROBLEM, settings, ignore, rule=Custom(spy))
    assert [len(ids) for ids in seen] == [100] * 8
    for epoch in (seen[:4], seen[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(400))
    assert not torch.equal(seen[0], seen[4])
    two = train(PROBLEM, settings, ignore)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5])])
def test_which_steps_are_observed(every: int, steps: list[int]) -> None:
    seen = []
    train(PROBLEM, Training(steps=5, evaluate_every=every), lambda step, model, extra: seen.append(step))
    assert seen == steps


def maple_settings(**changes: object) -> Maple:
    inner = InnerSettings(steps=30, optimizer=OptimizerSettings("sgd", 0.5, 0.9))
    return Maple(**{"budget": 150, "steps": 15, "inner": inner, **changes})  # type: ignore[arg-type]


def last_evaluation(method: object):  # type: ignore[no-untyped-def]
    found = []
    method.fit(PROBLEM, lambda step, model, extra: found.append(evaluate(PROBLEM, model, step, extra)))  # type: ignore[attr-defined]
    assert found[-1].visible.step == method.last_step  # type: ignore[attr-defined]
    return found[-1]


TRAINING = Training(steps=150, evaluate_every=150, optimizer=OptimizerSettings("adam", 0.05))


@pytest.mark.parametrize(
    "method",
    [
        IRMv1(training=TRAINING, penalty=Anneal(1e3, 1.0, 20)),
        VREx(training=TRAINING, penalty=Anneal(1e3, 1.0, 20)),
        maple_settings(),
        maple_settings(learn="probabilities"),
        maple_settings(risk=OuterRisk("vrex", "log", mean=0.1), clip=0.03, schedule="constant", draws=2),
        maple_settings(outer_split="validation"),
        maple_settings(folds=2),
    ],
    ids=lambda method: f"{method.name}",
)
def test_each_method_leaves_the_shortcut_that_erm_takes(method: object) -> None:
    erm, ours = last_evaluation(ERM(training=TRAINING)), last_evaluation(method)
    assert erm.visible.train.accuracy > 0.83 > 0.3 > erm.test.accuracy  # it learned the shortcut
    assert ours.test.accuracy > erm.test.accuracy + 0.2
    assert ours.visible.validation.vrex < erm.visible.validation.vrex


def test_maple_on_the_worst_group_lifts_it() -> None:
    risk = OuterRisk("group_worst", "plain")
    method, problem = maple_settings(risk=risk, budget=60), biased_problem(n=300, agree=0.9)
    ours = method.fit(problem, lambda *_: None).model
    assert worst_group(problem, ours) > worst_group(problem, ERM(training=TRAINING).fit(problem, lambda *_: None).model)
    without = replace(problem, splits=replace(problem.splits, train=replace(problem.splits.train, group=None)))
    with pytest.raises(DataError, match="needs group labels"):
        method.fit(without, lambda *_: None)


def test_maple_gives_weights_and_the_last_inner_model() -> None:
    models = []
    fitted = maple_settings(steps=3).fit(PROBLEM, lambda step, model, extra: models.append((step, model)))
    assert [step for step, _ in models] == [1, 2, 3]
    assert fitted.model is models[-1][1]
    assert fitted.reweighting is not None
    assert len(fitted.reweighting.weights) == 400
    assert float(fitted.reweighting.probabilities.sum()) == pytest.approx(150, abs=1e-2)


def test_maple_can_end_by_training_on_the_learned_weights() -> None:
    steps = []
    method = maple_settings(steps=3, retrain=True)
    fitted = method.fit(PROBLEM, lambda step, model, extra: steps.append(step))
    assert steps == [1, 2, 3, 4]
    assert method.last_step == 4
    assert fitted.reweighting is not None
    data, model = PROBLEM.splits.train, PROBLEM.model()
    weight = fitted.reweighting.probabilities * fitted.reweighting.weights
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(30):
        losses = F.binary_cross_entropy_with_logits(model(data.inputs)[:, 0], data.targets.float(), reduction="none")
        optimizer.zero_grad()
        ((weight * losses).sum() / weight.sum()).backward()
        optimizer.step()
    for ours, theirs in zip(fitted.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_measure_by_hand_and_the_mode_is_left() -> None:
    model = PROBLEM.model().train()
    figures = evaluate(PROBLEM, model, 1, {}).visible.validation
    assert model.training
    data = PROBLEM.splits.validation
    with torch.no_grad():
        logit = model(data.inputs)[:, 0]
    right = ((logit > 0).long() == data.targets).float()
    assert figures.accuracy == pytest.approx(float(right.mean()))
    halves = [float(right[data.environment == e].mean()) for e in (0, 1)]
    assert figures.environment_accuracy == pytest.approx(halves)
    losses = F.binary_cross_entropy_with_logits(logit, data.targets.float(), reduction="none")
    assert figures.loss == pytest.approx(float(losses.mean()))
    risks = [float(losses[data.environment == e].mean()) for e in (0, 1)]
    assert figures.vrex == pytest.approx(((risks[0] - risks[1]) / 2) ** 2, rel=1e-4)
    scale = torch.ones((), requires_grad=True)
    square = 0.0
    for e in (0, 1):
        member = data.environment == e
        risk = F.binary_cross_entropy_with_logits(scale * logit[member], data.targets[member].float())
        square += float(torch.autograd.grad(risk, scale)[0]) ** 2 / 2
    assert figures.irmv1 == pytest.approx(square, rel=1e-4)
    assert evaluate(PROBLEM, model, 1, {}).test.irmv1 is None


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizers(name: str) -> None:
    settings = OptimizerSettings(name, 0.3, weight_decay=0.1)  # type: ignore[arg-type]
    optimizer = settings.build(nn.Linear(1, 1).parameters())
    assert type(optimizer) is {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.3, 0.1)


@pytest.mark.parametrize(
    "make",
    [
        partial(Training, steps=0),
        partial(Training, batch_size=-1),
        partial(OptimizerSettings, learning_rate=0.0),
        partial(Anneal, weight=-1.0),
        partial(Maple, budget=0),
        partial(Maple, budget=1, weight_rate=0.0),
        partial(InnerSettings, batch_size=-1),
        partial(Maple, budget=1, folds=0),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be"):
        make()


def test_cross_fitting_and_a_validation_split_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="outer_split = 'train'"):
        maple_settings(folds=2, outer_split="validation")
