"""Every shipped recipe of Waterbirds, CelebA, Adult and COMPAS runs end to end, small, on data in the published layout.

Each recipe once, and each layout of the image data sets at least once.
"""

from itertools import cycle
from pathlib import Path

import pytest

from steelyard.experiments.runs.recipe import Recipe, load_recipe
from tests.support.layouts import (
    CELEBA_LAYOUTS,
    WATERBIRDS_LAYOUTS,
    write_adult,
    write_celeba,
    write_compas,
    write_waterbirds,
    write_weights,
)
from tests.support.shrunk import methods_of, runs_end_to_end, small

PROBLEMS = ("adult", "celeba", "compas", "waterbirds")
NAMES = [name for problem in PROBLEMS for name in methods_of(problem)]
LAYOUTS = {"waterbirds": cycle(WATERBIRDS_LAYOUTS), "celeba": cycle(CELEBA_LAYOUTS)}
CASES = [(name, next(LAYOUTS.get(name.split("/")[0], iter([""])))) for name in NAMES]
FEW = ((4, 3, 3, 4), (3, 3, 3, 3), (1, 1, 1, 1))  # images in each split and group; DFR halves the validation split
PER_GROUP = {"dfr": 3, "pde": 2}  # images that a whole network sees, else 1; PDE adds to a balanced start


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "resnet18.pth")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A data root for each data set and layout."""
    roots = {("adult", ""): write_adult(tmp_path_factory.mktemp("adult"))}
    roots["compas", ""] = write_compas(tmp_path_factory.mktemp("compas"))
    for data, write, layouts in (
        ("waterbirds", write_waterbirds, WATERBIRDS_LAYOUTS),
        ("celeba", write_celeba, CELEBA_LAYOUTS),
    ):
        for layout in layouts:
            roots[data, layout] = tmp_path_factory.mktemp(f"{data}-{layout}")
            write(roots[data, layout], layout, FEW)
    return roots


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Features are computed once for a layout, and nowhere near the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEELYARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def shrunk(name: str, weights: Path) -> Recipe:
    """The recipe `name`, small, on a ResNet-18 whose weights lie in a file; nothing is downloaded."""
    recipe = load_recipe(name)
    method = recipe.method.name
    own = ["method.q=2"] if method == "ordered_sgd" else []
    if getattr(recipe.data, "inputs", "") == "images":
        own += ["model.architecture=resnet18", f"model.weights={weights}", "data.workers=0"]
        own += [f"data.per_group={PER_GROUP.get(method, 1)}"]
        sections = [section for section in ("training", "identification") if hasattr(recipe.method, section)]
        sizes = ("steps=1", "batch_size=2", "evaluate_every=1")
        own += [f"method.{section}.{size}" for section in sections for size in sizes]
        if method == "maple":
            own += ["method.budget=3", "method.steps=1", "method.inner.steps=2", "method.inner.batch_size=2"]
    elif recipe.data.name in LAYOUTS:
        own += ["data.backbone.model=resnet18", f"data.backbone.weights={weights}", "data.backbone.workers=0"]
    return load_recipe(name, small(name, *own), seed=0)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_recipe_runs_end_to_end(name: str, layout: str, roots: dict, weights: Path, tmp_path: Path) -> None:
    data = name.split("/")[0]
    recipe = shrunk(name, weights)
    runs_end_to_end(recipe, name, tmp_path, roots[data, layout], twice=data not in LAYOUTS)


def test_every_layout_and_method_is_among_them() -> None:
    for data, layouts in (("waterbirds", WATERBIRDS_LAYOUTS), ("celeba", CELEBA_LAYOUTS)):
        assert {layout for name, layout in CASES if name.startswith(data)} == set(layouts)
    assert {f"{problem}/tiny" for problem in PROBLEMS} <= set(NAMES)
    methods = {load_recipe(name).method.name for name in NAMES}
    assert {"erm", "upweighting", "cvar_dro", "group_dro", "jtt", "lff", "pde", "dfr", "maple"} <= methods
