"""Counter-examples: Theorem 1 fails where a condition that its proof uses is not met."""

from dataclasses import dataclass

import torch

from steelyard.theory import (
    Estimate,
    RankedFlips,
    ThresholdProblem,
    theorem1,
    threshold_complexity,
    threshold_complexity_distinct,
)


def holds(losses, expected, factor, loss_range=1.0, complexity=0.0, s=4, q=4):
    bound = theorem1(
        losses,
        s=s,
        q=q,
        delta=0.05,
        loss_range=loss_range,
        complexity=Estimate(complexity),
        factor=Estimate(factor),
        expected=Estimate(expected),
    )
    return bound.slack.value >= 0


def test_a_corruption_that_looks_at_the_whole_sample_breaks_it():
    """Theta = {theta}, clean loss 1 for every sample. g sets every label right iff x_1 > 1/2, so L_q(g(D)) is
    0 or 1, Q = E[L_q(g(D))] - 1 = -1/2, and the right-hand side is 0 + 0 + deviation + 1/2 < 1 in half of all
    draws."""
    n = 2000
    assert not holds(torch.zeros(n), 1.0, -0.5)
    assert holds(torch.ones(n), 1.0, -0.5)


def test_a_corruption_that_leaves_the_space_that_m_is_taken_over_breaks_it():
    """Theta = {theta}, clean loss 1/2 everywhere, so M = 0 on X x Y. g moves samples out of X, to a loss of 0
    or 1
    evenly: Q = 0, and the right-hand side is the mean of n coins, below 1/2 in about half of all draws."""
    coins = torch.randint(0, 2, (200, 501), generator=torch.Generator().manual_seed(0)).double()
    fails = sum(float(row.mean()) < 0.5 for row in coins)  # deviation = M (...) = 0
    assert fails > 0.05 * 200
    assert all(holds(row, 0.5, 0.0) for row in coins)  # with M = 1, over the images of g, it holds


def test_budgeted_adversary_is_marked_as_outside():
    assert not RankedFlips(0.1, lambda inputs, targets: inputs).is_fixed


@dataclass(frozen=True)
class Rounded:
    """Inputs to the nearest quarter: ties make the corrupted sample's class smaller than the clean one's."""

    is_fixed = True

    def __call__(self, inputs, targets, generator):
        return (4 * inputs).round() / 4, targets


def test_for_q_equal_to_s_the_corrupted_samples_complexity_serves():
    """E sup [E l - L(g(D))] <= -Q + 2 R_n of the CORRUPTED sample (not in the paper; proof in `bound`).

    The two sides differ by many standard errors, so no interval is needed.
    """
    generator = torch.Generator().manual_seed(3)
    problem, n = ThresholdProblem(noise=0.1), 50
    table = problem.errors(2000, n, Rounded(), generator)
    worst = (problem.worst_risk(table) - table.top_q(8, 8)).amax(-1).mean()
    inputs, targets = Rounded()(*problem.sample(1, n, generator), generator)
    corrupted = threshold_complexity(inputs[0], targets[0], draws=4000, generator=generator).value
    assert corrupted < 0.8 * threshold_complexity_distinct(n).value
    assert float(worst) <= float(-table.factor(8, 8).mean()) + 2 * corrupted
