"""Every shipped recipe of Colored MNIST and CIFAR-MNIST, made small, end to end on files in the published layout."""

from pathlib import Path

import pytest

from steelyard.experiments.runs.recipe import load_recipe
from tests.experiments.conftest import write_mnist
from tests.support.layouts import write_cifar_folder
from tests.support.shrunk import methods_of, runs_end_to_end, small

# the tiny MNIST has 24 zeros and 24 ones to train with, 4 and 4 for the test
SIZES = ("data.train_size=12", "data.validation_size=4", "data.test_size=4")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_mnist(tmp_path_factory.mktemp("data"))
    write_cifar_folder(root)
    return root


@pytest.mark.parametrize("name", methods_of("colored_mnist"))
def test_colored_mnist(name: str, root: Path, tmp_path: Path) -> None:
    runs_end_to_end(load_recipe(name, small(name), seed=1), name, tmp_path, root)


@pytest.mark.parametrize("name", methods_of("cifar_mnist"))
def test_cifar_mnist(name: str, root: Path, tmp_path: Path) -> None:
    runs_end_to_end(load_recipe(name, small(name, *SIZES), seed=1), name, tmp_path, root)


def test_the_methods_that_the_tables_need_have_recipes() -> None:
    colored = {"bayesian_irm", "erm", "invrat", "irmv1", "maple", "mrm", "oracle", "sparse_irm", "tiny", "vrex"}
    cifar = {"erm", "group_dro", "irmv1", "maple", "tiny", "vrex"}
    assert {f"colored_mnist/{name}" for name in colored} <= set(methods_of("colored_mnist"))
    assert {f"cifar_mnist/{name}" for name in cifar} <= set(methods_of("cifar_mnist"))
