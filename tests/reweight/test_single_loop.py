"""The single-loop solvers against dense Hessians and the exact solutions of a ridge problem."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.optim import SGD, Adam

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.bilevel.products import inner_gradient, products
from steelyard.checkpoint import CheckpointError, Journal, Stopped
from steelyard.reweight import F2SA, SABA, SOBA, FeatureWeights, SampleWeights, Shared, StocBiO
from steelyard.reweight.saba import Memory, RowMemory
from tests.support.environments import CROSS_ENTROPY

SOLVERS = {
    "soba": SOBA,
    "saba": SABA,
    "f2sa": partial(F2SA, inner_steps=2),
    "stocbio": partial(StocBiO, inner_steps=3, neumann_steps=2),
}
RIDGE = 0.1
PLAIN = partial(SGD, lr=0.5)


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs[:, 0] - targets) ** 2


OBJECTIVE = WeightedLoss(squared, regulariser=lambda model: 0.5 * RIDGE * model.weight.square().sum())


class Ridge:
    """Three sources of 8 samples each, with little, some and much noise, and 30 clean samples: all is known exactly."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        truth = torch.randn(4, generator=g, dtype=torch.float64)
        x, clean = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (24, 30))
        noise = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64).repeat_interleave(8)
        self.train = Batch.of(x, x @ truth + noise * torch.randn(24, generator=g, dtype=torch.float64))
        self.clean = Batch.of(clean, clean @ truth + 0.3 * torch.randn(30, generator=g, dtype=torch.float64))
        self.sources = Shared(torch.arange(3).repeat_interleave(8))

    def hessian(self, w: torch.Tensor) -> torch.Tensor:
        x = self.train.inputs
        return x.T @ (w[:, None] * x) / len(x) + RIDGE * torch.eye(4, dtype=torch.float64)

    def solution(self, w: torch.Tensor) -> torch.Tensor:
        """theta*(w)."""
        return torch.linalg.solve(self.hessian(w), self.train.inputs.T @ (w * self.train.targets) / len(w))

    def risk(self, theta: torch.Tensor) -> torch.Tensor:
        return squared((self.clean.inputs @ theta)[:, None], self.clean.targets).mean()

    def risk_of(self, weights: nn.Module) -> torch.Tensor:
        """F(theta*(x)), with a graph to x."""
        return self.risk(self.solution(weights(self.train.index)))

    def hypergradient(self, weights: nn.Module) -> torch.Tensor:
        return torch.autograd.grad(self.risk_of(weights), weights.raw)[0]

    def best(self) -> float:
        """The least F over all weights of the sources."""
        weights = SampleWeights(self.sources, "softplus").double()

        def value(raw):
            weights.raw.data = torch.tensor(raw)
            return float(self.risk_of(weights).detach()), self.hypergradient(weights).numpy()

        return float(minimize(value, [0.5, 0.5, 0.5], jac=True, method="L-BFGS-B", bounds=[(-12, 12)] * 3).fun)


def linear(theta: torch.Tensor | None = None) -> nn.Linear:
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.zeros(4) if theta is None else theta)
    return model


def made(kind, problem: Ridge, weights: nn.Module, *, rate: float = 0.5, outer_rate: float = 1.0, **options):
    model = options.pop("model", None) or linear()
    options.setdefault("outer_optimizer", partial(SGD, lr=outer_rate))
    return kind(model, SGD(model.parameters(), lr=rate), OBJECTIVE, problem.clean, weights, **options)


