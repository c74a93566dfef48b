"""Tables, claims and the picture of DR-IS under adversarial label corruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steelyard._support._files import write_text
from steelyard.experiments.active.images import Digits
from steelyard.experiments.compare.plots import COLOURS, STYLE, svg
from steelyard.experiments.compare.spreadsheet import frame_text
from steelyard.experiments.compare.summary import summary_row
from steelyard.experiments.compare.table import Table
from steelyard.theory.concentration import proxies_needed
from studies._claims import Claim, Judgement, markdown
from studies.dr_is.measure import INTERVALS, SCORES, DisagreementSettings, disagreement_tables

__all__ = ["disagreement"]

Tables = Mapping[str, pandas.DataFrame]
_INTERVALS = {
    "hoeffding": "Hoeffding, finite K",
    "bernstein": "empirical Bernstein, finite K",
    "jackknife": "jackknife and normal, K to infinity",
}
_HALF = 0.5  # the share of kept samples that claims and picture are about


def disagreement(
    output: Path,
    settings: DisagreementSettings,
    command: str,
    progress: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Measure, and write kept.csv, drawn.csv, gaps.csv, summary.json, README.md and dr_is.svg into `output`.

    Args:
        output: made if missing.
        settings: what is measured; 0.5 must be among its shares.
        command: what remakes the folder.
        progress: called with a line of text before each part.

    Returns:
        The names of the files.

    Raises:
        ValueError: the share 0.5 is missing.
    """
    if _HALF not in settings.shares:
        raise ValueError(f"shares must have 0.5 among them, which the claims are about; got {settings.shares}")
    tables = disagreement_tables(settings, progress)
    texts = {f"{name}.csv": frame_text(table) for name, table in tables.items()}
    texts["summary.json"] = json.dumps(_summary(tables, settings, command), indent=1) + "\n"
    texts["README.md"] = _page(tables, settings, command)
    texts["dr_is.svg"] = _picture(tables, settings)
    for name, text in texts.items():
        write_text(output / name, text)
    return list(texts)


def _half(tables: Tables, value: str = "corruption") -> pandas.DataFrame:
    """Return a figure of the kept half, mean over seeds: a row for each score, a column for each ensemble size."""
    kept = tables["kept"]
    return kept[kept["share"] == _HALF].pivot_table(value, "score", "models", "mean")


def claims(tables: Tables, settings: DisagreementSettings) -> list[Claim]:
    """Return what the paper says, each claim judged by the tables."""
    half, boundary = _half(tables), _half(tables, "boundary")
    drawn = tables["drawn"].pivot_table("corruption", "form", "models", "mean")
    gaps = (
        tables["gaps"]
        .groupby("models")
        .agg({"bulk": "mean", "boundary": "mean", "deviation": "max", "radius": "first"})
    )
    few, many = min(settings.sizes), max(settings.sizes)

    most = tables["kept"][tables["kept"]["models"] == many].pivot_table("test", "score", "share", "mean")
    tests = tuple(
        Judgement(f"{100 * share:.0f} % kept, {SCORES[name]}", a, b, a > b)
        for share in settings.shares
        for name in ("random", "el2n", "el2n_low", "aum")
        for a, b in [(float(most.loc["dr_is", share]), float(most.loc[name, share]))]
    )

    def compare(one: pandas.Series, other: pandas.Series, sign: int) -> tuple[Judgement, ...]:
        sizes = [(k, float(one[k]), float(other[k])) for k in settings.sizes]
        return tuple(Judgement(f"K = {k}", a, b, sign * (a - b) > 0) for k, a, b in sizes)

    dr_is = half.loc["dr_is"]
    largest = tables["gaps"][tables["gaps"]["models"] == many]
    certified, wrong = (
        {name: float(largest[f"{what}_{name}"].mean()) for name in INTERVALS if f"{what}_{name}" in largest}
        for what in ("certified", "wrong")
    )
    return [
        Claim(
            "(abstract) what importance sampling prefers is where the corruption is: the half of highest EL2N is more "
            "corrupted than a random half",
            compare(half.loc["el2n"], half.loc["random"], 1),
        ),
        Claim(
            "(abstract) rank disagreement filters it: the half of highest D is less corrupted than a random half",
            compare(dr_is, half.loc["random"], -1),
        ),
        Claim(
            "(abstract) DR-IS beats EL2N: the half of highest D is less corrupted than that of highest EL2N",
            compare(dr_is, half.loc["el2n"], -1),
        ),
        Claim(
            "(abstract) the mean D of the bulk-corrupted is below that of the boundary-clean",
            compare(gaps["bulk"], gaps["boundary"], -1),
        ),
        Claim(
            "the importance-sampling form: drawn in proportion to g D, fewer samples are corrupted than in "
            "proportion to g",
            compare(drawn.loc["g D"], drawn.loc["g"], -1),
        ),
        Claim(
            "more proxies filter better: the half of highest D is less corrupted at the largest K than at the least",
            (
                Judgement(
                    f"K = {many} against {few}", float(dr_is[many]), float(dr_is[few]), bool(dr_is[many] < dr_is[few])
                ),
            ),
        ),
        Claim(
            "(ours) DR-IS keeps a larger share of the boundary-clean than AUM does, half of all samples kept",
            compare(boundary.loc["dr_is"], boundary.loc["aum"], 1),
        ),
        Claim(
            "(ours) DR-IS beats AUM: the half of highest D is less corrupted than that of highest AUM",
            compare(dr_is, half.loc["aum"], -1),
        ),
        Claim(
            "(ours) DR-IS beats EL2N turned round: the half of highest D is less corrupted than that of lowest EL2N",
            compare(dr_is, half.loc["el2n_low"], -1),
        ),
        Claim(
            "(ours) a model trained on the samples of highest D tests better than one on the other scores' choice",
            tests,
        ),
        Claim(
            "the radius holds: no D_i is further than t from that of another ensemble (in 100 ranks, any seed)",
            compare(gaps["deviation"], gaps["radius"], -1),
        ),
        Claim(
            f"the certificate says something: at K = {many} some samples are certified above or below the median of D",
            tuple(Judgement(_INTERVALS[name], share, 0.0, share > 0) for name, share in certified.items()),
        ),
        Claim(
            f"what the asymptotic interval certifies at K = {many} stands: at most 5 % of it is on the other side for "
            "another ensemble",
            tuple(
                Judgement(_INTERVALS[name], share, 0.05, share <= 0.05)
                for name, share in wrong.items()
                if name == "jackknife"
            ),
        ),
    ]


