"""Robust active learning: adversarial rounds in the one loop, what is measured, claims and files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from steelyard import selectors
from steelyard.bilevel.batch import Batch
from steelyard.experiments.active import SELECTORS, Epochs, Fitting, Pool, Schedule, active_learning
from steelyard.experiments.active.fitting import train_epochs
from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.active.run import data_of, execute_active
from steelyard.experiments.models import HEADS, MLP, cross_entropy
from steelyard.experiments.training.adversarial import PGD, Adversary, robust_accuracy
from studies.robust import study
from studies.robust.__main__ import main
from studies.robust.report import robust_claims
from studies.robust.study import ELEVEN, TASKS, robust

DIGITS = str(Path(study.__file__).parent / "recipes" / "digits.toml")
ATTACK = PGD(epsilon=0.3, step=0.1, steps=5)


def fragile(n: int = 240) -> Batch:
    """Feature 0 is right for all but at +-0.1, feature 1 for 90 % at +-0.4: an attack of 0.3 turns the first round."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 2
    sign = 2.0 * targets - 1
    coarse = torch.where(torch.rand(n, generator=generator) < 0.9, sign, -sign)
    inputs = torch.stack([0.5 + 0.1 * sign + 0.01 * torch.randn(n, generator=generator), 0.5 + 0.4 * coarse], 1)
    return Batch.of(inputs.clamp(0, 1), targets)


def build(seed: int) -> nn.Module:
    return MLP(hidden=(16,), head="softmax").build((2,), 2, seed)


def test_rounds_train_adversarially_and_warm_started() -> None:
    data = fragile()
    pool = Pool(data, torch.zeros(len(data), dtype=torch.bool), classes=2)
    under = {}
    for epsilon in (0.0, 0.3):
        fit = Fitting(build, Epochs(40, 40, 1e-2, 1.1), start="warm", attack=replace(ATTACK, epsilon=epsilon))
        *_, last = active_learning(pool, Schedule(60, 60, 1), fit, SELECTORS["dre"], seed=1)
        under[epsilon] = robust_accuracy(last.learned.model, data, replace(ATTACK, steps=50), HEADS["softmax"])
    assert under[0.0] < 0.3
    assert under[0.3] > 0.8


def test_an_attack_of_radius_zero_is_the_plain_training_and_seeds_decide_the_rest() -> None:
    data, epochs = fragile(40), Epochs(2, 16, 1e-2, 1.1)
    plain, none = Fitting(build, epochs), Fitting(build, epochs, attack=PGD(epsilon=0.0))
    once, twice = (Fitting(build, epochs, attack=ATTACK) for _ in range(2))
    weights = [
        torch.cat([p.detach().flatten() for p in fit(data, data.inputs, None, 7).model.parameters()])
        for fit in (plain, none, once, twice)
    ]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[0], weights[2])