@pytest.mark.parametrize("normalise", ["weights", "batch", "none"])
def test_products_are_those_of_the_dense_hessian(normalise: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    objective = WeightedLoss(CROSS_ENTROPY, normalise, lambda m: 0.1 * m[0].weight.square().sum())
    batch = Batch.of(torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 3)
    weight = torch.rand(7, dtype=torch.float64)
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    flat = torch.cat([p.detach().flatten() for p in parameters])

    def value(theta: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        named = dict(zip(dict(model.named_parameters()), theta.split(sizes), strict=True))
        shaped = {name: named[name].view_as(p) for name, p in model.named_parameters()}
        losses = CROSS_ENTROPY(torch.func.functional_call(model, shaped, batch.inputs), batch.targets)
        divisor = {"weights": w.sum(), "batch": 7, "none": 1}[normalise]
        return (w * losses).sum() / divisor + 0.1 * shaped["0.weight"].square().sum()

    direction = torch.randn(len(flat), dtype=torch.float64)
    (curved, _), (mixed, _) = torch.autograd.functional.hessian(value, (flat, weight))
    expected = torch.autograd.functional.jacobian(value, (flat, weight))[0]
    found = products(
        model, objective, batch, weight, parameters,
        [v.view_as(p) for v, p in zip(direction.split(sizes), parameters, strict=True)],
    )  # fmt: skip
    torch.testing.assert_close(torch.cat([one.flatten() for one in found.gradient]), expected)
    torch.testing.assert_close(torch.cat([one.flatten() for one in found.curvature]), curved @ direction)
    torch.testing.assert_close(found.tangents, mixed @ direction)
    loss, _, gradient = inner_gradient(model, objective, batch, weight, parameters)
    torch.testing.assert_close(loss, found.loss)
    torch.testing.assert_close(gradient, found.gradient)


def exactly_solved(problem: Ridge, weights: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """theta* and v* = -H^-1 dF / d theta."""
    with torch.no_grad():
        w = weights(problem.train.index)
        theta = problem.solution(w)
    slope = torch.autograd.functional.jacobian(problem.risk, theta)
    return theta, -torch.linalg.solve(problem.hessian(w), slope)


@pytest.mark.parametrize("form", ["sigmoid", "softplus", "projected"])
@pytest.mark.parametrize("kind", [SOBA, SABA])
def test_at_the_inner_solution_the_direction_is_the_hypergradient(kind, form: str) -> None:
    problem = Ridge()
    weights = SampleWeights(24, form, start=0.7).double()
    theta, v = exactly_solved(problem, weights)
    solver = made(kind, problem, weights, model=linear(theta))
    solver.direction = [v[None].clone()]
    expected = problem.hypergradient(weights)
    solver.clean_size = 30  # all of them
    solver.fit(problem.train, epochs=1, batch_size=24)
    torch.testing.assert_close(weights.raw.grad, expected)
    torch.testing.assert_close(solver.direction[0][0], v)
    torch.testing.assert_close(solver.model.weight[0], theta)


@pytest.mark.parametrize("kind", SOLVERS)
def test_full_batches_lead_to_the_best_weights_of_the_sources(kind: str) -> None:
    problem = Ridge()
    weights = SampleWeights(problem.sources, "softplus").double()
    at_first = float(problem.risk_of(weights).detach())
    options = {"f2sa": {"multiplier": 100.0, "growth": 1.0, "inner_steps": 2}}
    solver = made(
        {**SOLVERS, "stocbio": partial(StocBiO, inner_steps=1, neumann_steps=3)}[kind],
        problem,
        weights,
        rate=0.4,
        outer_optimizer=partial(Adam, lr=0.3),
        clean_size=30,
        **options.get(kind, {}),
    )
    solver.fit(problem.train, epochs=200, batch_size=24)
    best = problem.best()
    assert at_first - best > 1
    assert float(problem.risk_of(weights).detach()) - best < 0.02 * (at_first - best)


def test_sabas_constant_steps_converge_where_sobas_do_not() -> None:
    """Weights stand still (outer step 0), so that theta* and v* do, too."""
    problem = Ridge()
    left = {}
    for kind in (SOBA, SABA):
        weights = SampleWeights(24).double()
        theta, v = exactly_solved(problem, weights)
        solver = made(kind, problem, weights, rate=0.25, outer_rate=0.0, clean_size=6)
        solver.fit(problem.train, epochs=60, batch_size=6)
        left[kind] = float(((solver.model.weight[0] - theta).norm() + (solver.direction[0][0] - v).norm()).detach())
    assert left[SABA] < 0.01 * left[SOBA]


def test_sagas_estimate_is_unbiased_and_its_mean_is_that_of_what_it_remembers() -> None:
    g = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    memory = Memory(shares, torch.zeros(4, dtype=torch.float64))
    for block in (0, 2, 1, 2, 0):
        memory.update(block, torch.randn(4, generator=g, dtype=torch.float64))
    torch.testing.assert_close(memory.mean, shares @ memory.values)
    fresh = torch.randn(3, 4, generator=g, dtype=torch.float64)
    estimates = torch.stack([copy.deepcopy(memory).update(block, fresh[block]) for block in range(3)])
    torch.testing.assert_close(shares @ estimates, shares @ fresh)


def test_a_memory_of_own_rows_gives_what_a_full_one_gives() -> None:
    g = torch.Generator().manual_seed(0)
    shares, rows = torch.tensor([0.5, 0.3, 0.2]), list(torch.tensor([3, 1, 9, 7, 5, 0, 2, 8, 4, 6]).split([5, 3, 2]))
    full, own = Memory(shares, torch.zeros(10)), RowMemory(shares, torch.zeros(10), rows)
    for block in (0, 2, 2, 1, 0, 1):
        value = torch.zeros(10)
        value[rows[block]] = torch.randn(len(rows[block]), generator=g)
        torch.testing.assert_close(own.update(block, value), full.update(block, value))
    torch.testing.assert_close(own.mean, full.mean)


def test_f2sas_bias_halves_when_the_multiplier_doubles() -> None:
    problem = Ridge()
    errors = []
    for m in (200.0, 400.0):
        weights = SampleWeights(24).double()
        with torch.no_grad():
            w = weights(problem.train.index)
        solver = made(F2SA, problem, weights, model=linear(problem.solution(w)), multiplier=m, inner_steps=1)
        clean = problem.clean
        curved = problem.hessian(w) + clean.inputs.T @ clean.inputs / 30 / m
        right = problem.train.inputs.T @ (w * problem.train.targets) / 24 + clean.inputs.T @ clean.targets / 30 / m
        with torch.no_grad():
            solver.penalised.weight.copy_(torch.linalg.solve(curved, right))
        solver.step(problem.train, problem.clean)
        errors.append(float((weights.raw.grad - problem.hypergradient(SampleWeights(24).double())).norm()))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.02)


def test_stocbios_series_is_the_truncated_one() -> None:
    problem = Ridge()
    weights = SampleWeights(24).double()
    theta, _ = exactly_solved(problem, weights)
    hessian = problem.hessian(weights(problem.train.index).detach())
    solver = made(StocBiO, problem, weights, model=linear(theta), inner_steps=1, neumann_steps=3)
    for _ in range(4):
        solver.step(problem.train, problem.clean)
    slope = torch.autograd.functional.jacobian(problem.risk, theta)
    shrunk = torch.eye(4, dtype=torch.float64) - 0.5 * hessian
    series = sum(torch.linalg.matrix_power(shrunk, q) @ slope for q in range(4))
    torch.testing.assert_close(solver.direction[0][0], -0.5 * series)


def run(kind: str, callbacks=(), journal: Journal | None = None, epochs: int = 3):
    problem = Ridge()
    weights = SampleWeights(24).double()
    solver = made(SOLVERS[kind], problem, weights, rate=0.1, clean_size=7)
    result = solver.fit(problem.train, epochs=epochs, batch_size=10, callbacks=callbacks, journal=journal)
    return solver, result


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_stopped_run_resumes_bit_for_bit(kind: str, tmp_path) -> None:
    whole, expected = run(kind)
    path = tmp_path / "run.safetensors"
    left = iter([0, 0, 0, 0, 0, 1])
    with pytest.raises(Stopped):
        run(kind, journal=Journal(path, every=2, stop=lambda: next(left)))
    resumed, found = run(kind, journal=Journal(path))
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=0)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert found.history == expected.history
    assert len(found.history) == 3
    with pytest.raises(CheckpointError):
        run(kind, journal=Journal(path), epochs=4)


def test_every_sample_is_taken_once_an_epoch_in_the_same_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Ridge()
    solver = made(SOBA, problem, SampleWeights(24).double())
    seen, step = [], solver.step
    monkeypatch.setattr(solver, "step", lambda *pair: seen.append(sorted(pair[0].index.tolist())) or step(*pair))
    solver.fit(problem.train, epochs=2, batch_size=10)
    assert sorted(id_ for one in seen[:3] for id_ in one) == list(range(24))
    assert sorted(seen[:3]) == sorted(seen[3:])


def test_callbacks_see_the_losses_and_can_stop() -> None:
    steps = []
    _, result = run("soba", callbacks=[lambda seen: steps.append(seen) or len(steps) == 4])
    assert [one.step for one in steps] == [0, 1, 2, 3]
    assert [row["epoch"] for row in result.history] == [0, 1]
    assert result.history[0]["clean_loss"] == pytest.approx(sum(one.clean_loss for one in steps[:3]) / 3)


def test_weights_of_each_form_start_where_they_are_told() -> None:
    for form in ("sigmoid", "softplus", "projected"):
        weights = SampleWeights(5, form, start=0.3)
        torch.testing.assert_close(weights(torch.tensor([4, 1])), torch.tensor([0.3, 0.3]))
    weights = SampleWeights(3, "projected")
    weights.raw.data = torch.tensor([-1.0, 0.5, 2.0])
    weights.project()
    assert weights(torch.arange(3)).tolist() == [0.0, 0.5, 2.0]


def test_weights_of_features_learn_which_feature_tells_of_noise() -> None:
    problem = Ridge()
    noise = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64).repeat_interleave(8)[:, None]
    weights = FeatureWeights(noise - noise.mean(), nn.Linear(1, 1).double())
    model = linear()
    objective = WeightedLoss(squared, regulariser=lambda model: 1e-3 * model.weight.square().sum())
    solver = SOBA(model, PLAIN(model.parameters()), objective, problem.clean, weights)
    result = solver.fit(problem.train, epochs=60, batch_size=24)
    assert float(result.weights[0]) > float(result.weights[8]) > float(result.weights[16])


