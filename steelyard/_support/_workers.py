"""Processes that load data: how they are started, kept between passes, and closed."""

from __future__ import annotations

import ast
import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import spawn
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steelyard._support._packages import needed_by
from steelyard._support._random import all_seeded, seed_all

__all__ = ["Asked", "Loading", "WorkerTraceback", "worker_context"]

Asked = tuple[Any, int]
"""What is asked of a source, and the seed of what it draws meanwhile."""


class WorkerTraceback(Exception):
    """Where in a worker process an error came from: the `__cause__` of that error."""


class Loading:
    """What answers ``source[request]``, ahead by processes that stay for the next pass.

    They are started by the first pass, and end with `close`, with this object, or with the interpreter. A pass that is
    begun while another has not ended gets processes of its own. Answers, and what `source` draws from the global
    generators of torch, NumPy and Python, do not depend on the number of processes; the generators here do not move.

    The script of the user needs no ``if __name__ == "__main__":``, for it is not imported again: only where `source` is
    of a class of a script that has this line. What a notebook or another script defines is pickled by value.

    Args:
        source: with `workers` it is pickled.
        workers: processes; 0 loads here.
        preload: a module that `source` needs, imported once for all of them.
    """

    def __init__(self, source: Any, workers: int, preload: str) -> None:
        self.source, self.workers, self._preload = source, workers, preload
        self._processes: list[_Processes] = []
        weakref.finalize(self, _close, self._processes)  # also when the interpreter ends

    def __reduce__(self) -> tuple[Any, ...]:
        return Loading, (self.source, self.workers, self._preload)

    def answers(self, asked: Iterable[Asked], ahead: bool = True) -> Iterator[Any]:
        """Yield ``source[request]`` for each (request, seed), in order.

        Args:
            asked: may be endless; the processes read it ahead of the answers.
            ahead: False for answers of this process.

        Raises:
            Exception: what `source` raised, of the same type and with the same message; if it did so in another
                process, with a `WorkerTraceback` as its cause.
            RuntimeError: a process has ended, or `close` was called meanwhile.
            MissingPackage: `source` cannot be pickled by name, and there is no cloudpickle.
        """
        if not (self.workers and ahead):
            for request, seed in asked:
                with all_seeded(seed):
                    found = self.source[request]
                yield found
            return
        processes = self._free()
        processes.busy = True
        try:
            for found in processes.answers(asked):
                if isinstance(found, _Failure):
                    raise found.error from WorkerTraceback(found.trace)
                yield found
        finally:
            processes.busy = False
            if processes.ended and processes in self._processes:
                self._processes.remove(processes)

    def close(self) -> None:
        """End the processes; a later pass starts others."""
        _close(self._processes)

    def _free(self) -> _Processes:
        for one in self._processes:
            if not one.busy:
                return one
        self._processes.append(_Processes(self.source, self.workers, self._preload))
        return self._processes[-1]


def _close(processes: list[_Processes]) -> None:
    while processes:
        processes.pop().close()


class _Processes:
    """Some processes, for one pass at a time."""

    def __init__(self, source: Any, workers: int, preload: str) -> None:
        self.busy = self.ended = False
        self._asked = _Asked()
        needs_script, source = _for_a_process(source, workers)
        self._loader = DataLoader(
            _Answers(source),
            batch_size=None,
            sampler=self._asked,
            num_workers=workers,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(0),  # without one, the loader draws from the global one
            multiprocessing_context=worker_context(preload, needs_script),
            worker_init_fn=_ignore_interrupts,
            persistent_workers=True,
        )
        self._iterator: Any = None

    def answers(self, asked: Iterable[Asked]) -> Iterator[Any]:
        """Yield the answers of one pass. What an earlier pass has left is thrown away."""
        self._asked.now = asked
        try:
            self._iterator = iter(self._loader)
            for found in self._iterator:
                yield found
                if self.ended:
                    raise RuntimeError("the samples' workers were closed while they loaded; begin the pass again")
        except GeneratorExit:  # a pass that is given up, as of an endless one
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        self.ended = True
        if self._iterator is not None:
            self._iterator._shutdown_workers()
            self._iterator = None


class _Asked:
    """A sampler that gives what is asked in the present pass."""

    now: Iterable[Asked] = ()

    def __iter__(self) -> Iterator[Asked]:
        return iter(self.now)


@dataclass(frozen=True)
class _Failure:
    """An error of a source, on its way from a process."""

    error: Exception
    trace: str

    @staticmethod
    def of(error: Exception) -> _Failure:
        """Return it with an error that another process can read."""
        trace = "".join(traceback.format_exception(error)).rstrip()
        try:
            alike = pickle.loads(pickle.dumps(error))
            return _Failure(error if str(alike) == str(error) else RuntimeError(str(error)), trace)
        except Exception:  # noqa: BLE001 (whatever its class says to that)
            return _Failure(RuntimeError(f"{type(error).__name__}: {error}"), trace)


