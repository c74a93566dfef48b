"""Errors that a user can mend: the command line shows one line for them, no traceback."""

from steelyard._support._errors import DataError, FolderError, UserError

__all__ = ["DataError", "FolderError", "LostError", "RecipeError", "RunError", "UserError"]


class RecipeError(UserError, ValueError):
    """A recipe, or an override of one field of it, does not fit: names the file and the field."""


class RunError(FolderError):
    """A run directory that cannot be written or read: names the directory and the remedy."""


class LostError(RunError):
    """Files of a run that goes on were removed, moved or replaced; what is left is left alone."""
