"""Rules against closed forms, linear programs and loops written out."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from steelyard.bilevel import Batch
from steelyard.reweight import (
    KLDRO,
    Custom,
    CVaR,
    EffectiveNumber,
    GeneralisedCrossEntropy,
    GroupDRO,
    GroupWeights,
    RelativeDifficulty,
    TopQ,
    Uniform,
)
from steelyard.theory import top_q_loss


def batch_of(n, group=None, targets=None, index=None):
    made = Batch.of(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long) if targets is None else targets, group=group)
    return made if index is None else Batch(made.inputs, made.targets, index, None, group)


LOSSES = torch.tensor([0.3, 2.0, 0.7, 1.1, 2.0, 0.1, 0.9], dtype=torch.float64)
GROUP = torch.tensor([0, 1, 0, 2, 2, 0, 1])


@pytest.mark.parametrize("alpha", [0.05, 1 / 7, 0.2, 0.35, 0.5, 0.99, 1.0])
def test_cvar_is_the_maximum_over_its_uncertainty_set_and_its_dual_minimum(alpha: float) -> None:
    n, losses = len(LOSSES), LOSSES.numpy()
    value = float(CVaR(alpha).mean(LOSSES, batch_of(n)))
    program = scipy.optimize.linprog(-losses, A_eq=np.ones((1, n)), b_eq=[1.0], bounds=(0, 1 / (alpha * n)))
    if alpha * n >= 1:  # below one sample no distribution on the batch is in the set; the largest loss is its limit
        assert value == pytest.approx(-program.fun, rel=1e-9)
        # Rockafellar and Uryasev: min over eta of eta + mean(l - eta)+ / alpha, reached at one of the losses
        dual = min(eta + np.maximum(losses - eta, 0).mean() / alpha for eta in losses)
        assert value == pytest.approx(dual, rel=1e-9)
    else:
        assert value == LOSSES.max()


def test_cvar_gives_the_remainder_to_the_next_loss() -> None:
    assert CVaR(0.35)(LOSSES, batch_of(7)).tolist() == pytest.approx([0, 1, 0, 0.45, 1, 0, 0])


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_cvar_weights_sum_to_its_share_and_grow_with_the_loss(values: list[float], alpha: float) -> None:
    losses = torch.tensor(values, dtype=torch.float64)
    weight = CVaR(alpha)(losses, batch_of(len(values)))
    assert float(weight.sum()) == pytest.approx(alpha * len(values))
    for i, j in itertools.combinations(range(len(values)), 2):
        assert (losses[i] - losses[j]) * (weight[i] - weight[j]) >= 0


@pytest.mark.parametrize("q", range(1, 8))
def test_top_q_is_the_largest_mean_of_q_losses(q: int) -> None:
    expected = max(float(LOSSES[list(some)].mean()) for some in itertools.combinations(range(7), q))
    assert float(TopQ(q).mean(LOSSES, batch_of(7))) == pytest.approx(expected)
    assert int(TopQ(q)(LOSSES, batch_of(7)).sum()) == q


def test_top_q_on_random_batches_is_the_weighted_sum_that_theory_bounds() -> None:
    s, q = 4, 2
    batches = list(itertools.combinations(range(7), s))
    mean = sum(float(TopQ(q).mean(LOSSES[list(b)], batch_of(s))) for b in batches) / len(batches)
    assert mean == pytest.approx(float(top_q_loss(LOSSES, s, q)))


def test_group_weights_make_groups_count_the_same() -> None:
    value = GroupWeights(torch.bincount(GROUP)).mean(LOSSES, batch_of(7, GROUP))
    assert float(value) == pytest.approx(sum(float(LOSSES[g == GROUP].mean()) for g in range(3)) / 3)


def test_powers_of_group_weights() -> None:
    counts, batch = torch.tensor([100, 4, 25]), batch_of(7, GROUP)
    roots = GroupWeights(counts, power=0.5).per_group / GroupWeights(counts, power=0.5).per_group[0]
    assert roots.tolist() == pytest.approx([1.0, 5.0, 2.0])
    assert GroupWeights(counts, power=0)(LOSSES, batch).tolist() == [1.0] * 7
    assert torch.equal(GroupWeights(counts, power=1).per_group, GroupWeights(counts).per_group)


@pytest.mark.parametrize("beta", [0.3, 0.9, 0.999])
def test_the_effective_number_is_the_expected_volume_of_its_recursion(beta: float) -> None:
    """Cui et al.'s proof: E_n = 1 + beta E_(n-1), E_1 = 1; the weight of a sample is 1 / E_n."""
    counts, volume, found = [1, 7, 40], 0.0, []
    for n in range(1, 41):
        volume = 1 + beta * volume
        found += [1 / volume] if n in counts else []
    assert EffectiveNumber(counts, beta).per_group.tolist() == pytest.approx(found, rel=1e-6)


