"""What robust active learning shows: tables, the paper's claims judged by code, a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steelyard._support._files import write_text
from steelyard._support._plain import plain
from steelyard.experiments.active import tables
from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.compare.plots import COLOURS, STYLE, svg
from steelyard.experiments.compare.rows import Spread
from steelyard.experiments.compare.table import Table
from studies._claims import Claim, Judgement, markdown
from studies._kept import check_no_fewer

__all__ = ["robust_claims", "write_robust_report"]

Runs = Mapping[str, Sequence[ActiveRun]]
"""Task ("standard", "robust", "retraining") -> its runs."""
Figures = Mapping[str, Mapping[str, float]]
"""Task -> selector -> figure in [0, 1]."""
Attacked = Mapping[tuple[str, str, int], float]
"""(task, selector, seed) -> accuracy under the attack library."""

_COLUMNS = [(task, metric) for task in ("standard", "robust", "retraining") for metric in ("test", "robust_test")]
_SHOWN = {"rand": COLOURS[6], "ent": COLOURS[1], "dre": COLOURS[0]}


def write_robust_report(runs: Runs, attacked: Attacked, folder: Path, command: str) -> list[str]:
    """Write README.md, rounds.csv, summary.json, robust.svg and, where it was run, library.csv; return their names.

    Args:
        runs: of all three tasks, over the same selectors and seeds.
        attacked: what the library left, may be empty.
        folder: made if missing. command: what remakes it.

    Raises:
        UserError: `folder` has tables of more rounds.
    """
    found = {task: tables.cells(of) for task, of in runs.items()}
    rows = [{**row, "recipe": f"{row['recipe']}, {task}"} for task, of in found.items() for row in _rows(of, command)]
    texts = {
        "README.md": _page(runs, attacked, command),
        "rounds.csv": "".join(
            _prefixed(tables.rounds_table(of), task, header=task == next(iter(found))) for task, of in found.items()
        ),
        "summary.json": json.dumps(rows, indent=1) + "\n",
        "robust.svg": _picture(runs),
    }
    if attacked:
        lines = ("{},{},{},{:.6g}".format(*key, value) for key, value in attacked.items())
        texts["library.csv"] = "\n".join(["task,selector,seed,accuracy", *lines]) + "\n"
    check_no_fewer(folder / "rounds.csv", len(texts["rounds.csv"].splitlines()) - 1)
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)


def _rows(of: tables.Cells, command: str) -> list[dict[str, object]]:
    name = next(iter(of.runs.values()))[0].name
    return [row for row in tables.summary(of, name, command) if row["metric"] in ("test", "robust_test")]


def _prefixed(csv: str, task: str, *, header: bool) -> str:
    first, *others = csv.splitlines()
    lines = [f"task,{first}"] if header else []
    return "\n".join([*lines, *(f"{task},{line}" for line in others)]) + "\n"


def _last(runs: Runs, metric: str) -> dict[str, dict[str, Spread]]:
    return {task: {cell[0]: s for cell, s in tables.cells(of).last(metric).items()} for task, of in runs.items()}


def _means(runs: Runs, metric: str) -> Figures:
    return {task: {name: s.mean for name, s in of.items()} for task, of in _last(runs, metric).items()}


def robust_claims(clean: Figures, under: Figures) -> list[Claim]:
    """Return the paper's claims, judged by accuracies on clean and on attacked test samples after the last round.

    Args:
        clean, under: by task and selector. "rand", "ent" and "dre" must be among the selectors.

    References:
        Y. Guo et al., Robust active learning: sample-efficient training of robust deep learning models, 2021, abstract.
    """
    standard, trained, again = (under[task] for task in ("standard", "robust", "retraining"))
    others = [name for name in trained if name != "dre"]
    accurate = [name for name in others if name != "rand" and clean["robust"][name] > clean["robust"]["rand"]]

    def case(name: str, figure: float, against: float, holds: Callable[[float, float], bool]) -> Judgement:
        return Judgement(name, figure, against, holds(figure, against))

    above, below = (lambda a, b: a > b), (lambda a, b: a < b)
    return [
        Claim(
            "standard active learning ends near zero robustness (here: below 2 %)",
            tuple(case(name.upper(), value, 0.02, below) for name, value in standard.items()),
        ),
        Claim(
            "standard active learning: robustness less than 0.20 %, the paper's figure",
            tuple(case(name.upper(), value, 0.002, below) for name, value in standard.items()),
        ),
        Claim(
            "robust active learning does not end there (here: at least 20 points above standard)",
            tuple(case(name.upper(), value, standard[name] + 0.2, above) for name, value in trained.items()),
        ),
        Claim(
            "functions that beat random on accuracy are worse than random on robustness",
            tuple(case(name.upper(), trained[name], trained["rand"], below) for name in accurate),
        ),
        Claim(
            "DRE is more robust than random and than every other function",
            tuple(case(f"DRE against {name.upper()}", trained["dre"], trained[name], above) for name in others),
        ),
        Claim(
            "DRE remains competitive on accuracy (here: no more than 1 point below random)",
            (case("DRE", clean["robust"]["dre"], clean["robust"]["rand"] - 0.01, above),),
        ),
        Claim(
            "selecting tests for retraining, DRE leaves the most robust model",
            tuple(case(f"DRE against {name.upper()}", again["dre"], again[name], above) for name in others),
        ),
    ]


def _table(runs: Runs) -> str:
    spreads = {metric: _last(runs, metric) for metric in ("test", "robust_test")}
    heads = [f"{task}, {'clean' if metric == 'test' else 'PGD-50'}" for task, metric in _COLUMNS]
    lines = [
        [name.upper(), *(spreads[metric][task][name].percent() for task, metric in _COLUMNS)]
        for name in spreads["test"]["robust"]
    ]
    return Table(["function", *heads], lines).markdown()


def _leads(runs: Runs) -> dict[tuple[str, str], Spread]:
    """Return by how much DRE's accuracy under attack is above random's and entropy's, seed by seed."""
    last = _last(runs, "robust_test")
    return {
        (task, name): Spread.of(
            [one - other for one, other in zip(last[task]["dre"].values, last[task][name].values, strict=True)]
        )
        for task in ("robust", "retraining")
        for name in ("rand", "ent")
    }