@dataclass(frozen=True)
class _Answers(Dataset[Any]):
    """What a process answers: ``source[request]``, or why it cannot."""

    source: Any

    def __getitem__(self, asked: Asked) -> Any:
        request, seed = asked
        try:
            source = self.source.value if isinstance(self.source, _ByValue) else self.source
            seed_all(seed)
            return source[request]
        except Exception as error:  # noqa: BLE001 (all of them travel)
            return _Failure.of(error)


@dataclass(frozen=True)
class _ByValue:
    """A source with the code of its classes."""

    pickled: bytes

    @cached_property
    def value(self) -> Any:
        """The source."""
        return pickle.loads(self.pickled)


def _for_a_process(source: Any, workers: int) -> tuple[bool, Any]:
    """Return whether a process must import the script to read `source`, and in what form it is given."""
    by_name = _Names.of(source)
    if by_name == "elsewhere":
        return False, source
    if by_name == "script" and _has_guard(sys.modules["__main__"]):
        return True, source
    what = f"workers={workers} with a data set of a class or function of a notebook, or of a script without a guard,"
    with needed_by(what, install="cloudpickle; or put them into a module of their own, or use workers=0"):
        import cloudpickle
    return False, _ByValue(cloudpickle.dumps(source))


class _Names(pickle.Pickler):
    """Looks which names a pickled object needs, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(self)  # type: ignore[arg-type]
        self.of_script = False

    def write(self, data: Any) -> int:
        """Take no note of it."""
        return len(data)

    def reducer_override(self, value: Any) -> Any:
        """Note a class or function of the script; of arrays nothing is looked at."""
        if isinstance(value, (Tensor, np.ndarray)):
            return str, ()
        self.of_script = self.of_script or (hasattr(value, "__qualname__") and value.__module__ == "__main__")
        return NotImplemented

    @staticmethod
    def of(value: Any) -> str:
        """Return where they are: "elsewhere", "script", or "nowhere" for what has no name (a lambda)."""
        names = _Names()
        try:
            names.dump(value)
        except (pickle.PicklingError, AttributeError, TypeError):
            return "nowhere"
        return "script" if names.of_script else "elsewhere"


def _has_guard(script: Any) -> bool:
    """Whether the script's file asks for its name at the top level, so that it can be imported by a process."""
    place = getattr(script, "__file__", None)
    if place is None or not Path(place).is_file():
        return False
    tests = [one.test for one in ast.parse(Path(place).read_bytes()).body if isinstance(one, ast.If)]
    return any(isinstance(node, ast.Name) and node.id == "__name__" for test in tests for node in ast.walk(test))


def _as_it_is(loaded: Any) -> Any:
    """(torch's own makes lists of tuples.)"""
    return loaded


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that they load for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def worker_context(preload: str, needs_script: bool = True) -> BaseContext:
    """Return how worker processes are started: from a server where the platform has one, otherwise each afresh.

    A forked copy of a process with threads, as torch's has, can deadlock. The server is forked from nothing; it imports
    the module `preload` once, else each worker would import torch.

    Args:
        preload: the module.
        needs_script: the processes import the script that was started, as Python has it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn") if needs_script else _SpawnContext()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context if needs_script else _ServerContext()


class _Spawned(SpawnProcess):
    @staticmethod
    def _Popen(process: Any) -> Any:
        with _unprepared():
            return SpawnProcess._Popen(process)


class _SpawnContext(SpawnContext):
    Process = _Spawned


if sys.platform != "win32":
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class _Served(ForkServerProcess):
        @staticmethod
        def _Popen(process: Any) -> Any:
            with _unprepared():
                return ForkServerProcess._Popen(process)

    class _ServerContext(ForkServerContext):
        Process = _Served


@contextmanager
def _unprepared() -> Iterator[None]:
    """Have a process that this thread starts not be told which script to import."""
    prepared, thread = spawn.get_preparation_data, threading.get_ident()

    def get_preparation_data(name: str) -> dict[str, Any]:
        told = prepared(name)
        if threading.get_ident() == thread:
            told = {key: value for key, value in told.items() if not key.startswith("init_main")}
        return told

    with _STARTING:
        spawn.get_preparation_data = get_preparation_data  # type: ignore[assignment]
        try:
            yield
        finally:
            spawn.get_preparation_data = prepared


_STARTING = threading.Lock()