def test_the_fit_accuracy_is_of_the_training_passes_not_of_the_attacks() -> None:
    data, model, seen = fragile(50), build(0), []
    model.register_forward_hook(lambda module, inputs, outputs: seen.append((module.training, inputs[0])))
    adversary = Adversary(ATTACK, cross_entropy, 0)
    generator = torch.Generator().manual_seed(0)
    _, accuracy = train_epochs(model, selectors.ema(model), data, Epochs(1, 16, 1e-9, 1.1), generator, adversary)
    trained_on = torch.cat([inputs for training, inputs in seen if training])
    assert len(trained_on) == 50
    assert len(seen) == 4 * (ATTACK.steps + 1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = (model(trained_on).argmax(1) == data.targets[order]).double()
    assert accuracy == pytest.approx(float(right.mean()))


@pytest.mark.parametrize("name", ["digits", "retraining", "mnist", "cifar10", "svhn"])
def test_recipes_attack_as_published(name: str) -> None:
    recipe = load_active_recipe(str(Path(study.__file__).parent / "recipes" / f"{name}.toml"))
    attack = (recipe.attack.epsilon, recipe.attack.step, recipe.attack.steps)
    published = {"mnist": (0.3, 0.01, 40), "cifar10": (8 / 255, 2 / 255, 7), "svhn": (8 / 255, 2 / 255, 7)}
    assert attack == published.get(name, (0.2, 0.05, 7))
    assert (recipe.measure.epsilon, recipe.measure.steps) == (recipe.attack.epsilon, 50)
    assert recipe.start == "warm"
    assert recipe.selector == "dre"
    if name == "mnist":
        assert (recipe.schedule.initial, recipe.schedule.per_round, recipe.schedule.total) == (200, 200, 5000)
        assert recipe.epochs.epochs == 10


def test_accuracy_under_attack_is_measured_where_the_recipe_says_so(tmp_path: Path) -> None:
    short = ["epochs.epochs=1", "schedule.rounds=1", "attack.steps=1"]
    recipe = load_active_recipe(DIGITS, [*short, "measure.steps=3"])
    run = execute_active(recipe, tmp_path / "with", name="robust/digits")
    splits, model = data_of(recipe), recipe.build(data_of(recipe), 0)
    model.load_state_dict(dict(run.model))
    expected = robust_accuracy(model, splits.test, recipe.measure, HEADS["softmax"], seed=0)
    assert run.history[-1]["robust_test"] == pytest.approx(expected)
    assert run.history[-1]["robust_validation"] <= run.history[-1]["validation"]
    without = load_active_recipe(DIGITS, [*short, "measure.epsilon=0"])
    assert "robust_test" not in execute_active(without, tmp_path / "without", name="x").history[-1]


def test_the_command_writes_what_it_found_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ("epochs.epochs=1", "schedule.rounds=1", "schedule.per_round=20", "attack.steps=1", "measure.steps=2")
    options = {
        "seeds": (0,),
        "selectors": ("rand", "ent", "dre"),
        "overrides": sets,
        "command": "python -m studies.robust",
    }
    written = robust(tmp_path / "out", tmp_path / "runs", **options)
    assert sorted(written) == sorted(path.name for path in (tmp_path / "out").iterdir())
    page = (tmp_path / "out" / "README.md").read_bytes()
    rows = list(csv.DictReader((tmp_path / "out" / "rounds.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["task"] for row in rows} == set(TASKS)
    assert len(rows) == 3 * 3 * 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert {row["metric"] for row in summary} == {"test", "robust_test"}
    again = robust(tmp_path / "again", tmp_path / "runs", **options, resume=True)
    assert again == written
    assert (tmp_path / "again" / "README.md").read_bytes() == page
    words = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "no"), "--selectors", "rand", "dre"]
    assert main(words) == 2
    assert "--selectors needs 'ent'" in capsys.readouterr().err
    assert main(["--seeds"]) == 2
    assert "--seeds needs at least one seed" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    for option in ("--out", "--runs"):
        assert main([option, str(tmp_path / "file" / "x")]) == 2
        assert f"{option} {tmp_path}/file/x cannot be written" in capsys.readouterr().err


def made_up(dre: float, standard: float = 0.0) -> dict[str, dict[str, float]]:
    others = {name: 0.4 - 0.01 * k for k, name in enumerate(ELEVEN)}
    return {
        "standard": dict.fromkeys((*ELEVEN, "dre"), standard),
        "robust": {**others, "dre": dre},
        "retraining": {**others, "dre": dre},
    }


def test_claims_follow_the_figures() -> None:
    clean = {task: {name: 0.9 + 0.001 * k for k, name in enumerate((*ELEVEN, "dre"))} for task in TASKS}
    good = robust_claims(clean, made_up(dre=0.5))
    assert [claim.held for claim in good] == [True] * 7
    assert len(good[3].judgements) == 10  # all that beat random on accuracy, but not random and not dre
    worse = {task: {**of, "dre": 0.8} for task, of in clean.items()}
    bad = robust_claims(worse, {**made_up(dre=0.1), "standard": made_up(0.1, standard=0.3)["standard"]})
    assert [claim.held for claim in bad] == [False, False, False, True, False, False, False]
