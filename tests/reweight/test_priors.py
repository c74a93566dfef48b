"""Priors: the budget is met, the score's order is kept, pooling is what it says; what an outer run makes of them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, special

from steelyard.reweight import (
    ConstraintSet,
    CosineDecay,
    CubicBudget,
    Maple,
    Prior,
    Sqrt,
    VREx,
    bernoulli_kl,
    bernoulli_kl_gradient,
    budget_of,
    keep_probabilities,
    pool,
)
from steelyard.reweight.priors import _under_budget
from tests.support.environments import linear_run, spurious

NAN, INF = math.nan, math.inf
# A coarse grid (ties), general values, infinite and missing ones.
SCORES = st.one_of(
    st.integers(-4, 4).map(float), st.floats(-1e6, 1e6), st.sampled_from([NAN, INF, -INF]), st.floats(-1e-300, 1e-300)
)
VECTORS = hnp.arrays("float64", st.integers(1, 40), elements=SCORES).map(torch.from_numpy)
SHARE = st.one_of(st.sampled_from([0.0, 1e-9, 0.5, 1 - 1e-9, 1.0]), st.floats(1e-100, 1))
TEMPERATURE = st.one_of(st.sampled_from([1e-12, 1e-3, 0.2, 1.0, 1e6]), st.floats(1e-6, 10))
PROBABILITY = st.one_of(st.sampled_from([0.0, 1e-300, 0.3, 1.0]), st.floats(0, 1))
LAMBDA = st.one_of(st.sampled_from([0.0, 1.0, 1e6]), st.floats(0, 5))
quick = settings(deadline=None, max_examples=100, derandomize=True)


@st.composite
def pools(draw):
    """Some priors of one length, their weights, a budget."""
    n = draw(st.integers(1, 20))
    number = draw(st.integers(1, 4))
    priors = [torch.from_numpy(draw(hnp.arrays("float64", n, elements=PROBABILITY))) for _ in range(number)]
    return priors, [draw(LAMBDA) for _ in priors], as_budget(draw(SHARE), n)


def as_budget(share, n):
    """The budget of share * n samples: that number, or the share itself where the number would be one of a share."""
    return share if 0 < share * n < 1 else share * n


def met(probabilities, budget):
    return probabilities.sum().item() == pytest.approx(budget, rel=1e-6, abs=0)


@quick
@given(VECTORS, SHARE, TEMPERATURE)
def test_probabilities_meet_the_budget_in_the_order_of_the_scores(scores, share, temperature):
    n, budget = len(scores), share * len(scores)
    pi = keep_probabilities(scores, as_budget(share, n), temperature=temperature)
    assert ((pi >= 0) & (pi <= 1)).all()
    assert met(pi, budget)
    missing = scores.isnan()
    assert (pi[missing] == budget / n).all()
    known, mine = scores[~missing], pi[~missing]
    order = known.argsort()
    assert (mine[order].diff() >= 0).all()
    assert (mine[order].diff()[known[order][1:] == known[order][:-1]] == 0).all()  # ties get the same


@quick
@given(VECTORS, SHARE, TEMPERATURE)
def test_only_ranks_count(scores, share, temperature):
    budget = as_budget(share, len(scores))
    squashed = scores.double().unique(return_inverse=True)[1].double()  # the same order, evenly spaced
    squashed[scores.isnan()] = NAN
    pi, again = (keep_probabilities(one, budget, temperature=temperature) for one in (scores, squashed))
    assert torch.equal(pi, again)


@quick
@given(pools(), st.randoms(use_true_random=False))
def test_pooling(given_, random):
    priors, weights, budget = given_
    pooled = pool(priors, budget, weights=weights)
    assert ((pooled >= 0) & (pooled <= 1)).all()
    kept = budget_of(budget, len(pooled))
    assert met(pooled, kept)
    total = sum(w * torch.logit(p).clamp(-20, 20) for p, w in zip(priors, weights, strict=True))
    assert (pooled[total.argsort()].diff() >= 0).all()
    inside = (pooled > 1e-12) & (pooled < 1 - 1e-12) & (0 < kept < len(pooled))
    shift = (torch.logit(pooled) - total)[inside]  # one threshold for all
    scale = 1 + total.abs().max().item()
    assert not len(shift) or (shift.max() - shift.min()).item() <= 1e-3 + 1e-12 * scale
    order = list(range(len(priors)))
    random.shuffle(order)
    shuffled = pool([priors[j] for j in order], budget, weights=[weights[j] for j in order])
    tolerance = 1e-12 * scale  # sums of large log-odds round differently in another order
    torch.testing.assert_close(shuffled, pooled, rtol=0, atol=tolerance)


@quick
@given(pools(), hnp.arrays("float64", 20, elements=PROBABILITY).map(torch.from_numpy), st.integers(0, 4))
def test_weight_zero_is_absent(given_, other, place):
    priors, weights, budget = given_
    more, lambdas = list(priors), list(weights)
    more.insert(place, other[: len(priors[0])])
    lambdas.insert(place, 0.0)
    assert torch.equal(pool(more, budget, weights=lambdas), pool(priors, budget, weights=weights))


@pytest.mark.parametrize("temperature", [0.05, 0.2, 3.0])
def test_threshold_is_that_of_scipy(temperature):
    scores = torch.randn(101, generator=torch.Generator().manual_seed(0))
    z = (scores.numpy().argsort().argsort() + 0.5) / 101
    tau = optimize.brentq(lambda t: special.expit((z - t) / temperature).sum() - 30, -30, 30, xtol=1e-14)
    expected = torch.from_numpy(special.expit((z - tau) / temperature))
    torch.testing.assert_close(keep_probabilities(scores, 30, temperature=temperature), expected, rtol=1e-10, atol=0)


def test_order_is_exact_to_the_last_digit():
    """Ties, and log-odds a few digits apart, where torch's sigmoid alone gives some in the wrong order."""
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        n = int(torch.randint(2, 60, (1,), generator=generator))
        x = torch.randn(n, generator=generator, dtype=torch.float64)
        share = torch.rand(1, generator=generator).item()
        for odds in ((2 * x).round() / 3, torch.cat([1e-15 * x, 7 + 1e-15 * x])):
            odds = odds.sort().values
            steps = _under_budget(odds, len(odds) * share).diff()
            assert (steps >= 0).all()
            assert (steps[odds.diff() == 0] == 0).all()


