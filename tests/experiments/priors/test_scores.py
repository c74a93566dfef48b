"""Scores during training against hand-written loops; what they find; the recipe's `prior` table."""

import math
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
import torch.nn.functional as F

from steelyard import reweight, selectors
from steelyard._support._plain import plain
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.methods import Maple
from steelyard.experiments.methods.maple import InnerSettings
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.priors import (
    AUM,
    EL2N,
    LHD,
    Forgetting,
    KNNShapley,
    NormalisedMargin,
    PriorSettings,
    RankDisagreement,
    ScoreFile,
    SelfConfidence,
    SelfInfluence,
    train_ensemble,
)
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.schema import parse
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import OptimizerSettings, Training

SGD = OptimizerSettings("sgd", 0.5, momentum=0.5)
CONFIDENT = Training(steps=60, optimizer=SGD)


def noisy(n: int = 300, head: str = "softmax", classes: int = 3, seed: int = 0) -> tuple[Problem, torch.Tensor]:
    """Well separated classes in the plane, 15% of whose training labels are wrong; and which."""
    g = torch.Generator().manual_seed(seed)
    true = torch.randint(0, classes, (n,), generator=g)
    angle = 2 * math.pi * true / classes
    inputs = 3 * torch.stack([angle.cos(), angle.sin()], 1) + 0.7 * torch.randn(n, 2, generator=g)
    wrong = torch.rand(n, generator=g) < 0.15
    targets = torch.where(wrong, (true + 1) % classes, true)
    environment = torch.arange(n) % 2
    train = Batch(inputs, targets, 1000 + torch.randperm(n, generator=g), environment)
    names = tuple("abcdef"[:classes])
    splits = Splits(
        "noisy", train, Batch.of(inputs, true, environment=environment), Batch.of(inputs, true), names, ("one", "other")
    )
    return Problem(splits, MLP(hidden=(16,), head=head), seed), wrong


PROBLEM, WRONG = noisy()
QUICK = {
    "lhd": LHD(training=Training(steps=10, optimizer=SGD)),
    "aum": AUM(training=Training(steps=10, evaluate_every=2, optimizer=SGD)),
    "rank_disagreement": RankDisagreement(models=3, training=Training(steps=5, batch_size=32, optimizer=SGD)),
    "el2n": EL2N(models=3, training=Training(steps=5, optimizer=SGD)),
    "self_confidence": SelfConfidence(folds=3, training=Training(steps=5, optimizer=SGD)),
    "normalised_margin": NormalisedMargin(folds=2, training=Training(steps=5, optimizer=SGD)),
    "self_influence": SelfInfluence(training=Training(steps=6, evaluate_every=2, optimizer=SGD)),
    "knn_shapley": KNNShapley(neighbours=7, training=Training(steps=5, optimizer=SGD)),
}


