"""Easy samples that are contradicted: the figure against brute force, and in `Refine`'s history."""

import math

import pytest
import torch

from steelyard.bilevel import Batch
from steelyard.experiments.data.corruption import adversarial_flips, uniform_flips
from steelyard.reweight import Refine, find_groups
from steelyard.reweight.contradictions import easy_contradictions
from tests.support.environments import linear_run

N = 300


def samples(seed=0):
    """Two classes along feature 0, with hard samples between them and noise beside."""
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, 2, generator=g, dtype=torch.float64)
    return Batch.of(inputs, (inputs[:, 0] > 0).long(), environment=torch.zeros(N, dtype=torch.long))


def teacher(train, weights, seed):
    """Two folds, one repeat, solved without any sharing of sums: the margin of each sample."""
    inputs = torch.cat([train.inputs, torch.ones(N, 1, dtype=torch.float64)], 1)
    wanted = 2.0 * train.targets.double() - 1
    split, margin = (
        torch.randperm(N, generator=torch.Generator().manual_seed(seed)),
        torch.zeros(N, dtype=torch.float64),
    )
    for fold in range(2):
        out, others = split[fold::2], split[1 - fold :: 2]
        root = weights[others].double().sqrt()[:, None]
        mean = (root * inputs[others]).square().sum(0).mean()
        rows = torch.cat([root * inputs[others], (0.1 * mean).sqrt() * torch.eye(3, dtype=torch.float64)])
        goal = torch.cat([root[:, 0] * wanted[others], torch.zeros(3, dtype=torch.float64)])
        margin[out] = inputs[out] @ torch.linalg.lstsq(rows, goal).solution
    return margin.abs()


def test_it_is_the_weighted_area_of_a_ridge_teacher():
    train = samples()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1))
    against = torch.rand(N, generator=torch.Generator().manual_seed(2)) < 0.3
    easy = teacher(train, weights, seed=4)
    pairs = weights[against].double()[:, None] * weights[~against].double()[None]
    right = (easy[against][:, None] > easy[~against][None]).double()
    found = easy_contradictions(train, weights, against, folds=2, repeats=1, seed=4)
    assert found == pytest.approx(float((pairs * right).sum() / pairs.sum()), abs=1e-9)


def test_easy_ones_give_1_hard_ones_0():
    train = samples()
    distance = train.inputs[:, 0].abs()
    easiest, hardest = distance > distance.quantile(0.8), distance < distance.quantile(0.2)
    assert easy_contradictions(train, torch.ones(N), easiest) > 0.95
    assert easy_contradictions(train, torch.ones(N), hardest) < 0.05


def test_without_a_figure_it_is_nan():
    train = samples()
    some = torch.arange(N) % 3 == 0
    assert math.isnan(easy_contradictions(train, torch.ones(N), torch.zeros(N, dtype=torch.bool)))
    assert math.isnan(easy_contradictions(train, (~some).float(), some))
    assert math.isnan(easy_contradictions(Batch.of(torch.zeros(N, 5000), train.targets), torch.ones(N), some))
    assert math.isnan(easy_contradictions(Batch.of(train.inputs, torch.ones(N).long()), torch.ones(N), some))
    with pytest.raises(ValueError, match="weights"):
        easy_contradictions(train, -torch.ones(N), some)
    with pytest.raises(ValueError, match="folds"):
        easy_contradictions(train, torch.ones(N), some, folds=1)


def corrupted(kind, seed):
    """Samples with 20 % wrong labels, at random or on the easiest, and a shortcut whose groups are known."""
    train, g = samples(seed), torch.Generator().manual_seed(seed)
    chance = torch.sigmoid(3 * train.inputs[:, 0])
    both = torch.stack([1 - chance, chance], 1)
    flip = (
        uniform_flips(train.targets, 2, 0.2, g) if kind == "uniform" else adversarial_flips(both, train.targets, 0.2, g)
    )
    high = torch.rand(N, generator=g) < 0.3
    groups = find_groups(torch.where(high, 0.95, 0.05), flip[0])
    return Batch.of(train.inputs, flip[0], environment=train.environment), groups


@pytest.mark.parametrize("seed", range(3))
def test_the_first_round_of_refine_files_it(seed):
    train, groups = corrupted("uniform", seed)
    honest = Refine(linear_run(), rounds=2).fit(train, groups)
    assert honest.history[0]["easy_contradictions"] < 0.5
    assert "easy_contradictions" not in honest.history[1]  # it is of the first round, where nothing is dropped yet
    train, groups = corrupted("adversarial", seed)
    assert Refine(linear_run(), rounds=1).fit(train, groups).history[0]["easy_contradictions"] > 0.5