@pytest.mark.parametrize("temperature", [1e-12, 1e-9])
def test_budget_is_met_where_log_odds_dwarf_the_digits_of_tau(temperature):
    for budget in torch.linspace(0.3, 9.7, 50).tolist():
        pi = keep_probabilities(torch.arange(10.0), budget, temperature=temperature)
        assert met(pi, budget_of(budget, 10))


@pytest.mark.parametrize(
    ("scores", "budget", "expected"),
    [
        ([3.0] * 4, 1.0, [0.25] * 4),  # constant scores: no opinion
        ([NAN] * 4, 1.0, [0.25] * 4),
        ([1.0, 2.0], 0, [0.0, 0.0]),
        ([1.0, 2.0], 2, [1.0, 1.0]),
        ([5.0], 0.5, [0.5]),
    ],
)
def test_special_scores(scores, budget, expected):
    pi = keep_probabilities(torch.tensor(scores), budget)
    torch.testing.assert_close(pi, torch.tensor(expected, dtype=torch.float64))


def test_temperature_to_zero_keeps_the_best():
    pi = keep_probabilities(torch.tensor([3.0, -INF, INF, 7.0, 0.0]), 2, temperature=1e-9)
    assert pi.tolist() == [0, 0, 1, 1, 0]


def test_pooling_adds_log_odds_and_certainties_count_as_20():
    p, q = torch.tensor([0.9, 0.2, 0.4]), torch.tensor([0.5, 0.7, 0.1])
    expected = torch.logit(p.double()) + 2 * torch.logit(q.double())
    found = torch.logit(pool([p, q], 1.2, weights=[1, 2])) - expected
    torch.testing.assert_close(found, found[:1].expand(3), rtol=0, atol=1e-9)
    one = torch.tensor([1.0, 0.0, 0.5, 0.5])
    torch.testing.assert_close(pool([one, 1 - one], 2.0), torch.full((4,), 0.5, dtype=torch.float64))
    yes = pool([one, torch.tensor([0.1, 0.9, 0.5, 0.5])], 2.0)
    assert yes[0] > 1 - 1e-7
    assert yes[1] < 1e-7
    raised = pool([torch.tensor([1.0, 0.0, 0.0, 0.0])], 2.5)  # only one sample is above 0
    torch.testing.assert_close(raised, torch.tensor([1.0, 0.5, 0.5, 0.5], dtype=torch.float64), rtol=1e-6, atol=0)


