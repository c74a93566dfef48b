"""Carry out a plan: a run for each method and seed, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn

from steelyard._support._files import read_bytes
from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable, Splits
from steelyard.experiments.data.table import Table
from steelyard.experiments.errors import RunError
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.priors import PRIOR, ComputedPrior
from steelyard.experiments.priors.suspicion import SUSPICION
from steelyard.experiments.runs.folder import MODEL, REMEDY, REWEIGHTING, UNREADABLE, check_directory, check_place
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run import Run, execute
from steelyard.experiments.training.evaluation import Evaluation
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.weigh.plan import Plan
from steelyard.reweight import Reweighting

__all__ = ["RUNS", "Outcome", "Watch", "carry_out", "is_begun"]

RUNS = "runs"  # the folder of the runs, beside what is written

Watch = Callable[[str, int, Evaluation, int], None]
"""Called as ``watch(method, seed, evaluation, number of the run's last step)``."""


@dataclass(frozen=True)
class Outcome:
    """What a plan came to.

    Attributes:
        plan: what was carried out.
        data: the user's data.
        splits: its samples.
        table: the user's table as text, the clean rows last; None where there is none.
        model: the settings of all models.
        runs: the runs of each method, one a seed.
        models: the model of each method, of the first seed.
        reweighting: the weights of the method that was chosen, means over seeds.
        suspicion: ``(n,)`` of each training sample, high = suspect; what `Plan.ranked_by` says.
    """

    plan: Plan
    data: OwnTable | OwnArrays | OwnImages
    splits: Splits
    table: Table | None
    model: MLP | Logistic
    runs: Mapping[str, Sequence[Run]]
    models: Mapping[str, nn.Module]
    reweighting: Reweighting
    suspicion: Float[Tensor, " n"]

    @property
    def clean(self) -> bool:
        """Whether the validation split is a file of clean rows."""
        return not isinstance(self.data, OwnArrays) and bool(self.data.clean)

    @property
    def own_rows(self) -> int:
        """The number of rows of the user's file, the clean ones of another not counted; 0 where there is no table."""
        return 0 if self.table is None else len(self.table) - self.clean * len(self.splits.validation)

    def name_of(self, row: int) -> str:
        """Return the id of a row of the user's data."""
        if not self.data.id:
            return str(row)
        if self.table is not None:
            return self.table.columns[self.data.id][row]
        place = torch.nonzero(self.splits.rows["train"] == row).flatten().tolist()
        return self.splits.ids[place[0]] if place else ""


def carry_out(
    plan: Plan,
    data: OwnTable | OwnArrays | OwnImages,
    splits: Splits,
    model: MLP | Logistic,
    seeds: Sequence[int],
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int = 200,
    allow_code: bool = False,
    watch: Watch = lambda method, seed, evaluation, last: None,
    stop: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Run every method of `plan` for every seed, into ``out/runs/<method>/seed<k>``.

    Args:
        plan: which methods.
        data: the user's data, its splits dealt by a seed of its own.
        splits: what it loads.
        model: of all methods.
        seeds: of initial parameters and draws.
        out: the folder.
        overwrite, resume, checkpoint_every, allow_code, stop: see `execute`.
        watch: called after each evaluated step.

    Raises:
        As `execute`.
    """
    recipes = {
        (name, seed): Recipe(data, model, method, seed=seed, selection="last")
        for name, method in plan.methods.items()
        for seed in seeds
    }
    for name, seed in recipes:  # all of them before the first training
        check_place(_place(out, name, seed), below=out.parent)
        check_directory(_place(out, name, seed), overwrite, resume)
    runs: dict[str, list[Run]] = {name: [] for name in plan.methods}
    for (name, seed), recipe in recipes.items():

        def progress(
            evaluation: Evaluation, name: str = name, seed: int = seed, last: int = recipe.method.last_step
        ) -> None:
            watch(name, seed, evaluation, last)

        runs[name].append(
            execute(
                recipe,
                _place(out, name, seed),
                name=f"weigh/{name}",
                overwrite=overwrite,
                resume=resume,
                checkpoint_every=checkpoint_every,
                allow_code=allow_code,
                splits=splits,
                progress=progress,
                stop=stop,
            )
        )
    problem = Problem(splits, model, seeds[0])
    models = {name: _model(problem, found[0].directory) for name, found in runs.items()}
    weighed = [run.directory for run in runs[plan.weighed]]
    reweighting = _averaged([_loaded(place / REWEIGHTING, Reweighting.load) for place in weighed])
    suspicion = _suspicion(plan, problem, models[plan.weighed], reweighting, weighed)
    table = None if isinstance(data, OwnArrays) else data.read()
    return Outcome(plan, data, splits, table, model, runs, models, reweighting, suspicion)


def is_begun(plan: Plan, seeds: Sequence[int], out: Path) -> bool:
    """Return whether a run of `plan` lies in `out`, which could be resumed."""
    return any(_place(out, name, seed).is_dir() for name in plan.methods for seed in seeds)


def _place(out: Path, name: str, seed: int) -> Path:
    return out / RUNS / name / f"seed{seed}"


def _loaded(path: Path, load_file: Callable[[Path], Reweighting]) -> Reweighting:
    try:
        return load_file(path)
    except UNREADABLE as error:
        raise RunError(f"{path} cannot be read: {error}; {REMEDY}") from error


def _model(problem: Problem, directory: Path) -> nn.Module:
    """Return the final model of a run, in evaluation mode."""
    model, path = problem.model(), directory / MODEL
    try:
        model.load_state_dict(load(read_bytes(path)))
    except UNREADABLE as error:
        raise RunError(f"{path} cannot be read: {error}; {REMEDY}") from error
    return model.eval()


def _averaged(found: Sequence[Reweighting]) -> Reweighting:
    """Return the mean keep-probability over seeds, and the weight whose product with it is the mean of s w."""
    kept = torch.stack([one.probabilities.double() for one in found]).mean(0)
    expected = torch.stack([one.expected_weights.double() for one in found]).mean(0)
    weights = torch.where(
        kept > 0, expected / kept.clamp(min=1e-300), torch.stack([o.weights.double() for o in found]).mean(0)
    )
    return Reweighting(weights, kept, found[0].history, found[0].index)


def _suspicion(
    plan: Plan, problem: Problem, model: nn.Module, reweighting: Reweighting, places: Sequence[Path]
) -> Float[Tensor, " n"]:
    """Return how suspect each training sample is; of equal weights the sample of larger loss is more so."""
    train = problem.splits.train
    if plan.ranked_by == "suspicion":
        scores = [ComputedPrior.load(place / PRIOR).scores for place in places]
        return torch.stack([next(s.scores for s in one if s.name == SUSPICION).double() for one in scores]).mean(0)
    with torch.no_grad():
        losses = torch.cat([problem.loss(model(part.inputs), part.targets) for part in train.chunks(10_000)]).double()
    if plan.ranked_by == "loss":
        return losses
    small = 1 - losses.argsort().argsort().double() / len(losses)  # (0, 1]: decides among equal weights alone
    weights = reweighting.expected_weights.double()
    step = torch.unique(weights).diff().min() if len(torch.unique(weights)) > 1 else torch.tensor(1.0)
    return -(weights + 0.5 * step * small)