def by_hand(problem, steps, batches=None, l2=0.0):
    """Plain SGD with momentum; yields (model, logits and hidden of all samples) after each step."""
    model, data = problem.model(), problem.splits.train
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    for step in range(steps):
        batch = data if batches is None else data.take(batches[step])
        loss = F.cross_entropy(model(batch.inputs), batch.targets)
        loss = loss + l2 * sum(p.square().sum() for p in model.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield model


def test_lhd_is_the_plain_loop_with_an_average_beside_it():
    average = None
    for count, model in enumerate(by_hand(PROBLEM, 10)):
        keep = min(1 - 1 / (count + 1), 0.8)
        now = {k: v.detach().clone() for k, v in model.state_dict().items()}
        average = now if average is None else {k: keep * average[k] + (1 - keep) * now[k] for k in now}
    data = PROBLEM.splits.train
    embed = [torch.relu(data.inputs @ s["1.weight"].T + s["1.bias"]) for s in (now, average)]
    logits = [h @ s["3.weight"].T + s["3.bias"] for h, s in zip(embed, (now, average), strict=True)]
    losses = [F.cross_entropy(one, data.targets, reduction="none") for one in logits]
    expected = (losses[1] - losses[0]).abs() * (embed[1] - embed[0]).norm(dim=1)
    found = replace(QUICK["lhd"], decay=0.8).scores(PROBLEM)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_aum_is_the_mean_margin_of_the_plain_loop():
    data, margins = PROBLEM.splits.train, []
    for step, model in enumerate(by_hand(PROBLEM, 10)):
        if step % 2:
            logits = model(data.inputs).detach()
            own = F.one_hot(data.targets, 3).bool()
            margins.append(logits[own] - logits.masked_fill(own, -math.inf).amax(1))
    torch.testing.assert_close(QUICK["aum"].scores(PROBLEM), torch.stack(margins).mean(0), rtol=1e-4, atol=1e-5)


def test_forgetting_is_counted_over_the_plain_loop():
    data, fast = PROBLEM.splits.train, OptimizerSettings("sgd", 0.5, momentum=0.5)
    predictions = [model(data.inputs).detach().argmax(1) for model in by_hand(PROBLEM, 9)]
    found = Forgetting(training=Training(steps=9, evaluate_every=1, optimizer=fast)).scores(PROBLEM)
    assert torch.equal(found, selectors.forgetting_events(torch.stack(predictions), data.targets))
    assert found.unique().numel() > 1


def test_a_fold_is_judged_by_a_model_that_has_not_seen_it():
    """Other labels in one fold change the outputs of all folds but that one."""
    term, data = QUICK["self_confidence"], PROBLEM.splits.train
    fold = torch.randperm(300, generator=torch.Generator().manual_seed(PROBLEM.seed)).tensor_split(3)[1]
    targets = data.targets.clone()
    targets[fold] = (targets[fold] + 1) % 3
    other = replace(PROBLEM, splits=replace(PROBLEM.splits, train=replace(data, targets=targets)))
    same = (term.probabilities(PROBLEM) == term.probabilities(other)).all(1)
    assert same[fold].all()
    assert int(same.sum()) == len(fold)
    p = term.probabilities(PROBLEM)
    assert torch.equal(term.scores(PROBLEM), p.gather(1, data.targets[:, None])[:, 0])


def test_self_influence_is_the_squared_gradient_over_the_plain_loop():
    data, total = PROBLEM.splits.train, torch.zeros(300)
    for step, model in enumerate(by_hand(PROBLEM, 6)):
        if step % 2:
            last = list(model.parameters())[-2]
            for i in range(300):
                loss = F.cross_entropy(model(data.inputs[i : i + 1]), data.targets[i : i + 1])
                total[i] += torch.autograd.grad(loss, last)[0].square().sum()
    torch.testing.assert_close(QUICK["self_influence"].scores(PROBLEM), total, rtol=1e-3, atol=1e-5)


def test_each_half_is_valued_by_the_other():
    data = PROBLEM.splits.train
    *_, model = by_hand(PROBLEM, 5)
    hidden = torch.relu(model[1](data.inputs)).detach()
    one, two = torch.randperm(300, generator=torch.Generator().manual_seed(PROBLEM.seed)).tensor_split(2)
    found = QUICK["knn_shapley"].scores(PROBLEM)
    expected = selectors.knn_shapley(hidden[one], data.targets[one], hidden[two], data.targets[two], neighbours=7)
    torch.testing.assert_close(found[one], expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="neighbours must be >= 1"):
        KNNShapley(neighbours=0)


def test_which_samples_a_score_keeps_is_the_tables():
    terms = (AUM(), EL2N(), Forgetting(), KNNShapley(), NormalisedMargin(), SelfConfidence(), SelfInfluence())
    assert {term.name: term.keep for term in terms} == {
        "aum": "high",
        "el2n": "low",
        "forgetting_events": "low",
        "knn_shapley": "high",
        "self_influence": "low",
        "normalised_margin": "high",
        "self_confidence": "high",
    }


@pytest.mark.parametrize("size", [0, 40, 10_000])
def test_each_proxy_trains_as_if_alone(size):
    training = Training(steps=9, batch_size=size, l2=0.01, optimizer=SGD)
    ensemble = train_ensemble(PROBLEM, 3, training)
    g = torch.Generator().manual_seed(PROBLEM.seed)
    seeds = torch.randint(2**31, (3,), generator=g).tolist()
    epochs = [[torch.randperm(300, generator=g) for _ in seeds] for _ in range(2)]  # 7 batches of 40 an epoch
    data = PROBLEM.splits.train
    outputs = ensemble(data.inputs).detach()
    for k, seed in enumerate(seeds):
        batches = None
        if size == 40:
            batches = [orders[k][start : start + 40] for orders in epochs for start in range(0, 280, 40)]
        *_, model = by_hand(replace(PROBLEM, seed=seed), 9, batches, l2=0.01)
        torch.testing.assert_close(outputs[k], model(data.inputs).detach(), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1])