def test_missing_scores_are_judged_by_the_other_prior():
    first = keep_probabilities(torch.tensor([1.0, NAN, NAN, 2.0, 3.0]), 2)
    second = keep_probabilities(torch.tensor([5.0, 9.0, 1.0, 5.0, 5.0]), 2)
    pooled = pool([first, second], 2)
    assert pooled[1] > pooled[2]
    assert pooled[4] > pooled[3] > pooled[0]


@pytest.mark.parametrize("pi", [0.0, 0.2, 0.7, 1.0])
def test_kl_and_its_gradient(pi):
    """scipy's divergence, and central differences; pi = 0 and 1 count as odds of e^20."""
    s = torch.tensor([0.02, 0.3, 0.5, 0.95], dtype=torch.float64)
    prior = torch.full_like(s, pi)
    held = min(max(pi, special.expit(-20)), special.expit(20))
    x = s.numpy()
    expected = special.rel_entr(x, held) + special.rel_entr(1 - x, 1 - held)
    assert bernoulli_kl(s, prior) == pytest.approx(expected.mean(), rel=1e-7)
    for i, slope in enumerate(bernoulli_kl_gradient(s, prior)):
        h = torch.zeros_like(s)
        h[i] = 1e-6
        difference = (bernoulli_kl(s + h, prior) - bernoulli_kl(s - h, prior)) / 2e-6
        assert slope.item() == pytest.approx(difference, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_finite_at_the_ends_and_least_at_the_prior(dtype):
    s = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.25], dtype=dtype)
    prior = torch.tensor([0.5, 0.5, 0.0, 1.0, 1.0, 0.0, 0.25], dtype=dtype)
    slope = bernoulli_kl_gradient(s, prior)
    assert slope.dtype == dtype
    torch.testing.assert_close(slope * 7, torch.tensor([-20.0, 20, 0, 0, -40, 40, 0], dtype=dtype))
    assert math.isfinite(bernoulli_kl(s, prior))
    assert bernoulli_kl(s[[2, 3, 6]], prior[[2, 3, 6]]) == pytest.approx(0, abs=1e-8)
    rising = bernoulli_kl_gradient(torch.linspace(0, 1, 101, dtype=dtype), torch.full((101,), 0.3, dtype=dtype))
    assert (rising.diff() > 0).all()


@pytest.mark.parametrize(
    ("constraints", "progress", "expected"),
    [
        (ConstraintSet(50), 0.0, 50),
        (ConstraintSet(CubicBudget(80, 20)), 0.0, 80),
        (ConstraintSet(CubicBudget(80, 20)), 1.0, 20),
        (ConstraintSet(50, equality=False), 0.0, 30),  # below the bound already
        (ConstraintSet(10, equality=False), 0.0, 10),
        (ConstraintSet(500, equality=False), 0.0, 30),
    ],
)
def test_prior_moves_with_the_budget(constraints, progress, expected):
    pi = keep_probabilities(torch.randn(100, generator=torch.Generator().manual_seed(0)), 30)
    moved = Prior(pi).under(constraints, progress)
    assert met(moved, expected)
    shift = torch.logit(moved) - torch.logit(pi)
    torch.testing.assert_close(shift, shift[:1].expand(100), rtol=0, atol=1e-7)


def biased():
    """A problem, and the keep-probabilities of a score that favours disagreeing samples: 60 of 200."""
    train, agrees = spurious()
    noise = torch.rand(200, generator=torch.Generator().manual_seed(1))
    return train, keep_probabilities(noise + (~agrees).float(), 60)


