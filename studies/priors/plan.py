"""What the benchmark of priors runs: cells of data x method x seed, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.experiments.runs.recipe import Recipe, load_recipe

__all__ = [
    "ABLATIONS",
    "CONDITIONS",
    "METHODS",
    "NOISE_METHODS",
    "Cell",
    "ablation_cells",
    "cell",
    "main_cells",
    "mnist_cells",
    "noise_cells",
]

# (kind, share), the most telling first; without corruption the kind does not matter.
CONDITIONS = (
    ("adversarial", 0.2),
    ("uniform", 0.0),
    ("uniform", 0.2),
    ("noisy_class", 0.2),
    ("adversarial", 0.4),
    ("uniform", 0.4),
    ("noisy_class", 0.4),
    ("adversarial", 0.1),
    ("uniform", 0.1),
    ("noisy_class", 0.1),
)
DIGITS, MNIST = "coloured_digits", "colored_mnist"
FLOOR = 0.52  # with wrong labels an invariant model is not far above chance on the labels it is given

_LONG = "training = {steps = 100, optimizer = {learning_rate = 1e-3}}"
LHD, DR_IS = '{name = "lhd"}', '{name = "rank_disagreement"}'
# Chosen on validation (results/priors/README.md): within the errors of a short run it is the low ||lh|| that are right.
OWN_LHD = '{name = "lhd", keep = "low", training = {steps = 100, optimizer = {learning_rate = 1e-2}}}'
OWN_DR_IS = f'{{name = "rank_disagreement", {_LONG}}}'
OWN_EL2N = f'{{name = "el2n", {_LONG}}}'


def prior(*scores: str, within: str = "errors", **fields: object) -> tuple[str, ...]:
    """Return the overrides that give a recipe a prior of these scores; `fields` of `PriorSettings`."""
    settings = [f"method.prior.{name}={value}" for name, value in fields.items()]
    return (f"method.prior.scores=[{', '.join(scores)}]", f'method.prior.within="{within}"', *settings)


# label -> (recipe, overrides)
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ERM": ("erm", ()),
    "IRMv1": ("irmv1", ()),
    "Group DRO": ("group_dro", ()),
    "JTT": ("jtt", ()),
    "LHD alone": ("subset", prior(LHD, within="all")),
    "DR-IS alone": ("subset", prior(DR_IS, within="all")),
    "MAPLE": ("maple", ()),
    "MAPLE + LHD": ("maple", prior(OWN_LHD)),
    "MAPLE + DR-IS": ("maple", prior(OWN_DR_IS)),
    "MAPLE + both": ("maple", prior(OWN_LHD, OWN_DR_IS)),
    "MAPLE + EL2N": ("maple", prior(OWN_EL2N)),
}
_EARLY = "method.prior.identification={steps = 20, optimizer = {learning_rate = 1e-3}}"
# With right labels the shape is learned early too: only a shorter run's errors are those that contradict the colour.
NOISE_METHODS = {
    **{method: METHODS[method] for method in METHODS if not method.startswith("MAPLE +")},
    "MAPLE + EL2N": METHODS["MAPLE + EL2N"],
    "MAPLE + EL2N, early errors": ("maple", (*prior(OWN_EL2N), _EARLY)),
}
ABLATIONS: dict[str, tuple[str, ...]] = {  # of the last of these, on the same data
    "anchor 0.1, no start": prior(OWN_EL2N, anchor=0.1, start='"none"'),
    "start and anchor 0.1": prior(OWN_EL2N, anchor=0.1),
    "start and anchor 1": prior(OWN_EL2N, anchor=1.0),
    "among all": prior(OWN_EL2N, within="all"),
    "balanced errors": prior(OWN_EL2N, within="balanced_errors"),
    "2 proxies": prior(OWN_EL2N[:-1] + ", models = 2}"),
    "40 proxies": prior(OWN_EL2N[:-1] + ", models = 40}"),
    "2 mask draws": (*prior(OWN_EL2N), "method.draws=2"),
}

# Short runs see the 50,000 images in minibatches, and there are fewer proxies: the prior costs less than an outer step.
_BATCHES = "steps = 100, batch_size = 2000"
MNIST_LHD = f'{{name = "lhd", keep = "low", training = {{{_BATCHES}, optimizer = {{learning_rate = 1e-2}}}}}}'
MNIST_DR_IS = (
    f'{{name = "rank_disagreement", models = 4, training = {{{_BATCHES}, optimizer = {{learning_rate = 1e-3}}}}}}'
)
_MNIST_ERRORS = (
    "method.prior.identification={steps = 30, batch_size = 2000, optimizer = {name = 'adam', learning_rate = 1e-2}}"
)
MNIST_CONDITIONS = (*CONDITIONS[:1], CONDITIONS[2], CONDITIONS[1])
MNIST_METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ERM": ("erm", ()),
    "IRMv1": ("irmv1", ()),
    "Group DRO": ("group_dro", ()),
    "JTT": ("jtt", ()),
    "MAPLE": ("maple", ()),
    "MAPLE + LHD": ("maple", (*prior(MNIST_LHD), _MNIST_ERRORS)),
    "MAPLE + DR-IS": ("maple", (*prior(MNIST_DR_IS), _MNIST_ERRORS)),
    "MAPLE + both": ("maple", (*prior(MNIST_LHD, MNIST_DR_IS), _MNIST_ERRORS)),
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        kind, share: of the corruption.
        noise: the data set's own label noise.
        method: the row of the table.
        recipe: its name.
        overrides: fields of the recipe, the data's among them.
        seed: of the run.
    """

    kind: str
    share: float
    noise: float
    method: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def dataset(self) -> str:
        """The data set of the recipe."""
        return self.recipe.partition("/")[0]

    @property
    def place(self) -> Path:
        """Where the run lies, below the folder of runs."""
        condition = f"{self.kind}-{self.share:g}" if self.share else "clean"
        noise = "" if self.noise == 0.25 else f"-noise{self.noise:g}"
        data = "" if self.dataset == DIGITS else f"{self.dataset}-"
        return Path(data + condition + noise) / self.method.replace(" ", "_") / f"seed{self.seed}"

    def load(self) -> Recipe:
        """Return the recipe."""
        return load_recipe(self.recipe, self.overrides, self.seed)


