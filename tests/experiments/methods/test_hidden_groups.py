"""Groups that are known on validation and test alone: what needs none in training runs, all else is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard.experiments.data import OwnTable, Splits
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.methods import DFR, ERM, JTT, PDE, GroupDRO, Maple, Method, UpWeighting
from steelyard.experiments.methods.maple import InnerSettings, OuterRisk
from steelyard.experiments.models import MLP
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run import execute, read_run
from steelyard.experiments.training.trainer import Training
from tests.support.own import patients

SHORT = Training(steps=2)
WORST = OuterRisk("group_worst", "plain")
INNER = InnerSettings(steps=2)
NEED_NONE = [
    ERM(training=SHORT),
    JTT(identification=SHORT, training=SHORT),
    GroupDRO(by="environment", training=SHORT),
    DFR(fit_on="validation", retrains=1, strengths=(1.0,), training=SHORT),
    Maple(budget=60, steps=2, outer_split="validation", risk=WORST, inner=INNER),
]
NEED_THEM = [
    GroupDRO(training=SHORT),
    UpWeighting(training=SHORT),
    PDE(training=SHORT),
    DFR(fit_on="train", training=SHORT),
    Maple(budget=60, steps=2, risk=WORST, inner=INNER),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> OwnTable:
    frame, file = patients(), tmp_path_factory.mktemp("hidden") / "patients.csv"
    frame.loc[frame["part"] == "train", "sex"] = ""
    frame.to_csv(file, index=False)
    settings = {"target": "ill", "attributes": ("sex",), "environment": "hospital", "split": "part"}
    return OwnTable(file=str(file), drop=("patient", "beds"), **settings)


@pytest.mark.parametrize("method", NEED_NONE, ids=lambda method: method.name)
def test_a_method_that_needs_no_training_groups_runs(method: Method, data: OwnTable, tmp_path: Path) -> None:
    recipe = Recipe(data, MLP(hidden=(4,)), method, selection="validation_worst_group")
    run = execute(recipe, tmp_path / "run", name="test")
    last = read_run(tmp_path / "run").history[-1]
    assert (last.visible, last.test) == (run.history[-1].visible, run.history[-1].test)
    assert last.visible.train.group_count == ()
    assert last.visible.validation.group_count == (14, 14, 14, 14)
    assert last.test.worst_group_accuracy is not None
    assert last.test.adjusted_accuracy is None  # it needs the groups' sizes in training


@pytest.mark.parametrize("method", NEED_THEM, ids=lambda method: method.name)
def test_others_are_refused_by_name_before_training(method: Method, data: OwnTable, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"method '{method.name}' as it is set needs the groups of training samples"):
        execute(Recipe(data, MLP(hidden=(4,)), method), tmp_path / "run", name="test")
    assert not (tmp_path / "run").exists()


def test_learned_weights_are_those_of_known_groups(data: OwnTable, tmp_path: Path) -> None:
    """MAPLE judges by the worst group of validation: what training rows are labelled with moves nothing."""
    splits = data.load(0)
    known = replace(splits.train, group=torch.zeros(len(splits.train), dtype=torch.int64))
    method = NEED_NONE[-1]

    def learned(own: Splits, name: str) -> torch.Tensor:
        run = execute(Recipe(data, MLP(hidden=(4,)), method), tmp_path / name, name="test", splits=own)
        assert run.samples is not None
        return torch.tensor(run.samples["probability"].to_numpy())

    hidden = learned(splits, "hidden")
    assert torch.equal(hidden, learned(replace(splits, train=known), "known"))
    assert float(hidden.std()) > 1e-3
