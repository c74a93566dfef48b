"""Carry out several runs, one after the other or in processes beside each other; one that fails does not stop the rest.

A process is told by a pipe to stop, and sees by it that the process that started it is gone: it saves its run and ends.
"""

from __future__ import annotations

import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from steelyard._support._packages import MissingPackage
from steelyard._support._workers import worker_context
from steelyard.checkpoint import Stopped
from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.errors import UserError
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run import Run, execute, read_run
from steelyard.experiments.training.evaluation import Evaluation, Visible

__all__ = ["Failed", "Options", "Planned", "execute_all", "execute_one", "shared_threads"]

_ASK_EVERY = 0.2  # seconds between two questions whether to stop


@dataclass(frozen=True)
class Planned:
    """A run that is to be carried out.

    Attributes:
        recipe: what to run.
        directory: where.
        name: the recipe's name, for tables. overrides: the fields set beside it, likewise.
    """

    recipe: Recipe
    directory: Path
    name: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What all the runs are carried out with: arguments of `execute`."""

    data_root: Path | None = None
    download: bool = False
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: int = 200
    allow_code: bool = False


@dataclass(frozen=True)
class Failed:
    """A run that failed, and what its error said in one line."""

    planned: Planned
    why: str


Watch = Callable[[int, Visible | Failed | None], None]
"""(position of the run, what it has reached): an evaluated step, why it failed, or None where it has finished."""


def shared_threads(jobs: int, runs: int) -> int:
    """Return how many torch threads each of `jobs` processes gets, of those that this process has; at least 1.

    Example:
        >>> shared_threads(10**6, 10**6)
        1
    """
    return max(1, torch.get_num_threads() // max(1, min(jobs, runs)))


def execute_all(
    planned: Sequence[Planned],
    options: Options,
    *,
    jobs: int = 1,
    threads: int = 0,
    watch: Watch = lambda number, reached: None,
    stop: Callable[[], int] = lambda: 0,
) -> list[Run | Failed]:
    """Carry out the runs; return, in the order of `planned`, each run or why it failed.

    With the same number of threads a run has the same bytes as one that is carried out alone, but for the seconds.

    Args:
        planned: the runs, each with a directory of its own.
        options: see `Options`.
        jobs: runs beside each other, each in a process; 1 carries them out in this one. No process imports the script
            that called, so it needs no ``if __name__ == "__main__":``, and notebooks and shells are as good.
        threads: torch threads of each process; 0 shares those of this one out. Alone, this process keeps its own.
        watch: see `Watch`; never told of test figures.
        stop: asked now and then; a number other than 0 has every run finish its step, save and end.

    Raises:
        Stopped: the runs were asked to stop, and not all of them were at their end.
    """
    if jobs > 1 and len(planned) > 1:
        return _Processes(planned, options, threads or shared_threads(jobs, len(planned)), watch).all(jobs, stop)
    found: list[Run | Failed] = []
    for number, plan in enumerate(planned):

        def told(evaluation: Evaluation, number: int = number) -> None:
            watch(number, evaluation.visible)

        try:
            found.append(execute_one(plan, options, told, stop))
            watch(number, None)
        except (UserError, MissingPackage) as error:
            failed = Failed(plan, str(error))
            found.append(failed)
            watch(number, failed)
    return found


def execute_one(
    plan: Planned,
    options: Options,
    progress: Callable[[Evaluation], None],
    stop: Callable[[], int],
    ranks: Ranks = ALONE,
) -> Run:
    """Carry out one run, see `execute`."""
    return execute(
        plan.recipe,
        plan.directory,
        name=plan.name,
        overrides=plan.overrides,
        data_root=options.data_root,
        download=options.download,
        overwrite=options.overwrite,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        progress=progress,
        stop=stop,
        ranks=ranks,
        allow_code=options.allow_code,
    )


@dataclass(frozen=True)
class _Ended:
    """How a run ended: `why` it failed, or the `reason` for which it stopped; neither where it finished."""

    why: str = ""
    reason: int = 0


class _Processes:
    """The runs, a process each, so many at a time."""

    def __init__(self, planned: Sequence[Planned], options: Options, threads: int, watch: Watch) -> None:
        self.planned, self.options, self.threads, self.watch = planned, options, threads, watch
        self.waiting = deque(range(len(planned)))
        self.running: dict[Connection, tuple[int, BaseProcess]] = {}
        self.ended: dict[int, _Ended] = {}
        self.reason = 0  # for which all are to stop

    def all(self, jobs: int, stop: Callable[[], int]) -> list[Run | Failed]:
        """Carry them out, see `execute_all`."""
        with self._none_left():
            while self.running or (self.waiting and not self.reason):
                if not self.reason and (reason := stop()):
                    self.reason = reason
                    for pipe in self.running:
                        _send(pipe, reason)
                while self.waiting and not self.reason and len(self.running) < jobs:
                    self._start(self.waiting.popleft())
                heard = wait(list(self.running), _ASK_EVERY)
                for pipe in [one for one in self.running if one in heard]:
                    self._hear(pipe)
        stopped = [end.reason for end in self.ended.values() if end.reason]
        if stopped or self.waiting:
            raise Stopped(self.reason or stopped[0])
        return [self._outcome(number) for number in range(len(self.planned))]

    def _start(self, number: int) -> None:
        context = worker_context(__name__, needs_script=False)
        here, there = context.Pipe()
        work = (self.planned[number], self.options, self.threads, there)
        name = f"{self.planned[number].name} seed {self.planned[number].recipe.seed}"
        process: Any = context.Process(target=_carry_out, args=work, name=name)  # type: ignore[attr-defined]
        process.start()
        there.close()
        self.running[here] = (number, process)

    def _hear(self, pipe: Connection) -> None:
        """Take what a process says, or note that it is gone."""
        number, process = self.running[pipe]
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            process.join()
            said = _Ended(f"its process ended {_manner(process.exitcode)}; resume it by --resume")
            if self.reason:  # the signal that stops all may have come to it, too
                said = _Ended(reason=self.reason)
        if isinstance(said, Visible):
            self.watch(number, said)
            return
        self.ended[number] = said
        del self.running[pipe]
        pipe.close()
        process.join()
        if not said.reason:
            self.watch(number, Failed(self.planned[number], said.why) if said.why else None)

    def _outcome(self, number: int) -> Run | Failed:
        plan, why = self.planned[number], self.ended[number].why
        return Failed(plan, why) if why else read_run(plan.directory)

    @contextmanager
    def _none_left(self) -> Iterator[None]:
        """End what still runs when the block is left; a checkpoint is whole at any moment."""
        try:
            yield
        finally:
            for pipe, (_, process) in self.running.items():
                process.terminate()
                process.join()
                pipe.close()


def _manner(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return "by SIGKILL (the system does so where memory is full: take fewer --jobs)"
    return f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"


def _carry_out(plan: Planned, options: Options, threads: int, pipe: Connection) -> None:
    """Carry out one run in this process, which was started for it; say by the pipe how it goes and how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C comes to all: the one that started us decides
    torch.set_num_threads(threads)
    asked = 0

    def stop() -> int:
        nonlocal asked
        if not asked and pipe.poll():
            try:
                asked = pipe.recv()
            except (EOFError, OSError):  # nobody is at the other end
                asked = signal.SIGTERM
        return asked

    try:
        execute_one(plan, options, lambda evaluation: _send(pipe, evaluation.visible), stop)
        said = _Ended()
    except Stopped as stopped:
        said = _Ended(reason=stopped.reason)
    except (UserError, MissingPackage) as error:
        said = _Ended(str(error))
    except Exception as error:  # noqa: BLE001 (the other runs go on)
        traceback.print_exc()
        said = _Ended(f"{type(error).__name__}: {error}")
    _send(pipe, said)


def _send(pipe: Connection, what: object) -> None:
    """Send it, if anybody is at the other end."""
    with suppress(OSError):
        pipe.send(what)