def _lead_claim(runs: Runs) -> Claim:
    cases = (
        Judgement(f"{task}: DRE less {name.upper()}", lead.mean, lead.std, lead.mean > lead.std)
        for (task, name), lead in _leads(runs).items()
    )
    return Claim(
        "(ours) DRE's lead, seed by seed, is larger than its own standard deviation (points, against points)",
        tuple(cases),
    )


def _library(attacked: Attacked, runs: Runs) -> str:
    if not attacked:
        return "The attack library was not run (`--library`).\n"
    pgd = {
        (task, run.recipe.selector, run.recipe.seed): run.history[-1]["robust_test"]
        for task, of in runs.items()
        for run in of
    }
    lines = ["| task | function | PGD-50 | library |", "|---|---|---|---|"]
    for task, name in dict.fromkeys((task, name) for task, name, _ in attacked):
        keys = [key for key in attacked if key[:2] == (task, name)]
        ours, theirs = (Spread.of([of[key] for key in keys]).percent() for of in (pgd, attacked))
        lines.append(f"| {task} | {name.upper()} | {ours} | {theirs} |")
    return "\n".join(lines) + "\n"


def _library_claims(attacked: Attacked) -> list[Claim]:
    """Return whether DRE is ahead under the library too; nothing where that was not run."""
    if not attacked:
        return []
    means = {
        name: statistics.fmean([value for key, value in attacked.items() if key[:2] == ("robust", name)])
        for name in ("rand", "ent", "dre")
    }
    cases = tuple(
        Judgement(f"DRE against {name.upper()}", means["dre"], means[name], means["dre"] > means[name])
        for name in ("rand", "ent")
    )
    return [Claim("DRE is more robust than random and entropy under the attack library too", cases)]


