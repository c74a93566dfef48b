"""Scores of nets that were not trained on a sample: by hand, with the weights given, and of wrong labels."""

from functools import partial

import pytest
import torch
from torch import nn

from steelyard import selectors
from steelyard.bilevel import Batch, Streamed, WeightedLoss
from steelyard.distributed import Ranks
from steelyard.reweight import InnerRun, cross_fit_scores
from steelyard.reweight.cross_scores import Scoring
from tests.support.environments import CROSS_ENTROPY, linear_run, shortcut

N = 60


def hidden_run(steps=20, **options):
    return InnerRun(
        lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).double(),
        partial(torch.optim.Adam, lr=0.05),
        WeightedLoss(CROSS_ENTROPY),
        steps,
        **options,
    )


def weights(n=N):
    return torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64).round(decimals=1)


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
@pytest.mark.parametrize("window", [1, 4], ids=["window 1", "window 4"])
def test_they_are_those_of_training_on_the_other_folds_by_hand(window, together):
    train, _ = shortcut(N)
    options = {"folds": 3, "seed": 5, "together": together}
    found = cross_fit_scores(hidden_run(window=window), train, weights(), repeats=2, **options)
    assert found.apart == ("" if together else "together=False")
    for repeat in range(2):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(5 + repeat))
        for fold in range(3):
            rows = order[fold::3]
            own = weights()
            own[rows] = 0
            seen = []

            def read(step, model, rows=rows, seen=seen):
                if step % 2 == 0:
                    with torch.no_grad():
                        seen.append(model(train.inputs[rows]))

            model, _ = hidden_run(seed=repeat)(train, own, read)
            logits = model(train.inputs[rows]).detach()
            losses = CROSS_ENTROPY(logits, train.targets[rows])
            assert torch.allclose(found.losses[repeat, rows], losses)
            if repeat:
                continue
            one = cross_fit_scores(hidden_run(window=window), train, weights(), repeats=1, **options)
            assert torch.allclose(one.label_probability[rows], (-losses).exp())
            assert torch.equal(one.correct[rows].bool(), logits.argmax(1) == train.targets[rows])
            assert torch.allclose(one.aum[rows], selectors.aum(torch.stack(seen), train.targets[rows]))
            assert torch.allclose(one.el2n[rows], selectors.el2n(seen[0].softmax(1), train.targets[rows]))
            assert bool(one.rank_disagreement.isnan().all())
    assert torch.equal(found.rank_disagreement, selectors.rank_disagreement(found.losses))
    assert torch.allclose(found.label_probability, (-found.losses).exp().mean(0))
    assert float(found.lhd.min()) >= 0
    assert float(found.lhd.max()) > 0


