"""Code of the user's own that a recipe names: it runs only where somebody said so."""

from __future__ import annotations

from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.recipe import Recipe

__all__ = ["check_allowed", "check_code", "code_of"]


def code_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the functions, "module:function", that carrying out `recipe` imports and calls."""
    return tuple(getattr(recipe.data, "code", ()))


def check_code(recipe: Recipe, allowed: bool) -> None:
    """Raise RecipeError if `recipe` names code and nobody allowed that it runs; a recipe may be a stranger's."""
    check_allowed(code_of(recipe), allowed)


def check_allowed(code: tuple[str, ...], allowed: bool) -> None:
    """Raise RecipeError if there is `code`, "module:function" each, that a recipe names and nobody allowed."""
    if code and not allowed:
        raise RecipeError(
            f"the recipe runs code that it names, {', '.join(code)}; read it, then say --allow-code "
            "(in Python: allow_code=True)"
        )