def cell(
    kind: str,
    share: float,
    method: str,
    recipe: str,
    own: Sequence[str],
    seed: int,
    noise: float = 0.25,
    dataset: str = DIGITS,
) -> Cell:
    """Return the cell of a recipe for `dataset` with its `own` overrides on corrupted data."""
    data = [f'data.corruption={{kind = "{kind}", share = {share}}}', f"train_floor={FLOOR}"] if share else []
    data += [f"data.label_noise={noise}"] if noise != 0.25 else []
    return Cell(kind, share, noise, method, f"{dataset}/{recipe}", (*own, *data), seed)


def main_cells(
    seeds: Sequence[int], conditions: Sequence[tuple[str, float]] = CONDITIONS, methods: Sequence[str] = tuple(METHODS)
) -> list[Cell]:
    """Return the cells of the main table: condition by condition, within one method by method."""
    return [
        cell(kind, share, method, METHODS[method][0], METHODS[method][1], seed)
        for kind, share in conditions
        for method in methods
        for seed in seeds
    ]


def noise_cells(seeds: Sequence[int]) -> list[Cell]:
    """Return cells on data whose labels are right but for 20 % adversarial corruption."""
    return [
        cell(*CONDITIONS[0], method, recipe, overrides, seed, noise=0.0)
        for method, (recipe, overrides) in NOISE_METHODS.items()
        for seed in seeds
    ]


def mnist_cells(seeds: Sequence[int]) -> list[Cell]:
    """Return cells on Colored MNIST, condition by condition, seed by seed: MAPLE on all, the others on the first."""
    return [
        cell(kind, share, method, recipe, overrides, seed, dataset=MNIST)
        for kind, share in MNIST_CONDITIONS
        for seed in seeds
        for method, (recipe, overrides) in MNIST_METHODS.items()
        if seed == seeds[0] or method.startswith("MAPLE")
    ]


def ablation_cells(seeds: Sequence[int]) -> list[Cell]:
    """Return the ablations of MAPLE + EL2N, early errors, on the data of `noise_cells`; that and plain MAPLE first."""
    rows = {method: NOISE_METHODS[method][1] for method in ("MAPLE", "MAPLE + EL2N, early errors")}
    rows |= {f"MAPLE, {name}": (*overrides, _EARLY) for name, overrides in ABLATIONS.items()}
    return [
        cell(*CONDITIONS[0], method, "maple", overrides, seed, noise=0.0)
        for method, overrides in rows.items()
        for seed in seeds
    ]