def embedded_run():
    """Words of an embedding, their mean, and a hidden layer: `torch.func.vmap` evaluates the stack."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(6, 4).double()
            self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()

        def forward(self, x):
            return self.layers(self.words((x + 2).round().clamp(0, 5).long()).mean(1))

    return InnerRun(Words, partial(torch.optim.SGD, lr=0.5, momentum=0.9), WeightedLoss(CROSS_ENTROPY), 15, 7)


@pytest.mark.parametrize("make", [hidden_run, embedded_run, partial(hidden_run, batch_size=9)])
def test_each_net_is_the_same_as_alone(make):
    train, _ = shortcut(N)
    as_one, apart = (
        cross_fit_scores(make(), train, weights(), folds=4, repeats=3, together=together)
        for together in ("auto", False)
    )
    assert as_one.apart == ""
    for name in ("label_probability", "correct", "lhd", "aum", "el2n", "rank_disagreement", "losses"):
        torch.testing.assert_close(getattr(as_one, name), getattr(apart, name), rtol=1e-9, atol=1e-12)


def test_nets_that_couple_samples_are_trained_apart_to_the_same_bits():
    train, _ = shortcut(N)

    def make():
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()

    inner = InnerRun(make, partial(torch.optim.SGD, lr=0.1), WeightedLoss(CROSS_ENTROPY), 6)
    found, expected = (
        cross_fit_scores(inner, train, weights(), folds=2, repeats=1, together=together) for together in (True, False)
    )
    assert "couples samples" in found.apart
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.lhd, expected.lhd)


def test_a_sample_of_weight_0_is_scored_and_trains_nobody():
    train, _ = shortcut(N)
    out = weights() == 0
    assert out.any()
    flipped = Batch.of(train.inputs, torch.where(out, 1 - train.targets, train.targets), environment=train.environment)
    one, two = (cross_fit_scores(hidden_run(), data, weights(), folds=3, repeats=1) for data in (train, flipped))
    assert one.apart == ""
    assert torch.equal(one.losses[0, ~out], two.losses[0, ~out])
    assert torch.allclose(one.label_probability[out] + two.label_probability[out], torch.ones(1, dtype=torch.float64))


def test_balanced_weights_tell_wrong_labels_from_who_contradicts_the_shortcut():
    train, agrees = shortcut(400)
    right = (train.inputs[:, 0] > 0).long() == train.targets
    balanced = torch.where(agrees, 0.15, 0.85)
    plain = cross_fit_scores(linear_run(), train, torch.ones(400), repeats=1).correct.bool()
    weighted = cross_fit_scores(linear_run(), train, balanced, repeats=1).correct.bool()
    assert float((plain == agrees).double().mean()) > 0.99  # it has learned the shortcut
    assert float((weighted == right).double().mean()) > 0.99


def test_one_logit_and_streamed_inputs():
    train, _ = shortcut(N)

    def loss(outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets.double(), reduction="none")

    inner = InnerRun(
        lambda: nn.Linear(2, 1).double(), partial(torch.optim.SGD, lr=1.0), WeightedLoss(loss), 10, batch_size=20
    )
    found = cross_fit_scores(inner, train, torch.ones(N, dtype=torch.float64), folds=2, repeats=1)
    assert torch.equal(found.correct.bool(), found.label_probability > 0.5)
    streamed = Streamed.of(list(train.inputs), train.targets, chunk=7)
    again = cross_fit_scores(inner, streamed, torch.ones(N, dtype=torch.float64), folds=2, repeats=1)
    assert torch.allclose(again.losses, found.losses)
    assert again.apart == "the samples are on disk"


def test_a_model_without_a_linear_layer_has_no_lhd():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            return x * self.scale

    train, _ = shortcut(N)
    inner = InnerRun(Scaled, partial(torch.optim.SGD, lr=0.1), WeightedLoss(CROSS_ENTROPY), 3)
    found = cross_fit_scores(inner, train, torch.ones(N, dtype=torch.float64), repeats=1)
    assert bool(found.lhd.isnan().all())
    assert bool(found.aum.isfinite().all())


def test_the_inner_runs_own_state_stays():
    train, _ = shortcut(N)
    inner = hidden_run()
    model, _ = inner(train, torch.ones(N, dtype=torch.float64))
    before = [p.clone() for p in model.parameters()]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    cross_fit_scores(inner, train, torch.ones(N, dtype=torch.float64), repeats=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folds": 1}, "folds must be"),
        ({"repeats": 0}, "repeats must be"),
        ({"decay": 1.0}, "decay must be"),
        ({"together": "always"}, "together must be"),
        ({"weights": torch.ones(3)}, "same first dimension"),
        ({"weights": torch.zeros(N)}, "no sample is left to train on"),
        (
            {"train": Batch.of(torch.zeros(N, 2), torch.zeros(N))},
            r"train's targets must be class ids \(n,\), got torch.float32",
        ),
    ],
    ids=["folds", "repeats", "decay", "together", "length", "all 0", "targets"],
)
def test_bad_input(change, said):
    given = {"inner": hidden_run(), "train": shortcut(N)[0], "weights": torch.ones(N), **change}
    with pytest.raises(ValueError, match=said):
        cross_fit_scores(**given)


def test_scores_of_another_size_are_not_taken_over():
    train, _ = shortcut(N)
    with pytest.raises(ValueError, match="it has scores"):
        Scoring(hidden_run(), train, 2, 1).load_state_dict(Scoring(hidden_run(), train, 2, 2).state_dict())


def test_several_processes_are_refused_by_name():
    class Two(Ranks):
        size = 2

    train, _ = shortcut(N)
    inner = InnerRun(lambda: nn.Linear(2, 2), torch.optim.SGD, WeightedLoss(CROSS_ENTROPY, ranks=Two()), 1)
    with pytest.raises(ValueError, match="scores are not computed by 2 processes; compute them in one"):
        Scoring(inner, train, 2, 1)
