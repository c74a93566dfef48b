"""From a table of the user's to weights, a model and a page: `weigh`, and `suspects`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from steelyard._support._errors import UserError
from steelyard._support._files import write_text
from steelyard._support._text import printable
from steelyard.cli.options import check_any_seed, check_seeds, check_writable, every, set_threads
from steelyard.cli.own_data import ARRAYS, images_of, known_of, rows_of, said_in_options
from steelyard.cli.shared import progress_bars, stoppable, watcher
from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable
from steelyard.experiments.weigh.plan import CleanMethod, ModelName, model_named, plan_for, training_for

__all__ = ["suspects", "weigh"]


def weigh(
    table: tyro.conf.Positional[Path],
    target: str = "",
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
    images: Path | None = None,
    file: str = "file",
    backbone: str = "",
    backbone_weights: str = "",
    size: int = 224,
    allow_code: bool = False,
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

    Images instead of rows: a table that names them, or a folder with a folder for each class (without --target), and a
    frozen network that makes their features:

        steelyard weigh photos.csv --target label --images photos --file path --backbone resnet18 --environments camera

        steelyard weigh photos --backbone my_nets:build --allow-code

    Written to the folder --out: weights.csv (id, row, split, weight, keep_probability, suspect_rank), model.safetensors
    (trained on the weights), plain.safetensors (ordinary training), page.html (what came out, and how to use it), and
    runs/ (every training, resumable).

    Args:
        table: a CSV with the columns' names in its first line, Parquet, .npz, features as .safetensors or .npy, or a
            folder of images.
        target: the column of the class; needed but for a folder of images.
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
        images: the folder below which the images lie that the table names.
        file: the column with each image's path.
        backbone: what makes the features of images: one of torchvision's classifiers without its last layer, or
            module:function of your own, images (n, 3, h, w) -> features (n, d).
        backbone_weights: torchvision's weights by name, or a file with a state dict (default: torchvision's for
            ImageNet, or those that your function gives).
        size: of the images that the backbone sees, in pixels.
        allow_code: let the code of a backbone of your own run.
        test_share: the share of the rows that is held out to measure by.
        model: one hidden layer, or none.
        method: with --clean: online reweighting, weights by label, or (auto) what fits the number of clean rows.
        epochs: passes over the training rows; small tables get more, 300 steps at least.
        seeds: of initial parameters and draws; weights are means over them, the splits are the first one's.
        out: the folder (default: runs/weigh/<table>).
        resume: continue what ended early.
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
    known = known_of(clean, groups, groups_on, environments)
    if method != "auto" and known != "clean rows":
        raise UserError(f"--method {method} is about clean rows, which judge the others: give --clean FILE, too")
    data: OwnTable | OwnArrays | OwnImages
    with said_in_options():
        shared = {"target": target, "id": id, "split": split, "test_share": test_share, "split_seed": seeds[0]}
        shared |= {"attributes": groups, "environment": environments}
        shared |= {"groups_on": "validation" if known == "groups on validation" else "all"}
        if table.is_dir() or images is not None:
            if clean is not None or features or drop or numeric or categorical:
                raise UserError("--clean, --features, --drop and the like are for tables, and these are images")
            network = (backbone, backbone_weights, size)
            data = images_of(table, images, file, network, separator, shared, allow_code=allow_code)
        else:
            if not target:
                raise UserError("--target is missing: the column of the class")
            data = rows_of(table, features, clean, drop, numeric, categorical, missing, separator, shared)
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
            allow_code=allow_code,
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
        resume: continue what ended early.
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
    if table.suffix in ARRAYS:
        raise UserError(f"{table} holds arrays; `suspects` reads tables: CSV, Parquet or .npz")
    with said_in_options():
        shared: dict[str, object] = {"target": target, "id": id}
        data = rows_of(table, features, None, drop, numeric, categorical, missing, separator, shared)
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
