"""Risks against closed forms by hand, autograd one environment at a time, and gradcheck in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from steelyard.bilevel.batch import Batch
from steelyard.reweight import GroupWorst, IRMv1, Log, MeanRisk, SoftGroupWorst, Sqrt, VREx

cross_entropy = partial(F.cross_entropy, reduction="none")


def binary(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")


def squared(outputs, targets):
    return (outputs[:, 0] - targets).square()


LOSSES = {"cross_entropy": (cross_entropy, 3), "binary": (binary, 1), "squared": (squared, 1)}
ENVIRONMENTS = [2, 0, 1, 1, 0, 2, 0, 1, 2, 2, 0, 1, 1, 0]


def problem(loss="cross_entropy", environments=ENVIRONMENTS, seed=0):
    function, classes = LOSSES[loss]
    g = torch.Generator().manual_seed(seed)
    n = len(environments)
    outputs = torch.randn(n, classes, generator=g, dtype=torch.float64)
    targets = torch.randint(0, max(classes, 2), (n,), generator=g)
    targets = targets if classes > 1 else targets.double()
    labels = torch.tensor(environments)
    return outputs.requires_grad_(), Batch.of(outputs.detach(), targets, environment=labels, group=labels), function


def environment_risks(outputs, batch, loss):
    members = [batch.environment == e for e in range(int(batch.environment.max()) + 1)]
    return [loss(outputs[m], batch.targets[m]).mean() for m in members]


def slope(outputs, targets, loss):
    scale = torch.ones((), dtype=outputs.dtype, requires_grad=True)
    return torch.autograd.grad(loss(outputs * scale, targets).mean(), scale, create_graph=True)[0]


def irm_by_environment(outputs, batch, loss):
    slopes = []
    for e in range(int(batch.environment.max()) + 1):
        m = batch.environment == e
        slopes.append(slope(outputs[m], batch.targets[m], loss))
    return torch.stack(slopes).square().mean()


def irm_by_halves(outputs, batch, loss):
    products = []
    for e in range(int(batch.environment.max()) + 1):
        members = (batch.environment == e).nonzero().flatten()
        halves = [slope(outputs[m], batch.targets[m], loss) for m in (members[0::2], members[1::2])]
        products.append(halves[0] * halves[1])
    return torch.stack(products).mean()


RISKS = {
    "mean": (MeanRisk(), lambda o, b, f: f(o, b.targets).mean()),
    "irm": (IRMv1(), irm_by_environment),
    "irm halves": (IRMv1(unbiased=True), irm_by_halves),
    "vrex": (VREx(), lambda o, b, f: torch.stack(environment_risks(o, b, f)).var(unbiased=False)),
    "vrex + mean": (
        VREx(mean=0.3),
        lambda o, b, f: (r := torch.stack(environment_risks(o, b, f))).var(unbiased=False) + 0.3 * r.mean(),
    ),
    "worst": (GroupWorst(), lambda o, b, f: max(environment_risks(o, b, f))),
    "worst environment": (GroupWorst(by="environment"), lambda o, b, f: max(environment_risks(o, b, f))),
    "soft worst": (
        SoftGroupWorst(0.2),
        lambda o, b, f: 0.2 * torch.stack(environment_risks(o, b, f)).div(0.2).exp().mean().log(),
    ),
    "log": (Log(VREx(), eps=0.01), lambda o, b, f: (VREx()(o, b, f) + 0.01).log()),
    "sqrt": (Sqrt(VREx()), lambda o, b, f: (VREx()(o, b, f) + 1e-12).sqrt()),
    "sum": (
        0.5 * MeanRisk() + 2 * (Log(IRMv1()) + VREx() * 0.25),
        lambda o, b, f: 0.5 * MeanRisk()(o, b, f) + 2 * Log(IRMv1())(o, b, f) + 0.5 * VREx()(o, b, f),
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", RISKS)
def test_value_and_gradient(name, loss):
    risk, expected = RISKS[name]
    outputs, batch, function = problem(loss)
    value, reference = risk(outputs, batch, function), expected(outputs, batch, function)
    torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-14)
    (grad,), (wanted,) = torch.autograd.grad(value, outputs), torch.autograd.grad(reference, outputs)
    torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(lambda o: risk(o, batch, function), (outputs,), fast_mode=True)


def test_irm_closed_form_for_the_squared_loss():
    """d/dscale mean (scale f - y)^2 = mean 2 f (f - y)."""
    outputs, batch, function = problem("squared", [0, 0, 1, 1, 1])
    f, y = outputs.detach()[:, 0], batch.targets
    slopes = [2 * (f[m] * (f[m] - y[m])).mean() for m in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(IRMv1()(outputs, batch, function).detach(), (slopes[0] ** 2 + slopes[1] ** 2) / 2)


def test_halves_are_unbiased_and_the_plain_square_is_not():
    """Slopes 2 f (f - y) with f = 1, y = 1 - z/2, so slope = z ~ N(0.5, 1): E z = 0.5, penalty 0.25."""
    repeats, size = 1500, 4
    z = 0.5 + torch.randn(repeats, 2 * size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0] * size + [1] * size)
    plain, halves = [], []
    for row in z:
        batch = Batch.of(row[:, None], 1 - row / 2, environment=labels)
        ones = torch.ones(2 * size, 1, dtype=torch.float64)
        plain.append(float(IRMv1()(ones, batch, squared)))
        halves.append(float(IRMv1(unbiased=True)(ones, batch, squared)))
    plain, halves = torch.tensor(plain), torch.tensor(halves)
    error = halves.std() / repeats**0.5
    assert abs(halves.mean() - 0.25) < 5 * error  # false alarm: 6e-7 at a new seed
    assert plain.mean() - 0.25 > 0.15  # its bias is 1 / size


def test_values_without_a_graph():
    outputs, batch, function = problem()
    with torch.no_grad():
        for risk, _ in RISKS.values():
            assert not risk(outputs, batch, function).requires_grad


def test_worst_group_limits():
    outputs, batch, function = problem()
    means = torch.stack(environment_risks(outputs, batch, function)).detach()
    assert SoftGroupWorst(1e-4)(outputs, batch, function).item() == pytest.approx(means.max().item(), abs=2e-4)
    assert SoftGroupWorst(1e4)(outputs, batch, function).item() == pytest.approx(means.mean().item(), abs=1e-3)


def test_log_makes_the_gradient_independent_of_scale():
    outputs, batch, function = problem()

    def gradient(risk):
        return torch.autograd.grad(risk(outputs, batch, function), outputs)[0]

    torch.testing.assert_close(gradient(Log(1e-3 * VREx(), eps=0.0)), gradient(Log(VREx(), eps=0.0)))


def test_sqrt_is_half_the_gap_of_two_environments_and_finite_at_zero():
    outputs, batch, function = problem(environments=[0, 1, 1, 0, 1])
    one, two = environment_risks(outputs, batch, function)
    torch.testing.assert_close(Sqrt(VREx())(outputs, batch, function), (one - two).abs() / 2)
    same = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    even = Batch.of(same.detach(), torch.zeros(4, dtype=torch.long), environment=torch.tensor([0, 1, 0, 1]))
    (grad,) = torch.autograd.grad(Sqrt(VREx())(same, even, cross_entropy), same)
    assert torch.equal(grad, torch.zeros_like(grad))


UNLABELLED = Batch.of(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


def labelled(labels):
    outputs, batch, function = problem(environments=labels)
    return outputs, batch, function


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IRMv1()(torch.zeros(4, 3), UNLABELLED, cross_entropy), r"batch\.environment is None"),
        (lambda: VREx()(torch.zeros(4, 3), UNLABELLED, cross_entropy), r"batch\.environment is None"),
        (lambda: GroupWorst()(torch.zeros(4, 3), UNLABELLED, cross_entropy), r"batch\.group is None"),
        (lambda: IRMv1()(*labelled([0, 0, 0])), "at least 2 of them, got 1"),
        (lambda: VREx()(*labelled([0, 0])), "at least 2 of them, got 1"),
        (lambda: VREx()(*labelled([0, 2, 2, 0])), r"no sample with id \[1\]"),
        (lambda: GroupWorst()(*labelled([1, 1])), r"no sample with id \[0\]"),
        (lambda: GroupWorst()(*labelled([-1, 0])), "ids 0, 1"),
        (lambda: IRMv1(unbiased=True)(*labelled([0, 0, 1])), "at least two samples"),
        (lambda: MeanRisk()(*labelled([0, 1])[:2], lambda o, y: F.cross_entropy(o, y)), 'reduction="none"'),
        (lambda: MeanRisk()(torch.zeros(0, 3), UNLABELLED.take(torch.arange(0)), cross_entropy), "at least one"),
        (lambda: Log(-1.0 * MeanRisk())(*labelled([0, 1])), "Log needs a positive"),
        (lambda: Sqrt(-1.0 * MeanRisk())(*labelled([0, 1])), "Sqrt needs"),
        (lambda: SoftGroupWorst(0.0), "temperature must be"),
        (lambda: Log(MeanRisk(), eps=-1.0), "eps must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("combine", [lambda: MeanRisk() + 1, lambda: MeanRisk() * "2", lambda: MeanRisk() * VREx()])
def test_only_risks_add_and_only_numbers_scale(combine):
    with pytest.raises(TypeError, match="unsupported operand|can't multiply"):
        combine()