def _summary(tables: Tables, settings: DisagreementSettings, command: str) -> list[dict[str, Any]]:
    rows = []
    plans = {"kept": (["score", "share", "models"], ["corruption", "boundary", "test"])}
    plans |= {"drawn": (["form", "models"], ["corruption"])}
    plans |= {"gaps": (["models"], ["bulk", "boundary", "gap", "order", "widest", "radius", "deviation"])}
    plans["gaps"][1].extend(f"certified_{name}" for name in INTERVALS if f"certified_{name}" in tables["gaps"])
    for name, (keys, metrics) in plans.items():
        for values, group in tables[name].groupby(keys, sort=False):
            method = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
            for metric in metrics:
                column = group[metric].dropna()
                if len(column):
                    mean, std = column.mean(), column.std() if len(column) > 1 else None
                    rows.append(
                        summary_row(
                            recipe=f"dr_is/{name}",
                            dataset="digits",
                            method=method,
                            metric=metric,
                            selection="none",
                            mean=mean,
                            std=std,
                            seeds=settings.seeds,
                            command=command,
                        )
                    )
    return rows


def _picture(tables: Tables, settings: DisagreementSettings) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 4.4))
        left, right = figure.subplots(1, 2)
        kept = tables["kept"]
        for colour, (name, label) in zip(_SHADES, SCORES.items(), strict=True):
            _spread(left, kept[(kept["share"] == _HALF) & (kept["score"] == name)], "corruption", colour, label)
        left.set(xlabel="proxies K", ylabel="corrupted among the kept half (%)", title="What is kept", ylim=(-1, 55))
        left.legend(loc="upper center", frameon=False, fontsize=9, ncols=2)
        gaps = tables["gaps"]
        _spread(right, gaps, "gap", COLOURS[2], "boundary-clean less bulk-corrupted, mean D")
        _spread(right, gaps, "deviation", COLOURS[0], "largest |D − D of another ensemble|")
        radius = gaps.groupby("models")["radius"].first()
        right.plot(radius.index, 100 * radius, "--", color=COLOURS[1], label="certificate's t")
        right.plot(radius.index, 200 * radius, ":", color=COLOURS[1], label="2 t, what a difference must exceed")
        right.set(xlabel="proxies K", ylabel="in 100 ranks", yscale="log", title="What is certified", ylim=(0.3, 700))
        right.set_yticks([1, 10, 100], ["1", "10", "100"])
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=9, ncols=2)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(settings.sizes, [str(size) for size in settings.sizes])
        return svg(figure)


