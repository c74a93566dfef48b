"""From a table of the user's to weights, a model and a page: `weigh`, and `suspects`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from steelyard._support._errors import UserError
from steelyard._support._files import write_text
from steelyard._support._text import printable
from steelyard.cli.options import check_any_seed, check_seeds, check_writable, every, set_threads
from steelyard.cli.shared import progress_bars, stoppable, watcher
from steelyard.experiments.data import OwnArrays, OwnTable
from steelyard.experiments.errors import DataError
from steelyard.experiments.weigh.plan import CleanMethod, Knowledge, ModelName, model_named, plan_for, training_for

__all__ = ["suspects", "weigh"]

_ARRAYS = (".safetensors", ".npy")


def weigh(
    table: tyro.conf.Positional[Path],
    target: str,
    clean: Path | None = None,
    groups: tuple[str, ...] = (),
    groups_on: Literal["training", "validation"] = "training",
    environments: str = "",
    id: str = "",
    split: str = "",
    features: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    numeric: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    missing: Literal["category", "refuse"] = "category",
    separator: str = ",",
    test_share: float = 0.2,
    model: ModelName = "mlp",
    method: CleanMethod = "auto",
    epochs: int = 20,
    seeds: tuple[int, ...] = (0,),
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 200,
    threads: int = 1,
) -> None:
    """Weigh the rows of a table so that a model trained on them does well where it must.

    Tell what you know beyond the labels; that decides the method, and the command says which and why.

    Nothing: some labels may be wrong, and nobody knows which.

        steelyard weigh patients.csv --target ill

    A few rows whose labels are right, in a second file with the same columns:

        steelyard weigh patients.csv --target ill --clean checked.csv

    A column of environments (hospitals, years), of which the model must not learn what holds in one alone:

        steelyard weigh patients.csv --target ill --environments hospital

    Groups (with the class) of which the worst must do well, known in all rows, or in validation and test rows alone:

        steelyard weigh patients.csv --target ill --groups sex

        steelyard weigh patients.csv --target ill --groups sex --groups-on validation

    Written to the folder --out: weights.csv (id, row, split, weight, keep_probability, suspect_rank), model.safetensors
    (trained on the weights), plain.safetensors (ordinary training), page.html (what came out, and how to use it), and
    runs/ (every training, resumable).

    Args:
        table: a CSV with the columns' names in its first line, Parquet, .npz, or features as .safetensors or .npy.
        target: the column of the class.
        clean: a file of rows whose labels are right. They are not trained on; they judge.
        groups: columns whose values make groups together with the class.
        groups_on: where groups are told: in all rows, or in validation and test rows alone (others may be empty).
        environments: the column of the environment.
        id: the column that names each row (default: the row's number from 0).
        split: the column that says train, validation or test (default: rows are dealt).
        features: the columns that the model sees (default: all without another role).
        drop: columns that it does not see.
        numeric: columns that hold numbers (default: where at least half of the values are).
        categorical: columns that hold categories.
        missing: what to do with missing values of features: make them a category of their own, or refuse them.
        separator: what stands between two values of a line.
        test_share: the share of the rows that is held out to measure by.
        model: one hidden layer, or none.
        method: with --clean: online reweighting, weights by label, or (auto) what fits the number of clean rows.
        epochs: passes over the training rows; small tables get more, 300 steps at least.
        seeds: of initial parameters and draws; weights are means over them, the splits are the first one's.
        out: the folder (default: runs/weigh/<table>).
        resume: go on with what ended early.
        overwrite: replace what lies there.
        checkpoint_every: optimizer steps between two checkpoints.
        threads: torch threads; these nets are small. 0 leaves torch's own choice.
    """
    set_threads(threads)
    seeds = tuple(dict.fromkeys(seeds))
    check_any_seed(seeds)
    check_seeds("--seeds", seeds)
    if epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {epochs}")
    folder = out or Path("runs") / "weigh" / table.stem
    steps = every(checkpoint_every)
    check_writable("--out", folder)
    known = _known(clean, groups, groups_on, environments)
    if method != "auto" and known != "clean rows":
        raise UserError(f"--method {method} is about clean rows, which judge the others: give --clean FILE, too")
    with _said_in_options():
        shared = {"target": target, "id": id, "split": split, "test_share": test_share, "split_seed": seeds[0]}
        shared |= {"attributes": groups, "environment": environments}
        shared |= {"groups_on": "validation" if known == "groups on validation" else "all"}
        data = _data(table, features, clean, drop, numeric, categorical, missing, separator, shared)
        splits = data.load(seeds[0])
    from steelyard.experiments.weigh.figures import figures_of  # matplotlib: not before the table was found whole
    from steelyard.experiments.weigh.page import CALLED, PAGE, render
    from steelyard.experiments.weigh.work import carry_out
    from steelyard.experiments.weigh.written import MODEL, PLAIN_MODEL, WEIGHTS, write_models, write_weights

    console = Console()
    plan = plan_for(known, splits, epochs=epochs, clean_method=method)
    _say(console, plan.reasons)
    with progress_bars(console) as bars, stoppable(bars) as stop:
        watch = watcher(bars, len(plan.methods) * len(seeds))
        outcome = carry_out(
            plan,
            data,
            splits,
            model_named(model),
            seeds,
            folder,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=steps,
            watch=lambda name, seed, evaluation, last: watch(CALLED[name], seed, evaluation, last),
            stop=stop,
        )
    write_weights(outcome, folder)
    write_models(outcome, folder)
    figures = figures_of(outcome)
    write_text(folder / PAGE, render(outcome, figures, folder, _command()))
    _say(
        console,
        [
            f"Right on the test rows: {figures.weighed.splits['test'].share:.1%}, plain training "
            f"{figures.plain.splits['test'].share:.1%}. In the worst {figures.grouped_by}: "
            f"{figures.weighed.worst.accuracy.share:.1%} ({figures.weighed.worst.name}), plain training "
            f"{figures.plain.worst.accuracy.share:.1%} ({figures.plain.worst.name}).",
            f"Written: {folder}/{', '.join([WEIGHTS, MODEL, PLAIN_MODEL, PAGE])}",
        ],
    )


def _known(clean: Path | None, groups: Sequence[str], groups_on: str, environments: str) -> Knowledge:
    """Return what the user has; UserError where two things are told."""
    told: dict[str, Knowledge] = {}
    if clean is not None:
        told["--clean"] = "clean rows"
    if groups:
        told["--groups"] = "groups on validation" if groups_on == "validation" else "groups"
    if environments:
        told["--environments"] = "environments"
    if len(told) > 1:
        raise UserError(f"{' and '.join(told)} ask for different methods: give one of them")
    if groups_on == "validation" and not groups:
        raise UserError("--groups-on validation needs --groups: the columns that make the groups")
    return next(iter(told.values()), "nothing")


def _data(
    table: Path,
    features: tuple[str, ...],
    clean: Path | None,
    drop: tuple[str, ...],
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    missing: Literal["category", "refuse"],
    separator: str,
    shared: dict[str, object],
) -> OwnTable | OwnArrays:
    """Return the data set that the options name; UserError where they do not fit each other."""
    try:
        if table.suffix not in _ARRAYS:
            return OwnTable(
                file=str(table),
                clean="" if clean is None else str(clean),
                features=features,
                drop=drop,
                numeric=numeric,
                categorical=categorical,
                missing=missing,
                separator=separator,
                **shared,  # type: ignore[arg-type]
            )
        if clean is not None or drop or numeric or categorical:
            raise ValueError(
                f"{table} holds arrays, which have no columns: --clean, --drop and the like are for tables"
            )
        if table.suffix == ".npy":
            return OwnArrays(features=str(table), **shared)  # type: ignore[arg-type]
        if len(features) != 1:
            raise ValueError(f"{table} holds arrays: name the one of the inputs, as in --features x")
        return OwnArrays(file=str(table), features=features[0], **shared)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def _said_in_options() -> Iterator[None]:
    """Name options of the command line where an error names a recipe's fields."""
    try:
        yield
    except DataError as error:
        text = re.sub(r'data\.missing = "category"', "--missing category", str(error))
        text = re.sub(r'data\.separator = "(.*?)"', r"--separator '\1'", text)
        text = re.sub(r"data\.file: ", "", text)
        text = re.sub(r"list them as `classes`, or set data\.task = 'regression'", "this command classifies", text)
        raise DataError(re.sub(r"\bdata\.(\w+)", r"--\1", text)) from error


def _say(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _command() -> str:
    """Return the command line, as a page shows it."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    return printable(shlex.join(["steelyard", *words]))


def suspects(
    table: tyro.conf.Positional[Path],
    target: str,
    id: str = "",
    features: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    numeric: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    missing: Literal["category", "refuse"] = "category",
    separator: str = ",",
    model: ModelName = "mlp",
    epochs: int = 20,
    folds: int = 5,
    repeats: int = 2,
    check: bool = True,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 200,
    threads: int = 1,
) -> None:
    """Rank the rows of a table by how suspect their labels are.

    Nothing but the table is needed:

        steelyard suspects patients.csv --target ill

    Models judge rows that they were not trained on. What contradicts the other rows comes first. It cannot find errors
    that all rows of a kind share, and a rare case that is right looks suspect, too.

    Written to the folder --out: suspects.csv (a row for each row, the most suspect first, with what the models say) and
    page.html (the first of them, with the rows most like them).

    Args:
        table: a CSV with the columns' names in its first line, Parquet, or .npz.
        target: the column of the class.
        id: the column that names each row (default: the row's number from 0).
        features: the columns that the models see (default: all but target and id).
        drop: columns that they do not see.
        numeric: columns that hold numbers (default: where at least half of the values are).
        categorical: columns that hold categories.
        missing: what to do with missing values of features: make them a category of their own, or refuse them.
        separator: what stands between two values of a line.
        model: one hidden layer, or none.
        epochs: passes over the rows; small tables get more, 300 steps at least.
        folds: a model is trained for each fold, without its rows.
        repeats: times that this is done.
        check: make some labels wrong on purpose, look for them, and say how many were found; takes as long again.
        seed: of folds, parameters and batches.
        out: the folder (default: runs/suspects/<table>).
        resume: go on with what ended early.
        overwrite: replace what lies there.
        checkpoint_every: optimizer steps between two checkpoints.
        threads: torch threads; these nets are small. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_seeds("--seed", [seed])
    for option, value, low in (("--epochs", epochs, 1), ("--folds", folds, 2), ("--repeats", repeats, 2)):
        if value < low:
            raise UserError(f"{option} must be at least {low}, got {value}")
    folder = out or Path("runs") / "suspects" / table.stem
    steps = every(checkpoint_every)
    check_writable("--out", folder)
    if table.suffix in _ARRAYS:
        raise UserError(f"{table} holds arrays; `suspects` reads tables: CSV, Parquet or .npz")
    with _said_in_options():
        shared: dict[str, object] = {"target": target, "id": id}
        data = _data(table, features, None, drop, numeric, categorical, missing, separator, shared)
        assert isinstance(data, OwnTable)
        splits = data.whole()
    from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings
    from steelyard.experiments.weigh import suspecting
    from steelyard.experiments.weigh.suspects_page import render

    suspecting.check_folder(folder, overwrite, resume)
    settings = OutOfFoldSettings(
        folds, repeats, training=training_for(len(splits.train) * (folds - 1) // folds, epochs)
    )
    total = settings.models * (1 + check)
    console = Console()
    with progress_bars(console) as bars, stoppable(bars) as stop:
        bar = bars.add_task(f"model 1/{total}", total=total)

        def trained(done: int) -> None:
            bars.update(bar, completed=done, description=f"model {min(done + 1, total)}/{total}")

        found = suspecting.find_suspects(
            data,
            model_named(model),
            settings,
            splits,
            folder,
            seed=seed,
            check=check,
            checkpoint_every=steps,
            trained=trained,
            stop=stop,
        )
    file = folder / suspecting.CSV
    how = f"{settings.models} models ({model}), {folds} folds, {repeats} repeats, {settings.training.steps} steps each."
    suspecting.write_table(found, file)
    write_text(folder / suspecting.PAGE, render(found, data, file, _command(), how))
    suspecting.remove_checkpoints(folder)
    said = [f"{found.noise.share:.1%} of {len(splits.train):,} labels seem wrong (too high where classes overlap)."]
    if found.planted is not None:
        said.append(
            f"Of {found.planted.count} labels that were made wrong on purpose, the first {found.planted.looked} rows "
            f"of the list hold {found.planted.within:.0%} (AUROC {found.planted.auroc:.3f})."
        )
    said.append("It cannot find errors that all rows of a kind share; a rare case that is right looks suspect, too.")
    _say(console, [*said, f"Written: {folder}/{suspecting.CSV}, {suspecting.PAGE}"])
