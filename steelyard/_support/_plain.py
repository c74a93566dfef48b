"""Settings as nested dicts and lists, for JSON and for digests."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """Return a dataclass as nested dicts and lists, ready for JSON; `schema.parse` reads it back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value
