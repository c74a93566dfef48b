"""The figures of a page of `weigh` again, from weights.csv, the models and the user's tables, by other code."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from safetensors import safe_open

from steelyard.experiments.training.calibration import binomial_interval
from steelyard.theory import finite_class_bounds

__all__ = ["OfArrays", "Written", "agree", "figures_on"]


def figures_on(page: str) -> dict[str, set[str]]:
    """The text of each figure of a page, by its key."""
    found: dict[str, set[str]] = {}
    for key, value in re.findall(r'<span data-figure="([^"]*)">([^<]*)</span>', page):
        found.setdefault(unescape(key), set()).add(value)
    return found


class Written:
    """What `weigh` wrote for a table."""

    def __init__(self, folder: Path, table: Path, clean: Path | None = None) -> None:
        read = {"dtype": str, "keep_default_na": False}
        self.weights = pandas.read_csv(folder / "weights.csv")
        self.table = pandas.read_csv(table, **read)
        self.clean = None if clean is None else pandas.read_csv(clean, **read)
        self.folder = folder
        self.about, _ = self._file("model")

    def _file(self, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return _opened(self.folder / f"{name}.safetensors")

    def rows(self, split: str) -> pandas.DataFrame:
        if split == "validation" and self.clean is not None:
            return self.clean
        return self.table[self.weights["split"] == split]

    def inputs(self, rows: pandas.DataFrame) -> torch.Tensor:
        encoding = self.about["encoding"]
        columns = [
            (rows[one["name"]].astype(np.float32).astype(float) - one["mean"]) / one["deviation"]
            for one in encoding["numbers"]
        ]
        columns += [rows[one["name"]] == value for one in encoding["categories"] for value in one["values"]]
        return torch.tensor(np.stack([np.asarray(one, dtype=np.float32) for one in columns], 1))

    def labels(self, rows: pandas.DataFrame) -> np.ndarray:
        return rows[self.about["target"]].map(self.about["classes"].index).to_numpy()

    def logits(self, name: str, rows: pandas.DataFrame) -> torch.Tensor:
        place = self.folder / f"runs/{name}/seed0/model.safetensors"
        _, state = self._file(name) if name in ("model", "plain") else _opened(place)
        hidden = self.inputs(rows)
        layers = sorted({key.split(".")[0] for key in state}, key=int)
        for layer in layers:
            hidden = hidden @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
            hidden = hidden.relu() if layer != layers[-1] else hidden
        return hidden

    def right(self, name: str, split: str) -> np.ndarray:
        rows = self.rows(split)
        return self.logits(name, rows).argmax(1).numpy() == self.labels(rows)

    def seen(self) -> np.ndarray:
        own = self.weights[self.weights["split"] == "train"]
        return (own["weight"] * own["keep_probability"]).to_numpy()

    def figures(self, models: dict[str, str], groups: pandas.Series, spreads: list[tuple[pandas.Series, list]]) -> dict:
        """Key -> value.

        Args:
            models: the name on the page -> that of the file or the run; the written one first, then plain training.
            groups: of each test row, the groups in order.
            spreads: what is spread over: the part of each training row, and the parts in order.
        """
        found: dict[str, float] = {f"rows/{part}": len(self.rows(part)) for part in ("train", "validation", "test")}
        names = list(models)
        for name, file in models.items():
            right = self.right(file, "test")
            found |= _accuracy(f"{name}/test", right)
            for part in ("train", "validation"):
                found[f"{name}/{part}"] = 100 * self.right(file, part).mean()
            shares = []
            for number, group in enumerate(groups.cat.categories):
                own = right[groups == group]
                found |= _accuracy(f"{name}/group/{number}", own) | {f"group/{number}/count": len(own)}
                shares.append(100 * own.mean())
            if name in names[:2]:
                place = ("weighed", "plain")[names.index(name)]
                found |= {f"{place}/test": 100 * right.mean(), f"{place}/worst": min(shares)}
                found[f"{place}/calibration"], bins = _calibration(self.logits(file, self.rows("test")), right)
                found |= bins if place == "weighed" else {}
        return found | self.spread(spreads) | self._bounds() | self._suspects()

    def spread(self, spreads: list[tuple[pandas.Series, list]]) -> dict[str, float]:
        """Key -> value of how the weights spread: the part of each training row, and the parts in order."""
        found: dict[str, float] = {}
        seen = self.seen()
        own = self.weights[self.weights["split"] == "train"]
        found |= {"weights/count": len(seen), "weights/kept": own["keep_probability"].sum()}
        found |= {
            "weights/effective": seen.sum() ** 2 / (seen**2).sum(),
            "weights/light": (seen < seen.mean() / 2).sum(),
        }
        for outer, (parts, order) in enumerate(spreads):
            between = 0.0
            for inner, value in enumerate(order):
                member = (parts == value).to_numpy()
                key = f"spread/{outer}/{inner}"
                found |= {f"{key}/count": member.sum(), f"{key}/before": 100 * member.mean()}
                found |= {f"{key}/after": 100 * seen[member].sum() / seen.sum(), f"{key}/mean": seen[member].mean()}
                between += member.sum() * (seen[member].mean() - seen.mean()) ** 2
            total = ((seen - seen.mean()) ** 2).sum()
            found[f"spread/{outer}/explained"] = 100 * between / total if total > 1e-12 else 0.0
        return found

    def _bounds(self) -> dict[str, float]:
        wrong = torch.tensor(~self.right("model", "test")).double()[None]
        found, most = {}, min(16, wrong.shape[1])
        for number, q in enumerate((16, 8, 4)):
            options = {"s": most, "q": min(q, most), "delta": 0.05, "loss_range": 1.0, "draws": 1000, "fixed": True}
            (one,) = finite_class_bounds(wrong, **options, generator=torch.Generator().manual_seed(0))
            found[f"bound/{number}/training"] = 100 * one.bound.training.value
            found[f"bound/{number}/bound"] = 100 * one.bound.total.value
            if not number:
                found |= {"bound/0/total": found["bound/0/bound"], "bound/0/again": found["bound/0/bound"]}
        return found

    def _suspects(self) -> dict[str, float]:
        train = self.weights[self.weights["split"] == "train"]
        ranks = train["suspect_rank"].astype(int).to_numpy()
        chance = self.logits("model", self.rows("train")).softmax(1).numpy()
        labels = self.labels(self.rows("train"))
        found = {}
        for place in np.argsort(ranks)[:20]:
            key = f"suspect/{ranks[place]}"
            found |= {f"{key}/predicted": 100 * chance[place].max(), f"{key}/given": 100 * chance[place, labels[place]]}
            found |= {f"{key}/near/{row}": distance for row, distance in self.near(place)}
        return found

    def near(self, place: int) -> list[tuple[int, float]]:
        """Row and distance of the three trusted rows that are nearest to a training row."""
        train = self.weights[self.weights["split"] == "train"]
        inputs, rows = self.inputs(self.rows("train")), train["row"].to_numpy()
        ranks = train["suspect_rank"].astype(int).to_numpy()
        trusted = np.flatnonzero(ranks > len(ranks) - len(ranks) // 2)
        others, numbers = inputs[trusted], rows[trusted]
        if self.clean is not None:
            others, numbers = self.inputs(self.clean), len(self.table) + np.arange(len(self.clean))
        distance = (others - inputs[place]).norm(dim=1).numpy()
        distance[numbers == rows[place]] = np.inf
        return [(numbers[near], float(distance[near])) for near in np.argsort(distance, kind="stable")[:3]]


class OfArrays(Written):
    """What `weigh` wrote for features: those of an array, or of a network that the test computes by itself.

    Args:
        folder: where it was written.
        table: the labels, a row a sample.
        features: (n, d), of the rows and then of the clean ones.
        clean: labels of these.
    """

    def __init__(
        self, folder: Path, table: pandas.DataFrame, features: np.ndarray, clean: pandas.DataFrame | None = None
    ) -> None:
        self.folder, self.features = folder, torch.tensor(features, dtype=torch.float32)
        self.weights = pandas.read_csv(folder / "weights.csv")
        self.table = table.assign(place=range(len(table)))
        self.clean = None if clean is None else clean.assign(place=len(table) + np.arange(len(clean)))
        self.about, _ = self._file("model")

    def inputs(self, rows: pandas.DataFrame) -> torch.Tensor:
        return self.features[rows["place"].tolist()]


def agree(texts: set[str], value: float) -> bool:
    """Whether the text on a page is the value, to five digits or rounded as the page rounds (a tie may go either way).

    Args:
        texts: all texts of one key; they must be one.
        value: as recomputed.
    """
    (text,) = texts
    last = 0.5 * 10.0 ** -len(text.partition(".")[2])
    return abs(float(text) - value) <= max(last if abs(value) < 1e4 else 0.0, 6e-5 * abs(value)) + 1e-4


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("about", "{}"))
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _accuracy(key: str, right: np.ndarray) -> dict[str, float]:
    low, high = binomial_interval(int(right.sum()), len(right))
    return {key: 100 * right.mean(), f"{key}/low": 100 * low, f"{key}/high": 100 * high}


def _calibration(logits: torch.Tensor, right: np.ndarray) -> tuple[float, dict[str, float]]:
    sure = logits.softmax(1).amax(1).double().numpy()
    error, bins = 0.0, {}
    for number in range(10):
        member = (sure > number / 10) & (sure <= (number + 1) / 10)
        if member.any():
            key = f"calibration/{number / 10:.1f}"
            bins |= {f"{key}/count": member.sum(), f"{key}/sure": 100 * sure[member].mean()}
            bins[f"{key}/right"] = 100 * right[member].mean()
            error += 100 * abs((right[member] - sure[member]).sum()) / len(sure)
    return error, bins