def test_the_effective_number_goes_from_equal_weights_to_the_inverse_frequency() -> None:
    counts = torch.tensor([1, 50, 100_000])
    assert EffectiveNumber(counts, 0.0).per_group.tolist() == [1.0, 1.0, 1.0]
    limit = EffectiveNumber(counts, 1 - 1e-12).per_group
    assert limit.tolist() == pytest.approx([1, 1 / 50, 1e-5], rel=1e-5)
    weight = EffectiveNumber(torch.bincount(GROUP), 0.99)(LOSSES, batch_of(7, GROUP))
    assert weight.dtype == LOSSES.dtype
    assert weight.tolist() == pytest.approx([EffectiveNumber([3, 2, 2], 0.99).per_group[g].item() for g in GROUP])


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_group_dro_takes_the_exponentiated_step(adjustment: float) -> None:
    counts = torch.tensor([30, 4, 9])
    rule, q = GroupDRO(counts, step=0.5, adjustment=adjustment), [1 / 3] * 3
    for losses in (LOSSES, LOSSES.flip(0), LOSSES**2):
        risks = [float(losses[g == GROUP].mean()) for g in range(3)]
        q = [a * math.exp(0.5 * (r + adjustment / math.sqrt(n))) for a, r, n in zip(q, risks, [30, 4, 9], strict=True)]
        q = [a / sum(q) for a in q]
        assert float(rule.mean(losses, batch_of(7, GROUP))) == pytest.approx(sum(map(lambda a, r: a * r, q, risks)))
        assert rule.q.tolist() == pytest.approx(q)


def test_group_dro_finds_the_worst_group_and_leaves_absent_ones_in_place() -> None:
    rule = GroupDRO(torch.tensor([3, 2, 2]), step=1.0, adjustment=1.0)
    two = batch_of(2, torch.tensor([0, 2]))
    weight = rule(torch.tensor([0.0, 0.0]), two)
    q = rule.q
    assert float(q[1] / (q[0] / math.exp(1 / math.sqrt(3)))) == pytest.approx(1.0)  # group 1 was only normalised
    assert weight.tolist() == pytest.approx([float(q[0]), float(q[2])])  # a missing group's share is not dealt out
    for _ in range(2000):  # 2000 nats and more: no overflow
        rule(LOSSES, batch_of(7, GROUP))
    risks = [float(LOSSES[g == GROUP].mean()) + 1 / math.sqrt(n) for g, n in enumerate((3, 2, 2))]
    assert rule.q.argmax() == risks.index(max(risks))
    assert float(rule.q.max()) == pytest.approx(1.0)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_kl_dro_solves_its_inner_problem_and_has_its_gradient(temperature: float) -> None:
    losses = LOSSES.clone().requires_grad_()
    weight = KLDRO(temperature)(LOSSES, batch_of(7))
    value = float(weight @ LOSSES - temperature * torch.xlogy(weight, 7 * weight).sum())
    risk = temperature * (torch.logsumexp(losses / temperature, 0) - math.log(7))
    assert value == pytest.approx(float(risk.detach()))
    torch.testing.assert_close(weight, torch.autograd.grad(risk, losses)[0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):  # no other distribution does better
        other = torch.softmax(3 * torch.randn(7, generator=generator, dtype=torch.float64), 0)
        assert float(other @ LOSSES - temperature * torch.xlogy(other, 7 * other).sum()) <= value + 1e-12


def test_kl_dro_in_its_limits_and_without_overflow() -> None:
    torch.testing.assert_close(KLDRO(1e9)(LOSSES, batch_of(7)), torch.full((7,), 1 / 7, dtype=torch.float64))
    assert KLDRO(1e-3)(LOSSES, batch_of(7)).tolist() == pytest.approx([0, 0.5, 0, 0, 0.5, 0, 0])


def test_kl_dro_remembers_the_normaliser() -> None:
    rule, u = KLDRO(2.0, memory=0.8), None
    for losses in (LOSSES, 3 * LOSSES, LOSSES.flip(0)[:4]):
        new = float(torch.exp(losses / 2).mean())
        u = new if u is None else 0.8 * u + 0.2 * new
        torch.testing.assert_close(rule(losses, batch_of(len(losses))), torch.exp(losses / 2) / (len(losses) * u))


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
def test_generalised_cross_entropy_has_the_gradient_of_its_loss(q: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 2, 1, 1, 0])
    losses = F.cross_entropy(logits, targets, reduction="none")
    ours = torch.autograd.grad(GeneralisedCrossEntropy(q).mean(losses, batch_of(5)), logits)[0]
    p = torch.softmax(logits, 1)[torch.arange(5), targets]
    direct = -p.log() if q == 0 else (1 - p**q) / q
    torch.testing.assert_close(ours, torch.autograd.grad(direct.mean(), logits)[0])


