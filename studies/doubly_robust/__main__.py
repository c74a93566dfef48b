"""`python -m studies.doubly_robust`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steelyard._support._files import write_text
from steelyard.cli.options import check_any_seed, check_writable, set_threads
from steelyard.cli.shared import Overrides
from steelyard.experiments.errors import UserError
from studies._command import command_line
from studies.doubly_robust import study
from studies.doubly_robust.page import page, summary

__all__ = ["main"]


def doubly_robust(
    out: Path = Path("results/doubly_robust"),
    chosen_on: tuple[int, ...] = (0, 1, 2),
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105),
    set_: Overrides = (),
    threads: int = 1,
) -> None:
    """DONE beside plain adversarial and standard training, on digits; settings chosen by validation, on other seeds.

    Stopped and started again it goes on where it was: trainings that are in OUT/figures.json are read.

    Args:
        out: folder for README.md, summary.json and figures.json.
        chosen_on: seeds whose validation figures choose epsilon and temperature.
        seeds: seeds of the table.
        set_: a field to set in the recipe, as in --set method.training.steps=50; may be repeated.
        threads: torch threads; small nets gain nothing from more than one. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_any_seed(seeds)
    check_any_seed(chosen_on, "--chosen-on")
    if both := set(chosen_on) & set(seeds):
        raise UserError(f"--seeds names {min(both)}, which --chosen-on has too: a seed that chose reports nothing")
    check_writable("--out", out)
    words = ["python", "-m", "studies.doubly_robust", "--chosen-on", *map(str, chosen_on), "--seeds", *map(str, seeds)]
    words += [word for field in set_ for word in ("--set", field)]
    console = Console()
    with console.status("starting") as status:
        cells = study.Cells(out / "figures.json", set_, status.update)
        chosen = study.choose(cells, chosen_on)
        found = study.outcome(cells, chosen, seeds)
    command = shlex.join(words)
    write_text(out / "README.md", page(chosen, found, chosen_on, seeds, command))
    write_text(out / "summary.json", json.dumps(summary(found, seeds, command), indent=1) + "\n")
    console.print(f"Written: {out}/README.md, summary.json, figures.json", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(doubly_robust, "doubly_robust", arguments)


if __name__ == "__main__":
    sys.exit(main())