def _page(runs: Runs, attacked: Attacked, command: str) -> str:
    recipe, retraining = (runs[task][0].recipe for task in ("robust", "retraining"))
    plan, attack, measure, second = recipe.schedule, recipe.attack, recipe.measure, retraining.schedule
    seeds = sorted({run.recipe.seed for run in runs["robust"]})
    which, epsilon = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})", f"{attack.epsilon:g}"
    net = ", ".join(f"{key} {value}" for key, value in plain(recipe.model).items())
    clean, under = _means(runs, "test"), _means(runs, "robust_test")
    return f"""# Robust active learning on digits

Made by `{command}`.

Scikit-learn's digits, 8 x 8 pixels in [0, 1]; the net: {net}, dropout {recipe.dropout:g};
{which}, mean ± standard deviation over them, in per cent of 449 test images.
{plan.initial} labels at the start, {plan.per_round} more in each of {plan.rounds} rounds, the net warm-started.

- **standard**: plain training.
- **robust**: PGD adversarial training, epsilon {epsilon}, {attack.steps} steps of {attack.step:g}.
- **retraining**: a net trained adversarially on {second.initial} labels, one selection of {second.per_round}, and
  training continues with them. The candidates are the rest of the pool, not the test split.
- **PGD-50**: accuracy under {measure.steps} steps of {measure.step:g} with a random start, epsilon {measure.epsilon:g}.

Epsilon {epsilon} is large for such images (3.2 of their 16 grey levels). It was set before these runs: the size at
which a net trained without attacks keeps less than 1 % (looked at with another net, on one random split). Nothing else
was tuned: epochs and learning rate were the first that were tried. The published settings for MNIST, CIFAR-10 and SVHN
are the recipes `mnist`, `cifar10` and `svhn` in `studies/robust/recipes`; they were not run.

{_table(runs)}
![Robust accuracy over labels, and against clean accuracy](robust.svg)

## A standard attack library

Adversarial Robustness Toolbox (extra `attacks`): APGD on cross-entropy, APGD on the difference-of-logits ratio, Square
(500 queries); a sample counts where all of them fail.

{_library(attacked, runs)}
## Claims, judged by code

By means over seeds, as the paper judges.

{markdown([*robust_claims(clean, under), _lead_claim(runs), *_library_claims(attacked)])}"""


def _picture(runs: Runs) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 4.4))
        left, right = figure.subplots(1, 2)
        for task, style in (("standard", "--"), ("robust", "-")):
            for (name, _, _), of in tables.cells(runs[task]).runs.items():
                _curve(left, of, name, style, task)
        left.set(
            xlabel="labelled samples", ylabel="accuracy under PGD-50 (%)", title="Over the rounds", ylim=(-2, None)
        )
        left.legend(loc="lower right", bbox_to_anchor=(1.0, 0.14), frameon=False, fontsize=9, ncols=2)
        clean, under = _means(runs, "test")["robust"], _means(runs, "robust_test")["robust"]
        for name in clean:
            x, y = 100 * clean[name], 100 * under[name]
            right.plot(x, y, "o", color=_SHOWN.get(name, "#98a2b3"))
            right.annotate(name.upper(), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=9)
        right.set(xlabel="clean accuracy (%)", ylabel="accuracy under PGD-50 (%)", title="Robust, after the last round")
        right.margins(x=0.2)
        return svg(figure)


def _curve(axes: Axes, of: Sequence[ActiveRun], name: str, style: str, task: str) -> None:
    labelled = [row["labelled"] for row in of[0].history]
    values = [
        100 * statistics.fmean(rows) for rows in zip(*([r["robust_test"] for r in o.history] for o in of), strict=True)
    ]
    shown = name in _SHOWN
    axes.plot(
        labelled,
        values,
        style,
        color=_SHOWN.get(name, "#d0d5dd"),
        label=f"{name.upper()}, {task}" if shown else None,
        linewidth=2 if shown else 1,
        zorder=3 if shown else 2,
    )
