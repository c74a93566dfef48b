"""What a folder of results is made of: tables, learning curves, every round's figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from steelyard._support._files import write_bytes, write_text
from steelyard.experiments.active import pictures, tables
from steelyard.experiments.active.moons import FourMoons
from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.active.tables import Cells

__all__ = ["FILES", "Section", "write_active_report"]

FILES = ("README.md", "rounds.csv", "summary.json", "curves.svg", "moons.png")
"""What is written, the last for Four-Moons alone."""

Section = Callable[[Cells], str]
"""Text of a README made of the runs' figures; empty: none."""


def write_active_report(
    runs: Sequence[ActiveRun], folder: Path, command: str, section: Section = lambda found: ""
) -> list[str]:
    """Write README.md, rounds.csv, summary.json, curves.svg and, for Four-Moons, moons.png; return their names.

    Args:
        runs: of one recipe that differ in selector, fine-tuning, noise and seed. folder: made if missing.
        command: what remakes it, for the README and the summary.
        section: text of the README that the caller adds, in front of the pictures.

    Raises:
        RunError: the runs do not make one table.
    """
    found = tables.cells(runs)
    texts = {
        FILES[0]: _page(found, runs, command, section(found)),
        FILES[1]: tables.rounds_table(found),
        FILES[2]: json.dumps(tables.summary(found, runs[0].name, command), indent=2) + "\n",
        FILES[3]: pictures.learning_curves(found),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    if not isinstance(runs[0].recipe.data, FourMoons):
        return list(texts)
    first = min(run.recipe.seed for run in runs)
    write_bytes(folder / FILES[4], pictures.moons_picture([run for run in runs if run.recipe.seed == first]))
    return [*FILES]


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"Seed {seeds[0]} alone, so without a spread"
    return f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation over them"


def _page(found: Cells, runs: Sequence[ActiveRun], command: str, section: str) -> str:
    recipe = runs[0].recipe
    seeds = sorted({run.recipe.seed for run in runs})
    plan = recipe.schedule
    lines = [
        f"# Active learning on {found.dataset}\n",
        f"Made by `{command}`.\n",
        f"{_seeds(seeds)}, in per cent. {plan.initial} samples "
        f"at the start, {plan.per_round} more in each of {plan.rounds} rounds; all other settings, and where they come "
        f"from, are in the recipe `{runs[0].name}`. Selectors share the first round: its samples and its training are "
        "the same for all methods of a column (with fine-tuning, for all of those with it), and were computed once.\n",
        "## Test accuracy after the last round\n",
        tables.markdown(found.last("test")),
    ]
    if learnable := found.last("test_learnable"):
        lines.append(
            "As reported (Khosla et al., Figure 1, one run each): least confidence 53.67, LHD 84.68. The fourth moon "
            "counts by its own label, which training never shows: three moons solved and the fourth guessed are 81.25 "
            "in expectation.\n"
        )
        lines += ["## Test accuracy on the three moons that can be learned\n", tables.markdown(learnable)]
    clean = found.last("clean_share_selected")
    lines += ["## Share of clean samples among those that the selector picked, all rounds\n", tables.markdown(clean)]
    lines += [section] if section else []
    lines.append("![learning curves](curves.svg)\n")
    if isinstance(recipe.data, FourMoons):
        lines.append(f"![decision regions and labelled points, seed {seeds[0]}](moons.png)\n")
    return "\n".join(lines)
