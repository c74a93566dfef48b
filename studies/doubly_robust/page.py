"""The page: how epsilon and temperature were chosen, the table, and what DONE promises, judged by code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from steelyard.experiments.compare.rows import Spread
from steelyard.experiments.compare.summary import summary_row
from steelyard.experiments.compare.table import Table
from studies._claims import Claim, Judgement, markdown
from studies.doubly_robust.study import DATA, METHODS, WEAK, Chosen, Figures, spread

__all__ = ["claims", "page", "summary"]

Outcome = Mapping[tuple[str, str], Sequence[Figures]]
"""Figures by data and method, a seed each."""

_COLUMNS = {
    "test": "clean",
    "robust_test": "PGD-50",
    "weak_test": f"PGD-50, {WEAK} weakest classes",
    "worst_test": "PGD-50, weakest class",
}


def page(chosen: Chosen, found: Outcome, chosen_on: Sequence[int], seeds: Sequence[int], command: str) -> str:
    """Return the README of the results."""
    temperatures = ", ".join(f"{chosen.temperature[data]:g} ({data})" for data in DATA)
    return f"""# DONE: do weights help the classes that are weakest under attack?

Made by `{command}`.

Scikit-learn's digits, 8 x 8 pixels in [0, 1]: 944 images to train on (balanced), or of the classes 5 to 9 every fifth
of theirs (imbalanced); 404 of validation and 449 of test, balanced in both. The net has one hidden layer of 64; the
attack of training is PGD of 7 steps of a quarter of epsilon, that of the tables PGD-50 with steps of a tenth.
`standard` is training without an attack, `adversarial` plain adversarial training, `done` the same under weights
proportional to exp(loss / temperature).

## What was chosen, by validation figures of the seeds {_listed(chosen_on)}

Epsilon is the largest tried at which plain adversarial training keeps the clean accuracy of standard training to one
point, on the balanced digits: **{chosen.epsilon:g}**. Per cent, validation:

{_epsilons(chosen)}
The temperature is the one whose {WEAK} weakest classes are best under attack at that epsilon: {temperatures}.

{_temperatures(chosen)}
## Test, seeds {_listed(seeds)}, which chose nothing

Per cent, mean ± standard deviation over seeds; the weakest classes are each run's own.

{_table(found)}
`done` less `adversarial`, points, mean and its standard error, paired by seed:

{_gains(found)}
## Claims, judged by code

{markdown(claims(found))}{_cause(found)}"""


def summary(found: Outcome, seeds: Sequence[int], command: str) -> list[dict[str, object]]:
    """Return the rows of the `summary.json`: the table's figures."""
    return [
        summary_row(
            recipe="doubly_robust",
            dataset=f"digits, {data}",
            method=method,
            metric=name,
            selection="last",
            mean=spread(of, name).mean,
            std=spread(of, name).std,
            seeds=list(seeds),
            command=command,
        )
        for (data, method), of in found.items()
        for name in _COLUMNS
    ]


def claims(found: Outcome) -> list[Claim]:
    """Return what DONE promises, by means over seeds.

    References:
        D. Sow et al., Doubly robust instance-reweighted adversarial training, 2023 (ICLR 2024), abstract.
    """

    def against(name: str, other: str, metric: str, slack: float = 0.0) -> tuple[Judgement, ...]:
        cases = []
        for data in DATA:
            ours, theirs = (spread(found[data, method], metric).mean for method in (name, other))
            cases.append(Judgement(data, ours, theirs - slack, ours > theirs - slack))
        return tuple(cases)

    sure = []
    for data in DATA:
        gain = _gain(found, data, "weak_test")
        error = 2 * gain.std / math.sqrt(gain.count)
        sure.append(Judgement(f"{data}: gain, against 2 standard errors", gain.mean, error, gain.mean > error))
    weak = f"the {WEAK} weakest classes"
    return [
        Claim("adversarial training is more robust than standard training", against(*METHODS[1::-1], "robust_test")),
        Claim(f"DONE is more robust than adversarial training on {weak}", against("done", "adversarial", "weak_test")),
        Claim(f"(ours) that lead on {weak} exceeds two standard errors", tuple(sure)),
        Claim(
            "DONE is as robust on average as adversarial training (here: no more than 1 point below)",
            against("done", "adversarial", "robust_test", 0.01),
        ),
    ]


def _cause(found: Outcome) -> str:
    """Say of a lead that is not there whether it is smaller than what one seed differs from another by."""
    lines = []
    for data in DATA:
        gain, apart = _gain(found, data, "weak_test"), spread(found[data, "adversarial"], "weak_test")
        if gain.mean <= 2 * gain.std / math.sqrt(gain.count):
            lines.append(
                f"On the {data} digits the lead on the weakest classes is {100 * gain.mean:+.1f} points, where "
                f"adversarial training itself differs from seed to seed by {100 * apart.std:.1f}: a class has about 45 "
                "test images, one of them is 2 points."
            )
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _epsilons(chosen: Chosen) -> str:
    heads = list(next(iter(chosen.kept.values())))
    rows = [[f"{epsilon:g}", *(f"{100 * of[name]:.1f}" for name in heads)] for epsilon, of in chosen.kept.items()]
    return Table(["epsilon", *heads], rows).markdown()


def _temperatures(chosen: Chosen) -> str:
    names = {"validation": "clean", "robust_validation": "PGD-50", "weak_validation": f"PGD-50, {WEAK} weakest classes"}
    rows = [
        [data, f"{temperature:g}", *(f"{100 * of[name]:.1f}" for name in names)]
        for (data, temperature), of in chosen.tried.items()
    ]
    return Table(["data", "temperature", *names.values()], rows).markdown()


def _table(found: Outcome) -> str:
    rows = [[data, method, *(spread(of, name).percent() for name in _COLUMNS)] for (data, method), of in found.items()]
    return Table(["data", "training", *_COLUMNS.values()], rows).markdown()


def _gain(found: Outcome, data: str, name: str) -> Spread:
    pairs = zip(found[data, "done"], found[data, "adversarial"], strict=True)
    return Spread.of([ours[name] - theirs[name] for ours, theirs in pairs])


def _gains(found: Outcome) -> str:
    rows = []
    for data in DATA:
        gains = (_gain(found, data, name) for name in _COLUMNS)
        rows.append([data, *(f"{100 * of.mean:+.1f} ± {100 * of.std / math.sqrt(of.count):.1f}" for of in gains)])
    return Table(["data", *_COLUMNS.values()], rows).markdown()
