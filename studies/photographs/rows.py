"""The rows of the table: a recipe each, what is set in it, and which samples it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from steelyard.experiments.runs.recipe import Recipe, load_recipe, recipe_names

__all__ = ["FOUND", "ROWS", "TABLES", "Known", "Row", "Samples", "rows_of"]

Samples: TypeAlias = Literal["given", "validation", "both"]
Known: TypeAlias = Literal["training", "validation", "nowhere"]
"""Where labels of groups, or of the place, are read by what trains; what chooses the settings may read more."""

_OWN = Path(__file__).parent / "recipes"
_SHIPPED = "waterbirds/features"


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        title: of the table.
        recipe: a recipe's name, or its file.
        overrides: what is set in it, and so not drawn.
        ranges: what is drawn otherwise than its class declares, ``"field=10^U(a, b)"``.
        samples: what it is trained on: "given", the training split; "validation", that split alone; "both".
        published: the method's name in `compare/published.toml`, for figures of Waterbirds beside ours.
        reads: where it reads groups or places, if its recipe does not tell (`known`); also of what fits weights to the
            validation samples, whose groups are balanced, without their group labels.
    """

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    samples: Samples = "given"
    published: str = ""
    reads: Known | None = None

    @property
    def shown(self) -> str:
        """The recipe as tables name it."""
        return Path(self.recipe).stem if self.recipe.endswith(".toml") else self.recipe

    @property
    def key(self) -> str:
        """The title as a folder's name."""
        words = "".join(one if one.isalnum() else " " for one in self.title.lower()).split()
        return "_".join(words)

    def load(self) -> Recipe:
        """Return the recipe as it stands."""
        return load_recipe(self.recipe, self.overrides)

    @property
    def known(self) -> Known:
        """Where what trains reads groups or places."""
        if self.reads is not None:
            return self.reads
        method = self.load().method
        if method.needs_training_groups:
            return "training"
        return "validation" if method.needs_validation_groups else "nowhere"


def _own(name: str) -> str:
    return str(_OWN / f"{name}.toml")


FOUND = ("xrm", "errors", "maple")
"""Ways to find groups without labels, `found_groups`; of two classes "eiil" finds what "errors" finds."""

_OF_OUTPUTS = ("method.gamma=10^U(-5, 1)",)
"""MMD and CORAL of outputs: SubpopBench's 10^U(-1, 1) is for 2,048 features, whose distances are far smaller."""

_HIDDEN = ("model.name=mlp", "model.hidden=[128]")
_FEATURES = (*_HIDDEN, "method.on=features")

_MAPLE = {
    "name": "maple",
    "budget": "0.3",
    "learn": "probabilities",
    "outer_split": "validation",
    "risk.penalty": "group_worst",
    "risk.shape": "plain",
    "inner.optimizer.name": "adam",
    "inner.optimizer.momentum": "0.0",
    "inner.optimizer.learning_rate": "0.01",
}


def _found() -> Iterator[Row]:
    for way in FOUND:
        groups: tuple[str, ...] = (f"method.groups.name={way}",)
        if way == "maple":
            groups += tuple(f"method.groups.maple.{field}={value}" for field, value in _MAPLE.items())
        reads: Known = "validation" if way == "maple" else "nowhere"
        for title, recipe, more in (
            ("Group DRO", "group_dro", ()),
            ("up-weighting", "upweighting", ()),
            ("DFR", "dfr", ("method.fit_on=train",)),
        ):
            yield Row(f"{title} on groups by {way}", f"{_SHIPPED}/{recipe}", (*groups, *more), reads=reads)