def test_relative_difficulty_by_a_loop() -> None:
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    ours = RelativeDifficulty(targets, memory=0.7)
    averages: list[dict[int, float]] = [{}, {}]
    generator = torch.Generator().manual_seed(0)
    for index in ([0, 1, 2], [3, 0, 4], [5, 1, 0], [2, 3, 4]):
        both = torch.rand(2, 3, generator=generator)
        weight = ours(both[0], both[1], batch_of(3, targets=targets[index], index=torch.tensor(index)))
        expected = []
        for model in (0, 1):
            for i, loss in zip(index, both[model].tolist(), strict=True):
                old = averages[model].get(i)
                averages[model][i] = loss if old is None else 0.7 * old + 0.3 * loss
        for i in index:
            ratio = [a[i] / max(v for k, v in a.items() if targets[k] == targets[i]) for a in averages]
            expected.append(ratio[0] / (ratio[0] + ratio[1]))
        assert weight.tolist() == pytest.approx(expected, rel=1e-5)


def test_relative_difficulty_without_any_loss_is_finite() -> None:
    ours = RelativeDifficulty(torch.tensor([0, 1]))
    assert ours(torch.zeros(2), torch.zeros(2), batch_of(2, targets=torch.tensor([0, 1]))).tolist() == [0, 0]


def test_uniform_and_custom() -> None:
    assert float(Uniform().mean(LOSSES, batch_of(7))) == pytest.approx(float(LOSSES.mean()))
    assert float(Custom(lambda losses, batch: losses).mean(LOSSES, batch_of(7))) == pytest.approx(
        float((LOSSES**2).sum() / LOSSES.sum())
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CVaR(0.0), "alpha must be finite and in"),
        (lambda: CVaR(1.5), "alpha must be"),
        (lambda: TopQ(0), "q must be"),
        (lambda: TopQ(8)(LOSSES, batch_of(7)), "q is 8, but a batch has 7"),
        (lambda: KLDRO(0.0), "temperature must be"),
        (lambda: KLDRO(1.0, 1.0), "memory must be"),
        (lambda: GroupDRO(torch.tensor([1, 0])), r"every group, got \[1, 0\]"),
        (lambda: GroupDRO(torch.tensor([1, 1]), step=0.0), "step must be"),
        (lambda: GroupDRO(torch.tensor([1, 1]), adjustment=-1.0), "adjustment must be"),
        (lambda: GeneralisedCrossEntropy(1.1), "q must be"),
    ],
)
def test_what_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
