"""Which method fits what the user has, with which settings, and why: in a few lines that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from steelyard.experiments.data import Splits
from steelyard.experiments.methods import DFR, ERM, GroupDRO, Maple, Method, Online, SelfCleaning, UpWeighting
from steelyard.experiments.methods.maple import InnerSettings, OuterRisk
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.models.heads import HeadName
from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings
from steelyard.experiments.training.trainer import OptimizerSettings, Training

__all__ = [
    "PLAIN",
    "CleanMethod",
    "Knowledge",
    "ModelName",
    "Plan",
    "RankedBy",
    "model_named",
    "plan_for",
    "training_for",
]

Knowledge: TypeAlias = Literal["nothing", "clean rows", "groups", "groups on validation", "environments"]
ModelName: TypeAlias = Literal["mlp", "linear"]
CleanMethod: TypeAlias = Literal["auto", "online", "self_cleaning"]
RankedBy: TypeAlias = Literal["suspicion", "weight", "loss"]

PLAIN = "plain"
_BATCH = 256
_RATES: Mapping[ModelName, float] = {"mlp": 1e-3, "linear": 1e-2}
_FEWEST_STEPS = 300
_READINGS = 20  # evaluations of a training
_MANY_CLEAN = 0.1  # of the training rows
_KEPT = 0.6  # MAPLE's budget on Adult and on COMPAS, chosen there on validation: results/adult, results/compas
_MAPLE_STEPS = (20, 60)  # outer and inner, likewise
_ADAM_RATE = 0.01  # of the inner run of a regression


@dataclass(frozen=True)
class Plan:
    """What will be carried out.

    Attributes:
        knowledge: what the user has beyond the labels.
        weighed: the name of the method whose weights and model are written.
        methods: by name, in the order in which they run; `PLAIN` is ordinary training, the others are shown beside.
        ranked_by: what orders the suspects: "suspicion" (`priors.suspicion`), "weight" (the smallest first), or "loss"
            (the written model's, the largest first), where weights are of groups and not of samples.
        reasons: sentences for a person: what was chosen, and why.
    """

    knowledge: Knowledge
    weighed: str
    methods: Mapping[str, Method]
    ranked_by: RankedBy
    reasons: tuple[str, ...] = field(default=())


def model_named(name: ModelName, *, regression: bool = False) -> MLP | Logistic:
    """Return the model: one hidden layer of 64 units, or none; its head is that of a regression, or of classes."""
    head: HeadName = "value" if regression else "softmax"
    return MLP(hidden=(64,), head=head) if name == "mlp" else Logistic(head=head)


def training_for(samples: int, epochs: int, model: ModelName = "mlp") -> Training:
    """Return how a model is trained on so many samples: Adam on batches of 256, 300 steps at least.

    The learning rate is 1e-3, and 1e-2 for a linear layer: it begins at zero, and Adam moves a weight by at most about
    the rate a step.
    """
    steps = max(_FEWEST_STEPS, epochs * -(-samples // _BATCH))
    every = max(1, steps // _READINGS)
    return Training(
        steps=steps, batch_size=_BATCH, evaluate_every=every, optimizer=OptimizerSettings("adam", _RATES[model])
    )


def plan_for(
    knowledge: Knowledge,
    splits: Splits,
    *,
    epochs: int,
    clean_method: CleanMethod = "auto",
    model: ModelName = "mlp",
) -> Plan:
    """Return the plan for what the user has.

    Args:
        knowledge: beyond the labels.
        splits: the data.
        epochs: passes over the training samples.
        clean_method: what clean rows are used by; "auto" decides by how many there are.
        model: what is trained, which decides the learning rate.
    """
    training, numbers = training_for(len(splits.train), epochs, model), splits.target_scale is not None
    plain = {PLAIN: ERM(training=training)}
    count = f"{len(splits.train):,}"
    if knowledge == "clean rows":
        return _with_clean_rows(splits, training, plain, clean_method)
    if knowledge == "groups on validation":
        maple = _maple(OuterRisk("group_worst", "plain"), outer_split="validation", numbers=numbers)
        return Plan(
            knowledge,
            "maple",
            {**plain, "maple": maple},
            "weight",
            (
                f"You know the groups of the validation rows only: {', '.join(splits.groups)}.",
                f"So the {count} training rows are weighed until the worst of these groups on validation does best "
                f"(MAPLE, which keeps {_KEPT:.0%} of the rows on average).",
                "Validation figures then judge the weights, and are not held out; the test rows are.",
            ),
        )
    if knowledge == "environments":
        maple = _maple(OuterRisk("vrex", "sqrt"), folds=2, numbers=numbers)
        return Plan(
            knowledge,
            "maple",
            {**plain, "maple": maple},
            "weight",
            (
                f"You know {len(splits.environments)} environments: {', '.join(splits.environments)}.",
                f"So the {count} training rows are weighed until the model's loss is the same in each of them (MAPLE "
                "with the square root of V-REx, each row judged by a model that was not trained on it; it keeps "
                f"{_KEPT:.0%} of the rows on average).",
                "What predicts in one environment and not in another loses its say; accuracy on rows like yours may "
                "fall, and rise where that shortcut fails.",
            ),
        )
    if knowledge == "groups":
        return _with_groups(splits, training, plain)
    cleaning = SelfCleaning(scoring=scoring_for(training), training=training)
    judges = f"So {cleaning.scoring.models} models, none of them trained on the row it judges, judge every"
    reasons = (
        "You know the labels alone, and some of them may be wrong.",
        f"{judges} label of the {count} training rows; as many of the most suspect rows as labels seem wrong are left "
        "out, and the model is trained on the others.",
        _LIMITS,
    )
    if numbers:
        reasons = (
            "You know the numbers to predict alone, and some of them may be wrong.",
            f"{judges} target of the {count} training rows: a row weighs as much as its target is probably right, by "
            "how far it is from what they predict.",
            _LIMITS_OF_NUMBERS,
        )
    return Plan(knowledge, "self_cleaning", {**plain, "self_cleaning": cleaning}, "suspicion", reasons)


_LIMITS = (
    "That finds labels that contradict what the other rows teach. It cannot find errors that all rows of a kind share, "
    "nor tell a wrong label from a rare case that is right; a hundred rows or more whose labels you checked (--clean) "
    "help it to."
)

_LIMITS_OF_NUMBERS = (
    "That finds targets that are far from what the other rows teach. It cannot find errors that all rows of a kind "
    "share, nor errors that are no larger than right targets scatter; where these scatter more in one place than in "
    "another, rows of that place look suspect. Rows whose targets you checked (--clean) tell it how far right targets "
    "scatter."
)


def scoring_for(training: Training) -> OutOfFoldSettings:
    """Return how rows are judged by models that were trained as `training` says, on fewer rows."""
    return OutOfFoldSettings(training=training)


def _with_clean_rows(splits: Splits, training: Training, plain: Mapping[str, Method], method: CleanMethod) -> Plan:
    """Return the plan for clean rows.

    Where these are a tenth of the training rows or more, online reweighting was the more accurate (breast cancer, 50 of
    348), elsewhere weights by label (Adult and COMPAS, 200 of 2,500): results/your_data.
    """
    share = len(splits.validation) / len(splits.train)
    count, clean = f"{len(splits.train):,}", f"{len(splits.validation):,}"
    right = "labels" if splits.target_scale is None else "targets"
    have = f"You have {clean} rows whose {right} are right, {share:.0%} of the {count} training rows."
    held = "Figures on the clean rows are then not held out; those on the test rows are."
    asked = {"online": "as you asked", "self_cleaning": "as you asked"}
    if method == "online" or (method == "auto" and share >= _MANY_CLEAN):
        why = asked.get(method, f"they are {_MANY_CLEAN:.0%} or more")
        epochs = max(1, training.steps // -(-len(splits.train) // _BATCH))
        online = Online(epochs=epochs, batch_size=_BATCH, optimizer=training.optimizer)
        how = (
            f"So ({why}) the training rows are weighed batch by batch, while the model is trained, by how far a step "
            "on each would lower the loss on the clean rows (online reweighting: Learning to Reweight)."
        )
        return Plan("clean rows", "online", {**plain, "online": online}, "weight", (have, how, held))
    why = asked.get(method, f"they are less than {_MANY_CLEAN:.0%}, too few to lead every step")
    label, told = ("label", "labels were confused")
    if splits.target_scale is not None:
        label, told = ("target", "far right targets are from the predictions")
    cleaning = SelfCleaning(trusted=True, scoring=scoring_for(training), training=training)
    how = (
        f"So ({why}) {cleaning.scoring.models} models, none of them trained on the row it judges, judge every {label}; "
        f"the clean rows tell how {told}, each training row weighs as much as its {label} is probably right, and the "
        "clean rows are trained on, too."
    )
    return Plan("clean rows", "self_cleaning", {**plain, "self_cleaning": cleaning}, "suspicion", (have, how, held))


def _with_groups(splits: Splits, training: Training, plain: Mapping[str, Method]) -> Plan:
    methods = {
        **plain,
        "group_dro": GroupDRO(step=0.1, weighed=True, training=training),
        "upweighting": UpWeighting(training=training),
    }
    beside = "Up-weighting (every group counts the same)"
    if splits.target_scale is None:
        methods["dfr"] = DFR(fit_on="train", training=training)
        beside += " and DFR (the last layer trained again on as many rows of each group) are"
    else:
        beside += " is"
    return Plan(
        "groups",
        "group_dro",
        methods,
        "loss",
        (
            f"You know the group of every row: {', '.join(splits.groups)}.",
            "So the group with the greatest loss gains weight while the model is trained (Group DRO), which asks for "
            "the best worst group rather than the best average.",
            f"{beside} carried out beside it; the page compares them.",
        ),
    )


def _maple(
    risk: OuterRisk, *, folds: int = 1, outer_split: Literal["train", "validation"] = "train", numbers: bool = False
) -> Maple:
    inner = InnerSettings(steps=_MAPLE_STEPS[1])
    if numbers:  # a squared error bends as much as the inputs are long: no one step size of SGD does
        inner = replace(inner, optimizer=OptimizerSettings("adam", _ADAM_RATE))
    return Maple(
        budget=_KEPT,
        steps=_MAPLE_STEPS[0],
        folds=folds,
        outer_split=outer_split,
        weight_rate=0.02,
        risk=risk,
        inner=inner,
        retrain=True,
    )
