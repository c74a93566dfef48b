"""`Journal`: what a long computation writes down so that, killed at any moment, it goes on to the same result.

A computation is a sequence of stages, each a loop over steps that some objects with ``state_dict`` and
``load_state_dict`` carry from one step to the next. Run again with the same journal, a stage that was finished is
passed over, the one that was not goes on after its last checkpoint, and what lies between stages is computed again (so
it must depend on the stages' outcome and the settings alone).

    with journal.stage(model=model, optimizer=optimizer) as stage:
        for done in range(stage.done + 1, steps + 1):
            ...                                        # one step
            stage.step(done, last=done == steps)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import steelyard
from steelyard._support import _check, _files, _state
from steelyard._support._random import random_state, restore_random_state
from steelyard._support._text import shown
from steelyard.distributed import ALONE, RankError, Ranks

__all__ = ["CheckpointError", "Journal", "Stage", "Stateful", "Stopped"]

_KIND = "steelyard.checkpoint.1"


@runtime_checkable
class Stateful(Protocol):
    """Something whose state can be kept: a model, an optimizer, a rule that remembers."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, lists, tuples, dicts and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Take over what `state_dict` gave."""
        ...


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read, or is of another computation: names the file and the remedy."""


class Stopped(Exception):
    """The computation was asked to stop, and did, after a step that its journal holds.

    Attributes:
        reason: what the journal's `stop` returned.
    """

    def __init__(self, reason: int) -> None:
        super().__init__(f"stopped (reason {reason})")
        self.reason = reason


class Journal:
    """Checkpoints of a computation in one file, and the one before it beside it (`NAME.previous.safetensors`).

    A file is written whole, flushed to disk and then renamed, so a crash leaves the newest or the one before it.
    Tensors and JSON, no pickle. Without a path nothing is written, and every stage begins at its start.

    Args:
        path: the file, ending in .safetensors; if it is there, its computation is resumed.
        identity: what the computation is (a digest of its settings, say); another one's checkpoint is refused. Stages
            have an identity of their own, `Maple.fit` its settings and samples. Who gives one here vouches for the
            samples' floating-point values, which are then not compared: what makes them may round otherwise elsewhere.
        every: steps between two checkpoints; a step that is worth several (see `Stage.step`) counts as those. The end
            of a stage always has one.
        note: called before each checkpoint, for what is to be kept with it; there it makes durable what the
            checkpoint relies on, such as a file of figures.
        stop: asked after each step; a number other than 0 ends the computation, saved, by `Stopped` (on all ranks, if
            any is told so).
        ranks: the processes that compute together. All read the file, so it must be where all can see it; the first
            writes it. Parts must give the same state on every rank, and the global generators go on as the first's.

    Attributes:
        noted: what `note` had returned for the checkpoint that is resumed; empty at a start.

    Raises:
        CheckpointError: the file is damaged, of another version of steelyard or of another identity; it is left as it
            is, and the message names the earlier one. Or the ranks see other files there.
        RankError: another rank could not read it, or has another `every`, or no path.

    Example:
        >>> journal = Journal("run.safetensors", identity={"seed": "3"})                      # doctest: +SKIP
        >>> Maple(inner, VREx(), budget=100, steps=50).fit(data, journal=journal)             # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        identity: Mapping[str, str] | None = None,
        every: int = 200,
        note: Callable[[], dict[str, Any]] = dict,
        stop: Callable[[], int] = lambda: 0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.every = _check.integer("every", every, low=1)
        self.identity = {"steelyard": steelyard.__version__, **(identity or {})}
        self.ranks = ranks
        self.noted: dict[str, Any] = {}
        self._note, self._stop = note, stop
        self._stages: list[dict[str, Any]] = []
        self._begun = 0
        ranks.agree("the journal", {"journal.every": every, "journal.path given": path is not None})
        if self.path is not None:
            if self.path.suffix != ".safetensors":
                raise ValueError(f"path must end in .safetensors, got {self.path}")
            place = self.path
            ranks.together(lambda: self._load(place))
            if ranks.size > 1 and len(set(ranks.lengths(int(_state.digest(self._stages)[:15], 16)))) > 1:
                raise CheckpointError(
                    f"{place} is not the same file on every rank: it must be where all of them see it"
                )

    @staticmethod
    def files(path: Path) -> tuple[Path, Path, Path]:
        """Return the files of a journal at `path`: the newest checkpoint, the one before it, the state of a failure."""
        return path, path.with_suffix(".previous.safetensors"), path.with_suffix(".failed.safetensors")

    def stage(self, identity: Mapping[str, str] | None = None, /, **parts: object) -> Stage:
        """Begin the next stage, or resume it.

        Args:
            identity: what this stage is, beside what the journal's says: another one's state is refused.
            parts: what it carries (those without `state_dict` have none).

        Raises:
            CheckpointError: what is kept is of another identity, or does not fit `parts`.
            Stopped: the computation was asked to stop.
        """
        self._check_stop()
        number, self._begun = self._begun, self._begun + 1
        stateful = {name: part for name, part in parts.items() if isinstance(part, Stateful)}
        stage = Stage(self, number, stateful, identity or {})
        if number < len(self._stages):
            stage.restore(copy.deepcopy(self._stages[number]))
        return stage

    def keep(self, number: int, state: dict[str, Any]) -> None:
        """Take `state` as that of stage `number`, and save."""
        self._stages[number:] = [_state.clone(state)]
        self.save()

    def save(self) -> None:
        """Write a checkpoint of what is kept.

        Raises:
            CheckpointError: it cannot be written; the one before it is still there, and the message names it.
            RankError: the same, on the other ranks.
        """
        path = self.path
        if path is not None:
            self.ranks.together(lambda: self._write(path) if self.ranks.rank == 0 else None)

    def _write(self, path: Path) -> None:
        state = {"identity": self.identity, "stages": self._stages, "note": self._note()}
        newest, previous, _ = self.files(path)
        data = _state.encode(state, _KIND)
        try:
            with _files.atomic_path(newest, previous) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            left = _where(newest) or _where(previous)
            raise CheckpointError(
                f"the checkpoint {newest} cannot be written: {error.strerror or error}"
                + (f"; the one before it is kept: {left}" if left else "")
            ) from error

    def keep_failure(self, state: dict[str, Any]) -> Path | None:
        """Write the state in which a stage failed, to look at (no run goes on from it); return where, if anywhere."""
        if self.path is None:
            return None
        place = self.files(self.path)[2]
        try:
            _state.write(place, {"identity": self.identity, "stage": state}, "steelyard.failure.1")
        except _state.StateError:
            return None  # the failure itself is what must be told
        return place

    def asked_to_stop(self) -> int:
        """Return the reason to stop, 0 for none; on several ranks the greatest of theirs."""
        return max(self.ranks.lengths(self._stop()))

    def _check_stop(self) -> None:
        if reason := self.asked_to_stop():
            raise Stopped(reason)

    def _load(self, path: Path) -> None:
        newest, previous, _ = self.files(path)
        # A crash between the two renames of `save` leaves the earlier one alone, and whole.
        place = newest if newest.exists() or not previous.exists() else previous
        if not place.exists():
            return
        try:
            state = _state.read(place, _KIND)
        except _state.StateError as error:
            left = _where(previous) if place == newest else ""
            remedy = (
                f"the one before it is whole: {left}; remove {newest} to go on from it"
                if left
                else "none before it is left: begin again"
            )
            raise CheckpointError(f"{error}; {remedy}") from error
        try:
            found, stages, noted = (state[key] for key in ("identity", "stages", "note"))
            # All that reads them below relies on these.
            sound = all(isinstance(item, dict) for item in (found, noted, *stages)) and type(stages) is list
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{place} is no checkpoint: {type(error).__name__}: {error}") from error
        if not sound:
            raise CheckpointError(f"{place} is no checkpoint: its fields are of other types")
        _check_identity(place, found, self.identity)
        self._stages, self.noted = stages, noted


