"""Errors that a user can mend: the command line shows one line for them, no traceback."""

__all__ = ["DataError", "FolderError", "UserError"]


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where, and what would be right."""


class FolderError(UserError, OSError):
    """A folder that cannot be written, or holds what would be lost: names what is there and the remedy."""


class DataError(UserError, OSError):
    """Data that is missing or unreadable: names the file and the layout that was looked for."""
