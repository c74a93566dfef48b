import pytest
import torch

from steelyard.theory import (
    AdversarialFlips,
    BlankInputs,
    ClassConditionalFlips,
    FeatureDependentFlips,
    InputNoise,
    NoCorruption,
    RankedFlips,
    ThresholdProblem,
    UniformFlips,
    require_fixed,
)

N = 20_000
X = torch.linspace(0, 1, N, dtype=torch.float64)
Y3 = torch.arange(N) % 3
Y2 = (X > 0.5).long()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def near(actual, rate, count=N):
    """Within 5 standard deviations of a binomial fraction: misses with probability below 1e-6."""
    return abs(float(actual) - rate) <= 5 * (rate * (1 - rate) / count) ** 0.5 + 1e-12


def test_uniform_flips_reach_every_other_class_alike():
    inputs, targets = UniformFlips(0.3, classes=3)(X, Y3, generator())
    assert inputs is X
    assert near((targets != Y3).double().mean(), 0.3)
    for shift in (1, 2):
        assert near(((targets - Y3) % 3 == shift).double().mean(), 0.15)
    assert bool((UniformFlips(0.0)(X, Y2, generator())[1] == Y2).all())
    assert bool((UniformFlips(1.0)(X, Y2, generator())[1] == 1 - Y2).all())


def test_class_conditional_flips_follow_their_matrix():
    matrix = ((0.7, 0.2, 0.1), (0.0, 1.0, 0.0), (0.5, 0.0, 0.5))
    _, targets = ClassConditionalFlips(matrix)(X, Y3, generator())
    for old, row in enumerate(matrix):
        chosen = targets[old == Y3]
        for new, rate in enumerate(row):
            assert near((chosen == new).double().mean(), rate, len(chosen))


def test_feature_dependent_flips_follow_the_input():
    _, targets = FeatureDependentFlips(lambda x: 0.4 * (x > 0.5).double())(X, Y2, generator())
    flipped = (targets != Y2).double()
    assert float(flipped[X <= 0.5].sum()) == 0
    assert near(flipped[X > 0.5].mean(), 0.4, N // 2)


def test_adversarial_and_ranked_flips_choose_their_victims():
    rule = AdversarialFlips(lambda x, y: torch.where(x < 0.1, 1 - y, y))
    assert int((rule(X, Y2, generator())[1] != Y2).sum()) == int((X < 0.1).sum())
    ranked = RankedFlips(0.25, lambda x, y: -(x - 0.5).abs())
    flipped = ranked(X, Y2, generator())[1] != Y2
    assert int(flipped.sum()) == N // 4
    assert bool(((X[flipped] - 0.5).abs() < 0.126).all())


def test_input_corruption_stays_in_the_space():
    inputs, targets = InputNoise(0.2, 0.0, 1.0)(X, Y2, generator())
    assert targets is Y2
    assert 0 <= float(inputs.min()) <= float(inputs.max()) <= 1
    assert not torch.equal(inputs, X)
    images = torch.ones(1000, 3, 4)
    blank, _ = BlankInputs(0.3, value=-1.0, feature_dims=2)(images, torch.zeros(1000), generator())
    whole = (blank == -1).flatten(1)
    assert bool((whole.all(1) == whole.any(1)).all())  # an input is blanked as a whole
    assert near(whole.all(1).double().mean(), 0.3, 1000)


@pytest.mark.parametrize(
    "corruption",
    [
        NoCorruption(),
        UniformFlips(0.5),
        RankedFlips(0.5, lambda x, y: x),
        InputNoise(0.1, 0.0, 1.0),
        ClassConditionalFlips(((0.5, 0.5), (0.5, 0.5))),
    ],
)
def test_nothing_is_changed_in_place_and_a_seed_repeats(corruption):
    x, y = X.clone(), Y2.clone()
    first = corruption(x, y, generator(1))
    second = corruption(x, y, generator(1))
    assert torch.equal(x, X)
    assert torch.equal(y, Y2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_the_theorem_does_not_cover_is_refused():
    with pytest.raises(ValueError, match="depend on sample i alone, and RankedFlips"):
        require_fixed(RankedFlips(0.1, lambda x, y: x))
    with pytest.raises(ValueError, match="RankedFlips"):
        ThresholdProblem().errors(2, 10, RankedFlips(0.1, lambda x, y: x), generator())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformFlips(1.5), "rate must be"),
        (lambda: UniformFlips(0.1, classes=1), "classes must be"),
        (lambda: ClassConditionalFlips(((0.5, 0.4), (0.0, 1.0))), "row 0"),
        (lambda: ClassConditionalFlips(((1.0, 0.0),)), "square"),
        (lambda: FeatureDependentFlips(lambda x: x + 1)(X, Y2, generator()), "probabilities"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
