"""What is trained and measured: epsilon and temperature chosen on validation, the table on seeds that chose nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steelyard._support._files import write_text
from steelyard._support._modules import evaluating
from steelyard.bilevel.batch import Batch
from steelyard.experiments.compare.rows import Spread
from steelyard.experiments.methods.done import DONE
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Problem

__all__ = ["EPSILONS", "METHODS", "TEMPERATURES", "Cells", "Chosen", "choose", "measure", "outcome", "spread"]

EPSILONS = (0.02, 0.05, 0.1, 0.15, 0.2)
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
DATA = ("balanced", "imbalanced")
METHODS = ("standard", "adversarial", "done")
PLAIN = 1000.0  # a temperature at which all weights are alike: plain adversarial training
WEAK = 3  # classes of ten that are worst under attack
_RECIPE = str(Path(__file__).parent / "recipe.toml")
_STEPS = 50

Figures = Mapping[str, float]
Key = tuple[str, float, float, int]
"""Data, epsilon trained against (0: none), temperature, seed."""


class Cells:
    """The figures of every training, computed where they are not in the file yet, and written there at once.

    Args:
        file: of an interrupted or a finished study; made if it is not there.
        overrides: fields set in the recipe.
        told: called with a line for each training.
    """

    def __init__(self, file: Path, overrides: Sequence[str] = (), told: Callable[[str], None] = lambda text: None):
        self.file, self.overrides, self.told = file, tuple(overrides), told
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        self.known = {self._key(row["at"]): row["figures"] for row in kept if row["overrides"] == list(overrides)}

    @staticmethod
    def _key(at: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(at)

    def __call__(self, data: str, epsilon: float, temperature: float, seed: int, against: float) -> Figures:
        """Return the figures of one training, measured under attacks of radius `against`."""
        key = (data, epsilon, temperature, seed, against)
        if key not in self.known:
            self.told(f"{data}, epsilon {epsilon:g}, temperature {temperature:g}, seed {seed}")
            self.known[key] = measure(data, epsilon, temperature, seed, against, self.overrides)
            rows = [{"at": at, "overrides": self.overrides, "figures": of} for at, of in self.known.items()]
            write_text(self.file, json.dumps(rows, indent=1) + "\n")
        return self.known[key]


def measure(
    data: str, epsilon: float, temperature: float, seed: int, against: float, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Train once and return accuracies on validation and test: clean, robust, and of the weakest classes under attack.

    Args:
        data: of `DATA`. epsilon: radius that is trained against. temperature: of DONE. seed: of all that is random.
        against: radius of the attack that is measured, PGD-50.
        overrides: fields set in the recipe.
    """
    sets = [f"data.function=studies.doubly_robust.data:{data}", f"method.temperature={temperature!r}"]
    sets += [f"method.attack.epsilon={epsilon!r}", f"method.attack.step={max(epsilon, 1e-3) / 4!r}"]
    recipe = load_recipe(_RECIPE, [*overrides, *sets], seed)
    method = recipe.method
    assert isinstance(method, DONE)
    problem = Problem(recipe.data.load(seed), recipe.model, seed)
    quiet = replace(method, training=replace(method.training, evaluate_every=method.training.steps))
    model = quiet.fit(problem, lambda step, model, extra: None).model
    attack = replace(method.attack, epsilon=against, step=max(against, 1e-3) / 10, steps=_STEPS)
    found = {}
    for part in ("validation", "test"):
        split: Batch = getattr(problem.splits, part)
        right = _right(
            model, attack(model, split, problem.loss, generator=torch.Generator().manual_seed(seed)), problem
        )
        classes = sorted(float(right[split.targets == label].mean()) for label in split.targets.unique())
        found[part] = float(_right(model, split, problem).mean())
        found[f"robust_{part}"] = float(right.mean())
        found[f"worst_{part}"] = classes[0]
        found[f"weak_{part}"] = sum(classes[:WEAK]) / WEAK
    return found


@torch.no_grad()
def _right(model: nn.Module, data: Batch, problem: Problem) -> Tensor:
    with evaluating(model):
        return (problem.head.predict(model(data.inputs)) == data.targets).double()


@dataclass(frozen=True)
class Chosen:
    """What validation figures decided.

    Attributes:
        epsilon: the largest of `EPSILONS` at which plain adversarial training on the balanced digits keeps the clean
            validation accuracy of standard training to one point; the least of them where none does.
        temperature: of DONE at that epsilon, by data: the one whose weakest classes are best under attack.
        kept: clean validation accuracy of standard training, and by epsilon of plain adversarial training, and both
            under attack.
        tried: validation figures by data and temperature.
    """

    epsilon: float
    temperature: Mapping[str, float]
    kept: Mapping[float, Mapping[str, float]]
    tried: Mapping[tuple[str, float], Mapping[str, float]]


def choose(cells: Cells, seeds: Sequence[int]) -> Chosen:
    """Choose by validation figures alone; `seeds` are no others' than the choice's."""
    kept = {}
    for epsilon in EPSILONS:
        standard = _mean([cells("balanced", 0.0, PLAIN, seed, epsilon) for seed in seeds])
        trained = _mean([cells("balanced", epsilon, PLAIN, seed, epsilon) for seed in seeds])
        kept[epsilon] = {
            "standard": standard["validation"],
            "standard under attack": standard["robust_validation"],
            "adversarial": trained["validation"],
            "adversarial under attack": trained["robust_validation"],
        }
    fits = [epsilon for epsilon in EPSILONS if kept[epsilon]["adversarial"] >= kept[epsilon]["standard"] - 0.01]
    epsilon = max(fits, default=EPSILONS[0])
    tried = {
        (data, temperature): _mean([cells(data, epsilon, temperature, seed, epsilon) for seed in seeds])
        for data in DATA
        for temperature in TEMPERATURES
    }

    def weak(data: str) -> Callable[[float], float]:
        return lambda temperature: tried[data, temperature]["weak_validation"]

    best = {data: max(TEMPERATURES, key=weak(data)) for data in DATA}
    return Chosen(epsilon, best, kept, tried)


def outcome(cells: Cells, chosen: Chosen, seeds: Sequence[int]) -> dict[tuple[str, str], list[Figures]]:
    """Return the figures by data and method, a seed each and in the same order."""
    found = {}
    for data in DATA:
        settings = {"standard": (0.0, PLAIN), "adversarial": (chosen.epsilon, PLAIN)}
        settings["done"] = (chosen.epsilon, chosen.temperature[data])
        for method in METHODS:
            epsilon, temperature = settings[method]
            found[data, method] = [cells(data, epsilon, temperature, seed, chosen.epsilon) for seed in seeds]
    return found


def spread(of: Sequence[Figures], name: str) -> Spread:
    """Return a figure over seeds."""
    return Spread.of([figures[name] for figures in of])


def _mean(of: Sequence[Figures]) -> dict[str, float]:
    """Return the means of the validation figures; those of test are not looked at."""
    names = [name for name in of[0] if "test" not in name]
    return {name: math.fsum(figures[name] for figures in of) / len(of) for name in names}
