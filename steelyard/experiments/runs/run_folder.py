"""What all kinds of runs do with their folder, and what they may depend on beyond their recipe."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

import steelyard
from steelyard._support._files import write_text
from steelyard._support._plain import plain
from steelyard.distributed import RankError
from steelyard.experiments.errors import LostError, RunError, UserError
from steelyard.experiments.runs import replacement
from steelyard.experiments.runs.folder import CONFIG, ENVIRONMENT, check_ours, read_json, readable, remove_traces
from steelyard.experiments.runs.schema import parse

__all__ = ["RunFolder", "blamed_on", "check_device", "environment"]

R = TypeVar("R")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run: its configuration comes first, its environment last and says that the run is complete.

    Attributes:
        path: the folder.
        signs: names of files that say that a run of this kind has got somewhere, see `replacement.replacing`.
    """

    path: Path
    signs: tuple[str, ...]

    def recover(self) -> None:
        """Finish what a kill left of a run that another one was to replace, see `replacement.recover`."""
        replacement.recover(self.path, self.signs)

    def replacing(self, overwrite: bool, ours: Callable[[], bool]) -> AbstractContextManager[None]:
        """With `overwrite`, set the run that lies there aside meanwhile, see `replacement.replacing`."""
        return replacement.replacing(self.path, overwrite, self.signs, ours)

    def settle(self) -> bool:
        """Remove the run that was set aside once this one has got somewhere, see `replacement.settle`."""
        return replacement.settle(self.path, self.signs)

    def write_config(
        self, name: str, overrides: Sequence[str], recipe: object, files: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Write what is carried out.

        Args:
            name: the recipe's, as given.
            overrides: the fields set beside it.
            recipe: all of it.
            files: the SHA-256 of each file of the user's that the data are made of; written where there are some.
        """
        config = {"name": name, "overrides": list(overrides), "recipe": plain(recipe)}
        config |= {"files": dict(files)} if files else {}
        write_text(self.path / CONFIG, json.dumps(config, indent=2) + "\n")

    def read_config(self, kind: type[R]) -> tuple[str, tuple[str, ...], R]:
        """Return name, overrides and recipe (of `kind`); RunError where the file is damaged."""
        path = self.path / CONFIG
        with readable(path):
            config: dict[str, Any] = read_json(path)
            table = config["recipe"]
            upgraded: Callable[[Any], Any] | None = getattr(kind, "upgraded", None)
            if isinstance(table, Mapping) and upgraded is not None:
                table = upgraded(table)
            recipe = parse(kind, table, str(path))
            return str(config["name"]), tuple(map(str, config["overrides"])), recipe

    def finish(self, facts: Mapping[str, Any], ours: Callable[[], bool]) -> None:
        """Say that the run is complete, and remove its checkpoints.

        Args:
            facts: what `environment` returns, and the run's own.
            ours: whether the folder is still the one that is held.

        Raises:
            LostError: the folder, or the configuration in it, was removed or replaced meanwhile.
        """
        check_ours(self.path, ours)
        if not (self.path / CONFIG).is_file():
            raise LostError(f"{self.path / CONFIG} was removed meanwhile; put it back and go on by --resume")
        write_text(self.path / ENVIRONMENT, json.dumps(dict(facts), indent=2) + "\n")
        remove_traces(self.path)


def environment() -> dict[str, Any]:
    """Return what a run's figures may depend on beyond the recipe."""
    return {
        "steelyard": steelyard.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def check_device(device: str) -> None:
    """Raise RunError if this machine does not have the torch device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        raise RunError(f"device {device!r} cannot be used here: {error}") from error


@contextmanager
def blamed_on(name: str, seed: int) -> Iterator[None]:
    """Turn errors about values, which are about the recipe's settings, into RunError that names recipe and seed.

    Only while data load and a method fits; the error itself stays its cause.
    """
    try:
        yield
    except (UserError, RankError):
        raise
    except (ValueError, RuntimeError, FloatingPointError) as error:
        raise RunError(f"{name}, seed {seed}: {error}") from error
