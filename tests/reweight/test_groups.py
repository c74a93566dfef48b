"""Groups are found where s has two humps and refused where it has one; every cell gets its share of the mass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.reweight import (
    Maple,
    OneHumpError,
    Reweighting,
    Sqrt,
    VREx,
    adjusted_rand,
    balance,
    find_groups,
    keep_probabilities,
    valley,
)
from tests.support.environments import linear_run, shortcut


def two_humps(seed=0, n=1000, share=0.15):
    g = torch.Generator().manual_seed(seed)
    rare = torch.rand(n, generator=g) < share
    s = torch.where(rare, 0.97 + 0.02 * torch.randn(n, generator=g), 0.25 * torch.randn(n, generator=g).abs())
    return s.clamp(0, 1), rare


def test_groups_and_cells():
    s, rare = two_humps()
    found = find_groups(s, torch.arange(1000) % 3)
    assert adjusted_rand(found.high, rare) > 0.98
    assert found.cells.tolist() == (2 * (torch.arange(1000) % 3) + found.high).tolist()
    assert find_groups(s).cells.tolist() == found.high.long().tolist()
    assert all(isinstance(value, float) for value in found.figures().values())


def test_the_valley_is_the_better_cut_where_one_hump_is_broad():
    s, rare = two_humps(share=0.08)
    valley, middle = find_groups(s), find_groups(s, cut="two_means")
    assert middle.cut == middle.two_means.at < valley.cut
    assert adjusted_rand(valley.high, rare) > adjusted_rand(middle.high, rare) + 0.05


def test_maple_finds_who_contradicts_the_shortcut_from_every_start():
    train, agrees = shortcut()
    one, two, three = (
        Maple(linear_run(steps=20, seed=seed), Sqrt(VREx()), budget=0.3, steps=15, learn="probabilities").fit(train)
        for seed in (2, 3, 0)
    )
    found = one.groups(train.targets, repeats=[two, three])
    assert adjusted_rand(found.high, ~agrees) > 0.95
    assert min(found.agreements) > 0.9
    for run in (one, two, three):
        assert adjusted_rand(run.groups(train.targets).high, ~agrees) > 0.9
    with pytest.raises(OneHumpError, match="find different groups"):
        one.groups(repeats=[two, Reweighting(three.weights, three.probabilities.flip(0), [], train.index)])


def test_classes_that_are_kept_differently_are_no_groups():
    """Two humps, one a class: who contradicts a shortcut is in both classes."""
    g = torch.Generator().manual_seed(0)
    targets = torch.arange(1000) % 2
    s = (0.2 + 0.6 * targets + 0.05 * torch.randn(1000, generator=g)).clamp(0, 1)
    assert adjusted_rand(find_groups(s).high, targets) == 1
    with pytest.raises(OneHumpError, match="two humps that tell classes apart: a class has 0 of its samples in one"):
        find_groups(s, targets)
    assert adjusted_rand(find_groups(s, targets, least_share=0).high, targets) == 1
    both, rare = two_humps()
    assert find_groups(both, targets).figures()["least_of_class"] == pytest.approx(0.15, abs=0.03)
    one_class = ~rare | (targets == 0)  # only class 0 has any
    with pytest.raises(OneHumpError, match="tell classes apart"):
        find_groups(both[one_class], targets[one_class])


def test_one_hump_is_refused_with_its_figures():
    s = torch.rand(500, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        OneHumpError, match=r"no two humps: their deepest valley, at 0\.\d\d, has p = .*find_groups"
    ) as told:
        find_groups(s, torch.zeros(500, dtype=torch.int64))
    found = told.value.found
    assert found.two_means.share_between == pytest.approx(0.75, abs=0.02)
    assert find_groups(s, level=1, least_ratio=0).cut == found.cut


def test_a_repeat_that_cuts_elsewhere_is_refused():
    s, _ = two_humps()
    same, other = two_humps()[0], two_humps(seed=1)[0]
    assert find_groups(s, repeats=[same]).agreements == (1.0,)
    with pytest.raises(OneHumpError, match="find different groups: their adjusted Rand index is -?0.0"):
        find_groups(s, repeats=[same, other])
    with pytest.raises(OneHumpError, match=r"find_groups\(..., least_agreement=-1\) cuts all the same"):
        find_groups(s, repeats=[same, other], level=1, least_ratio=0)
    assert find_groups(s, repeats=[same, other], least_agreement=-1).agreements[0] == 1.0


def test_the_run_with_the_deepest_valley_is_cut():
    s, rare = two_humps()
    shallow = torch.where(rare, s - 0.2 * torch.rand(1000, generator=torch.Generator().manual_seed(1)), s)
    found, deepest = find_groups(shallow, repeats=[s]), min((s, shallow), key=lambda one: valley(one).p_value)
    assert torch.equal(found.high, find_groups(deepest).high)
    assert torch.equal(find_groups(s, repeats=[shallow]).high, found.high)
    assert adjusted_rand(found.high, rare) > 0.95
    assert found.agreements[0] > 0.9
    with pytest.raises(OneHumpError, match=r"two groups need 0\.0005 or less"):
        find_groups(torch.rand(1000), repeats=[torch.rand(1000)], level=0.001)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cut": "median"}, "cut must be"),
        ({"level": 2}, "level must be finite and in"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "same first dimension"),
        ({"targets": torch.full((1000,), -1)}, "targets must be class ids >= 0, got -1"),
        ({"repeats": [torch.tensor([0.0, 1.0])]}, r"repeats\[0\] has 2"),
        ({"repeats": [torch.ones(1000)]}, "probabilities are all 1, so there are no groups in them"),
    ],
    ids=["cut", "level", "length", "negative", "repeat", "constant"],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input(change, said):
    with pytest.raises(ValueError, match=said):
        find_groups(two_humps()[0], **change)


def test_repeats_are_of_the_same_samples():
    s, _ = two_humps(n=20)
    one = Reweighting(torch.ones(20), s)
    with pytest.raises(ValueError, match=r"repeats\[0\] is of other samples"):
        one.groups(repeats=[Reweighting(torch.ones(20), s, [], torch.arange(20).flip(0))])


CELLS = st.lists(st.tuples(st.integers(0, 4), st.floats(0.01, 10)), min_size=1, max_size=20)


@given(CELLS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_every_cell_has_its_mass_and_ratios_within_stay(pairs, random):
    cells = torch.tensor([cell for cell, _ in pairs])
    weights = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
    shares = {cell: random.uniform(0.1, 3) for cell in range(5)}
    for given_shares in (None, shares):
        found = balance(weights, cells, given_shares)
        present = cells.unique().tolist()
        total = sum(1 if given_shares is None else shares[cell] for cell in present)
        for cell in present:
            wanted = (1 if given_shares is None else shares[cell]) / total
            assert float(found[cells == cell].sum() / weights.sum()) == pytest.approx(wanted)
            ratio = found[cells == cell] / weights[cells == cell]
            assert float(ratio.max() - ratio.min()) <= 1e-9 * float(ratio.max())
        again = balance(found, cells, given_shares)
        assert torch.allclose(again, found)
        order = torch.tensor(random.sample(range(len(cells)), len(cells)))
        assert torch.allclose(balance(weights[order], cells[order], given_shares), found[order])
        assert torch.allclose(balance(weights * 4, cells, given_shares), found * 4)


@pytest.mark.parametrize(
    ("weights", "shares", "said"),
    [
        ([1, 1, 0], None, r"cells \[9\] have no weight"),
        ([1, -1, 1], None, "weights must be >= 0, the smallest is -1"),
        ([1, 1, 1], {4: 1.0}, r"shares has no entry for cells \[9\]"),
        ([1, 1, 1], {4: -1.0, 9: 1.0}, r"shares\[4\] must be"),
        ([1, 1, 1], {4: 0.0, 9: 0.0}, "shares are 0 for every cell"),
        ([1, float("inf"), 1], None, "weights has 1 entries that are NaN or infinite"),
    ],
    ids=["empty", "negative", "missing", "below 0", "all 0", "infinite"],
)
def test_balance_refuses(weights, shares, said):
    with pytest.raises(ValueError, match=said):
        balance(torch.tensor(weights, dtype=torch.float64), torch.tensor([4, 4, 9]), shares)


def test_a_cell_of_share_0_weighs_nothing():
    assert balance(torch.ones(3), torch.tensor([4, 4, 9]), {4: 1, 9: 0}).tolist() == [1.5, 1.5, 0]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=20), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_budget_for_each_stratum(pairs, share):
    strata = torch.tensor([stratum for stratum, _ in pairs])
    scores = torch.tensor([score for _, score in pairs], dtype=torch.float64)
    sizes = torch.bincount(strata, minlength=4)
    budget = {k: share * (k + 1) / 4 * int(sizes[k]) for k in range(4)}
    found = keep_probabilities(scores, budget, strata=strata)
    for k in strata.unique().tolist():
        member = strata == k
        assert float(found[member].sum()) == pytest.approx(budget[k], abs=1e-9)
        assert torch.allclose(
            found[member], keep_probabilities(scores[member], {0: budget[k]}, strata=strata[member] * 0)
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": {0: 1.0}}, "that needs strata"),
        ({"budget": {0: 1.0, 1: 1.0}, "strata": [0, 1], "balanced": True}, "and balanced=False"),
        ({"budget": {0: 1.0}, "strata": [0, 1]}, r"budget has no entry for the strata \[1\]"),
        ({"budget": {0: 1.0, 1: 2.0}, "strata": [0, 1]}, r"budget\[1\] must be"),
    ],
    ids=["no strata", "balanced", "missing", "too much"],
)
def test_budgets_of_strata_that_do_not_fit(options, said):
    with pytest.raises(ValueError, match=said):
        keep_probabilities([0.0, 1.0], **options)
