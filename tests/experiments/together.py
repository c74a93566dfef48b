"""What the processes of `test_shares` run: recipes carried out by both of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.training.evaluation import Evaluation
from tests.support.shrunk import short

DIGITS = (
    "erm",
    "irmv1",
    "vrex",
    "bayesian_irm",
    "upweighting",
    "cvar_dro",
    "group_dro",
    "kl_dro",
    "ordered_sgd",
    "jtt",
)
BATCHES = ["method.folds=1", "method.inner.batch_size=40", "method.draws=2"]
WARM = ["method.folds=1", "method.inner.restart=false", "method.outer_split='validation'"]
GROUPS = ["method.risk={penalty='group_worst', shape='plain'}", "method.retrain=true"]
IMAGES = ["model={name='mlp', hidden=[2]}", "data.workers=0"]
FEW_STEPS = ["method.training={steps=3, batch_size=2, optimizer={learning_rate=1e-5}}"]
FEW_OUTER = ["method.budget=4", "method.steps=2"]
FEW_OUTER += ["method.inner={steps=3, batch_size=2, optimizer={name='sgd', learning_rate=1e-5}}"]


def recipes() -> dict[str, Recipe]:
    """Every method that processes share, and MAPLE in its variants; the last is the one whose rank is killed."""
    found = {name: short(f"coloured_digits/{name}") for name in (*DIGITS, "pde")}
    found["l2, whole batches"] = short(
        "coloured_digits/irmv1", "method.training.batch_size=0", "method.training.l2=0.1"
    )
    variants = {"maple, batches": BATCHES, "maple, warm": WARM, "maple, groups": GROUPS}
    found |= {name: short("coloured_digits/maple", *more) for name, more in variants.items()}
    found["images"] = load_recipe("waterbirds/erm", [*IMAGES, *FEW_STEPS], 1)
    found["maple, images"] = load_recipe("waterbirds/maple", [*IMAGES, *FEW_OUTER], 1)
    found["maple"] = short("coloured_digits/maple")
    return found


def carry_out(ranks: Ranks, folder: Path) -> None:
    """Carry out all of them; then one of which the second rank is killed in its last step."""
    for name, recipe in recipes().items():
        execute(recipe, folder / "runs" / name, name=name, data_root=folder / "data", ranks=ranks)
    if ranks is ALONE:
        return

    def kill(evaluation: Evaluation) -> None:
        if evaluation.visible.step == 3 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    place = folder / "killed" / "seed1"
    execute(recipes()["maple"], place, name="maple", checkpoint_every=1, progress=kill, ranks=ranks)
