"""Which commands there are, and how one that fails says so."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

import tyro
from rich.console import Console

import steelyard
from steelyard._support._text import printable
from steelyard.checkpoint import Stopped
from steelyard.cli.active import active
from steelyard.cli.moved import moved_to
from steelyard.cli.runs import compare_runs, demo, recipes, report, run
from steelyard.cli.studies import bounds
from steelyard.distributed import RankError, launched_processes
from steelyard.experiments.errors import UserError

__all__ = ["exit_status", "main"]

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "run": run,
    "compare": compare_runs,
    "report": report,
    "recipes": recipes,
    "active": active,
    "bounds": bounds,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process) and return the exit status.

    0: done. 1: another process of the same run failed or ended. 2: something the user gave is wrong, said in one line.
    130: interrupted. 143: terminated.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a figure's "±", or a file's name, may have no place in its encoding
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        Console().print(f"steelyard {steelyard.__version__}", highlight=False)
        return 0
    if (place := moved_to(given)) is not None:
        return _fail(f"{' '.join(given[:1])} is a study now, beside the package in its repository: {place}")
    return exit_status(
        lambda: tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="steelyard", description=_DESCRIPTION, args=given),
        ["steelyard", *given],
    )


def exit_status(work: Callable[[], object], words: Sequence[str]) -> int:
    """Do `work` and return the exit status, see `main`.

    Args:
        work: what the command line asks for.
        words: the command line, for what is said of a run that was stopped.
    """
    try:
        if launched_processes() > 1 and words[1:2] != ["run"]:
            raise UserError("of the commands only `run` is carried out by several processes; start this one by itself")
        work()
    except UserError as error:
        return _fail(str(error))
    except RankError as error:
        return _fail(str(error), 1)
    except OSError as error:  # a folder that cannot be written, a disk that is full
        place = error.filename2 or error.filename  # of a file that is moved, where to
        said = f"{place}: {error.strerror}" if place else str(error)
        return _fail(f"{said}; make room, or name another place (--out)")
    except Stopped as stopped:
        again = shlex.join([*(a for a in words if a not in ("--overwrite", "--resume")), "--resume"])
        if launched_processes() > 1:
            if os.environ.get("RANK") != "0":
                return 128 + stopped.reason  # the first says it for all
            again = f"torchrun ... -m {again}"
        said = f"steelyard: stopped by {signal.Signals(stopped.reason).name} after a whole step; go on with: {again}"
        Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
        return 128 + stopped.reason
    except KeyboardInterrupt:
        Console(stderr=True).print("steelyard: interrupted")
        return 130
    return 0


def _fail(message: str, status: int = 2) -> int:
    """Say in one line what is wrong and return the exit status."""
    line = printable(" ".join(message.split()))
    Console(stderr=True).print(f"steelyard: error: {line}", markup=False, highlight=False, soft_wrap=True)
    return status


_DESCRIPTION = """Bilevel sample reweighting: learn a weight and a keep-probability for every training sample.

Begin with `steelyard demo`. `steelyard recipes` lists what can be run; `steelyard COMMAND --help` explains one,
`steelyard --version` says which version this is."""