class Odd(torch.autograd.Function):
    """An operator with one derivative alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4, dtype=torch.float64))

    def forward(self, x):
        return Odd.apply(x @ self.weight.T)


def test_refusals() -> None:
    problem = Ridge()
    weights = SampleWeights(24).double()
    with pytest.raises(ValueError, match="in eval mode or exchange it for GroupNorm"):
        model = nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1)).double()
        SOBA(model, PLAIN(model.parameters()), WeightedLoss(squared), problem.clean, weights).step(
            problem.train, problem.clean
        )
    with pytest.raises(NotImplementedError, match="take F2SA"):
        made(SOBA, problem, weights, model=Sine()).step(problem.train, problem.clean)
    made(F2SA, problem, weights, model=Sine()).step(problem.train, problem.clean)
    with pytest.raises(ValueError, match="call begin"):
        made(SABA, problem, weights).step(problem.train, problem.clean)
    solver = made(SABA, problem, weights)
    solver.begin(problem.train, 6)
    with pytest.raises(ValueError, match="none of the minibatches"):
        solver.step(problem.train.take(torch.arange(6)), problem.clean)
    with pytest.raises(ValueError, match=r"ids 0 \.\. 9"):
        made(SOBA, problem, SampleWeights(10).double()).step(problem.train, problem.clean)
    with pytest.raises(ValueError, match=r"ids 0 \.\. 9, got .*a row for every sample"):
        made(SOBA, problem, FeatureWeights(torch.zeros(10, 2))).step(problem.train, problem.clean)
    with pytest.raises(ValueError, match=r"got -1 \.\. 0"):  # (not the last sample's weight)
        FeatureWeights(torch.zeros(10, 2))(torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match=r"one number a sample, \(3,\), got \(3, 2\)"):
        FeatureWeights(torch.zeros(10, 2), nn.Linear(2, 2))(torch.arange(3))
    for module in (nn.Identity(), FeatureWeights(torch.zeros(24, 1), nn.Identity())):
        with pytest.raises(ValueError, match="nothing to learn"):
            made(SOBA, problem, module)
    with pytest.raises(ValueError, match="start must be in"):
        SampleWeights(3, start=1.0)
    with pytest.raises(ValueError, match="inner is empty"):
        made(SOBA, problem, weights).step(problem.train.take(torch.arange(0)), problem.clean)
    with pytest.raises(ValueError, match="distinct samples"):
        made(SOBA, problem, weights).fit(problem.train.take(torch.zeros(3).long()), epochs=1, batch_size=2)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        made(SOBA, problem, weights, rate=1e6).fit(problem.train, epochs=200, batch_size=24)


@pytest.mark.parametrize("kind", ["soba", "saba", "f2sa", "stocbio"])
def test_an_optimizer_that_moves_by_more_than_the_inner_loss_is_refused(kind: str) -> None:
    problem, model = Ridge(), linear()

    def solver(optimizer: torch.optim.Optimizer) -> None:
        SOLVERS[kind](model, optimizer, OBJECTIVE, problem.clean, SampleWeights(24).double())

    with pytest.raises(
        ValueError, match="weight_decay = 0.01 is a part of the inner problem.*give the objective a reg"
    ):
        solver(torch.optim.AdamW(model.parameters()))  # (its default)
    with pytest.raises(NotImplementedError, match="LBFGS steps by a closure"):
        solver(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="nothing to train"):
        solver(SGD(nn.Linear(2, 1).requires_grad_(False).parameters(), lr=0.1))
    with pytest.raises(ValueError, match="moves no parameter of model"):
        solver(SGD(linear().parameters(), lr=0.1))
    made_before = made(SOLVERS[kind], problem, SampleWeights(24).double())
    made_before.begin(problem.train, 24)
    made_before.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="other parameters than when"):
        made_before.step(problem.train, problem.clean)


class Centred(nn.Module):
    """Takes the minibatch's mean out of the inputs, without a layer that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x - x.mean(0))


