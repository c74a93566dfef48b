"""Which commands there are, and how one that fails says so.

Help and version import neither torch nor an extra: what carries a command out is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

import steelyard
from steelyard._support._errors import UserError
from steelyard._support._heap import keep_freed_memory
from steelyard._support._packages import EXPERIMENTS, MissingPackage, needed_by
from steelyard._support._text import printable
from steelyard.cli.moved import moved_to

__all__ = ["COMMANDS", "exit_status", "main"]

COMMANDS = {
    "demo": ("runs:demo", "Show MAPLE beside ERM, IRMv1 and V-REx on coloured digits, offline, in a minute or two."),
    "weigh": ("weigh:weigh", "Weigh the rows of a table so that a model trained on them does well where it must."),
    "suspects": ("suspects:suspects", "Rank the rows of a table by how suspect their labels are."),
    "run": ("runs:run", "Carry out recipes, a run directory for each seed."),
    "tune": (
        "tune:tune",
        "Tune a recipe: random search over the ranges that its method declares, the choice by validation alone.",
    ),
    "compare": ("runs:compare_runs", "Compare runs: accuracies as mean ± standard deviation over seeds."),
    "report": ("runs:report", "Write an HTML page about one or several runs."),
    "recipes": ("runs:recipes", "List the recipes that come with the package, or show one with its base and defaults."),
    "data": ("data:data", "Put a published data set in place below a data root, and verify it."),
    "active": ("active:active", "Carry out an active learning recipe: label, train, select, round after round."),
    "bounds": (
        "bounds:bounds",
        "Compute the terms of the top-q generalisation bound for a loss matrix of your own.",
    ),
}
"""The name of each command, where the function of it is (module of this room, name), and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process) and return the exit status.

    0: done. 1: another process of the same run failed or ended. 2: something the user gave is wrong, or a package is
    not installed, said in one line. 130: interrupted. 143: terminated.
    """
    if arguments is None:  # the process is ours
        keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a figure's "±", or a file's name, may have no place in its encoding
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        sys.stdout.write(f"steelyard {steelyard.__version__}\n")
        return 0
    if (place := moved_to(given)) is not None:
        return _fail(f"{' '.join(given[:1])} is a study now, beside the package in its repository: {place}")
    if not given or given[0] not in COMMANDS:
        _parser().parse_args(given[:1])  # prints its help, or what is wrong, and exits
    return exit_status(lambda: _carry_out(given[0], given[1:]), ["steelyard", *given])


def _parser() -> argparse.ArgumentParser:
    """Return what knows the names of the commands; each has a parser of its own for what follows its name."""
    parser = argparse.ArgumentParser(
        prog="steelyard",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"steelyard {steelyard.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser


def exit_status(work: Callable[[], object], words: Sequence[str]) -> int:
    """Do `work` and return the exit status, see `main`.

    Args:
        work: what the command line asks for.
        words: the command line, for what is said of a run that was stopped.
    """
    try:
        if _launched() > 1 and words[1:2] != ["run"]:
            raise UserError("of the commands only `run` is carried out by several processes; start this one by itself")
        work()
    except (UserError, MissingPackage) as error:
        return _fail(str(error))
    except OSError as error:  # a folder that cannot be written, a disk that is full
        place = error.filename2 or error.filename  # of a file that is moved, where to
        said = f"{place}: {error.strerror}" if place else str(error)
        room = "" if isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)) else "make room, or "
        return _fail(f"{said}; {room}name another place (--out)")
    except KeyboardInterrupt:
        sys.stderr.write("steelyard: interrupted\n")
        return 130
    except Exception as error:
        # Their modules take torch's seconds to import, which what is wrong with an option need not wait for.
        from steelyard.checkpoint import CheckpointError, Stopped
        from steelyard.distributed import RankError

        if isinstance(error, RankError):
            return _fail(str(error), 1)
        if isinstance(error, CheckpointError):
            return _fail(str(error))
        if not isinstance(error, Stopped):
            raise
        return _stopped(error.reason, words)
    return 0


def _launched() -> int:
    """Return how many processes were started together; torch is imported only where the environment says so."""
    if not os.environ.get("WORLD_SIZE"):
        return 1
    from steelyard.distributed import launched_processes

    return launched_processes()


def _stopped(reason: int, words: Sequence[str]) -> int:
    """Say how to resume what the signal `reason` stopped and return the exit status."""
    again = shlex.join([*(a for a in words if a not in ("--overwrite", "--resume")), "--resume"])
    if _launched() > 1:
        if os.environ.get("RANK") != "0":
            return 128 + reason  # the first says it for all
        again = f"torchrun ... -m {again}"
    said = f"stopped by {signal.Signals(reason).name} after a whole step; resume with: {again}"
    sys.stderr.write(f"steelyard: {said}\n")
    return 128 + reason


def _carry_out(name: str, arguments: list[str]) -> None:
    if name == "bounds":  # works without an extra, so it parses its arguments itself
        from steelyard.cli.bounds import bounds

        bounds(arguments)
        return
    module, function = COMMANDS[name][0].split(":")
    with needed_by(f"steelyard {name}", EXPERIMENTS):
        import tyro

        command = getattr(importlib.import_module(f"steelyard.cli.{module}"), function)
        tyro.cli(command, prog=f"steelyard {name}", args=arguments)


def _fail(message: str, status: int = 2) -> int:
    """Say in one line what is wrong and return the exit status."""
    sys.stderr.write(f"steelyard: error: {printable(' '.join(message.split()))}\n")
    return status


_DESCRIPTION = """Bilevel sample reweighting: learn a weight and a keep-probability for every training sample.

Begin with `steelyard demo`. `steelyard recipes` lists what can be run; `steelyard COMMAND --help` explains one,
`steelyard --version` says which version this is."""