ROWS: tuple[Row, ...] = (
    Row("ERM", f"{_SHIPPED}/erm", published="erm"),
    Row("ERM, full batches", f"{_SHIPPED}/erm", ("method.training.batch_size=0",)),
    Row(
        "ERM, SGD", f"{_SHIPPED}/erm", ("method.training.optimizer.name=sgd", "method.training.optimizer.momentum=0.9")
    ),
    Row("validation rows alone", f"{_SHIPPED}/upweighting", samples="validation", reads="validation"),
    Row("training and validation together", f"{_SHIPPED}/upweighting", samples="both", reads="training"),
    Row("up-weighting", f"{_SHIPPED}/upweighting", published="upweighting"),
    Row("balanced batches", f"{_SHIPPED}/upweighting", ("method.balance=batches",)),
    Row("Group DRO", f"{_SHIPPED}/group_dro", published="group_dro"),
    Row("Group DRO, unbalanced batches", f"{_SHIPPED}/group_dro", ("method.balanced=false",)),
    Row("DFR on validation", f"{_SHIPPED}/dfr", published="dfr"),
    Row("DFR on training", f"{_SHIPPED}/dfr", ("method.fit_on=train",)),
    Row("PDE", f"{_SHIPPED}/pde"),
    Row("MAPLE, groups in training", f"{_SHIPPED}/maple"),
    Row("MAPLE, groups on validation", _own("maple_validation"), published="maple"),
    Row("IRMv1", f"{_SHIPPED}/irmv1", reads="training"),
    Row("V-REx", f"{_SHIPPED}/vrex", reads="training"),
    Row("Bayesian IRM", _own("bayesian_irm"), reads="training"),
    Row("Sparse IRM", _own("sparse_irm"), reads="training"),
    Row("InvRat", _own("invrat"), reads="training"),
    Row("CVaR-DRO", f"{_SHIPPED}/cvar_dro", published="cvar_dro"),
    Row("KL-DRO", f"{_SHIPPED}/kl_dro"),
    Row("Ordered SGD", f"{_SHIPPED}/ordered_sgd"),
    Row("LfF", f"{_SHIPPED}/lff", published="lff"),
    Row("JTT", f"{_SHIPPED}/jtt", published="jtt"),
    Row("Learning to Reweight", _own("online"), reads="validation"),
    Row("hardest half (EL2N)", _own("subset")),
    Row("self-cleaning", _own("self_cleaning")),
    Row("classes weighed alike", f"{_SHIPPED}/upweighting", ("method.by=class",)),
    Row("square-root re-weighting of groups", f"{_SHIPPED}/sqrt_reweighting"),
    Row("square-root re-weighting of classes", f"{_SHIPPED}/sqrt_reweighting", ("method.by=class",)),
    Row("class-balanced loss over groups", f"{_SHIPPED}/class_balanced"),
    Row("class-balanced loss over classes", f"{_SHIPPED}/class_balanced", ("method.by=class",)),
    Row("focal loss", f"{_SHIPPED}/focal"),
    Row("LDAM", f"{_SHIPPED}/ldam"),
    Row("balanced softmax", f"{_SHIPPED}/balanced_softmax"),
    Row("classifier re-training, groups", f"{_SHIPPED}/crt"),
    Row("classifier re-training, classes", f"{_SHIPPED}/crt", ("method.by=class",)),
    Row("mixup", f"{_SHIPPED}/mixup"),
    Row("LISA", f"{_SHIPPED}/lisa", reads="training"),
    Row("MMD", f"{_SHIPPED}/mmd", ranges=_OF_OUTPUTS, reads="training"),
    Row("MMD, groups of a class", f"{_SHIPPED}/mmd", ("method.by=group",), _OF_OUTPUTS),
    Row("CORAL", f"{_SHIPPED}/coral", ranges=_OF_OUTPUTS, reads="training"),
    Row("CORAL, groups of a class", f"{_SHIPPED}/coral", ("method.by=group",), _OF_OUTPUTS),
    Row("ERM, a hidden layer", f"{_SHIPPED}/erm", _HIDDEN),
    Row("MMD, a hidden layer", f"{_SHIPPED}/mmd", _FEATURES, reads="training"),
    Row("CORAL, a hidden layer", f"{_SHIPPED}/coral", _FEATURES, reads="training"),
    *_found(),
)


def rows_of(name: str) -> tuple[Row, ...]:
    """Return the rows of a set: where it has recipes of its own, what is among them.

    CelebA's layout has MAPLE on validation besides; people's tables have nothing of MAPLE's, and nets with a hidden
    layer, so MMD and CORAL align features there, by SubpopBench's ranges.
    """
    if name == "images":
        return _IMAGES
    if name not in _RECIPES:
        return ROWS
    renamed = [replace(row, recipe=row.recipe.replace(_SHIPPED, _RECIPES[name])) for row in ROWS]
    known = set(recipe_names())
    rows = [row for row in renamed if row.recipe in known]
    if name in TABLES:
        return tuple(replace(row, ranges=(), published="") for row in rows if _fits_tables(row))
    maple = next(row for row in ROWS if row.recipe == _own("maple_validation"))
    return (*rows, replace(maple, overrides=(f"data.name={name}", *maple.overrides)))


def _fits_tables(row: Row) -> bool:
    return "maple" not in row.recipe + "".join(row.overrides) and _HIDDEN[0] not in row.overrides


def _on_images() -> Iterator[Row]:
    """Yield the rows on whole images: a LeNet-5, MAPLE's inner runs in batches, each from where the last one ended."""
    maple = ("method.steps=8", "method.inner.steps=75", "method.inner.batch_size=128", "method.inner.restart=false")
    own = {"MAPLE, groups on validation": (*maple, "method.inner.optimizer.learning_rate=0.001")}
    titles = ("ERM", "up-weighting", "Group DRO", "DFR on validation", *own, "validation rows alone")
    for row in ROWS:
        if row.title in (*titles, "training and validation together"):
            yield replace(row, overrides=("model.name=lenet5", *row.overrides, *own.get(row.title, ())))


_IMAGES = tuple(_on_images())

TABLES = ("adult", "compas")
"""Data sets of people that the same protocol is carried out on."""

_RECIPES = {"celeba": "celeba/features", **{name: name for name in TABLES}}
"""Where a set's recipes lie, if not in `_SHIPPED`."""
