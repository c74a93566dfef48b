"""What this room refuses, as users meet it, without the type checks of the tests: argument, value, remedy."""

import pytest
import torch
from torch import nn

from steelyard.bilevel import Batch, Truncated, WeightedLoss
from steelyard.reweight import (
    BayesianIRM,
    ConstraintSet,
    CosineDecay,
    CubicBudget,
    Custom,
    EffectiveNumber,
    GroupDRO,
    GroupWeights,
    GroupWorst,
    InnerRun,
    IRMv1,
    Log,
    Maple,
    Mask,
    MeanRisk,
    Prior,
    RelativeDifficulty,
    SoftGroupWorst,
    Sqrt,
    VREx,
    WeightedSum,
    bernoulli_kl,
    bernoulli_kl_gradient,
    keep_probabilities,
    project_box_simplex,
)
from tests.support.environments import CROSS_ENTROPY, linear_run, spurious

HALF, COUNTS = torch.full((4,), 0.5), torch.tensor([3, 2])
TRAIN = spurious(20)[0]


def maple(**options):
    given = {"inner": linear_run(steps=2), "risk": VREx(), "budget": 10, "steps": 1, **options}
    return Maple(given.pop("inner"), given.pop("risk"), **given)


def at(environment=None, group=None):
    """Evaluate a risk and a rule on labels that `Batch` did not see."""
    batch = Batch.of(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    object.__setattr__(batch, "environment", environment)
    object.__setattr__(batch, "group", group)
    return torch.zeros(4, 3), batch, CROSS_ENTROPY


REFUSED = {
    "budget a string": (lambda: maple(budget="3"), r"budget must be a real number, got '3' \(str\)"),
    "budget None": (lambda: maple(budget=None), "budget must be a real number, got None"),
    "budget True": (lambda: maple(budget=True), "budget must be a real number, got True"),
    "budget of a set": (lambda: ConstraintSet(True), "budget must be a real number, got True"),
    "clip": (lambda: maple(clip="a"), "clip must be a real number, got 'a'"),
    "radius": (lambda: maple(radius="a"), "radius must be a real number, got 'a'"),
    "radius 0": (lambda: maple(radius=0), "radius must be finite and > 0.0, got 0"),
    "tolerance": (lambda: maple(tolerance="a"), "tolerance must be a real number"),
    "equality": (lambda: maple(equality="no"), "equality must be True or False, got 'no'"),
    "seed": (lambda: maple(seed=10**20), r"seed must be in \[0, 9223372036854775807\], got 1000"),
    "inner": (lambda: maple(inner=nn.Linear(2, 2)), "inner must be an InnerRun, got Linear"),
    "risk": (lambda: maple(risk="vrex"), r"risk must be a Risk, such as VREx\(\), got 'vrex'"),
    "risk's class": (lambda: maple(risk=VREx), "risk must be a Risk, such as .*, got <class"),
    "mask": (lambda: maple(mask="relaxed"), "mask must be a Mask, got 'relaxed'"),
    "mask 0": (lambda: maple(mask=0), "mask must be a Mask, got 0"),
    "estimator": (lambda: maple(estimator="truncated"), "estimator must be an estimator.*got 'truncated'"),
    "estimator's class": (lambda: maple(estimator=Truncated), "estimator must be an estimator, .* got <class"),
    "schedule": (lambda: maple(schedule=0.1), "schedule must be a function of progress in .*, got 0.1"),
    "optimizer": (lambda: maple(weight_optimizer=0.1), "weight_optimizer must be a function that makes"),
    "prior": (lambda: maple(prior=HALF), r"prior must be a Prior, got a Tensor of shape \(4,\)"),
    "journal": (lambda: maple().fit(TRAIN, journal="run"), "journal must be a Journal, .*, got 'run'"),
    "train": (lambda: maple().fit(TRAIN.inputs), r"train must be a Batch, .*, got a Tensor of shape"),
    "validation": (lambda: maple().fit(TRAIN, TRAIN.inputs), r"validation must be a Batch, .*, got a Tensor of shape"),
    "folds": (lambda: maple(folds=21).fit(TRAIN), "folds is 21, but train has only 20 samples; lower folds"),
    "budget above n": (
        lambda: project_box_simplex(HALF, 5),
        "budget is 5, but 4 .* cannot sum to more than 4; take a budget of at most 4",
    ),
    "keep": (lambda: keep_probabilities(HALF, "a"), "budget must be a real number, got 'a'"),
    "scores": (lambda: keep_probabilities(["a"], 1), "scores must be a tensor, or numbers"),
    "strata": (lambda: keep_probabilities(HALF, 1, strata=HALF), "strata must hold integers, got torch.float32"),
    "decay": (lambda: CosineDecay("a"), "end must be a real number, got 'a'"),
    "cubic": (lambda: CubicBudget("a", 1), "start must be a real number, got 'a'"),
    "float environment": (lambda: VREx()(*at(torch.zeros(4))), r"batch\.environment must hold integers, got torch.fl"),
    "2-d environment": (lambda: IRMv1()(*at(torch.zeros(4, 1).long())), r"must have the shape \(n\), got \(4, 1\)"),
    "float group": (lambda: GroupDRO(COUNTS)(HALF, at(None, HALF)[1]), r"batch\.group must hold integers"),
    "by": (lambda: GroupDRO(COUNTS, by="foo"), r"by must be one of \['environment', 'group'\], got 'foo'"),
    "by of weights": (lambda: GroupWeights(COUNTS, by="env"), "by must be one of .*, got 'env'"),
    "power of weights": (lambda: GroupWeights(COUNTS, power=float("inf")), "power must be finite, got inf"),
    "beta": (lambda: EffectiveNumber(COUNTS, 1.0), r"beta must be finite and in \[0.0, 1.0\), got 1.0"),
    "by of a risk": (lambda: GroupWorst("foo"), "by must be one of"),
    "by of a soft risk": (lambda: SoftGroupWorst(1.0, "foo"), "by must be one of"),
    "float counts": (lambda: GroupDRO(COUNTS.float()), "counts must hold integers, got torch.float32"),
    "counts": (lambda: GroupWeights("32"), r"counts must be a tensor, got '32'"),
    "targets": (lambda: RelativeDifficulty(HALF), "targets must hold integers"),
    "custom": (lambda: Custom(3), "function must be a function of losses and a batch, got 3"),
    "mean": (lambda: VREx(mean="a"), "mean must be a real number, got 'a'"),
    "mean nan": (lambda: VREx(mean=float("nan")), "mean must be finite"),
    "unbiased": (lambda: IRMv1(unbiased="a"), "unbiased must be True or False, got 'a'"),
    "sqrt": (lambda: Sqrt(3), r"risk must be a Risk, such as VREx\(\), got 3 \(int\)"),
    "log": (lambda: Log("x"), "risk must be a Risk, .* got 'x'"),
    "factor": (lambda: float("nan") * VREx(), "factor must be finite, got nan"),
    "terms": (lambda: WeightedSum(((1.0, 3),)), r"terms\[0\]\[1\] must be a Risk"),
    "bayesian": (lambda: BayesianIRM(0.1, 0), "generator must be a torch.Generator"),
    "prior 2-d": (lambda: Prior(torch.full((4, 2), 0.5)), r"probabilities must have the shape \(n\), got \(4, 2\)"),
    "prior's decay": (lambda: Prior(HALF, decay=0.5), "decay must be a function of progress"),
    "kl": (lambda: bernoulli_kl(2 * HALF + 1, HALF), r"s must be in \[0, 1\]; 4 of 4 are not, the first 2.0"),
    "kl of a prior": (lambda: bernoulli_kl(HALF, -HALF), r"prior must be in \[0, 1\]; 4 of 4 are not"),
    "kl's gradient": (lambda: bernoulli_kl_gradient(HALF, 3 * HALF), r"prior must be in \[0, 1\]"),
    "kl's lengths": (lambda: bernoulli_kl(HALF, HALF[:3]), "s has 4, prior has 3"),
    "generator": (lambda: Mask()(HALF, None), r"generator must be a torch.Generator, such as .*, got None"),
    "relaxed generator": (lambda: Mask().relaxed(HALF, 3), r"generator must be a torch.Generator, such as .*, got 3"),
    "loss": (lambda: WeightedLoss("x"), "loss must be a function of outputs and targets, got 'x'"),
    "regulariser": (
        lambda: WeightedLoss(CROSS_ENTROPY, regulariser=0.1),
        "regulariser must be a function of the model",
    ),
    "evaluated mean": (lambda: MeanRisk() + WeightedSum(((float("inf"), VREx()),)), r"terms\[0\]\[0\] must be finite"),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("budget", [5, 5.0, CubicBudget(6, 5)])
def test_numbers_and_functions_are_budgets(budget):
    assert len(maple(budget=budget).fit(TRAIN)) == 20


OBJECTIVE = WeightedLoss(CROSS_ENTROPY)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": nn.Linear(2, 2)}, "model must be a function that makes the module, got a module"),
        ({"optimizer": "sgd"}, "optimizer must be a function that makes an optimizer of parameters, got 'sgd'"),
        ({"objective": CROSS_ENTROPY}, "objective must be a WeightedLoss, got"),
        ({"schedule": 0.5}, r"schedule must be a function of progress in \[0, 1\], got 0.5"),
        ({"restart": "no"}, "restart must be True or False, got 'no'"),
        ({"storage": torch.bfloat16}, "storage must be a Storage, got"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_inner_runs_of_the_wrong_kinds(given: dict, words: str) -> None:
    right = {"model": lambda: nn.Linear(2, 2), "optimizer": torch.optim.SGD, "objective": OBJECTIVE, "steps": 2}
    with pytest.raises(TypeError, match=words):
        InnerRun(**right | given)
    with pytest.raises(ValueError, match="seed must be"):
        InnerRun(**right, seed=10**20)