def maple(**options):
    adam = partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.999), eps=1e-12)
    defaults = {"budget": 60, "steps": 3, "probability_optimizer": adam}
    return Maple(linear_run(steps=5), Sqrt(VREx()), **{**defaults, **options})


@pytest.mark.parametrize("start", ["probabilities", "weights", "both", "none"])
def test_start(start):
    train, pi = biased()
    state = maple(prior=Prior(pi, start)).begin(train)
    s = pi if start in ("probabilities", "both") else torch.full_like(pi, 0.3)
    w = pi * (200 / pi.square().sum()).sqrt() if start in ("weights", "both") else torch.ones_like(pi)  # in the ball
    torch.testing.assert_close(state.probabilities.detach(), s, rtol=0, atol=1e-8)
    torch.testing.assert_close(state.weights.detach(), w, rtol=1e-8, atol=0)
    assert state.weights.requires_grad
    given_ = torch.linspace(0, 0.6, 200, dtype=torch.float64)
    other = maple(prior=Prior(pi, start)).begin(train, given_).probabilities.detach()
    torch.testing.assert_close(other, given_, rtol=0, atol=1e-8)


def test_no_prior_and_coefficient_zero_are_the_plain_run():
    train, pi = biased()
    plain = maple().fit(train)
    assert maple(prior=Prior(pi, "none")).fit(train) == plain
    assert maple(prior=Prior(pi, "none", anchor=0.0)).fit(train) == plain
    vanished = maple(prior=Prior(pi, "none", anchor=1.0, decay=lambda progress: 0.0)).fit(train)
    assert torch.equal(vanished.probabilities, plain.probabilities)
    assert [row["anchor_coefficient"] for row in vanished.history] == [0.0] * 3
    assert maple(prior=Prior(pi, "none", anchor=1.0)).fit(train) != plain


def test_anchor_adds_its_gradient_after_clipping_and_decays():
    train, pi = biased()
    seen, gradients = [], {}

    def spy(name, leaves):
        optimizer = torch.optim.SGD(leaves, lr=1e-3)
        note = lambda o, a, k: gradients[name].append(o.param_groups[0]["params"][0].grad.clone())  # noqa: E731
        optimizer.register_step_pre_hook(note)
        return optimizer

    for name, prior in {"plain": None, "anchored": Prior(pi, "none", 3.0, CosineDecay(0.5))}.items():
        gradients[name] = []
        options = {"learn": "probabilities", "steps": 2, "clip": 1e-4, "probability_optimizer": partial(spy, name)}
        result = maple(prior=prior, **options).fit(train, callbacks=[seen.append])
    found = gradients["anchored"][0] - gradients["plain"][0]
    s = torch.full_like(pi, 0.3)
    torch.testing.assert_close(found, 3 * (torch.logit(s) - torch.logit(pi)) / 200, rtol=1e-6, atol=1e-9)
    assert [row["anchor_coefficient"] for row in result.history] == pytest.approx([3.0, 3 * 0.75])
    assert result.history[0]["anchor_kl"] == pytest.approx(bernoulli_kl(s, pi), rel=1e-6)
    assert result.history[1]["anchor_kl"] < result.history[0]["anchor_kl"]
    assert result.history[0]["outer_loss"] == seen[0].outer_loss  # the risk alone


def test_a_large_anchor_pulls_s_to_the_prior():
    train, pi = biased()
    distance = {}
    for anchor in (0.0, 0.1, 1e6):
        prior = Prior(pi, "none", anchor, decay=lambda progress: 1.0)
        s = maple(prior=prior, steps=40, learn="probabilities").fit(train).probabilities
        distance[anchor] = (s - pi).abs().max().item()
    assert distance[1e6] < 0.01
    assert distance[1e6] < distance[0.1] < distance[0.0]
    assert distance[0.0] > 0.3


def test_resumed_run_with_a_prior_equals_an_uninterrupted_one(tmp_path):
    train, pi = biased()
    make = partial(maple, steps=6, draws=2, prior=Prior(pi, "both", anchor=0.5))
    straight = make().fit(train)
    first = make()
    state = first.begin(train)
    first.fit(train, callbacks=[lambda step: step.step == 2], state=state)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    second = make()
    state = second.begin(train)
    state.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.fit(train, state=state) == straight


