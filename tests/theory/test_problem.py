import pytest
import torch

from steelyard.theory import NoCorruption, ThresholdProblem


@pytest.mark.parametrize("orientations", [1, 2])
def test_risks_are_the_frequencies_of_a_large_sample(orientations):
    """20,000 samples: a frequency is within 0.02 of its rate but for a probability below 1e-7 each."""
    problem = ThresholdProblem(boundary=0.3, noise=0.1, orientations=orientations)
    x, y = problem.sample(1, 20_000, torch.Generator().manual_seed(0))
    for t in (0.0, 0.2, 0.3, 0.9):
        frequency = float(((x > t).long() != y).double().mean())
        assert float(problem.risk(torch.tensor(t))) == pytest.approx(frequency, abs=0.02)


@pytest.mark.parametrize("orientations", [1, 2])
def test_worst_risk_is_the_supremum_over_what_the_sample_cannot_tell_apart(orientations):
    problem = ThresholdProblem(boundary=0.5, noise=0.05, orientations=orientations)
    table = problem.errors(1, 6, NoCorruption(), torch.Generator().manual_seed(1))
    worst = problem.worst_risk(table)[0]
    edges = torch.cat([table.thresholds[0].clamp(0, 1), torch.ones(1)])
    for k in range(7):
        inside = torch.linspace(float(edges[k]), float(edges[k + 1]), 2001, dtype=torch.float64)
        assert float(worst[k]) == pytest.approx(float(problem.risk(inside).max()), abs=1e-3)
        if orientations == 2:
            assert float(worst[7 + k]) == pytest.approx(float((1 - problem.risk(inside)).max()), abs=1e-3)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="noise"):
        ThresholdProblem(noise=0.5)
    with pytest.raises(ValueError, match="boundary"):
        ThresholdProblem(boundary=2.0)