@pytest.mark.parametrize("kind", ["soba", "saba", "f2sa", "stocbio"])
def test_samples_that_meet_in_the_model_are_refused(kind: str) -> None:
    problem, model = Ridge(), Centred()

    def fit(model: nn.Module) -> None:
        optimizer, weights = SGD(model.parameters(), lr=0.1), SampleWeights(24).double()
        SOLVERS[kind](model, optimizer, WeightedLoss(squared), problem.clean, weights).fit(
            problem.train, epochs=3, batch_size=6
        )

    with pytest.raises(ValueError, match="change with who is beside them"):
        fit(model)
    fit(model.inner)  # dropout by itself couples nothing


@pytest.mark.parametrize(("kind", "period"), [("soba", 1), ("saba", 1), ("f2sa", 2), ("stocbio", 6)])
def test_so_few_steps_that_no_weight_would_move_are_refused(kind: str, period: int) -> None:
    problem, weights = Ridge(), SampleWeights(24).double()
    solver = made(SOLVERS[kind], problem, weights)
    assert solver.period == period
    if period > 1:
        with pytest.raises(ValueError, match=f"it moves the weights once in {period}: take more epochs"):
            solver.fit(problem.train, epochs=period - 1, batch_size=24)
    start = weights.raw.detach().clone()
    solver.fit(problem.train, epochs=max(period, 2), batch_size=24)
    assert not torch.equal(weights.raw.detach(), start)


@pytest.mark.parametrize("kind", ["soba", "saba", "f2sa", "stocbio"])
def test_a_sparse_embedding_is_trained_as_a_dense_one(kind: str) -> None:
    train = Batch.of(torch.arange(12) % 5, torch.arange(12.0))
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Embedding(5, 1, sparse=sparse)
        weights = SampleWeights(12)
        solver = SOLVERS[kind](
            model, SGD(model.parameters(), lr=0.1), WeightedLoss(squared), train.take(torch.arange(4)), weights
        )
        solver.fit(train, epochs=5, batch_size=4)
        found.append((model.weight.detach(), weights.raw.detach()))
    torch.testing.assert_close(found[0], found[1])
