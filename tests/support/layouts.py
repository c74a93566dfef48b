"""Small data sets in the layouts in which the real ones are published, for the loaders to be tested on."""

from __future__ import annotations

import csv
import hashlib
import os
import pickle
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from steelyard._support._torchvision import torchvision

REAL_ROOT = Path(os.environ.get("STEELYARD_DATA") or os.devnull)
"""Where the published data sets lie; tests of them are skipped where STEELYARD_DATA does not say."""


def write_adult(root: Path, rows: int = 80, file: str = "adult.data") -> Path:
    """Write adult.data (or adult.test) as UCI publishes it: no header, ", " between values, a blank line at the end."""
    rng = np.random.default_rng(0)
    published_test = file == "adult.test"
    lines = ["|1x3 Cross validator"] if published_test else []
    for row in range(rows):
        values = (
            *(int(rng.integers(17, 90)), rng.choice(["Private", "?", "State-gov"]), 100_000 + row, "Bachelors", 13),
            *("Never-married", rng.choice(["Sales", "?"]), "Unmarried", "White", ("Female", "Male")[row % 2]),
            *(int(rng.choice([0, 2174])), 0, 40, "United-States"),
            ("<=50K", ">50K")[row // 2 % 2] + "." * published_test,
        )
        lines.append(", ".join(map(str, values)))
    root.mkdir(parents=True, exist_ok=True)
    (root / file).write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return root


# The published header, in which `decile_score` and `priors_count` stand twice.
COMPAS_HEADER = (
    """
    id,name,first,last,compas_screening_date,sex,dob,age,age_cat,race,juv_fel_count,decile_score,juv_misd_count,
    juv_other_count,priors_count,days_b_screening_arrest,c_jail_in,c_jail_out,c_case_number,c_offense_date,
    c_arrest_date,c_days_from_compas,c_charge_degree,c_charge_desc,is_recid,r_case_number,r_charge_degree,
    r_days_from_arrest,r_offense_date,r_charge_desc,r_jail_in,r_jail_out,violent_recid,is_violent_recid,
    vr_case_number,vr_charge_degree,vr_offense_date,vr_charge_desc,type_of_assessment,decile_score,score_text,
    screening_date,v_type_of_assessment,v_decile_score,v_score_text,v_screening_date,in_custody,out_custody,
    priors_count,start,end,event,two_year_recid
""".replace("\n    ", "")
    .strip()
    .split(",")
)


def write_compas(root: Path, rows: int = 120) -> Path:
    """Write compas-scores-two-years.csv; of every ten rows one is screened too late and one never (both left out)."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "compas-scores-two-years.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COMPAS_HEADER)
        for row in range(rows):
            values: dict[str, object] = dict.fromkeys(COMPAS_HEADER, "")
            values |= {"id": row, "age": int(rng.integers(18, 80)), "sex": ("Male", "Female")[row % 2]}
            values |= {name: int(rng.integers(0, 3)) for name in ("juv_fel_count", "juv_misd_count", "juv_other_count")}
            values |= {"priors_count": int(rng.integers(0, 20)), "c_charge_degree": ("F", "M")[row % 3 % 2]}
            values |= {"c_charge_desc": 'Battery, "simple"', "is_recid": row // 5 % 2, "score_text": "Low"}
            values |= {"race": ("African-American", "Caucasian", "Hispanic")[row % 3]}
            values |= {"days_b_screening_arrest": {8: "31", 9: ""}.get(row % 10, "-1.0")}
            values |= {"two_year_recid": row // 5 % 2}
            writer.writerow([values[name] for name in COMPAS_HEADER])
    return root


def replace_line(path: Path, line: int, old: str, new: str) -> None:
    """Replace the first `old` in one line (from 1) of a text file; it must be there."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines), encoding="utf-8")


def picture(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write a JPEG of random colour patches, `size` = (width, height)."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).save(path, quality=90)


def group_rows(counts: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Return (split, label, attribute) of every image, for counts[split][2 * label + attribute]."""
    return [(s, g // 2, g % 2) for s, groups in enumerate(counts) for g, n in enumerate(groups) for _ in range(n)]


TINY = ((6, 3, 2, 5), (2, 2, 2, 2), (3, 3, 3, 3))  # images in each split and group
WATERBIRDS_LAYOUTS = {"group_DRO": "waterbird_complete95_forest2water2", "WILDS": "waterbirds_v1.0", "bare": "."}


def write_waterbirds(root: Path, layout: str = "group_DRO", counts: Sequence[Sequence[int]] = TINY) -> Path:
    """Write Waterbirds as group_DRO or WILDS lay it out; returns the folder of metadata.csv."""
    folder = root / WATERBIRDS_LAYOUTS[layout]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["img_id", "img_filename", "y", "split", "place", "place_filename"])
        for row, (split, y, place) in enumerate(group_rows(counts)):
            name = f"{row % 3 + 1:03}.Some_bird/Some_Bird_{row:04}.jpg"
            picture(folder / name, (60 + row % 5, 40 + row % 7), row)  # the photographs differ in shape
            writer.writerow([row + 1, name, y, split, place, f"/o/ocean/{row:08}.jpg"])
    if layout == "WILDS":
        (folder / "RELEASE_v1.0.txt").write_text("")
    return folder


CELEBA_LAYOUTS = {
    "group_DRO": ("celebA/data", "csv", "img_align_celeba"),
    "WILDS": ("celebA_v1.0", "csv", "img_align_celeba"),
    "Kaggle": (".", "csv", "img_align_celeba/img_align_celeba"),
    "torchvision": ("celeba", "txt", "img_align_celeba"),
}
# The published attributes, in their order: Blond_Hair is number 9 and Male number 20, counted from 0.
ATTRIBUTES = textwrap.dedent("""
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair
    Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup
    High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose
    Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat
    Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
""").split()


def write_celeba(root: Path, layout: str = "WILDS", counts: Sequence[Sequence[int]] = TINY) -> Path:
    """Write CelebA as it is published by group_DRO, WILDS, Kaggle or torchvision; returns the attributes' folder."""
    place, kind, images = CELEBA_LAYOUTS[layout]
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    attributes, partition = [], []
    for row, (split, blond, male) in enumerate(group_rows(counts)):
        name = f"{row + 1:06}.jpg"
        picture(folder / images / name, (178, 218), row)
        values = rng.choice([-1, 1], len(ATTRIBUTES))
        values[9], values[20] = 2 * blond - 1, 2 * male - 1
        attributes.append([name, *values.tolist()])
        partition.append([name, split])
    if kind == "csv":
        _csv(folder / "list_attr_celeba.csv", [["image_id", *ATTRIBUTES], *attributes])
        _csv(folder / "list_eval_partition.csv", [["image_id", "partition"], *partition])
    else:
        lines = [f"{name} " + " ".join(f"{v:2}" for v in values) for name, *values in attributes]
        head = [str(len(lines)), " ".join(ATTRIBUTES) + " "]  # the published header ends in a blank
        (folder / "list_attr_celeba.txt").write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
        text = "".join(f"{name} {split}\n" for name, split in partition)
        (folder / "list_eval_partition.txt").write_text(text, encoding="utf-8")
    return folder


def _csv(path: Path, rows: list[list[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_weights(path: Path, model: str = "resnet18", seed: int = 0) -> Path:
    """Write a state dict of one of torchvision's models with random parameters, as its weights are published."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = torchvision.models.get_model(model, weights=None).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


CIFAR = ("airplane", "automobile", "truck")  # more classes than are asked for
CIFAR_COUNTS = {"train": 30, "test": 20}  # images of each class


def _photographs(part: str) -> list[tuple[int, np.ndarray]]:
    """Return (class, pixels): every pixel is 20 (class + 1) + (part is test), every image's first one its number."""
    made = []
    for kind in range(len(CIFAR)):
        for number in range(CIFAR_COUNTS[part]):
            pixels = np.full((32, 32, 3), 20 * (kind + 1) + (part == "test"), np.uint8)
            pixels[0, 0] = number
            made.append((kind, pixels))
    return made


def write_cifar_folder(root: Path, folder: str = "cifar10") -> Path:
    """Write CIFAR-10 as an image folder, {train,test}/CLASS/NNNN.png."""
    for part in CIFAR_COUNTS:
        for number, (kind, pixels) in enumerate(_photographs(part)):
            path = root / folder / part / CIFAR[kind] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root / folder


def write_cifar_archive(root: Path) -> dict[str, list[list[str]]]:
    """Write CIFAR-10 as torchvision unpacks it; returns [file, MD5] of each part's files, and of the class names."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data, usedforsecurity=False).hexdigest()]

    sums = {"meta": [write("batches.meta", {"label_names": list(CIFAR)})]}
    for part, name in (("train", "data_batch_1"), ("test", "test_batch")):
        kinds, pixels = zip(*_photographs(part), strict=True)
        rows = np.stack(pixels).transpose(0, 3, 1, 2).reshape(len(kinds), -1)
        sums[part] = [write(name, {"data": rows, "labels": list(kinds)})]
    return sums
