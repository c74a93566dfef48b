"""The implicit estimator against closed forms and against solving the inner problem again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import Batch, Implicit, Recorder, SolverWarning, Trajectory, WeightedLoss
from tests.support.problems import CROSS_ENTROPY, relative

N, D, RIDGE = 12, 3, 0.3


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 0] - targets).square()


def ridge_data() -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return Batch.of(inputs, torch.randn(N, generator=generator, dtype=torch.float64))


def ridge_solution(weight: Tensor) -> Tensor:
    """argmin sum w_i (x_i theta - y_i)^2 / 2 + RIDGE |theta|^2 / 2."""
    data = ridge_data()
    matrix = data.inputs.T @ (weight[:, None] * data.inputs) + RIDGE * torch.eye(D, dtype=torch.float64)
    return torch.linalg.solve(matrix, data.inputs.T @ (weight * data.targets))


def outer(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(5, D, generator=generator, dtype=torch.float64)
    return (model(inputs)[:, 0] - 1.0).square().mean()


def at_the_optimum(
    weight: Tensor, batches: int = 1, by_optimizer: bool = True, objective_sign: float = 1.0
) -> Trajectory:
    """Start at the solution and record steps of size zero over the batches of one epoch."""
    model = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(ridge_solution(weight)[None])
    share = RIDGE / batches
    regulariser = None if by_optimizer else lambda m: 0.5 * share * m.weight.square().sum()
    # The inner objective is the mean over the recorded steps, so an L2 term stands beside 1/batches of the sum.
    decay = share if by_optimizer else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=decay, maximize=objective_sign < 0)
    objective = WeightedLoss(lambda o, t: objective_sign * squared(o, t), "none", regulariser)
    with Recorder(model, optimizer, objective, steps=batches) as recorder:
        for rows in torch.arange(N).chunk(batches):
            recorder.loss(ridge_data().take(rows), weight[rows]).backward()
            optimizer.step()
        return recorder.trajectory()


def truth(weight: Tensor) -> Tensor:
    model = nn.Linear(D, 1, bias=False).double()

    def value(w: Tensor) -> Tensor:
        return torch.func.functional_call(_Outer(model), {"model.weight": ridge_solution(w)[None]}, ())

    return torch.autograd.functional.jacobian(value, weight)


class _Outer(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return outer(self.model)


WEIGHT = 0.5 + torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("by_optimizer", [True, False])
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize(
    "estimator",
    [Implicit("cg", tolerance=1e-10), Implicit("neumann", iterations=2000, tolerance=1e-10)],
    ids=["cg", "neumann"],
)
def test_ridge_regression_in_closed_form(estimator: Implicit, batches: int, by_optimizer: bool) -> None:
    record = at_the_optimum(WEIGHT, batches, by_optimizer)
    answer, report = estimator.with_report(record, outer, torch.arange(N))
    assert report.converged
    assert report.residual < 1e-10
    assert relative(answer, truth(WEIGHT)) < 1e-6


def test_conjugate_gradients_need_at_most_the_dimension() -> None:
    _, report = Implicit("cg", tolerance=1e-10).with_report(at_the_optimum(WEIGHT), outer)
    assert report.iterations <= D + 1


def test_samples_outside_of_the_batch() -> None:
    weight = torch.where(torch.arange(N) < 8, WEIGHT, torch.zeros(N, dtype=torch.float64))
    full = at_the_optimum(weight)
    part = at_the_optimum(weight)
    part.steps[0].batch, part.steps[0].weight = ridge_data().take(torch.arange(8)), weight[:8]
    estimator = Implicit(tolerance=1e-12)
    answer = estimator(part, outer, samples=ridge_data())
    assert torch.allclose(answer, estimator(full, outer, torch.arange(N)), rtol=1e-9)
    assert relative(answer, truth(weight)) < 1e-6


def test_damping_shrinks_towards_one_gradient_step() -> None:
    record = at_the_optimum(WEIGHT)
    large = 1e6
    damped, _ = Implicit(damping=large).with_report(record, outer)
    twice, _ = Implicit(damping=2 * large).with_report(record, outer)
    assert relative(damped, 2 * twice) < 1e-4


def test_logistic_regression_against_training_again() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    data = Batch.of(inputs, torch.arange(10) % 2)
    objective = WeightedLoss(CROSS_ENTROPY, regulariser=lambda m: 0.1 * m.weight.square().sum())

    def solve(weight: Tensor) -> nn.Module:
        model = nn.Linear(2, 2, bias=False).double()
        with torch.no_grad():
            model.weight.zero_()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-14, tolerance_change=0.0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = objective(model, data, weight)
            loss.backward()
            return loss

        optimizer.step(closure)
        return model

    def loss(model: nn.Module) -> Tensor:
        return model(inputs.flip(0)).square().mean() + model(inputs)[:, 0].mean()

    weight = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    model = solve(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, objective) as recorder:
        recorder.loss(data, weight).backward()
        optimizer.step()
        answer = Implicit(tolerance=1e-10)(recorder.trajectory(), loss)
    expected = []
    for i in range(10):
        step = 1e-4 * torch.eye(10, dtype=torch.float64)[i]
        with torch.no_grad():
            up, down = loss(solve_with_grad(solve, weight + step)), loss(solve_with_grad(solve, weight - step))
        expected.append(float(up - down) / 2e-4)
    assert relative(answer, torch.tensor(expected, dtype=torch.float64)) < 1e-6


def solve_with_grad(solve, weight: Tensor) -> nn.Module:
    with torch.enable_grad():
        return solve(weight)


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_a_maximised_objective_is_the_same_problem(solver: str) -> None:
    minimised = at_the_optimum(WEIGHT)
    maximised = at_the_optimum(WEIGHT, objective_sign=-1.0)
    estimator = Implicit(solver, iterations=2000, tolerance=1e-10, damping=0.1)
    assert torch.allclose(estimator(minimised, outer), estimator(maximised, outer), rtol=1e-8)


def test_any_tensor_in_closed_form() -> None:
    """The ridge strength, through theta* = (X'WX + e^r I)^-1 X'Wy."""
    data = ridge_data()
    log_ridge = torch.tensor(RIDGE, dtype=torch.float64).log().requires_grad_()
    model = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(ridge_solution(WEIGHT)[None])

    def objective(model: nn.Module, batch: Batch, weight: Tensor) -> Tensor:
        fit = (weight * squared(model(batch.inputs), batch.targets)).sum()
        return fit + 0.5 * log_ridge.exp() * model.weight.square().sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, objective) as recorder:
        recorder.loss(data, WEIGHT).backward()
        optimizer.step()
        (found,) = Implicit(tolerance=1e-12).tensors(recorder.trajectory(), outer, [log_ridge])
    matrix = data.inputs.T @ (WEIGHT[:, None] * data.inputs) + RIDGE * torch.eye(D, dtype=torch.float64)
    theta = ridge_solution(WEIGHT).requires_grad_()
    value = torch.func.functional_call(_Outer(model), {"model.weight": theta[None]}, ())
    (slope,) = torch.autograd.grad(value, theta)
    assert torch.allclose(found, -RIDGE * slope @ torch.linalg.solve(matrix, theta.detach()), rtol=1e-8)


def test_too_few_iterations_warn_and_report() -> None:
    record = at_the_optimum(WEIGHT)
    with pytest.warns(SolverWarning, match="relative residual"):
        Implicit("neumann", iterations=1)(record, outer)
    _, report = Implicit("neumann", iterations=1).with_report(record, outer)
    assert not report.converged
    assert report.iterations == 1
    assert report.residual > 1e-3


def test_negative_curvature_is_reported() -> None:
    model = nn.Linear(D, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    objective = WeightedLoss(lambda outputs, targets: -squared(outputs, targets))
    with Recorder(model, optimizer, objective) as recorder:
        recorder.loss(ridge_data(), torch.ones(N, dtype=torch.float64)).backward()
        optimizer.step()
        record = recorder.trajectory()
    for solver in ("cg", "neumann"):
        _, report = Implicit(solver, iterations=20).with_report(record, outer)
        assert report.negative_curvature
        assert not report.converged


def test_decoupled_weight_decay_is_refused() -> None:
    model = nn.Linear(D, 1, bias=False).double()
    optimizer = torch.optim.AdamW(model.parameters())
    with Recorder(model, optimizer, WeightedLoss(squared)) as recorder:
        recorder.loss(ridge_data(), torch.ones(N, dtype=torch.float64)).backward()
        optimizer.step()
        with pytest.raises(ValueError, match="decoupled weight decay"):
            Implicit()(recorder.trajectory(), outer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations"),
        ({"damping": -1.0}, "damping"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Implicit(**options)


def test_running_statistics_at_the_fixed_point() -> None:
    """An eval-mode outer loss reads statistics that have settled on those of the batch at the solution."""
    generator = torch.Generator().manual_seed(2)
    data = Batch.of(torch.randn(10, 2, generator=generator, dtype=torch.float64), torch.arange(10) % 2)
    objective = WeightedLoss(CROSS_ENTROPY, regulariser=lambda m: 0.1 * sum(p.square().sum() for p in m.parameters()))

    def solve(weight: Tensor) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.BatchNorm1d(2, momentum=1.0, affine=False))
        model = nn.Sequential(*model, nn.Linear(2, 2, bias=False)).double()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-13, tolerance_change=0.0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = objective(model, data, weight)
            loss.backward()
            return loss

        optimizer.step(closure)
        model(data.inputs)  # momentum 1: settled after one pass
        return model

    def loss(model: nn.Module) -> Tensor:
        return model.eval()(data.inputs.flip(1) + 0.5).square().mean()

    weight = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    model = solve(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.random.fork_rng(), Recorder(model, optimizer, objective) as recorder:
        recorder.loss(data, weight).backward()
        optimizer.step()
        answer = Implicit(tolerance=1e-10)(recorder.trajectory(), loss)
    expected = []
    for i in range(10):
        step = 1e-4 * torch.eye(10, dtype=torch.float64)[i]
        up, down = (float(loss(solve(weight + s * step)).detach()) for s in (1, -1))
        expected.append((up - down) / 2e-4)
    assert relative(answer, torch.tensor(expected, dtype=torch.float64)) < 1e-5