def test_disagreement_and_el2n_are_of_that_ensemble():
    data = PROBLEM.splits.train
    one, two = QUICK["rank_disagreement"], QUICK["el2n"]
    losses = train_ensemble(PROBLEM, 3, one.training).losses(data.inputs, data.targets)
    torch.testing.assert_close(one.scores(PROBLEM), selectors.rank_disagreement(losses))
    probabilities = train_ensemble(PROBLEM, 3, two.training).probabilities(data.inputs)
    torch.testing.assert_close(two.scores(PROBLEM), selectors.el2n(probabilities, data.targets))


@pytest.mark.parametrize(("classes", "head"), [(3, "softmax"), (2, "softmax"), (2, "one_logit")])
@pytest.mark.parametrize(
    "score",
    [
        AUM(training=CONFIDENT),
        EL2N(models=3, training=CONFIDENT),
        NormalisedMargin(folds=3, training=CONFIDENT),
        KNNShapley(training=CONFIDENT),
        SelfInfluence(training=replace(CONFIDENT, evaluate_every=10)),
    ],
    ids=lambda score: score.name,
)
def test_wrong_labels_are_worth_less(score, classes, head):
    problem, wrong = noisy(classes=classes, head=head)
    prior = PriorSettings((score,)).build(problem, 150)
    assert prior.probabilities.sum().item() == pytest.approx(150, rel=1e-6)
    flagged = prior.probabilities.argsort()[: int(wrong.sum())]
    assert wrong[flagged].double().mean() > 0.8


@pytest.mark.parametrize("name", QUICK)
def test_scores_come_from_the_seed_and_the_training_samples_alone(name):
    """The same again, whatever the global random state and the other splits hold; another seed gives others."""
    others = {part: getattr(PROBLEM.splits, part) for part in ("validation", "test")}
    gone = {part: replace(batch, inputs=torch.full_like(batch.inputs, math.nan)) for part, batch in others.items()}
    blind = replace(PROBLEM, splits=replace(PROBLEM.splits, **gone))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = QUICK[name].scores(PROBLEM)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(QUICK[name].scores(blind), first)
    assert not torch.equal(QUICK[name].scores(replace(PROBLEM, seed=5)), first)
    assert first.isfinite().all()
    assert first.unique().numel() > 50


def test_lhd_needs_a_hidden_layer():
    with pytest.raises(ValueError, match="needs a model with a hidden layer"):
        QUICK["lhd"].scores(replace(PROBLEM, model_settings=Logistic(head="softmax")))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_of_a_file_go_by_the_id(tmp_path: Path, suffix):
    ids = PROBLEM.splits.train.index
    table = pandas.DataFrame({"index": [5, *ids.tolist()[::-1][:-2]], "mine": [9.0, math.nan, *range(297)]})
    path = tmp_path / f"scores{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    found = ScoreFile(path=str(path), column="mine").scores(PROBLEM)
    assert found.isnan().nonzero().flatten().tolist() == [0, 1, 299]  # no row, no row, an empty cell
    assert found[2:299].tolist() == list(range(296, -1, -1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,score\n1,a\n", "needs a numeric column 'score'"),
        ("id,score\n1,2\n", "numeric column 'index'; it has id, score"),
        ("index,score\n1,2\n1,3\n", "the id 1 is repeated"),
        ("index,score\n1,2\n", "no id in 'index'"),
        ("", "cannot be read as a table"),
        (None, "cannot be read as a table"),
    ],
)
def test_errors_of_a_file(tmp_path: Path, text, message):
    path = tmp_path / "scores.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises((RecipeError, DataError), match=message):
        ScoreFile(path=str(path)).scores(PROBLEM)


