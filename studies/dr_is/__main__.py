"""`python -m studies.dr_is`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steelyard.cli.options import check_seeds, check_writable, set_threads
from steelyard.experiments.errors import UserError
from studies._command import command_line
from studies.dr_is.measure import DisagreementSettings
from studies.dr_is.study import disagreement

__all__ = ["main"]


def dr_is(
    out: Path = Path("results/active/dr_is"),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64),
    share: float = 0.2,
    threads: int = 1,
) -> None:
    """Measure DR-IS, EL2N and AUM on digits whose labels an adversary has corrupted.

    Example: python -m studies.dr_is --seeds 0 --sizes 2 8 --out /tmp/dr_is

    Args:
        out: folder for the tables, the picture and README.md.
        seeds: of split, attack and proxies.
        sizes: numbers of proxies.
        share: of the training labels that are corrupted.
        threads: torch threads; these nets are small, more than one rarely helps. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_seeds("--seeds", seeds)
    check_writable("--out", out)
    words = [f"python -m studies.dr_is --out {out.as_posix()} --seeds {' '.join(map(str, seeds))}"]
    words += [f"--sizes {' '.join(map(str, sizes))} --share {share:g}"]
    try:
        settings = DisagreementSettings(seeds=seeds, sizes=sizes, share=share)
    except ValueError as error:
        raise UserError(str(error)) from error
    console = Console()
    with console.status("starting") as status:
        written = disagreement(out, settings, " ".join(words), status.update)
    console.print(f"Written: {out}/{', '.join(written)}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(dr_is, "dr_is", arguments)


if __name__ == "__main__":
    sys.exit(main())
