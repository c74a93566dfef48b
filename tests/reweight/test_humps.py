"""The two-means cut against every cut there is; the valley's test against one hump of many shapes, and against two."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import adjusted_rand_score

from steelyard.reweight import adjusted_rand, two_means, valley
from steelyard.reweight.humps import _log_tail

VALUES = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=8).filter(lambda v: len(set(v)) > 1)


def within(values, high):
    """The sum of squares within the groups, of one split ``(n,)`` or of many ``(splits, n)``."""
    member = torch.stack([high, ~high]).double()
    means = (member * values).sum(-1, keepdim=True) / member.sum(-1, keepdim=True).clamp_min(1)
    return (member * (values - means) ** 2).sum((0, -1))


@given(VALUES)
@settings(max_examples=30, deadline=None)
def test_no_split_into_two_has_less_variance_within(values):
    x = torch.tensor(values, dtype=torch.float64)
    found = two_means(x)
    splits = torch.tensor(list(itertools.product([False, True], repeat=len(x)))[1:-1])
    least = float(within(x, splits).min())
    assert float(within(x, x > found.at)) == pytest.approx(least, abs=1e-6)
    total = float(((x - x.mean()) ** 2).sum())
    assert found.share_between == pytest.approx(1 - least / total, abs=1e-9)
    assert found.low == pytest.approx(float(x[x <= found.at].mean()))
    assert found.high == pytest.approx(float(x[x > found.at].mean()))


@given(VALUES, st.randoms(use_true_random=False), st.sampled_from([0.125, 1.0, 8.0]), st.integers(-40, 40))
@settings(max_examples=30, deadline=None)
def test_order_scale_and_origin_move_the_cut_with_the_numbers(values, random, scale, shift):
    x = torch.tensor(values, dtype=torch.float64)
    order = torch.tensor(random.sample(range(len(x)), len(x)))
    moved = two_means(x[order] * scale + shift)
    found = two_means(x)
    # Cuts may be equally good; then rounding chooses, and the share alone is the same.
    assert moved.share_between == pytest.approx(found.share_between, abs=1e-12)
    high = (x[order] * scale + shift) > moved.at
    assert float(within(x[order], high)) == pytest.approx(float(within(x, x > found.at)), abs=1e-9)


def test_known_shares_of_variance():
    steps = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert two_means(steps).share_between == pytest.approx(0.75, abs=1e-4)
    assert two_means(torch.special.ndtri(steps)).share_between == pytest.approx(2 / torch.pi, abs=1e-3)
    assert two_means(1e12 + steps).at == pytest.approx(1e12 + 0.5, rel=1e-14)


def test_the_cut_is_between_numbers_that_no_number_lies_between():
    low = torch.tensor(1.0, dtype=torch.float64)
    pair = torch.stack([low, low.nextafter(torch.tensor(2.0, dtype=torch.float64))])
    assert (pair > two_means(pair).at).tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "values must hold two different numbers"),
        ([3.0, 3.0], "all 2 are equal"),
        ([0.0, float("nan")], "values has 1 entries that are NaN"),
    ],
    ids=["none", "equal", "nan"],
)
def test_numbers_that_cannot_be_cut_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        two_means(torch.tensor(values))


@pytest.mark.parametrize("trials", [0, 1, 7, 400], ids=str)
@pytest.mark.parametrize("chance", [0.01, 0.3, 0.9, 1.0], ids=str)
def test_the_tail_is_bounded_from_above_and_not_far(trials, chance):
    k = torch.arange(0, trials + 1, max(1, trials // 7)).double()
    n, p = torch.full_like(k, trials), torch.full_like(k, chance)
    bound, exact = _log_tail(k, n, p).exp(), torch.tensor(stats.binom.cdf(k.numpy(), trials, chance))
    assert bool((bound >= exact - 1e-12).all())
    assert float(bound[0]) == pytest.approx((1 - chance) ** trials if chance < 1 else 1)  # none of n: no bound at all
    below = k < n * p if chance < 1 else torch.zeros_like(k, dtype=torch.bool)
    series = ((n - k + 1) * p / ((n + 1) * p - k))[below]
    assert bool((bound[below] <= exact[below] * series * (1 + 1e-9)).all())
    assert bool((bound[~below] == 1).all())


# One hump, before it is clipped to [0, 1], within half of the interval beyond its ends.
ONE_HUMP = {
    "narrow": lambda n, g: 0.3 + 0.1 * torch.randn(n, generator=g),
    "bell at the budget": lambda n, g: 0.3 + 0.25 * torch.randn(n, generator=g),
    "bell over both ends": lambda n, g: (0.5 + 0.35 * torch.randn(n, generator=g)).clamp(-0.5, 1.5),
    "flat over all": lambda n, g: torch.rand(n, generator=g) * 2 - 0.5,
    "flat over [0, 1]": lambda n, g: torch.rand(n, generator=g),
    "falling": lambda n, g: (-0.5 + 0.5 * torch.empty(n).exponential_(generator=g)).clamp_max(1.5),
    "rising": lambda n, g: 1.5 - 0.5 * torch.empty(n).exponential_(generator=g).clamp_max(4),
    "heavy tails": lambda n, g: (0.4 + 0.1 * torch.empty(n).cauchy_(generator=g)).clamp(-0.45, 1.45),
    "top beyond one end": lambda n, g: (1.3 - 0.6 * torch.rand(n, generator=g).sqrt() * 3).clamp(-0.5, 1.5),
}
TWO_HUMPS = {
    "apart": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.15, 0.9, 0.2) + 0.08 * torch.randn(n, generator=g),
    "at the ends": lambda n, g: (torch.rand(n, generator=g) < 0.3).float() * 1.1 + 0.1 * torch.randn(n, generator=g),
    "broad and narrow": lambda n, g: torch.where(
        torch.rand(n, generator=g) < 0.15, 0.97, 0.3 * torch.randn(n, generator=g).abs()
    ),
}


def rejected(law, n, seeds):
    """The share of samples of `law` in which `find_groups` would see two humps."""
    found = []
    for seed in range(seeds):
        s = law(n, torch.Generator().manual_seed(seed)).clamp(0, 1)
        one = valley(s)
        found.append(one.p_value <= 0.01 and one.ratio >= 2)
    return sum(found) / seeds


@pytest.mark.parametrize("law", ONE_HUMP.values(), ids=ONE_HUMP)
def test_one_hump_is_refused_whatever_its_shape(law):
    assert rejected(law, 1000, 40) == 0


@pytest.mark.parametrize("law", TWO_HUMPS.values(), ids=TWO_HUMPS)
def test_two_humps_are_found(law):
    assert rejected(law, 1000, 20) >= 0.95


def test_the_share_of_variance_would_take_one_hump_for_two():
    """What clipping makes of one hump has more of its variance between than coloured digits' groups do."""
    one = ONE_HUMP["flat over all"](1000, torch.Generator().manual_seed(0)).clamp(0, 1)
    apart = TWO_HUMPS["broad and narrow"](1000, torch.Generator().manual_seed(0)).clamp(0, 1)
    assert two_means(one).share_between > 0.84
    assert valley(one).p_value > 0.5
    assert valley(apart).p_value < 1e-4