HALF = torch.full((4,), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_probabilities(torch.zeros(0), 0), "no samples"),
        (lambda: keep_probabilities(HALF, 5), r"budget must be .*in \[0, 4\], got 5"),
        (lambda: keep_probabilities(HALF, NAN), "budget must be finite"),
        (lambda: keep_probabilities(HALF, 2, temperature=0), "temperature must be"),
        (lambda: pool([], 1), "got 0 and 0"),
        (lambda: pool([HALF], 1, weights=[1, 1]), "got 1 and 2"),
        (lambda: pool([HALF, HALF[:3]], 1), r"priors\[0\] has 4, priors\[1\] has 3"),
        (lambda: pool([HALF, HALF], 1, weights=[1, -1]), r"weights\[1\] must be"),
        (lambda: pool([HALF * 3], 1), r"probabilities must be in \[0, 1\]"),
        (lambda: Prior(HALF * NAN), r"probabilities must be in \[0, 1\]"),
        (lambda: Prior(HALF, anchor=-1), "anchor must be"),
        (lambda: Prior(HALF, start="s"), "start"),
        (lambda: maple(prior=Prior(HALF, anchor=1), learn="weights"), "learn='weights' holds s"),
        (lambda: maple(prior=Prior(HALF)).begin(spurious()[0]), "train has 200, prior has 4"),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):  # TypeError: the shape and type checks of the tests
        call()


def test_many_scores():
    pi = keep_probabilities(torch.from_numpy(np.random.default_rng(0).normal(size=200_000)), 123.4)
    assert met(pi, 123.4)


@quick
@given(VECTORS, SHARE, TEMPERATURE, st.integers(1, 4), st.integers(0, 100))
def test_strata_have_their_shares_and_are_ranked_apart(scores, share, temperature, number, seed):
    n, budget = len(scores), share * len(scores)
    strata = torch.randint(number, (n,), generator=torch.Generator().manual_seed(seed))
    pi = keep_probabilities(scores, as_budget(share, n), temperature=temperature, strata=strata)
    assert met(pi, budget)
    for stratum in strata.unique():
        member = strata == stratum
        assert met(pi[member], share * int(member.sum()))
        alone = keep_probabilities(scores[member], as_budget(share, int(member.sum())), temperature=temperature)
        torch.testing.assert_close(pi[member], alone, rtol=1e-9, atol=1e-12)


@quick
@given(hnp.arrays("float64", st.integers(1, 30), elements=st.integers(-4, 4).map(float)).map(torch.from_numpy), SHARE)
def test_a_difference_between_strata_is_none(scores, share):
    strata = torch.arange(len(scores)) % 3
    budget = as_budget(share, len(scores))
    pi = keep_probabilities(scores, budget, strata=strata)
    assert torch.equal(keep_probabilities(scores - 100.0 * strata, budget, strata=strata), pi)


def test_one_stratum_is_none():
    scores = torch.randn(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep_probabilities(scores, 7, strata=torch.full((30,), 5)), keep_probabilities(scores, 7))
    with pytest.raises((ValueError, TypeError), match="strata"):
        keep_probabilities(scores, 7, strata=torch.zeros(29, dtype=torch.int64))


@quick
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), SHARE, st.integers(0, 100))
def test_balanced_strata_share_the_budget_equally_as_far_as_they_go(sizes, share, seed):
    """Shares are those of water filling: equal, or at the cap; and no capped stratum could have taken more."""
    n = sum(sizes)
    strata = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    scores = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pi = keep_probabilities(scores, as_budget(share, n), strata=strata, balanced=True)
    assert met(pi, share * n)
    found = [float(pi[strata == k].sum()) for k in range(len(sizes))]
    if share >= 0.9:
        assert found == pytest.approx([share * size for size in sizes], rel=1e-6)
        return
    level = max(found)
    for mine, size in zip(found, sizes, strict=True):
        assert mine == pytest.approx(min(level, 0.9 * size), rel=1e-6, abs=1e-12)