def test_pooled_as_the_library_pools():
    scores = (replace(QUICK["aum"], weight=0.5), replace(QUICK["el2n"], weight=2.0))
    prior = PriorSettings(scores, temperature=0.3, start="both", anchor=0.2, anchor_end=0.5).build(PROBLEM, 90)
    each = [
        reweight.keep_probabilities(sign * term.scores(PROBLEM), 90, temperature=0.3)
        for sign, term in zip((1, -1), scores, strict=True)  # EL2N keeps the low
    ]
    torch.testing.assert_close(prior.probabilities, reweight.pool(each, 90, weights=[0.5, 2.0]))
    assert (prior.start, prior.coefficient(0.0), prior.coefficient(1.0)) == ("both", 0.2, 0.1)
    absent = ScoreFile(weight=0.0, path="not/there.csv")
    same = PriorSettings((*scores, absent), temperature=0.3).build(PROBLEM, 90)
    assert torch.equal(same.probabilities, prior.probabilities)
    flat = PriorSettings((absent,)).build(PROBLEM, 90).probabilities
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))
    assert PriorSettings().build(PROBLEM, 90) is None


RECIPE = """
seed = 1
[data]
name = "coloured_digits"
[model]
name = "mlp"
hidden = [8]
[method]
name = "maple"
budget = 300
steps = 2
inner = { steps = 3 }
[method.prior]
anchor = 0.1
[[method.prior.scores]]
name = "lhd"
training = { steps = 4 }
[[method.prior.scores]]
name = "rank_disagreement"
weight = 0.5
models = 2
training = { steps = 2 }
"""


def test_recipe_with_a_prior(tmp_path: Path):
    path = tmp_path / "prior.toml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path))
    prior = recipe.method.prior
    assert [(term.name, term.weight) for term in prior.scores] == [("lhd", 1.0), ("rank_disagreement", 0.5)]
    assert prior.anchor == 0.1
    assert parse(type(recipe), plain(recipe), "again") == recipe
    path.write_text(RECIPE.replace('"lhd"', '"lhdd"'))
    with pytest.raises(RecipeError, match="must be one of lhd.*did you mean 'lhd'"):
        load_recipe(str(path))
    with pytest.raises(RecipeError, match="name at least one of scores"):
        load_recipe("coloured_digits/maple", ["method.prior.anchor=0.1"])


def test_maple_starts_at_the_prior_and_is_anchored():
    shown = []

    def observe(step, model, extra):
        shown.append(extra)

    prior = PriorSettings((QUICK["aum"],), anchor=0.1)
    inner = InnerSettings(steps=3)
    method = Maple(100, steps=2, learn="probabilities", inner=inner, probability_rate=1e-9, evaluate_every=1)
    plain_run = method.fit(PROBLEM, observe).reweighting
    assert torch.allclose(plain_run.probabilities, torch.full((300,), 1 / 3), atol=1e-6)
    assert "anchor_kl" not in shown[0]
    shown.clear()
    fitted = replace(method, prior=prior).fit(PROBLEM, observe).reweighting
    torch.testing.assert_close(
        fitted.probabilities.double(), prior.build(PROBLEM, 100).probabilities, rtol=0, atol=1e-6
    )
    assert [row["anchor_coefficient"] for row in shown] == pytest.approx([0.1, 0.05])
    assert shown[0]["anchor_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PriorSettings(temperature=0.0), "temperature must be"),
        (lambda: PriorSettings(anchor=-1.0), "anchor must be"),
        (lambda: PriorSettings(anchor_end=2.0), "anchor_end must be"),
        (lambda: LHD(weight=-1.0), "weight must be"),
        (lambda: RankDisagreement(models=1), "models must be"),
        (lambda: EL2N(models=0), "models must be"),
        (lambda: SelfConfidence(folds=1), "folds must be"),
        (lambda: NormalisedMargin(folds=301).scores(PROBLEM), r"folds must be in \[2, 300\]"),
        (lambda: ScoreFile(path="scores.npy"), "must name a .csv or .parquet file"),
        (lambda: Maple(9, learn="weights", prior=PriorSettings((AUM(),), anchor=1.0)), "learn = 'weights' holds them"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
