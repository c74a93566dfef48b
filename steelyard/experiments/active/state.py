"""The state of a run between two rounds, in one file: written whole, read without unpickling anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steelyard._support._check import integers
from steelyard._support._files import atomic_path, regular
from steelyard._support._text import parse_json
from steelyard.experiments.active.fitting import Learned
from steelyard.experiments.active.loop import Past, Pool, Round
from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.folder import REMEDY, UNREADABLE
from steelyard.experiments.training.evaluation import finite_json, number

__all__ = ["State", "check_picked", "past", "read_state", "restored", "take_over", "write_state"]

_FIGURES = ("labelled", "clean_share_selected", "validation", "test")  # what tables and bars show
_PICKED, _MODEL, _AVERAGE, _MEASURED = "picked.", "model.", "average.", "measured."


@dataclass(frozen=True)
class State:
    """What a file of `write_state` holds.

    Attributes:
        recipe: of the run, as plain values.
        history: each round's figures.
        picked: the ids of each round.
        model, average: parameters and buffers of the last round's models, by name.
        measured: those of the main model that was measured.
    """

    recipe: Mapping[str, Any]
    history: tuple[Mapping[str, float], ...]
    picked: tuple[Tensor, ...]
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    measured: Mapping[str, Tensor]


def write_state(path: Path, recipe: Mapping[str, Any], rounds: Sequence[Round]) -> None:
    """Write the rounds done so far; the file is the old one or the new one, never a half."""
    learned = rounds[-1].learned
    tensors = {f"{_PICKED}{done.number:04d}": done.picked for done in rounds}
    tensors |= {_MODEL + name: value for name, value in learned.model.state_dict().items()}
    tensors |= {_AVERAGE + name: value for name, value in learned.average.state_dict().items()}
    if learned.measured is not None:
        tensors |= {_MEASURED + name: value for name, value in learned.measured.model.state_dict().items()}
    history = [finite_json(dict(done.metrics)) for done in rounds]
    metadata = {"recipe": json.dumps(recipe, sort_keys=True), "history": json.dumps(history, allow_nan=False)}
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)


def read_state(path: Path) -> State:
    """Read a state.

    Raises:
        RunError: the file is missing, damaged or no state.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no dict
        recipe = parse_json(metadata["recipe"])
        rows = parse_json(metadata["history"])
        history = tuple({str(key): number(value) for key, value in row.items()} for row in rows)
        picked = tuple(tensors[name] for name in sorted(tensors) if name.startswith(_PICKED))
        if not history or len(history) != len(picked) or not isinstance(recipe, dict):
            raise ValueError(f"it has the figures of {len(history)} rounds and the ids of {len(picked)}")
        _check_rounds(history, picked)
    except UNREADABLE as error:
        what = f"{type(error).__name__}: {error}"
        raise RunError(f"{path} is not a whole state of an active learning run: {what}; {REMEDY}") from error
    model, average, measured = (
        {name[len(part) :]: tensors[name] for name in tensors if name.startswith(part)}
        for part in (_MODEL, _AVERAGE, _MEASURED)
    )
    return State(recipe, history, picked, model, average, measured or model)


def _check_rounds(history: Sequence[Mapping[str, float]], picked: Sequence[Tensor]) -> None:
    """Raise ValueError or TypeError unless every round has the figures of the first, and ids."""
    for number_, (row, ids) in enumerate(zip(history, picked, strict=True)):
        if lacking := [name for name in (*_FIGURES, *history[0]) if name not in row]:
            raise ValueError(f"round {number_} has no figure {lacking[0]!r}")
        if not len(integers(f"the ids of round {number_}", ids)):
            raise ValueError(f"round {number_} has picked nothing")


def restored(path: Path, state: State, template: Learned, pool: Pool) -> list[Round]:
    """Return the rounds of `state`; all of them have the models of the last one, which is what a loop goes on from.

    Args:
        path: for messages. state: of `read_state`.
        template: untrained models of the recipe, which take the parameters over. pool: what the ids point into.

    Raises:
        RunError: ids outside of the pool or picked twice, or parameters of another net.
    """
    check_picked(path, state.picked, len(pool.data))
    take_over(path, template.model, state.model)
    take_over(path, template.average, state.average)
    device = pool.data.index.device
    pairs = zip(state.picked, state.history, strict=True)
    return [Round(k, picked.to(device), template, metrics) for k, (picked, metrics) in enumerate(pairs)]


def check_picked(path: Path, picked: Sequence[Tensor], count: int) -> None:
    """Raise RunError unless the ids of all rounds are different samples of a pool of `count`."""
    ids = torch.cat(list(picked))
    fits = ids.dtype == torch.int64 and bool(((ids >= 0) & (ids < count)).all())
    if not fits or len(ids.unique()) != len(ids):
        raise RunError(f"{path}: the ids picked are not different samples of a pool of {count}; {REMEDY}")


def take_over(path: Path, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Put the `parameters` in the file `path` into `model`; RunError if they are another net's."""
    try:
        model.load_state_dict(dict(parameters))
    except (RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"{path} holds the parameters of another net: {error}; {REMEDY}") from error


def past(rounds: Sequence[Round]) -> Past | None:
    """Return what `active_learning` goes on from after `rounds`; None after none."""
    return Past([done.picked for done in rounds], rounds[-1].learned) if rounds else None
