"""`python -m studies.theorem1`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steelyard.cli.options import check_seeds, check_writable, set_threads
from studies._command import command_line
from studies.theorem1.study import theorem1

__all__ = ["main"]


def bounds(out: Path = Path("results/theory"), quick: bool = False, seed: int = 0, threads: int = 1) -> None:
    """Check the top-q generalisation bound term by term.

    Example: python -m studies.theorem1 --quick --out /tmp/theory

    Args:
        out: folder for the tables, the plots and README.md.
        quick: smaller experiments, for a look.
        seed: of all random draws.
        threads: torch threads; more than one is slower here. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_seeds("--seed", [seed])
    check_writable("--out", out)
    theorem1(out, quick=quick, seed=seed)
    Console().print(f"Written: {out}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(bounds, "theorem1", arguments)


if __name__ == "__main__":
    sys.exit(main())