def test_a_longer_reach_asks_for_a_deeper_valley_where_numbers_are_at_the_ends():
    s = torch.cat([torch.zeros(300), torch.linspace(0.01, 0.99, 100), torch.ones(300)])
    found = [valley(s, reach=reach) for reach in (0.0, 0.1, 0.5, 1.0, 4.0)]
    assert [one.p_value for one in found] == sorted(one.p_value for one in found)
    assert found[0].p_value < 1e-6
    assert found[-1].p_value == 1
    assert found[0].ratio > found[-1].ratio


@pytest.mark.parametrize("law", TWO_HUMPS.values(), ids=TWO_HUMPS)
def test_inside_of_the_interval_no_reach_hides_a_valley(law):
    s = (0.1 + 0.8 * law(1000, torch.Generator().manual_seed(0)).clamp(0, 1)).clamp(0, 1)
    assert valley(s, reach=50).p_value == valley(s, reach=0.5).p_value < 1e-6


def test_humps_that_overlap_are_found_among_many():
    """As on Colored MNIST with wrong labels: nothing is at an end, and the lower hump is twice as high as the dip."""
    g = torch.Generator().manual_seed(0)
    s = torch.cat([0.22 + 0.07 * torch.randn(35_000, generator=g), 0.5 + 0.07 * torch.randn(15_000, generator=g)])
    found = valley(s.clamp(0, 1))
    assert found.at == pytest.approx(0.375)
    assert found.ratio > 2
    assert found.p_value < 1e-100


@given(st.lists(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_the_mirror_image_has_the_same_valley(values):
    s = torch.tensor(values, dtype=torch.float64)
    one, two = valley(s), valley(1 - s)
    assert 0 <= one.p_value <= 1
    assert one.low + one.inside + one.high == len(values)
    assert two.p_value == pytest.approx(one.p_value, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_agreement_is_scikit_learns(pairs):
    one, two = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert adjusted_rand(one, two) == pytest.approx(adjusted_rand_score(one.tolist(), two.tolist()), abs=1e-12)
    assert adjusted_rand(one, two) == pytest.approx(adjusted_rand(two, one), abs=1e-12)
    assert adjusted_rand(one, 7 - one) == 1
