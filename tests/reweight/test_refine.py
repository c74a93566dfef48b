"""`Refine` drops wrong labels and not who contradicts the shortcut, is balanced, and resumes to the same bits."""

import pytest
import torch

from steelyard.bilevel import Batch
from steelyard.checkpoint import CheckpointError, Journal, Stopped
from steelyard.reweight import Refine, Reweighting, find_groups
from tests.support.environments import linear_run, shortcut

N = 400


def problem(wrong=0.0, of=(True, False)):
    """Samples with wrong labels in the groups `of`, and groups as MAPLE finds them: who contradicts the shortcut."""
    train, agrees = shortcut(N)
    g = torch.Generator().manual_seed(9)
    flip = (torch.rand(N, generator=g) < wrong) & (agrees if of == (True,) else torch.ones(N, dtype=torch.bool))
    targets = torch.where(flip, 1 - train.targets, train.targets)
    agrees = agrees ^ flip
    data = Batch.of(train.inputs, targets, environment=train.environment)
    s = torch.where(agrees, 0.05, 0.95)
    right = (train.inputs[:, 0] > 0).long() == targets
    return data, find_groups(s, targets), right


@pytest.mark.parametrize("score", ["label_probability", "aum", "el2n"])
def test_wrong_labels_are_dropped_and_cells_balanced(score):
    train, groups, right = problem(wrong=0.1)
    before = float((~right).double().mean())
    found = Refine(linear_run(), score=score).fit(train, groups)
    kept = found.probabilities == 1
    assert set(found.probabilities.tolist()) == {0.0, 1.0}
    assert before > 0.25
    assert float((~right)[kept].double().mean()) < 0.02
    assert float((groups.high & kept).sum() / groups.high.sum()) > 0.5  # they are kept who contradict the shortcut
    mass = [float(found.expected_weights[groups.cells == cell].sum()) for cell in range(4)]
    assert mass == pytest.approx([N / 4] * 4, rel=1e-4)
    assert [row["phase"] for row in found.history] == ["clean", "clean"]
    last = found.history[-1]
    assert last["kept"] == sum(last[f"kept_{cell}"] for cell in range(4)) == float(kept.sum())


def test_no_round_balances_alone():
    train, groups, _ = problem()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0)) + 0.1
    found = Refine(linear_run(), rounds=0).fit(train, groups, weights, history=[{"step": 0}])
    assert found.history == [{"step": 0}]
    assert bool((found.probabilities == 1).all())
    assert float(found.expected_weights.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)


def test_the_calibrated_share_makes_the_groups_accuracies_agree():
    train, groups, _ = problem()
    found = Refine(linear_run(steps=10, lr=0.3), rounds=0, shares="calibrated", calibrations=5).fit(train, groups)
    gaps = [abs(row["accuracy_high"] - row["accuracy_low"]) for row in found.history]
    shares = [row["share_high"] for row in found.history]
    assert shares[0] == 0.5
    assert min(gaps[1:]) <= gaps[0]
    assert all(0.2 < share < 0.8 for share in shares)
    mass = [float(found.expected_weights[groups.cells == cell].sum()) for cell in range(4)]
    assert mass[0] == pytest.approx(mass[2], rel=1e-4)
    assert mass[1] == pytest.approx(mass[3], rel=1e-4)


def test_a_cell_keeps_its_least_share():
    train, groups, _ = problem(wrong=0.3)
    found = Refine(linear_run(), rounds=1, least_kept=0.9).fit(train, groups)
    for cell in range(4):
        member = groups.cells == cell
        assert float(found.probabilities[member].mean()) >= 0.9


@pytest.mark.parametrize(
    ("together", "stops"),
    [(False, 1), (False, 5), (False, 8), ("auto", 1), ("auto", 3), ("auto", 4)],
    ids=["first net", "third phase", "last net", "first phase as one", "third phase as one", "last phase as one"],
)
def test_resumed_it_ends_in_the_same_bits(tmp_path, stops, together):
    train, groups, _ = problem(wrong=0.1)
    refine = Refine(linear_run(steps=8), folds=2, shares="calibrated", calibrations=2, together=together)
    whole = refine.fit(train, groups)
    asked = iter(range(100))
    with pytest.raises(Stopped):
        refine.fit(train, groups, journal=Journal(tmp_path / "run.safetensors", stop=lambda: next(asked) >= stops))
    resumed = refine.fit(train, groups, journal=Journal(tmp_path / "run.safetensors"))
    assert resumed == whole
    assert isinstance(resumed, Reweighting)


def test_nets_as_one_and_one_by_one_find_the_same():
    train, groups, _ = problem(wrong=0.1)
    as_one, apart = (Refine(linear_run(), repeats=2, together=one).fit(train, groups) for one in (True, False))
    assert torch.equal(as_one.probabilities, apart.probabilities)
    torch.testing.assert_close(as_one.weights, apart.weights)
    for one, other in zip(as_one.history, apart.history, strict=True):
        assert (one.pop("apart"), other.pop("apart")) == ("", "together=False")
        assert (one.pop("phase"), other.pop("phase")) == ("clean", "clean")
        assert one == pytest.approx(other, rel=1e-9)


def test_another_computations_journal_is_refused(tmp_path):
    train, groups, _ = problem()
    Refine(linear_run(steps=2), folds=2, rounds=1).fit(train, groups, journal=Journal(tmp_path / "run.safetensors"))
    with pytest.raises(CheckpointError, match="its refine.folds is '2', here it is '3'"):
        Refine(linear_run(steps=2), folds=3, rounds=1).fit(train, groups, journal=Journal(tmp_path / "run.safetensors"))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": -1}, "rounds must be"),
        ({"score": "margin"}, "score must be"),
        ({"score": "rank_disagreement"}, "give repeats=2"),
        ({"shares": "half"}, "shares must be"),
        ({"least_kept": 0.0}, "least_kept must be"),
        ({"together": "always"}, "together must be"),
    ],
    ids=["rounds", "score", "repeats", "shares", "least kept", "together"],
)
def test_settings_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        Refine(linear_run(), **options)


@pytest.mark.usefixtures("unchecked_shapes")
def test_groups_are_of_the_samples():
    train, _, _ = problem()
    with pytest.raises(ValueError, match=r"train has 400, groups has 300"):
        Refine(linear_run()).fit(train, find_groups(torch.where(torch.arange(300) < 150, 0.0, 1.0)))