class Stage:
    """A stage of a `Journal`; a context manager, so that a failure by numbers leaves its state to look at.

    Attributes:
        done: steps done when it was begun or resumed.
        finished: whether its last step was done; then there is nothing left to do.
    """

    def __init__(
        self,
        journal: Journal,
        number: int,
        parts: Mapping[str, Stateful],  # type: ignore[type-var]
        identity: Mapping[str, str],
    ) -> None:
        self.done, self.finished, self._identity = 0, False, dict(identity)
        self._journal, self._number, self._parts, self._spent = journal, number, parts, 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On several ranks the others may be elsewhere, and could not give their share of the state.
        if isinstance(error, FloatingPointError) and self._journal.ranks.size == 1:
            place = self._journal.keep_failure(self._state())
            if place is not None:
                raise FloatingPointError(f"{error}; the state before that step is in {place}") from error

    def step(self, done: int, *, worth: int = 1, last: bool = False) -> None:
        """Count a step: `done` of them are done now.

        Args:
            done: steps done, this one included.
            worth: what it counts for between checkpoints (a MAPLE step is worth its inner steps).
            last: whether it ends the stage.

        Raises:
            CheckpointError: a checkpoint was due and could not be written.
            Stopped: the computation was asked to stop; the step is saved.
        """
        self.done, self.finished = done, last
        self._spent += worth
        reason = self._journal.asked_to_stop()
        if last or reason or self._spent >= self._journal.every:
            self.save()
        if reason:
            raise Stopped(reason)

    def save(self) -> None:
        """Write a checkpoint of the state as it is, if the journal has a file.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._spent = 0
        if self._journal.path is not None:
            self._journal.keep(self._number, self._state())

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what was kept of this stage."""
        try:
            path, found = self._journal.path, dict(state["identity"])
            self._journal.ranks.together(lambda: _check_identity(path, found, self._identity))
            if set(state["parts"]) != set(self._parts):
                raise ValueError(
                    f"it has the state of {shown(sorted(state['parts']))}, not of {shown(sorted(self._parts))}"
                )
            for name, part in self._parts.items():
                part.load_state_dict(state["parts"][name])
            restore_random_state(state["random"])
            self.done, self.finished = _check.integer("done", state["done"], low=0), bool(state["finished"])
        except (CheckpointError, RankError):
            raise
        except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(
                f"{self._journal.path}: the state of stage {self._number} does not fit this computation "
                f"({type(error).__name__}: {error})"
            ) from error

    def _state(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        reached = {"done": self.done, "finished": self.finished, "random": random_state()}
        return {"identity": self._identity, "parts": parts, **reached}


def _check_identity(place: Path | None, found: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """Raise CheckpointError, which says what differs, if the identity `found` in a file is not that of `here`."""
    different = [name for name in {**here, **found} if here.get(name) != found.get(name)]
    if different:
        said = "; ".join(
            f"its {name} is {shown(found.get(name))}, here it is {shown(here.get(name))}" for name in different[:3]
        )
        more = f"; {len(different) - 3} more differ" if len(different) > 3 else ""
        raise CheckpointError(
            f"{place} is of another computation: {said}{more}; resume it as it was begun, or begin again: in "
            "another file, or after deleting this one"
        )


def _where(path: Path) -> str:
    """Return how far the checkpoint at `path` is, with its name; nothing if it is not whole."""
    try:
        stages = _state.read(path, _KIND)["stages"]
        reached = f"stage {len(stages)}, step {stages[-1]['done']}" if stages else "before the first step"
        return f"{path} ({reached})"
    except (_state.StateError, KeyError, TypeError, IndexError):
        return ""
