"""Groups without group labels: who contradicts the colour of coloured digits is found, and methods train on it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard.distributed import Ranks
from steelyard.experiments.data import ColouredDigits
from steelyard.experiments.methods import DFR, GroupDRO, Maple, RefinedMaple, UpWeighting, check_groups
from steelyard.experiments.methods.found_groups import (
    EIIL,
    XRM,
    ErrorGroups,
    Given,
    MapleGroups,
    invariance_split,
    larger_budget,
)
from steelyard.experiments.methods.maple import InnerSettings
from steelyard.experiments.models import MLP
from steelyard.experiments.models.heads import HeadName
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from steelyard.reweight import OneHumpError, adjusted_rand

FIRST = Training(steps=10, optimizer=OptimizerSettings("adam", 0.03))
INNER = InnerSettings(steps=40)
ONE_HUMP = Maple(budget=150, steps=12, learn="probabilities", inner=INNER, probability_rate=0.2)
TWO_HUMPS = replace(ONE_HUMP, budget=300)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(ColouredDigits(train_flips=(0.05, 0.15)).load(0), MLP(hidden=(16,)), seed=0)


@pytest.mark.parametrize(
    "source",
    [
        ErrorGroups(identification=FIRST),
        XRM(steps=20, optimizer=FIRST.optimizer),
        EIIL(identification=FIRST),
    ],
    ids=["errors", "xrm", "eiil"],
)
def test_who_contradicts_the_colour_is_found(problem: Problem, source: ErrorGroups | XRM | EIIL) -> None:
    data = source.label(problem)
    known = Given().label(problem).group
    assert data.group is not None
    assert known is not None
    assert data.group.unique().tolist() == [0, 1, 2, 3]
    assert adjusted_rand(data.group, known) > 0.85
    assert torch.equal(source.label(problem).group, data.group)  # nothing is left to chance


def test_the_split_makes_the_penalty_greatest() -> None:
    """Against every split of a few samples, and against soft assignments by Adam."""
    slopes = torch.tensor([3.0, 0.1, -0.2, -0.25, 0.05, -0.1, -0.27], dtype=torch.float64)

    def penalty(q: torch.Tensor) -> torch.Tensor:
        return (q @ slopes).square() + ((1 - q) @ slopes).square()

    found = penalty(invariance_split(slopes).double())
    splits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(slopes))), dtype=torch.float64)
    assert found == pytest.approx(max(penalty(q).item() for q in splits))
    logits = torch.randn(len(slopes), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (-penalty(logits.sigmoid())).backward()
        optimizer.step()
    assert penalty(logits.sigmoid().detach()).item() == pytest.approx(found.item(), rel=1e-2)
    ends = (logits > 0).tolist()
    assert ends in (invariance_split(slopes).tolist(), (~invariance_split(slopes)).tolist())


@pytest.mark.parametrize("head", ["one_logit", "softmax"])
def test_of_two_classes_eiil_finds_the_errors(problem: Problem, head: HeadName) -> None:
    net = replace(problem, model_settings=MLP(hidden=(16,), head=head))
    rare = EIIL(identification=FIRST).rare(net)
    assert 0 < int(rare.sum()) < len(rare) / 2
    assert torch.equal(rare, ErrorGroups(identification=FIRST).rare(net))


def test_maples_groups(problem: Problem) -> None:
    known = Given().label(problem).group
    found = MapleGroups(TWO_HUMPS).label(problem).group
    assert found is not None
    assert known is not None
    assert adjusted_rand(found, known) > 0.85


def test_maples_groups_are_refused_where_s_has_one_hump(problem: Problem) -> None:
    with pytest.raises(OneHumpError, match="no two humps"):
        MapleGroups(ONE_HUMP, second_run=False).label(problem)
    with pytest.raises(OneHumpError, match="find different groups"):
        MapleGroups(ONE_HUMP).label(problem)


def test_what_one_run_leaves_open_two_decide(problem: Problem) -> None:
    known = Given().label(problem).group
    assert known is not None
    unclear = replace(ONE_HUMP, budget=170)
    with pytest.raises(OneHumpError, match="no two humps"):
        MapleGroups(unclear, second_run=False).label(problem)
    found = MapleGroups(unclear).label(problem).group
    assert found is not None
    assert adjusted_rand(found, known) > 0.85
    fitted = RefinedMaple(unclear, rounds=0).fit(problem, silent)
    assert fitted.reweighting is not None
    mass = torch.zeros(4).index_add_(0, found, fitted.reweighting.expected_weights)
    assert torch.allclose(mass, mass.mean())  # equal for the cells of the groups that both runs have


@pytest.mark.parametrize(("budget", "larger"), [(300, 400), (0.3, 432), (900, 971)])
def test_the_second_budget_is_a_third_larger(budget: float, larger: int) -> None:
    assert larger_budget(replace(ONE_HUMP, budget=budget), 1079) == larger


@pytest.mark.parametrize(
    "method",
    [
        UpWeighting(groups=ErrorGroups(identification=FIRST), training=Training(steps=5)),
        GroupDRO(groups=ErrorGroups(identification=FIRST), training=Training(steps=5)),
        DFR(fit_on="train", groups=ErrorGroups(identification=FIRST), retrains=1, strengths=(1.0,), training=FIRST),
    ],
    ids=["upweighting", "group_dro", "dfr"],
)
def test_methods_train_on_found_groups_where_none_is_known(
    problem: Problem, method: UpWeighting | GroupDRO | DFR
) -> None:
    def grey(data):  # no column, and no colour to read one off
        return replace(data, inputs=data.inputs.flatten(1), group=None)

    splits = replace(
        problem.splits, **{name: grey(getattr(problem.splits, name)) for name in ("train", "validation", "test")}
    )
    hidden = replace(problem, splits=splits)
    assert not method.needs_training_groups
    check_groups(method, splits)
    assert method.fit(hidden, silent).model is not None
    assert replace(method, groups=Given()).needs_training_groups


def test_found_groups_are_of_training_samples() -> None:
    with pytest.raises(ValueError, match="take fit_on = 'train'"):
        DFR(fit_on="validation", groups=ErrorGroups())


def test_several_processes_are_refused(problem: Problem) -> None:
    class Two(Ranks):
        size = 2

    with pytest.raises(ValueError, match="groups are not found by 2 processes"):
        ErrorGroups().label(replace(problem, ranks=Two()))


@pytest.mark.parametrize("method", [MapleGroups, RefinedMaple])
def test_weights_alone_tell_no_groups(method: type[MapleGroups | RefinedMaple]) -> None:
    with pytest.raises(ValueError, match=r"maple\.learn = 'weights' leaves the keep-probabilities as they begin"):
        method(Maple(learn="weights"))


def test_a_recipe_names_its_source(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'base = "coloured_digits/group_dro"\n[method.groups]\nname = "maple"\nmaple = { budget = 324, steps = 3 }\n'
    )
    method = load_recipe(str(tmp_path / "mine.toml"), seed=0).method
    assert isinstance(method, GroupDRO)
    assert method.groups == MapleGroups(Maple(budget=324, steps=3))


def test_refined_maple_without_two_humps(problem: Problem) -> None:
    with pytest.raises(OneHumpError):
        RefinedMaple(ONE_HUMP).fit(problem, silent)
    seen = []
    fitted = RefinedMaple(ONE_HUMP, one_hump="maple").fit(
        problem, lambda step, model, extra: seen.append((step, extra))
    )
    assert [step for step, _ in seen] == list(range(1, 14))
    assert seen[-1][1]["refined"] == 0
    assert fitted.reweighting is not None
    assert len(fitted.reweighting.history) == 12


def test_refined_maple(problem: Problem) -> None:
    seen = []
    method = RefinedMaple(TWO_HUMPS, rounds=1, folds=2)
    assert replace(method, together=False).refine(method.inner_run(problem)).together is False
    fitted = method.fit(problem, lambda step, model, extra: seen.append((step, extra)))
    assert seen[-1][0] == method.last_step == 13
    assert seen[-1][1]["refined"] == 1
    assert fitted.reweighting is not None
    assert [row.get("phase") for row in fitted.reweighting.history] == [None] * 12 + ["clean"]
    assert fitted.facts == {"inner runs": "one a step", "nets that score": "as one"}
    assert set(fitted.reweighting.probabilities.tolist()) == {0.0, 1.0}