_SHADES = (COLOURS[6], COLOURS[1], COLOURS[4], COLOURS[2], COLOURS[0], COLOURS[3])


def _spread(axes: Axes, table: pandas.DataFrame, column: str, colour: str, label: str) -> None:
    """Draw a column in per cent over the ensemble sizes: the mean over seeds, and their range."""
    groups = 100 * table.groupby("models")[column].agg(["mean", "min", "max"])
    axes.plot(groups.index, groups["mean"], "o-", color=colour, label=label, linewidth=1.8, markersize=4)
    axes.fill_between(
        groups.index, groups["min"].clip(lower=0.01), groups["max"], color=colour, alpha=0.15, linewidth=0
    )


def _table(tables: Tables, settings: DisagreementSettings) -> str:
    kept = tables["kept"][tables["kept"]["models"] == max(settings.sizes)]
    lines = []
    for name, label in SCORES.items():
        for share in settings.shares:
            rows = kept[(kept["score"] == name) & (kept["share"] == share)]
            cells = [
                f"{100 * rows[column].mean():.1f} ± {100 * rows[column].std(ddof=1 if len(rows) > 1 else 0):.1f}"
                for column in ("corruption", "boundary", "test")
            ]
            lines.append([label, f"{100 * share:.0f}", *cells])
    return Table(["score", "share kept", "corrupted", "boundary-clean kept", "test accuracy"], lines).markdown()


def _sides_table(tables: Tables, settings: DisagreementSettings) -> str:
    largest = tables["gaps"][tables["gaps"]["models"] == max(settings.sizes)]
    rows = [
        [label, f"{100 * largest[f'certified_{name}'].mean():.1f}", f"{100 * largest[f'wrong_{name}'].mean():.1f}"]
        for name, label in _INTERVALS.items()
        if f"certified_{name}" in largest
    ]
    return Table(
        ["interval", "samples certified (%)", "of those, on the other side for another ensemble (%)"], rows
    ).markdown()


def _page(tables: Tables, settings: DisagreementSettings, command: str) -> str:
    t, most = settings.training, max(settings.sizes)
    gaps = tables["gaps"][tables["gaps"]["models"] == most]
    samples = len(Digits().load(settings.seeds[0]).train)
    gap, order = float(gaps["gap"].mean()), 100 * gaps["order"].mean()
    needed = f"{proxies_needed(samples, gap, settings.delta):,}" if gap > 0 else "no number of"
    seeds, share, rate = len(settings.seeds), f"{100 * settings.share:.0f} %", f"{t.optimizer.learning_rate:g}"
    return f"""# DR-IS under adversarial high-norm label corruption

Made by `{command}`.

Scikit-learn's digits ({samples:,} training images, {seeds} seeds). An attacker with the mean output of
{settings.attacker} models trained on clean labels gives {share} of the samples, those whose gradient norm ||p - y||
it can drive highest, their unlikeliest label. Each proxy is an MLP 64-64-10: {t.steps} Adam steps ({rate}) on
batches of {t.batch_size}, its own start and order. The statistic D (mean over pairs of proxies of the difference of a
sample's loss ranks) and the certificate are ours; the paper gives the idea and the rate. Boundary-clean: the quarter
of the clean samples with the least clean margin. Bulk-corrupted: corrupted samples whose clean margin was above the
median. Both are judged by the attacker's models; no score sees that, or any clean label. The default of 100 steps
was settled after a look at one split (seed 0, without a validation part): in the half of highest D 5, 11, 9, 10 and
12 % were corrupted at 20, 50, 100, 200 and 400 steps, in that of lowest EL2N 17, 2, 2, 2 and 1 %.

{most} proxies, per cent, mean ± standard deviation over seeds. "Test accuracy" is on clean test labels, of a model
trained once on the kept samples with the proxies' settings; nothing is chosen by it.

{_table(tables, settings)}
![Corruption of the kept half, and gap against certificate, over ensemble sizes](dr_is.svg)

D lies below about 1/2, so t says nothing while it is above that. With {most} proxies the mean D of the two kinds
differs by {100 * gap:.1f} in 100 ranks, and a boundary-clean sample has the higher D in {order:.0f} % of the pairs: the
kinds overlap, and separation is not to be expected, however many the proxies. Were that difference a gap, {needed}
proxies would certify it. What can be certified is on which side of a cut, here the median of D, the expectation of a
sample's D is:

{_sides_table(tables, settings)}

## Claims, judged by code

Means over seeds unless a claim says otherwise. "Abstract": what the abstract of DR-IS promises, as we read it.

{markdown(claims(tables, settings))}"""
