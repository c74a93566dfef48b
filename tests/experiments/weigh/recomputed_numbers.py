"""The figures of a page of `weigh` about numbers again, from weights.csv, the models and the user's table."""

from __future__ import annotations

import numpy as np
import pandas
import torch

from steelyard.theory import finite_class_bounds
from tests.experiments.weigh.recomputed import Written

__all__ = ["WrittenNumbers"]


class WrittenNumbers(Written):
    """What `weigh` wrote for a table whose target is a number."""

    def labels(self, rows: pandas.DataFrame) -> np.ndarray:
        return rows[self.about["target"]].astype(float).to_numpy()

    def predicted(self, name: str, rows: pandas.DataFrame) -> np.ndarray:
        mean, deviation = self.about["scale"]
        return mean + deviation * self.logits(name, rows)[:, 0].double().numpy()

    def off(self, name: str, rows: pandas.DataFrame) -> np.ndarray:
        return self.labels(rows) - self.predicted(name, rows)

    def errors(self, models: dict[str, str], groups: pandas.Series) -> dict[str, float]:
        """Key -> value of all figures but those of the weights.

        Args:
            models: the name on the page -> that of the file or the run; the written one first, then plain training.
            groups: of each test row, the groups in order.
        """
        found: dict[str, float] = {f"rows/{part}": len(self.rows(part)) for part in ("train", "validation", "test")}
        own, test = self.labels(self.rows("train")), self.rows("test")
        far = float(np.median(abs(own - np.median(own))))
        found |= dict.fromkeys(("far", "far/again", "far/promise"), far)
        for place, (name, file) in enumerate(models.items()):
            off, mean = self.off(file, test), self.labels(test).mean()
            found |= _error(f"{name}/test", off)
            found |= {
                f"{name}/{part}": (self.off(file, self.rows(part)) ** 2).mean() for part in ("train", "validation")
            }
            found |= {f"{name}/mae": abs(off).mean(), f"{name}/far": 100 * (abs(off) > far).mean()}
            found[f"{name}/r2"] = 1 - (off**2).sum() / ((self.labels(test) - mean) ** 2).sum()
            inside = [off[groups == group] for group in groups.cat.categories]
            for number, own in enumerate(inside):
                found |= _error(f"{name}/group/{number}", own) | {f"group/{number}/count": len(own)}
            if place < 2:
                said = ("weighed", "plain")[place]
                found |= {f"{said}/test": (off**2).mean(), f"{said}/test/mae": abs(off).mean()}
                found[f"{said}/worst"] = max((own**2).mean() for own in inside)
        return found | self._misses(far) | self._listed()

    def _misses(self, far: float) -> dict[str, float]:
        wrong = torch.tensor(abs(self.off("model", self.rows("test"))) > far).double()[None]
        found, most = {}, min(16, wrong.shape[1])
        for number, q in enumerate((16, 8, 4)):
            options = {"s": most, "q": min(q, most), "delta": 0.05, "loss_range": 1.0, "draws": 1000, "fixed": True}
            (one,) = finite_class_bounds(wrong, **options, generator=torch.Generator().manual_seed(0))
            found[f"bound/{number}/training"] = 100 * one.bound.training.value
            found[f"bound/{number}/bound"] = 100 * one.bound.total.value
        return found | dict.fromkeys(("bound/0/total", "bound/0/again"), found["bound/0/bound"])

    def _listed(self) -> dict[str, float]:
        train = self.weights[self.weights["split"] == "train"]
        ranks = train["suspect_rank"].astype(int).to_numpy()
        rows, found = self.rows("train"), {}
        off = self.off("model", rows)
        for place in np.argsort(ranks)[:20]:
            key = f"suspect/{ranks[place]}"
            found[f"{key}/off"] = abs(off[place])
            found |= {f"{key}/near/{row}": distance for row, distance in self.near(place)}
        return found


def _error(key: str, off: np.ndarray) -> dict[str, float]:
    return {key: (off**2).mean(), f"{key}/half": 1.959963984540054 * (off**2).std(ddof=1) / np.sqrt(len(off))}
