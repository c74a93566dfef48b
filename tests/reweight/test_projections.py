"""Projections: feasible, nearest, idempotent, order-preserving; edges and errors."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize

from steelyard.distributed import ALONE, RankError
from steelyard.reweight import project_ball, project_box_simplex
from tests.support.shares import in_threads

# Values on a coarse grid (many ties, many entries exactly on a breakpoint) as well as general ones.
ENTRIES = st.one_of(st.integers(-8, 8).map(lambda k: k / 4), st.floats(-50, 50, allow_subnormal=False))
VECTORS = hnp.arrays("float64", st.integers(1, 40), elements=ENTRIES).map(torch.from_numpy)
SHARE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))
quick = settings(deadline=None, max_examples=100, derandomize=True)


def by_sorting(values, total, upper):
    """The threshold from all breakpoints in order: an independent, slower way to the same number."""
    points = sorted({*values.tolist(), *((values - upper).tolist() if upper < math.inf else [])})
    points = [points[0] - total / len(values) - 1, *points]

    def size(v):
        return (values - v).clamp(0, upper).sum().item()

    for low, high in pairwise(points):
        if size(low) >= total >= size(high):
            drop = size(low) - size(high)
            return low if drop == 0 else low + (high - low) * (size(low) - total) / drop
    raise AssertionError("no root")


@quick
@given(VECTORS, SHARE)
def test_box_simplex_equality(x, share):
    budget = share * len(x)
    s = project_box_simplex(x, budget)
    assert ((s >= 0) & (s <= 1)).all()
    assert s.sum().item() == pytest.approx(budget, abs=1e-9)
    torch.testing.assert_close(project_box_simplex(s, budget), s, rtol=0, atol=1e-9)
    order = x.argsort()
    assert (s[order].diff() >= 0).all()
    if 0 < budget < len(x):
        torch.testing.assert_close(s, (x - by_sorting(x, budget, 1.0)).clamp(0, 1), rtol=0, atol=1e-9)


@quick
@given(VECTORS, SHARE)
def test_box_simplex_inequality(x, share):
    budget = share * len(x)
    s = project_box_simplex(x, budget, equality=False)
    clamped = x.clamp(0, 1)
    if clamped.sum() <= budget:
        assert torch.equal(s, clamped)
    else:
        torch.testing.assert_close(s, project_box_simplex(x, budget), rtol=0, atol=1e-12)
    assert s.sum().item() <= budget + 1e-9


@quick
@given(VECTORS, st.floats(0, 100), st.sampled_from([1, 2]))
def test_ball(x, radius, p):
    w = project_ball(x, radius, p=p)
    assert (w >= 0).all()
    assert torch.linalg.vector_norm(w, ord=p).item() <= radius * (1 + 1e-12) + 1e-12
    torch.testing.assert_close(project_ball(w, radius, p=p), w, rtol=0, atol=1e-9)
    assert (w[x.argsort()].diff() >= 0).all()
    if p == 1 and 0 < radius < x.clamp(min=0).sum():
        torch.testing.assert_close(w, (x - by_sorting(x, radius, math.inf)).clamp(min=0), rtol=0, atol=1e-9)


@quick
@given(st.data(), VECTORS)
def test_nearer_than_any_feasible_point(data, x):
    """The variational inequality <x - P x, z - P x> <= 0 for feasible z is the definition of the projection."""
    z = torch.from_numpy(data.draw(hnp.arrays("float64", len(x), elements=st.floats(0, 1))))
    budget = z.sum().item()
    for s, feasible in [
        (project_box_simplex(x, budget), z),
        (project_box_simplex(x, budget, equality=False), z),
        (project_ball(x, budget, p=1), z),
        (project_ball(x, torch.linalg.vector_norm(z).item(), p=2), z),
    ]:
        assert ((x - s) @ (feasible - s)).item() <= 1e-9 * (1 + x.abs().max().item()) * len(x)


SUM = {"fun": lambda s: 2.0 - s.sum(), "jac": lambda s: -np.ones_like(s)}
NORM = {"fun": lambda w: 2.0 - w @ w / 2, "jac": lambda w: -w}
QP_CASES = {
    "equality": ({"type": "eq", **SUM}, (0, 1), lambda x: project_box_simplex(x, 2.0)),
    "inequality": ({"type": "ineq", **SUM}, (0, 1), lambda x: project_box_simplex(x, 2.0, equality=False)),
    "p1": ({"type": "ineq", **SUM}, (0, None), lambda x: project_ball(x, 2.0, p=1)),
    "p2": ({"type": "ineq", **NORM}, (0, None), lambda x: project_ball(x, 2.0)),
}


@pytest.mark.parametrize("case", QP_CASES)
@pytest.mark.parametrize("seed", range(5))
def test_against_a_quadratic_program(seed, case):
    constraint, bounds, project = QP_CASES[case]
    x = 2 * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = x.numpy()
    solved = optimize.minimize(
        lambda s: ((s - target) ** 2).sum() / 2,
        x0=[0.3] * 6,
        jac=lambda s: s - target,
        bounds=[bounds] * 6,
        constraints=[constraint],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    # Not `solved.success`: at the optimum its line search may give up by a rounding error, on some machines.
    torch.testing.assert_close(project(x), torch.from_numpy(solved.x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        torch.full((1000,), 0.3),
        torch.full((1000,), 1e6),
        2.0 ** -torch.arange(1000, dtype=torch.float64) * 1e6,  # Newton's bad case: pieces shrink geometrically
        torch.cat([torch.linspace(0, 1, 500) ** 9, 1 + torch.linspace(0, 1, 500) ** (1 / 9)]),
        torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-12,
        torch.tensor([0.0, 1.0] * 500),
    ],
    ids=["constant", "large", "geometric", "non-convex", "tiny", "binary"],
)
@pytest.mark.parametrize("budget", [1e-3, 1.0, 300.0, 999.5])
def test_hard_shapes(x, budget):
    resolution = torch.finfo(torch.float64).eps * x.abs().max().double().item() * len(x)  # of the data themselves
    s = project_box_simplex(x, budget)
    assert s.sum(dtype=torch.float64).item() == pytest.approx(budget, rel=1e-6, abs=4 * resolution)
    w = project_ball(x, budget, p=1)
    total = min(budget, x.clamp(min=0).sum(dtype=torch.float64).item())
    assert w.sum(dtype=torch.float64).item() == pytest.approx(total, rel=1e-6, abs=4 * resolution)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 2**31), st.floats(0.001, 0.999), st.sampled_from([0.01, 1.0, 30.0]))
def test_float32_sum_is_the_budget_to_rounding(seed, share, spread):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(seed)) * spread
    budget = share * 5000
    s = project_box_simplex(x, budget)
    assert s.dtype == torch.float32
    # each entry is rounded once, to half a unit in the last place of at most 1
    assert abs(s.sum(dtype=torch.float64).item() - budget) <= 5000 * 2**-25


def long_vectors(seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(20_000, generator=generator)
    return {
        "normal": spread.float(),
        "heavy tail": spread.pow(5),
        "ties": (4 * spread).round() / 4,
        "binary": (spread > 1).double(),
        "sorted": spread.sort().values,
        "one large": torch.cat([spread.double(), torch.tensor([1e9])]),
        "constant": torch.full((20_000,), 0.3),
        "far from 0": spread.double() + 1e6,
    }


@pytest.mark.parametrize("name", long_vectors(0))
@pytest.mark.parametrize("upper", [1.0, math.inf])
def test_long_vectors_have_the_threshold_of_the_whole(monkeypatch, name, upper):
    """One pass and a bracket from a sample give what the search on all entries gives."""
    from steelyard.reweight import projections

    for seed in range(3):
        x = long_vectors(seed)[name]
        for share in (1e-4, 0.01, 0.3, 0.9, 0.9999):
            monkeypatch.setattr(projections, "_LONG", 1 << 30)
            whole = projections._threshold(x, share * len(x), upper, ALONE)
            monkeypatch.setattr(projections, "_LONG", 1)
            monkeypatch.setattr(projections, "_SAMPLE", 500)
            monkeypatch.setattr(projections, "_CHUNK", 3000)
            fast = projections._threshold(x, share * len(x), upper, ALONE)
            size, other = ((x.double() - v).clamp(0, upper).sum().item() for v in (whole, fast))
            assert fast == pytest.approx(whole, abs=1e-12, rel=1e-13) or other == pytest.approx(size, rel=1e-13)


def test_long_vectors_take_few_passes(monkeypatch):
    from steelyard.reweight import projections

    passes = []
    chunks = projections._chunks
    monkeypatch.setattr(projections, "_chunks", lambda values: passes.append(values.numel()) or chunks(values))
    monkeypatch.setattr(projections, "_whole", whole := projections._whole)
    monkeypatch.setattr(
        projections, "_whole", lambda values, *rest: passes.append(values.numel()) or whole(values, *rest)
    )
    x = torch.rand(600_000, generator=torch.Generator().manual_seed(1))
    project_box_simplex(x, 200_000)
    assert sum(passes) <= 2.3 * len(x)  # the threshold and the result; besides the ends, which `aminmax` reads


def test_few_rounds(monkeypatch):
    """About as many passes as Newton steps: no bisection to a tolerance."""
    from steelyard.reweight import projections

    rounds = []
    settle = projections._settle
    monkeypatch.setattr(projections, "_settle", lambda *a: rounds.append(a[0].numel()) or settle(*a))
    n = 200_000
    x = 0.3 + 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(0))
    project_box_simplex(x, 0.3 * n)
    assert sum(rounds) <= 6 * n


@given(VECTORS)
@quick
def test_identity_inside(x):
    x = x.abs()
    assert torch.equal(project_ball(x, 1e4), x)
    assert torch.equal(project_ball(x, 1e5, p=1), x)
    inside = x.clamp(0, 1)
    assert torch.equal(project_box_simplex(inside, len(x), equality=False), inside)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_edges(n):
    x = torch.linspace(-1, 2, n) if n else torch.empty(0)
    assert torch.equal(project_box_simplex(x, 0), torch.zeros(n))
    assert torch.equal(project_box_simplex(x, 0, equality=False), torch.zeros(n))
    assert torch.equal(project_box_simplex(x, n), torch.ones(n))
    assert torch.equal(project_box_simplex(x, n + 3, equality=False), x.clamp(0, 1))
    assert torch.equal(project_ball(x, 0, p=1), torch.zeros(n))
    assert torch.equal(project_ball(x, 0, p=2), torch.zeros(n))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_box_simplex(torch.rand(3), 4), "budget is 4, but 3 probabilities"),
        (lambda: project_box_simplex(torch.empty(0), 1), "budget is 1, but 0 probabilities"),
        (lambda: project_box_simplex(torch.rand(3), -1), "budget must be finite and >= 0.0, got -1"),
        (lambda: project_box_simplex(torch.rand(3), math.nan), "budget"),
        (lambda: project_box_simplex(torch.tensor([0.0, math.nan]), 1), r"probabilities has 1 .*\[1\]: nan"),
        (lambda: project_box_simplex(torch.tensor([math.inf]), 1), "probabilities has 1"),
        (lambda: project_ball(torch.tensor([math.nan]), 1), "weights has 1"),
        (lambda: project_ball(torch.rand(3), -1.0), "radius must be"),
        (lambda: project_ball(torch.rand(3), 1.0, p=3), "p must be one of"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_ten_million():
    n = 10_000_000
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    s = project_box_simplex(x, 0.3 * n)
    assert s.sum(dtype=torch.float64).item() == pytest.approx(0.3 * n, rel=1e-7)


CUTS = st.lists(st.integers(0, 40), min_size=1, max_size=3)


def on_shares(project, x, cuts):
    """The projection of `x` by one thread a share; shares may be empty. Also: the collectives that each asked for."""
    bounds = [0, *sorted(min(cut, len(x)) for cut in cuts), len(x)]
    shares = [x[low:high] for low, high in pairwise(bounds)]
    asked = set()

    def body(ranks):
        result = project(shares[ranks.rank], ranks)
        asked.add(ranks.asked)
        return result

    found = in_threads(len(shares), body)
    assert all(isinstance(one, torch.Tensor) for one in found), found
    (count,) = asked  # the same on all
    return torch.cat(found), count


@settings(deadline=None, max_examples=150, derandomize=True)
@given(VECTORS, SHARE, st.booleans(), CUTS)
def test_shares_of_the_box_simplex_are_those_of_one_process(x, share, equality, cuts):
    budget = share * len(x)
    found, asked = on_shares(lambda s, ranks: project_box_simplex(s, budget, equality=equality, ranks=ranks), x, cuts)
    scale = 1 + x.abs().max().item()
    torch.testing.assert_close(found, project_box_simplex(x, budget, equality=equality), rtol=0, atol=1e-14 * scale)
    assert asked <= 4 * math.log2(2 * len(x)) + 6


@settings(deadline=None, max_examples=150, derandomize=True)
@given(VECTORS, st.floats(0, 100), st.sampled_from([1, 2]), CUTS)
def test_shares_of_the_ball_are_those_of_one_process(x, radius, p, cuts):
    found, asked = on_shares(lambda w, ranks: project_ball(w, radius, p=p, ranks=ranks), x, cuts)
    torch.testing.assert_close(found, project_ball(x, radius, p=p), rtol=1e-14, atol=1e-14 * (1 + x.abs().max().item()))
    assert asked <= 4 * math.log2(2 * len(x)) + 6


HARD = {
    "normal": torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "ties": torch.randint(0, 5, (20_000,), generator=torch.Generator().manual_seed(0)).double() / 4,
    "sorted geometric": 2.0 ** -torch.arange(1000, dtype=torch.float64) * 1e6,
    "two scales": torch.cat([torch.linspace(0, 1e-9, 999, dtype=torch.float64), torch.tensor([1e6]).double()]),
    "non-convex": torch.cat([torch.linspace(0, 1, 9000) ** 9, 1 + torch.linspace(0, 1, 9000) ** (1 / 9)]).double(),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("share", [1e-3, 0.3, 0.999])
def test_collectives_are_logarithmic_in_n(name, share):
    """A bisection to float64's precision would need 60 to 1000 of them, as the scale of the numbers has it."""
    x = HARD[name]
    asked = {}
    for kind, project in {
        "box": lambda s, ranks: project_box_simplex(s, share * len(x), ranks=ranks),
        "ball": lambda s, ranks: project_ball(s, share * x.clamp(min=0).sum().item(), p=1, ranks=ranks),
    }.items():
        found, asked[kind] = on_shares(project, x, [len(x) // 7, len(x) // 2])
        torch.testing.assert_close(found, project(x, ALONE), rtol=0, atol=1e-14 * (1 + x.abs().max().item()))
    assert max(asked.values()) <= 4 * math.log2(2 * len(x)) + 6


def test_errors_of_shares_are_everywhere():
    bad = {0: torch.rand(3), 1: torch.tensor([0.5, math.nan])}
    one, other = in_threads(2, lambda ranks: project_box_simplex(bad[ranks.rank], 1.0, ranks=ranks))
    assert isinstance(one, RankError)
    assert "rank 1: ValueError: probabilities has 1 entries" in str(one)
    assert isinstance(other, ValueError)
    found = in_threads(3, lambda ranks: project_box_simplex(torch.rand(ranks.rank), 4.0, ranks=ranks))
    assert all(isinstance(e, ValueError) and "budget is 4.0, but 3 probabilities" in str(e) for e in found)
    found = in_threads(3, lambda ranks: project_box_simplex(torch.rand(0), 0.0, ranks=ranks))
    assert all(len(share) == 0 for share in found)
