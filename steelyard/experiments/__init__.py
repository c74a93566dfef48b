"""Data sets, the one trainer, recipes, runs and reports: what compares methods, and what the command line drives.

A recipe (data x model x method) makes a run; a run is a directory; tables and pages are made of run directories. A
method is one page in `steelyard.experiments.methods`, a data set one in `steelyard.experiments.data`.
"""

from steelyard._support._packages import EXPERIMENTS, needed_by

with needed_by("steelyard.experiments", EXPERIMENTS):
    from steelyard.experiments.data import Splits
    from steelyard.experiments.errors import DataError, RecipeError, RunError, UserError
    from steelyard.experiments.runs.recipe import Recipe, load_recipe, recipe_names
    from steelyard.experiments.runs.run import Run, execute, read_run

__all__ = [
    "DataError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "Splits",
    "UserError",
    "execute",
    "load_recipe",
    "read_run",
    "recipe_names",
]
