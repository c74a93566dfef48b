"""The outer loop: its gradient, its constraints, its bookkeeping, and that it finds the balanced set."""

from functools import partial

import pytest
import torch

from steelyard.bilevel import Batch, FiniteDifference, Truncated, WeightedLoss
from steelyard.reweight import (
    CrossFit,
    CubicBudget,
    GroupWorst,
    InnerRun,
    IRMv1,
    Log,
    Maple,
    Mask,
    MeanRisk,
    OuterRisk,
    Sqrt,
    VREx,
)
from tests.support.environments import CROSS_ENTROPY, linear_run, spurious

RISK = Log(VREx()) + 0.1 * MeanRisk()


def spy(grads, lr=0.0):
    """An outer optimizer that notes the gradients it is given."""

    def make(leaves):
        optimizer = torch.optim.SGD(leaves, lr=lr)
        note = lambda o, args, kwargs: grads.append(o.param_groups[0]["params"][0].grad.clone())  # noqa: E731
        optimizer.register_step_pre_hook(note)
        return optimizer

    return make


def quick(**options):
    defaults = {"inner": linear_run(steps=5), "risk": RISK, "budget": 60, "steps": 3}
    return Maple(**{**defaults, **options})


def risk_after(inner, train, target, weight, risk=RISK):
    """The outer risk as a function of the inner weights: the whole inner run again, weights possibly negative."""
    model = inner.initial(train.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    for _ in range(inner.steps):
        optimizer.zero_grad()
        losses = CROSS_ENTROPY(model(train.inputs), train.targets)
        ((losses * weight).sum() / weight.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return risk(model(target.inputs), target, CROSS_ENTROPY).item()


def test_an_estimator_of_more_steps_than_the_window_has_is_refused():
    with pytest.raises(ValueError, match=r"steps=3, and the inner run records 1: InnerRun\(\.\.\., window=3\)"):
        quick(estimator=Truncated(steps=3))
    quick(inner=linear_run(steps=5, window=3), estimator=Truncated(steps=3))


@pytest.mark.parametrize("steps", [1, 3])
def test_hypergradient_chain_against_finite_differences(steps):
    """With the window as long as the run, truncation is exact: d/ds_i = w_i g_i and d/dw_i = m_i g_i."""
    train, _ = spurious(40)
    target, _ = spurious(60, seed=5)
    by_s, by_w = [], []
    maple = quick(
        inner=linear_run(steps=steps, window=steps),
        steps=2,
        budget=20,
        estimator=Truncated(steps),
        probability_optimizer=spy(by_s),
        weight_optimizer=spy(by_w, lr=0.5),  # moves w away from 1, so that the second step tells w_i from 1
        radius=100.0,
    )
    seen = []
    maple.fit(train, target, [seen.append])
    step = seen[1]
    assert (step.weights - 1).abs().max() > 1e-3
    a = step.mask * step.weights
    for i in range(40):
        if steps > 1 and not step.mask[i]:
            assert by_s[1][i] == by_w[1][i] == 0  # the window has not seen it
            continue
        h = torch.zeros(40, dtype=torch.float64)
        h[i] = 1e-5
        inner = linear_run(steps=steps)
        g = (risk_after(inner, train, target, a + h) - risk_after(inner, train, target, a - h)) / 2e-5
        assert by_s[1][i].item() == pytest.approx(step.weights[i].item() * g, rel=1e-6, abs=1e-9)
        assert by_w[1][i].item() == pytest.approx(step.mask[i].item() * g, rel=1e-6, abs=1e-9)


def test_relaxed_mask_enters_the_chain():
    train, _ = spurious(40)
    gradients = {}
    for name in ("identity", "relaxed"):
        grads = []
        quick(steps=1, budget=20, mask=Mask(name, 0.7), probability_optimizer=spy(grads)).fit(train)
        gradients[name] = grads[0]
    s = torch.full((40,), 0.5, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(Mask("relaxed", 0.7)(s, torch.Generator().manual_seed(0)).sum(), s)[0]
    torch.testing.assert_close(gradients["relaxed"], gradients["identity"] * slopes)


def test_other_estimators_serve_too():
    train, _ = spurious()
    results = [quick(steps=2, estimator=one, learn="probabilities").fit(train) for one in (None, FiniteDifference())]
    torch.testing.assert_close(results[0].probabilities, results[1].probabilities, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("learn", ["probabilities", "both"])
def test_finds_the_balanced_set(learn, seed):
    """Of all samples 15% have a disagreeing spurious feature; where it tells nothing, half of the kept ones do."""
    train, agrees = spurious(600, seed)
    slopes, losses = [], []

    def look(step):
        slopes.append((step.model.weight[1] - step.model.weight[0]).tolist())
        losses.append(step.outer_loss)

    maple = Maple(linear_run(steps=50, lr=0.5), Sqrt(VREx()), budget=150, steps=15, draws=2, learn=learn)
    result = maple.fit(train, callbacks=[look])
    expected = result.probabilities * result.weights
    share = (expected[~agrees].sum() / expected.sum()).item()
    assert (~agrees).double().mean().item() < 0.2
    assert 0.33 < share < 0.67
    assert losses[-1] < losses[0] / 3  # the gap between the environments
    (core, spurious_slope), (first_core, first_spurious) = slopes[-1], slopes[0]
    assert first_spurious > 1.2 * first_core  # plain training leans on the spurious feature
    assert spurious_slope < 0.3 * core


@pytest.mark.parametrize("equality", [True, False])
def test_budget_holds_at_each_step(equality):
    train, _ = spurious()
    budget = CubicBudget(120, 40)
    seen = []
    maple = quick(budget=budget, steps=8, equality=equality, probability_optimizer=partial(torch.optim.Adam, lr=0.3))
    result = maple.fit(train, callbacks=[seen.append])
    for step in seen:
        total, allowed = step.probabilities.sum().item(), budget(step.step / 8)
        assert total == pytest.approx(allowed) if equality else total <= allowed + 1e-9
        assert step.row["budget"] == allowed
        assert ((step.probabilities >= 0) & (step.probabilities <= 1)).all()
        assert (step.weights >= 0).all()
        assert torch.linalg.vector_norm(step.weights) <= 200**0.5 + 1e-9
        assert step.mask.sum() == step.row["kept"]
    assert result.probabilities.sum().item() <= 40 + 1e-9


def test_deterministic_under_a_seed():
    train, _ = spurious()
    torch.manual_seed(0)
    one = quick(seed=4).fit(train)
    torch.manual_seed(99)
    assert quick(seed=4).fit(train) == one
    assert quick(seed=5).fit(train) != one


def test_more_draws_less_variance():
    train, _ = spurious()
    spread, reported = {}, {}
    for draws in (1, 8):
        grads = []
        maple = quick(
            risk=VREx() + MeanRisk(),  # no logarithm: near a zero of the penalty it makes the tails heavy
            steps=16,
            draws=draws,
            learn="probabilities",
            probability_optimizer=spy(grads),
        )
        result = maple.fit(train)
        spread[draws] = torch.stack(grads).var(0).mean().item()
        reported[draws] = [row["probabilities_gradient_variance"] for row in result.history]
    assert spread[8] < spread[1] / 3  # 1/8 expected
    assert reported[1] == [None] * 16
    mean = sum(reported[8]) / 16  # the reported one is of a single draw
    assert spread[1] / 2 < mean < spread[1] * 2


def test_step_reports_what_the_model_was_trained_under():
    train, _ = spurious()

    def check(step):
        model, _ = linear_run(steps=5)(train, step.mask * step.weights)
        assert torch.equal(model.weight, step.model.weight)
        outer = OuterRisk(RISK, train, CROSS_ENTROPY)
        assert outer(model).item() == step.outer_loss == step.row["outer_loss"]

    quick().fit(train, callbacks=[check])


@pytest.mark.parametrize("folds", [2, 3])
def test_cross_fitted_gradient_against_finite_differences(folds):
    """Central differences of the risk of the pooled out-of-fold outputs, one inner step (so truncation is exact)."""
    train, _ = spurious(40)
    cross_fit = CrossFit(linear_run(steps=1), folds)
    outer = OuterRisk(RISK, train, CROSS_ENTROPY)
    weight = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, risk = cross_fit(Truncated(), outer, train, weight, torch.Generator().manual_seed(7))
    fold = torch.randperm(40, generator=torch.Generator().manual_seed(7)) % folds

    def value(weight):
        outputs = torch.zeros(40, 2, dtype=torch.float64)
        for number in range(folds):
            model, _ = linear_run(steps=1)(train, weight * (fold != number))
            outputs[fold == number] = model(train.inputs[fold == number]).detach()
        return RISK(outputs, train, CROSS_ENTROPY).item()

    assert risk == pytest.approx(value(weight), rel=1e-12)
    for i in range(40):
        h = torch.zeros(40, dtype=torch.float64)
        h[i] = 1e-6
        expected = (value(weight + h) - value(weight - h)) / 2e-6
        assert found[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_cross_fitted_run():
    train, agrees = spurious(600)
    seen = []

    def check(step):
        model, _ = linear_run(steps=50, lr=0.5)(train, step.mask * step.weights)
        assert torch.equal(model.weight, step.model.weight)
        seen.append((step.model.weight[1] - step.model.weight[0]).tolist())

    maple = Maple(linear_run(steps=50, lr=0.5), Sqrt(VREx()), budget=150, steps=12, folds=2)
    result = maple.fit(train, callbacks=[check])
    kept = result.probabilities * result.weights
    assert 0.33 < (kept[~agrees].sum() / kept.sum()).item() < 0.67
    assert seen[-1][1] < 0.3 * seen[-1][0]
    again = Maple(linear_run(steps=50, lr=0.5), Sqrt(VREx()), budget=150, steps=12, folds=2).fit(train)
    assert again == result  # whether the model was made for callbacks changes nothing


@pytest.mark.parametrize(("asked", "runs"), [((), 0), ((1,), 1), ((0, 1, 2), 3)], ids=["never", "once", "always"])
def test_a_cross_fitted_step_trains_a_model_where_a_callback_asks_for_it(asked, runs):
    """An inner run makes its optimizer again: two of the folds a step, and one more where the model is read (twice)."""
    train, _ = spurious(60)
    made = []

    def counted(parameters):
        made.append(1)
        return torch.optim.SGD(parameters, lr=0.5)

    inner = InnerRun(lambda: torch.nn.Linear(2, 2, dtype=torch.float64), counted, WeightedLoss(CROSS_ENTROPY), steps=3)
    maple = Maple(inner, Sqrt(VREx()), budget=30, steps=3, folds=2)

    def look(step):
        if step.step in asked:
            assert step.model is step.model

    maple.fit(train, callbacks=[look])
    assert len(made) == 3 * 2 + runs


def test_callbacks_stop_the_run_and_all_are_called():
    train, _ = spurious()
    first, second = [], []
    result = quick(steps=9).fit(
        train, callbacks=[lambda step: first.append(step.step) or step.step == 2, lambda step: second.append(step.step)]
    )
    assert first == second == [0, 1, 2]
    assert [row["step"] for row in result.history] == [0, 1, 2]


def test_early_stop_on_a_plateau_of_the_outer_loss():
    train, _ = spurious()
    still = quick(steps=50, budget=200, learn="probabilities", patience=4).fit(train)  # K = n: nothing can move
    assert len(still.history) == 5
    moving = quick(steps=6, patience=6).fit(train)
    assert len(moving.history) == 6


@pytest.mark.parametrize("learn", ["weights", "probabilities"])
def test_either_alone(learn):
    train, _ = spurious()
    result = quick(learn=learn).fit(train)
    start = torch.full((200,), 0.3, dtype=torch.float64)
    assert torch.equal(result.weights, torch.ones(200, dtype=torch.float64)) == (learn == "probabilities")
    assert torch.allclose(result.probabilities, start, rtol=1e-12) == (learn == "weights")
    assert [key for key in result.history[0] if key.endswith("_change")] == [f"{learn}_change"]


def test_keeping_everything_is_plain_weighting():
    train, _ = spurious()
    result = quick(budget=200).fit(train)
    assert torch.equal(result.probabilities, torch.ones(200, dtype=torch.float64))
    assert [row["kept"] for row in result.history] == [200] * 3
    loose = quick(budget=500, equality=False, learn="probabilities").fit(train)
    assert [row["budget"] for row in loose.history] == [500] * 3


def test_clip_bounds_the_gradient():
    train, _ = spurious()
    free, clipped = [], []
    quick(probability_optimizer=spy(free), steps=1).fit(train)
    norm = free[0].norm().item()
    result = quick(probability_optimizer=spy(clipped), steps=1, clip=norm / 7).fit(train)
    assert clipped[0].norm().item() == pytest.approx(norm / 7)
    torch.testing.assert_close(clipped[0] * 7, free[0])
    assert result.history[0]["probabilities_gradient_norm"] == pytest.approx(norm)


def test_schedule_scales_the_step():
    train, _ = spurious()
    sgd = partial(torch.optim.SGD, lr=1e-3)
    options = {"probability_optimizer": sgd, "learn": "probabilities", "steps": 2}
    rows = quick(schedule=lambda progress: 1.0 if progress == 0 else 0.0, **options).fit(train).history
    assert rows[0]["probabilities_change"] > 0
    assert rows[1]["probabilities_change"] < 1e-15


def test_outer_risk_in_chunks_is_the_same():
    train, _ = spurious()
    whole, parts = quick(steps=2).fit(train), quick(steps=2, outer_chunk=37).fit(train)
    torch.testing.assert_close(whole.probabilities, parts.probabilities, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.weights, parts.weights, rtol=1e-9, atol=1e-12)


def test_outer_risk_is_of_the_validation_samples():
    train, _ = spurious()
    validation, _ = spurious(80, seed=9)
    unlabelled = Batch.of(train.inputs, train.targets)  # environments are then needed on validation only
    assert quick().fit(unlabelled, validation) == quick().fit(train, validation)
    assert quick().fit(train, validation) != quick().fit(train)


def test_start_from_given_probabilities():
    train, agrees = spurious()
    maple = quick(budget=60, learn="probabilities")
    state = maple.begin(train, (~agrees).double())
    assert state.probabilities.sum().item() == pytest.approx(60)
    assert (state.probabilities[~agrees] > state.probabilities[agrees].max()).all()
    seen = []
    maple.fit(train, callbacks=[seen.append], state=state)
    assert seen[0].probabilities[~agrees].min() > seen[0].probabilities[agrees].max()


@pytest.mark.parametrize("restart", [True, False])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, restart):
    train, _ = spurious(dtype=torch.float32)

    def make():
        inner = linear_run(steps=5, dtype=torch.float32, batch_size=16, restart=restart)
        return quick(inner=inner, steps=6, draws=2, patience=5)

    straight = make().fit(train)
    first = make()
    state = first.begin(train)
    first.fit(train, callbacks=[lambda step: step.step == 2], state=state)
    torch.save({"outer": state.state_dict(), "inner": first.inner.state_dict()}, tmp_path / "state.pt")

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second = make()
    second.inner.load_state_dict(saved["inner"])
    state = second.begin(train)
    state.load_state_dict(saved["outer"])
    assert second.fit(train, state=state) == straight
    with pytest.raises(ValueError, match="200 samples learning"):
        quick(learn="weights").begin(train).load_state_dict(saved["outer"])


ALONE = Batch.of(torch.randn(20, 2), torch.arange(20) % 2, environment=torch.zeros(20, dtype=torch.long))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: quick(budget=0), "budget must be > 0 samples to train on, got 0"),
        (lambda t: quick(budget=201).fit(t), "budget is 201.*200 probabilities"),
        (lambda t: quick(budget=1e-9).fit(t), "1000 masks in a row kept fewer than 1.*raise the budget"),
        (lambda t: quick(inner=linear_run(dtype=torch.float32), budget=9).fit(ALONE), "at least 2 of them, got 1"),
        (lambda t: quick(risk=IRMv1()).fit(Batch.of(t.inputs, t.targets)), r"batch\.environment is None"),
        (lambda t: quick(risk=GroupWorst()).fit(t), r"batch\.group is None"),
        (lambda t: quick().fit(t.take(torch.zeros(99, dtype=torch.long))), "99 samples with 1 ids"),
        (lambda t: quick().fit(t.take(torch.arange(0))), "0 samples with 0 ids"),
        (lambda t: quick().begin(t, torch.ones(5)), "train has 200, probabilities has 5"),
        (lambda t: quick(learn="weight"), "learn"),
        (lambda t: quick(folds=2).fit(t, t), "folds > 1 judges the training samples"),
        (lambda t: quick(folds=2, inner=linear_run(restart=False)), "folds > 1 needs an InnerRun with restart=True"),
        (lambda t: quick(folds=0), "folds must be"),
        (lambda t: quick(draws=0), "draws must be"),
        (lambda t: quick(steps=0), "steps must be"),
        (lambda t: quick(clip=0), "clip must be"),
        (lambda t: quick(patience=0), "patience must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):  # TypeError: the shape and type checks of the tests
        call(spurious()[0])


@pytest.mark.parametrize("folds", [1, 3])
def test_small_budgets_never_train_on_nothing(folds):
    """A mask of Bernoulli(1.5 / n) is empty in a fifth of draws; it is drawn again."""
    train, _ = spurious(60)
    result = quick(budget=1.5, steps=15, folds=folds, inner=linear_run(steps=2)).fit(train)
    assert min(row["kept"] for row in result.history) >= (1 if folds == 1 else 2)
    assert float(result.probabilities.sum()) == pytest.approx(1.5)


def normalised_run(steps=6, **options):
    def model():
        return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).double()

    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    return InnerRun(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps, **options)


@pytest.mark.parametrize("options", [{}, {"batch_size": 16}, {"batch_size": 16, "restart": False}])
def test_batch_norm_by_default_and_the_outer_risk_in_eval_mode(options):
    """Every sample gets a derivative, whether or not it was in the last batch; the risk reads running statistics."""
    train, _ = spurious(60)
    target, _ = spurious(40, seed=5)
    gradients, seen = [], []

    def look(step):
        assert not any(module.training for module in step.model.modules())
        with torch.no_grad():
            seen.append((step.outer_loss, RISK(step.model(target.inputs), target, CROSS_ENTROPY).item()))

    maple = quick(inner=normalised_run(**options), budget=30, probability_optimizer=spy(gradients, lr=1.0))
    maple.fit(train, target, [look])
    assert all(noted == pytest.approx(again, rel=1e-12) for noted, again in seen)
    assert len(seen) == len(gradients) == 3
    assert all(bool((gradient != 0).all()) for gradient in gradients)


def test_batch_norm_against_training_again():
    """All samples in one step: the derivative by every weight is that of plain retraining, read in eval mode."""
    train, _ = spurious(20)
    target, _ = spurious(30, seed=5)
    gradients = []
    inner = normalised_run(steps=1)
    quick(inner=inner, steps=1, learn="weights", budget=None, weight_optimizer=spy(gradients)).fit(train, target)

    def risk(weight):
        model = inner.initial(train.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        losses = CROSS_ENTROPY(model(train.inputs), train.targets)
        ((losses * weight).sum() / weight.sum()).backward()
        optimizer.step()
        with torch.no_grad():
            return RISK(model.eval()(target.inputs), target, CROSS_ENTROPY).item()

    for i in range(20):
        h = torch.zeros(20, dtype=torch.float64)
        h[i] = 1e-5
        truth = (risk(1 + h) - risk(1 - h)) / 2e-5
        assert gradients[0][i].item() == pytest.approx(truth, rel=1e-6, abs=1e-10)
