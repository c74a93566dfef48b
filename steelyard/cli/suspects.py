"""Which labels to look at first: `suspects`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from steelyard._support._errors import UserError
from steelyard._support._files import write_text
from steelyard.cli.options import check_seeds, check_writable, every, set_threads
from steelyard.cli.own_options import Network, Task, check_source

__all__ = ["suspects"]


def suspects(
    table: tyro.conf.Positional[Path],
    target: str = "",
    task: Task = "auto",
    id: str = "",
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
    model: Literal["mlp", "linear"] = "mlp",
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

    Images by a table that names them, or in a folder for each class (without --target), judged by the features that a
    frozen network makes of them:

        steelyard suspects photos.csv --target label --images photos --file path --backbone resnet18

    Models judge rows that they were not trained on. What contradicts the other rows comes first. It cannot find errors
    that all rows of a kind share, and a rare case that is right looks suspect, too.

    Written to the folder --out: suspects.csv (a row for each row, the most suspect first, with what the models say) and
    page.html (the first of them, with the rows most like them).

    Args:
        table: a CSV with the columns' names in its first line, Parquet, .npz, features as .safetensors or .npy, or a
            folder of images.
        target: the column of the class, or of the number; needed but for a folder of images.
        task: whether the target is a class or a number (default: a number where values have fractions, or where there
            are more than a hundred of them).
        id: the column that names each row (default: the row's number from 0).
        features: the columns that the models see (default: all but target and id).
        drop: columns that they do not see.
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
    check_seeds("--seed", [seed])
    for option, value, low in (("--epochs", epochs, 1), ("--folds", folds, 2), ("--repeats", repeats, 2)):
        if value < low:
            raise UserError(f"{option} must be at least {low}, got {value}")
    folder = out or Path("runs") / "suspects" / table.stem
    steps = every(checkpoint_every)
    check_writable("--out", folder)
    network = Network(images, file, backbone, backbone_weights, size, allow_code)
    check_source(table, target, network)
    set_threads(threads)
    from steelyard.cli.own_data import data_of, loaded, recognised, said_in_options  # torch: seconds
    from steelyard.cli.shared import command_line, progress_bars, say, stoppable
    from steelyard.experiments.weigh.plan import model_named, training_for

    with said_in_options():
        shared: dict[str, object] = {"target": target, "id": id}
        columns = {"features": features, "drop": drop, "numeric": numeric, "categorical": categorical}
        data = data_of(table, None, network, columns, missing, separator, task, shared)
        data, splits = loaded(data, lambda one: one.whole(), task)
    from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings
    from steelyard.experiments.weigh import suspecting
    from steelyard.experiments.weigh.suspects_page import render

    settings = OutOfFoldSettings(
        folds, repeats, training=training_for(len(splits.train) * (folds - 1) // folds, epochs, model)
    )
    total = settings.models * (1 + check)
    console, regression = Console(), splits.target_scale is not None
    if note := recognised(data, splits, task):
        say(console, note)
    with suspecting.folder_for(folder, overwrite, resume):
        with progress_bars(console) as bars, stoppable(bars) as stop:
            bar = bars.add_task(f"model 1/{total}", total=total)

            def trained(done: int) -> None:
                bars.update(bar, completed=done, description=f"model {min(done + 1, total)}/{total}")

            found = suspecting.find_suspects(
                data,
                model_named(model, regression=regression),
                settings,
                splits,
                folder,
                seed=seed,
                check=check,
                checkpoint_every=steps,
                trained=trained,
                stop=stop,
            )
        listed = folder / suspecting.CSV
        steps_each = f"{settings.training.steps} steps each"
        how = f"{settings.models} models ({model}), {folds} folds, {repeats} repeats, {steps_each}."
        suspecting.write_table(found, listed)
        write_text(folder / suspecting.PAGE, render(found, data, listed, command_line(), how))
        suspecting.remove_checkpoints(folder)
    what, where = ("targets", "right ones scatter unevenly") if regression else ("labels", "classes overlap")
    said = [f"{found.noise.share:.1%} of {len(splits.train):,} {what} seem wrong (too high where {where})."]
    if found.planted is not None:
        said.append(
            f"Of {found.planted.count} {what} that seemed right and were made wrong on purpose, the first "
            f"{found.planted.looked} of the rows that had seemed right hold {found.planted.within:.0%} "
            f"(AUROC {found.planted.auroc:.3f})."
        )
    said.append("It cannot find errors that all rows of a kind share; a rare case that is right looks suspect, too.")
    say(console, [*said, f"Written: {folder}/{suspecting.CSV}, {suspecting.PAGE}"])
