"""What a run writes as it goes: its evaluated steps, a line each, and the checkpoints that agree with them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TextIO

from steelyard._support import _check
from steelyard._support._files import append, is_open_at, read_text, write_text
from steelyard._support._text import parse_json
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.errors import LostError, RunError
from steelyard.experiments.runs.folder import CHECKPOINT, METRICS, REMEDY, check_ours, identity_of
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.training.evaluation import Evaluation, SplitMetrics, Visible, finite_json, number

__all__ = ["Log", "read_metrics"]


class Log:
    """The metrics of a run and its journal; where the journal has a checkpoint, the metrics are cut back to it.

    A context manager: on leaving, the file is closed.

    Args:
        directory: of the run, held by this process.
        recipe: whose run it is; the checkpoint of another is refused.
        every: steps between two checkpoints.
        stop: see `Journal`.
        ranks: the processes of the run. All have the journal; the first alone has the file and what was in it.
        ours: whether `directory` is still the folder that is held, see `directory.holding`.
        files: the SHA-256 of each file of the user's that the data are made of; the checkpoint on others is refused.

    Attributes:
        journal: the journal.
        history: the evaluated steps so far; on other ranks than the first those since this one was made.

    Raises:
        RunError: the metrics are shorter than the checkpoint says, or damaged.
        CheckpointError: see `Journal`.
    """

    def __init__(
        self,
        directory: Path,
        recipe: Recipe,
        every: int,
        stop: Callable[[], int],
        ranks: Ranks = ALONE,
        ours: Callable[[], bool] = lambda: True,
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        path = directory / CHECKPOINT
        self._directory, self._ours = directory, ours
        identity = identity_of(recipe, files)
        self.journal = Journal(path, identity=identity, every=every, note=self._note, stop=stop, ranks=ranks)
        try:
            steps = _check.integer("steps", self.journal.noted.get("steps", 0), low=0)
            self._seconds = float(self.journal.noted.get("seconds", 0.0))
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} does not say how many steps were evaluated: {error}") from error
        self._began = time.perf_counter()
        self._file: TextIO | None = None
        self.history = ranks.together(lambda: self._open(directory / METRICS, steps) if ranks.rank == 0 else [])

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, those before it was resumed included."""
        return self._seconds + time.perf_counter() - self._began

    def check(self) -> None:
        """Raise LostError if the folder or the file of metrics is not the one any more that this run writes.

        What is written then is nowhere to be found afterwards, or in another's folder.
        """
        check_ours(self._directory, self._ours)
        place = self._directory / METRICS
        if self._file is not None and not is_open_at(self._file.fileno(), place):
            raise LostError(
                f"{place} is no longer the file that this run writes: it was removed, moved or replaced meanwhile; "
                "put it back and go on by --resume, or start over with --overwrite"
            )

    def add(self, evaluation: Evaluation) -> None:
        """Write an evaluated step; LostError as `check`."""
        self.check()
        if self._file is not None:
            self._file.write(json.dumps(_line(evaluation), allow_nan=False) + "\n")
            self._file.flush()
        self.history.append(evaluation)

    def _note(self) -> dict[str, Any]:
        assert self._file is not None  # the first rank writes checkpoints
        self.check()
        os.fsync(self._file.fileno())  # a checkpoint must not outlive the lines that it counts
        return {"steps": len(self.history), "seconds": self.seconds}

    def _open(self, path: Path, steps: int) -> list[Evaluation]:
        """Open the file, cut back."""
        found = _cut_back(path, steps)
        self._file = append(path)
        return found


def _cut_back(path: Path, steps: int) -> list[Evaluation]:
    """Leave the first `steps` lines of the file, and return what they say.

    They are written as a file of their own, once they were found to be whole: the one that is there may have other
    names, or be somebody else's.
    """
    text = _text(path) if os.path.lexists(path) else ""
    lines = [line for line in text.splitlines(keepends=True)[:steps] if line.endswith("\n")]
    if len(lines) < steps:
        raise RunError(
            f"{path} has {len(lines)} whole lines, but the checkpoint was written after {steps} evaluated steps; "
            "put the file back, or start over with --overwrite"
        )
    found = _evaluations(path, lines)
    write_text(path, "".join(lines))
    return found


def read_metrics(path: Path) -> tuple[Evaluation, ...]:
    """Return the evaluated steps in a file of metrics; RunError, with the line, where one is damaged."""
    return tuple(_evaluations(path, _text(path).splitlines()))


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}; {REMEDY}") from error


def _evaluations(path: Path, lines: Sequence[str]) -> list[Evaluation]:
    """Return what the lines say; RunError where one is damaged, or its step not after the one before."""
    found: list[Evaluation] = []
    for row, line in enumerate(lines, start=1):
        found.append(_parsed(path, row, line))
        if row > 1 and (step := found[-1].visible.step) <= (before := found[-2].visible.step):
            raise RunError(f"{path}, line {row}: step {step} comes after step {before}; {REMEDY}")
    return found


def _parsed(path: Path, row: int, text: str) -> Evaluation:
    try:
        line = parse_json(text)
        step = _check.integer("step", line["step"], low=0)
        if step > 2**53:
            raise ValueError("a step that no float can count")
        train, validation, test = (SplitMetrics.from_json(line[part]) for part in ("train", "validation", "test"))
        extra = {key: number(value) for key, value in line["extra"].items()}
        return Evaluation(Visible(step, train, validation), test, extra)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RunError(f"{path}, line {row}, is not an evaluated step: {what}; {REMEDY}") from error


def _line(evaluation: Evaluation) -> Mapping[str, Any]:
    visible = evaluation.visible
    return {
        "step": visible.step,
        "train": finite_json(asdict(visible.train)),
        "validation": finite_json(asdict(visible.validation)),
        "test": finite_json(asdict(evaluation.test)),
        "extra": finite_json(evaluation.extra),
    }
