"""From a table of the user's to weights, a model and a page: `weigh`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from steelyard._support._errors import UserError
from steelyard._support._files import write_text
from steelyard._support._outputs import writing
from steelyard.cli.options import check_any_seed, check_writable, every, set_threads
from steelyard.cli.own_options import Network, Task, check_source, known_of

__all__ = ["weigh"]


def weigh(
    table: tyro.conf.Positional[Path],
    target: str = "",
    task: Task = "auto",
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
    model: Literal["mlp", "linear"] = "mlp",
    method: Literal["auto", "online", "self_cleaning"] = "auto",
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

    A target that is a number is recognised and said, or asked for (--task regression): errors then take the place of
    accuracies.

    Written to the folder --out: weights.csv (id, row, split, weight, keep_probability, suspect_rank), model.safetensors
    (trained on the weights), plain.safetensors (ordinary training), page.html (what came out, and how to use it), and
    runs/ (every training, resumable).

    Args:
        table: a CSV with the columns' names in its first line, Parquet, .npz, features as .safetensors or .npy, or a
            folder of images.
        target: the column of the class, or of the number; needed but for a folder of images.
        task: whether the target is a class or a number (default: a number where values have fractions, or where there
            are more than a hundred of them).
        clean: a file of rows whose labels are right, or a folder of such images. They judge the others.
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
    check_any_seed(seeds)
    if epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {epochs}")
    folder = out or Path("runs") / "weigh" / table.stem
    steps = every(checkpoint_every)
    check_writable("--out", folder)
    known = known_of(clean, groups, groups_on, environments)
    if method != "auto" and known != "clean rows":
        raise UserError(f"--method {method} is about clean rows, which judge the others: give --clean FILE, too")
    network = Network(images, file, backbone, backbone_weights, size, allow_code)
    check_source(table, target, network)
    set_threads(threads)
    from steelyard.cli.own_data import (  # torch: seconds
        check_environments,
        data_of,
        loaded,
        recognised,
        said_in_options,
    )
    from steelyard.cli.shared import command_line, progress_bars, say, stoppable, watcher
    from steelyard.experiments.weigh.plan import model_named, plan_for

    with said_in_options():
        shared: dict[str, object] = {"target": target, "id": id, "split": split, "test_share": test_share}
        shared |= {"split_seed": seeds[0], "attributes": groups, "environment": environments}
        shared |= {"groups_on": "validation" if known == "groups on validation" else "all"}
        columns = {"features": features, "drop": drop, "numeric": numeric, "categorical": categorical}
        data = data_of(table, clean, network, columns, missing, separator, task, shared)
        data, splits = loaded(data, lambda one: one.load(seeds[0]), task)
    check_environments(data, splits)
    from steelyard.experiments.weigh.error_figures import errors_of
    from steelyard.experiments.weigh.figures import figures_of
    from steelyard.experiments.weigh.page import CALLED, PAGE, in_short, render  # matplotlib: not before data are whole
    from steelyard.experiments.weigh.work import carry_out, is_begun
    from steelyard.experiments.weigh.written import MODEL, PLAIN_MODEL, WEIGHTS, write_models, write_weights

    console = Console()
    plan = plan_for(known, splits, epochs=epochs, clean_method=method, model=model)
    regression = splits.target_scale is not None
    say(console, [*recognised(data, splits, task), *plan.reasons])
    files, begun = [WEIGHTS, MODEL, PLAIN_MODEL, PAGE], is_begun(plan, seeds, folder)
    with writing(folder, files, overwrite=overwrite, resume=resume, begun=begun):
        with progress_bars(console) as bars, stoppable(bars) as stop:
            watch = watcher(bars, len(plan.methods) * len(seeds))
            outcome = carry_out(
                plan,
                data,
                splits,
                model_named(model, regression=regression),
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
        figures = errors_of(outcome) if regression else figures_of(outcome)
        write_text(folder / PAGE, render(outcome, figures, folder, command_line()))
    say(console, [in_short(figures), f"Written: {folder}/{', '.join(files)}"])
