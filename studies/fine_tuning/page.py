"""The page that shows the study's runs: accuracies, what each arm gains, why where it does not, who is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from steelyard._support._files import write_text
from steelyard.experiments.active import tables
from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.compare.rows import Spread
from steelyard.experiments.compare.table import Table
from studies._kept import check_no_fewer
from studies.fine_tuning.study import Results, differences

__all__ = ["page", "write"]

_WAYS = {
    "none": "the training on what is labelled",
    "with_labelled": "then labelled and all confident pool samples, predicted labels, distorted at every step; "
    "measured after training on the labels once more",
    "paper": "then Algorithm 2 of LHD's paper to the letter",
    "more_epochs": "then as many epochs more on the labels, as a control",
}


def page(results: Results, command: str) -> str:
    """Return the README of the results."""
    lines = [
        "# Fine-tuning in active learning",
        f"Made by `{command}`.",
        f"{_seeds(results)} Test accuracy after the last round, in per cent: mean ± standard deviation over seeds. All "
        "selectors and arms of a seed have the same data, and start from the same samples.",
        "| way to end a round | what it is |\n|---|---|\n" + "\n".join(f"| {arm} | {_WAYS[arm]} |" for arm in results),
    ]
    for noise in _noises(results):
        lines += [f"## {noise}", _table(results, noise, _accuracy)]
    if len(results) > 1:
        lines += ["## What it gains", _gains(results)]
        lines += [_counted(results, arm) for arm in list(results)[1:]]
        lines += [text for arm in list(results)[1:] if (text := _causes(results, arm))]
    if all(_selected(runs) for cells in results.values() for runs in cells.values()):
        lines.append("## Clean samples among those that the selector picked, in per cent")
        lines += [f"{noise}:\n\n{_table(results, noise, _share)}" for noise in _noises(results)]
    if "with_labelled" in results and any(selector == "lhd" for selector, _ in results["with_labelled"]):
        lines.append(_who_is_best(results))
    return "\n\n".join(lines) + "\n"


def _noises(results: Results) -> list[str]:
    return list(dict.fromkeys(noise for _, noise in results["none"]))


def _seeds(results: Results) -> str:
    """Say which seeds each arm was run on, and who was run on the first alone."""
    ran = {arm: [tuple(run.recipe.seed for run in runs) for runs in cells.values()] for arm, cells in results.items()}
    most = {arm: max(seeds, key=len) for arm, seeds in ran.items()}
    text = f"Seeds {_listed(most['none'])}"
    if fewer := [arm for arm in most if most[arm] != most["none"]]:
        text += f" ({_listed(fewer)}: {_listed(most[fewer[0]])})"
    once = [cell[0].upper() for cell, seeds in zip(results["none"], ran["none"], strict=True) if seeds != most["none"]]
    return text + (f"; {_listed(dict.fromkeys(once))}: {most['none'][0]} alone." if once else ".")


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _accuracy(runs: Sequence[ActiveRun]) -> Spread:
    return Spread.of([run.history[-1]["test"] for run in runs])


def _share(runs: Sequence[ActiveRun]) -> Spread:
    return Spread.of([run.history[-1]["clean_share_selected"] for run in runs])


def _selected(runs: Sequence[ActiveRun]) -> bool:
    return all("clean_share_selected" in run.history[-1] for run in runs)


def _table(results: Results, noise: str, of: Callable[[Sequence[ActiveRun]], Spread]) -> str:
    rows = [
        [cell[0].upper(), *(of(cells[cell]).percent() if cell in cells else "" for cells in results.values())]
        for cell in results["none"]
        if cell[1] == noise
    ]
    return Table(["method", *results], rows).markdown().rstrip()


def _gains(results: Results) -> str:
    gains = {arm: differences(results, arm) for arm in list(results)[1:]}
    rows = [
        [cell[0].upper(), cell[1], *(_with_error(of[cell]) if cell in of else "" for of in gains.values())]
        for cell in results["none"]
    ]
    return (
        "Points gained over `none`, mean over seeds and its standard error, paired by seed.\n\n"
        + Table(["method", "noise", *gains], rows).markdown().rstrip()
    )


def _with_error(gain: Spread) -> str:
    error = f" ± {100 * gain.std / math.sqrt(gain.count):.1f}" if gain.count > 1 else ""
    return f"{100 * gain.mean:+.1f}{error}"


def _counted(results: Results, arm: str) -> str:
    gains = differences(results, arm).values()
    up, single = sum(gain.mean > 0 for gain in gains), [value for gain in gains for value in gain.values]
    return (
        f"- `{arm}`: above 0 in {up} of {len(gains)} cases by the mean, in {sum(value > 0 for value in single)} of "
        f"{len(single)} single seeds; {100 * sum(single) / len(single):+.1f} points on average."
    )


def _causes(results: Results, arm: str) -> str:
    """Return where an arm does not gain: what it gains on the same samples, and how clean its selection is."""
    first, rows = differences(results, arm, 0), []
    for cell, gain in differences(results, arm).items():
        seeds = {run.recipe.seed for run in results[arm][cell]}
        alike = [[run for run in results[one][cell] if run.recipe.seed in seeds] for one in ("none", arm)]
        if gain.mean <= 0 and all(map(_selected, alike)):
            shares = [_share(runs).percent() for runs in alike]
            rows.append([cell[0].upper(), cell[1], _with_error(gain), _with_error(first[cell]), *shares])
    if not rows:
        return ""
    heads = ["method", "noise", "gain", "in the first round", "clean, none", f"clean, {arm}"]
    return (
        f"Where `{arm}` does not gain. In the first round both have the same samples, so that the gain there is the "
        "training's; later the selection's share in it is told by how clean it is.\n\n"
        + Table(heads, rows).markdown().rstrip()
    )


def _who_is_best(results: Results) -> str:
    """Where LHD stands, when all are measured alike, and when only LHD is trained on the labels after fine-tuning."""
    noises = _noises(results)
    seeds = [{run.recipe.seed for run in runs} for runs in results["with_labelled"].values()]
    shared = set.intersection(*seeds)  # who was run on one seed alone is not compared with a mean over others
    if not shared:
        return "## LHD with fine-tuning among all\n\nThere is no seed that all were run on."
    told = f", by the seeds that all were run on ({_listed(sorted(shared))})" if shared != set.union(*seeds) else ""
    alike, theirs = [], []
    for noise in noises:
        runs = {
            selector: [run for run in some if run.recipe.seed in shared]
            for (selector, kind), some in results["with_labelled"].items()
            if kind == noise
        }
        same = {selector: _accuracy(some).mean for selector, some in runs.items()}
        # where nobody was confident, one model selects and is measured
        right_after = {
            selector: Spread.of([run.history[-1].get("selecting_test", run.history[-1]["test"]) for run in some]).mean
            for selector, some in runs.items()
        }
        alike.append(_rank("lhd", same))
        theirs.append(_rank("lhd", {**right_after, "lhd": same["lhd"]}))
    return (
        "## LHD with fine-tuning among all\n\nThe authors' code trains LHD's model on the labels after fine-tuning and "
        f"measures the others right after it. LHD's place with `with_labelled`, both ways{told}:\n\n"
        + Table(["protocol", *noises], [["the same for all", *alike], ["theirs", *theirs]]).markdown().rstrip()
    )


def _rank(who: str, figures: Mapping[str, float]) -> str:
    return f"{1 + sum(value > figures[who] for value in figures.values())} of {len(figures)}"


def write(results: Results, folder: Path, command: str) -> list[str]:
    """Write README.md and rounds.csv of each arm into `folder`; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds = {}
    for arm, cells in results.items():
        runs = [run for some in cells.values() for run in some]
        rounds[f"{arm}.csv"] = tables.rounds_table(tables.cells(runs))
    for name, text in rounds.items():
        check_no_fewer(folder / name, len(text.splitlines()) - 1)
    for name, text in {"README.md": page(results, command), **rounds}.items():
        write_text(folder / name, text)
    return ["README.md", *rounds]
