"""`steelyard suspects` and `steelyard weigh` as a stranger runs them: Adult's raw rows, other names, wrong labels.

    STEELYARD_DATA=DATA python -m benchmarks.your_data                 # a line a seed and case, in results/your_data
    python -m benchmarks.your_data --table                             # the table of what was measured

For each seed the rows of adult.data are shuffled and their columns renamed; 200 rows are kept apart as clean ones, and
of the others 20 % (or `--flipped`) get the other label. Then, in a folder of its own:

    steelyard suspects people.csv --target c14 --no-check
    steelyard weigh people.csv --target c14
    steelyard weigh people.csv --target c14 --clean clean.csv

AUROC: of the wrong labels, over all rows for `suspects`, over the training rows for `weigh`. "cleanlab": the label
quality (`cleanlab.rank.get_label_quality_scores`) of the same models' out-of-fold probabilities, the mean over their
repeats; where cleanlab is not installed, its formula, which is the probability of the label. Accuracy: by the TRUE
labels of the test rows, which nothing decided by; paired by seed with plain training (plain.safetensors, the same net
and steps).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks import _measure
from steelyard.cli import main
from steelyard.experiments.weigh import Predictor

RESULTS = _measure.ROOT / "results" / "your_data"
FILE = RESULTS / "your_data.jsonl"
CASES = ("suspects", "nothing", "clean rows")
CLEAN, TARGET, CLASSES = 200, "c14", ("<=50K", ">50K")


def rows(seed: int, count: int | None) -> list[list[str]]:
    """Return the rows of adult.data, shuffled, values without blanks."""
    with open(Path(os.environ["STEELYARD_DATA"]) / "adult.data", encoding="utf-8", newline="") as file:
        found = [[value.strip() for value in row] for row in csv.reader(file) if row]
    order = np.random.RandomState(seed).permutation(len(found))
    return [found[place] for place in order[: None if count is None else count + CLEAN]]


def write(path: Path, table: list[list[str]]) -> None:
    """Write rows under names that say nothing."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[f"c{k}" for k in range(15)], *table])


def command(*words: str) -> float:
    """Carry out a command, and return its seconds of CPU time."""
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = main(list(words))
    if status:
        raise SystemExit(f"steelyard {' '.join(words)} ended with {status}")
    return time.process_time() - began


def quality(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return cleanlab's label quality."""
    try:
        from cleanlab.rank import get_label_quality_scores
    except ModuleNotFoundError:
        return probabilities[np.arange(len(labels)), labels]
    return get_label_quality_scores(labels, probabilities)


def measured(seed: int, flipped: float, count: int | None, cases: list[str]) -> list[dict]:
    """Return the rows of one seed: suspects, and weigh with nothing and with clean rows, as far as asked for."""
    table = rows(seed, count)
    clean, own = table[:CLEAN], table[CLEAN:]
    truth = np.array([CLASSES.index(row[14]) for row in own])
    wrong = np.random.RandomState(1000 + seed).rand(len(own)) < flipped
    labels = np.where(wrong, 1 - truth, truth)
    shared = {"seed": seed, "flipped": flipped, "rows": len(own)}
    found = []
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            write(Path("people.csv"), [[*row[:14], CLASSES[label]] for row, label in zip(own, labels, strict=True)])
            write(Path("clean.csv"), clean)
            if "suspects" in cases:
                seconds = command("suspects", "people.csv", "--target", TARGET, "--no-check", "--seed", str(seed))
                found.append({**shared, "case": "suspects", **_of_suspects(labels, wrong), "seconds": seconds})
            for case, more in (("nothing", []), ("clean rows", ["--clean", "clean.csv"])):
                if case not in cases:
                    continue
                seconds = command("weigh", "people.csv", "--target", TARGET, "--seeds", str(seed), "--overwrite", *more)
                found.append({**shared, "case": case, **_of_weigh(truth, wrong), "seconds": seconds})
        finally:
            os.chdir(here)
    return found


def _of_suspects(labels: np.ndarray, wrong: np.ndarray) -> dict:
    listed = _read("runs/suspects/people/suspects.csv")
    place = np.array([int(row["row"]) for row in listed])
    given, score = np.empty(len(labels)), np.empty(len(labels))
    given[place] = [float(row["label_probability"]) for row in listed]
    score[place] = [float(row["suspicion"]) for row in listed]
    both = np.where(labels[:, None] == np.arange(2), given[:, None], 1 - given[:, None])
    if not wrong.any():
        return {}
    return {"auroc": roc_auc_score(wrong, score), "cleanlab": roc_auc_score(wrong, -quality(labels, both))}


def _of_weigh(truth: np.ndarray, wrong: np.ndarray) -> dict:
    weights = _read("runs/weigh/people/weights.csv")
    split = np.array([row["split"] for row in weights])
    test, train = split == "test", split == "train"
    found = {}
    for name, file in (("weighed", "model"), ("plain", "plain")):
        predictor = Predictor.load(f"runs/weigh/people/{file}.safetensors")
        predicted = np.array([CLASSES.index(one) for one in predictor.predict("people.csv")])
        found[name] = 100 * float((predicted == truth)[test].mean())
    kept = np.array([float(row["keep_probability"]) for row in weights if row["split"] == "train"])
    rank = np.array([int(row["suspect_rank"]) for row in weights if row["split"] == "train"])
    found["kept"] = float(kept.mean())
    if wrong.any():
        found["auroc"] = roc_auc_score(wrong[train], -rank)
    return found


def _read(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def text() -> str:
    """Return the table of what was measured."""
    lines = [json.loads(line) for line in FILE.read_text().splitlines()]
    out = []
    for flipped, count in sorted({(one["flipped"], one["rows"]) for one in lines}, reverse=True):
        own = [one for one in lines if (one["flipped"], one["rows"]) == (flipped, count)]
        out.append(f"\n{100 * flipped:g} % of {count:,} labels wrong:\n")
        out.append("| what was known | seeds | plain | weighed | paired difference | AUROC | cleanlab | CPU seconds |")
        out.append("|---|---|---|---|---|---|---|---|")
        for case in CASES:
            if some := [one for one in own if one["case"] == case]:
                out.append(_row(case, some))
    return "\n".join(out)


def _row(case: str, some: list[dict]) -> str:
    def cell(values: list[float], digits: int) -> str:
        spread = stdev(values) if len(values) > 1 else 0.0
        return f"{mean(values):.{digits}f} ± {spread:.{digits}f}"

    def column(name: str, digits: int) -> str:
        values = [one[name] for one in some if name in one]
        return cell(values, digits) if values else ""

    gap = [one["weighed"] - one["plain"] for one in some if "weighed" in one]
    cells = [column("plain", 2), column("weighed", 2), cell(gap, 2) if gap else "", column("auroc", 4)]
    name = "`suspects`" if case == "suspects" else f"`weigh`, {case}"
    return f"| {name} | {len(some)} | {' | '.join(cells)} | {column('cleanlab', 4)} | {column('seconds', 0)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", action=_measure.Seeds, default=[0, 1, 2, 3, 4])
    parser.add_argument("--flipped", type=float, default=0.2)
    parser.add_argument("--rows", type=int, help="rows of the table (default: all)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    given = parser.parse_args()
    if not given.table:
        for seed in given.seeds:
            for one in measured(seed, given.flipped, given.rows, given.cases):
                with open(FILE, "a", encoding="utf-8") as file:
                    file.write(json.dumps(one) + "\n")
    print(text())
