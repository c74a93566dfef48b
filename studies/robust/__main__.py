"""`python -m studies.robust`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steelyard.cli.options import check_any_seed, check_writable, set_threads
from steelyard.cli.shared import Overrides, progress_bars, stoppable
from steelyard.experiments.errors import UserError
from studies._command import command_line
from studies.robust import study

__all__ = ["main"]


def robust(
    out: Path = Path("results/active/robust"),
    runs: Path = Path("runs/robust"),
    seeds: tuple[int, ...] = (0, 1, 2),
    selectors: tuple[str, ...] = (),
    set_: Overrides = (),
    library: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    threads: int = 1,
) -> None:
    """Robust active learning on digits: with and without adversarial training, and test selection for retraining.

    Example: python -m studies.robust --selectors rand ent dre --seeds 0 --out /tmp/robust --runs /tmp/robust/runs

    Args:
        out: folder for README.md, the tables and the picture.
        runs: folder for the runs, RUNS/<task>/none/<selector>/seed<k>.
        seeds: a run of every task and selector for each.
        selectors: who picks; rand, ent and dre must be among them (default: the paper's eleven and dre).
        set_: a field to set in all recipes, as in --set schedule.rounds=1; may be repeated.
        library: attack final models with the attack library too (the extra `attacks`).
        resume: continue runs that were interrupted; finished ones are kept.
        overwrite: replace runs that lie there.
        threads: torch threads; small nets gain nothing from more than one. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_any_seed(seeds)
    check_writable("--out", out)
    check_writable("--runs", runs)
    chosen = selectors or (*study.ELEVEN, "dre")
    if missing := [name for name in ("rand", "ent", "dre") if name not in chosen]:
        raise UserError(f"--selectors needs {missing[0]!r}: the claims compare rand, ent and dre")
    words = ["python", "-m", "studies.robust", "--out", out.as_posix(), "--seeds", *map(str, seeds)]
    words += ["--selectors", *selectors] if selectors else []
    words += [word for field in set_ for word in ("--set", field)] + (["--library"] if library else [])
    console = Console()
    with progress_bars(console) as bars, stoppable(bars) as stop:
        bar = bars.add_task("starting", total=1)
        written = study.robust(
            out,
            runs,
            seeds=seeds,
            selectors=chosen,
            overrides=set_,
            library=library,
            overwrite=overwrite,
            resume=resume,
            command=" ".join(words),
            progress=lambda done, total, text: bars.update(bar, completed=done, total=total, description=text),
            stop=stop,
        )
    console.print(f"Written: {out}/{', '.join(written)}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(robust, "robust", arguments)


if __name__ == "__main__":
    sys.exit(main())
