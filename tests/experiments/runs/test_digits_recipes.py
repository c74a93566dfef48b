"""Every method's recipe for coloured digits runs end to end, small, and its run reads back."""

from pathlib import Path

import pytest

from steelyard.experiments.runs.recipe import load_recipe
from tests.support.shrunk import methods_of, runs_end_to_end, small

OWN = {"coloured_digits/ordered_sgd": ["method.q=4"]}  # of batches of 8


@pytest.mark.parametrize("name", methods_of("coloured_digits"))
def test_a_recipe_runs_and_reads_back(name: str, tmp_path: Path) -> None:
    runs_end_to_end(load_recipe(name, small(name, *OWN.get(name, [])), seed=1), name, tmp_path)
