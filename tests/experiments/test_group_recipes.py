"""Every shipped recipe of Waterbirds, CelebA, Adult and COMPAS runs end to end, small, on data in the published layout.

Each recipe once, and each layout of the image data sets at least once.
"""

from itertools import cycle
from pathlib import Path

import pytest

from steelyard.experiments.methods import Method
from steelyard.experiments.recipe import load_recipe, recipe_names
from tests.experiments.layouts import (
    CELEBA,
    WATERBIRDS,
    write_adult,
    write_celeba,
    write_compas,
    write_waterbirds,
    write_weights,
)
from tests.experiments.tiny import check_runs

PROBLEMS = ("adult", "celeba", "compas", "waterbirds")
NAMES = [name for name in recipe_names() if name.startswith(tuple(f"{problem}/" for problem in PROBLEMS))]
LAYOUTS = {"waterbirds": cycle(WATERBIRDS), "celeba": cycle(CELEBA)}
CASES = [(name, next(LAYOUTS.get(name.split("/")[0], iter([""])))) for name in NAMES]
FEW = ((3, 2, 2, 3), (3, 3, 3, 3), (1, 1, 1, 1))  # images in each split and group; DFR halves the validation split


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "resnet18.pth")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A data root for each data set and layout."""
    roots = {("adult", ""): write_adult(tmp_path_factory.mktemp("adult"))}
    roots["compas", ""] = write_compas(tmp_path_factory.mktemp("compas"))
    for data, write, layouts in (("waterbirds", write_waterbirds, WATERBIRDS), ("celeba", write_celeba, CELEBA)):
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


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_recipe_runs_end_to_end(name: str, layout: str, roots: dict, weights: Path, tmp_path: Path) -> None:
    check_runs(name, roots[name.split("/")[0], layout], weights, tmp_path / "run")


def test_every_layout_and_method_is_among_them() -> None:
    for data, layouts in (("waterbirds", WATERBIRDS), ("celeba", CELEBA)):
        assert {layout for name, layout in CASES if name.startswith(data)} == set(layouts)
        assert f"{data}/tiny" in NAMES
    methods = {load_recipe(name).method.name for name in NAMES}
    assert methods <= {method.name for method in Method.__args__}  # type: ignore[attr-defined]
    assert {"erm", "upweighting", "cvar_dro", "group_dro", "jtt", "lff", "pde", "dfr", "maple"} <= methods
