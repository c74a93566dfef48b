"""Data of a user's own, made up: patients of two hospitals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas

__all__ = ["patients", "write_patients"]


def patients(rows: int = 240) -> pandas.DataFrame:
    """Return a table: age tells the label, dose in the hospital "south" alone; no training row is of ward "c"."""
    rng = np.random.default_rng(0)
    ill = np.arange(rows) % 2
    south = np.arange(rows) // 2 % 2
    part = np.array(["train", "train", "val", "test"])[np.arange(rows) // 8 % 4]
    ward = rng.choice(["a", "b", "c"], rows)
    ward[(ward == "c") & (part == "train")] = "a"
    return pandas.DataFrame(
        {
            "patient": [f"p{row}" for row in range(rows)],
            "age": np.round(50 + 8 * ill + rng.normal(0, 5, rows), 1),
            "dose": np.round(rng.normal(0, 1, rows) + 2 * ill * south, 3),
            "ward": ward,
            "beds": rng.choice([1, 2, 4], rows),
            "sex": np.array(["F", "M"])[np.arange(rows) // 4 % 2],
            "hospital": np.array(["north", "south"])[south],
            "part": part,
            "ill": np.array(["no", "yes"])[ill],
        }
    )


def write_patients(path: Path, rows: int = 240) -> Path:
    """Write `patients` as comma-separated text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patients(rows).to_csv(path, index=False)
    return path
