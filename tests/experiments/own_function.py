"""Functions of a user's that return splits, right and wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

from tests.support.own import patients

NAMES = {"train": "train", "val": "validation", "test": "test"}


def splits() -> dict[str, dict[str, Any]]:
    """Return the patients: an array, a list, a Series and words."""
    frame = patients()
    made = {}
    for part, name in NAMES.items():
        own = frame[frame["part"] == part]
        made[name] = {
            "inputs": own[["age", "dose"]].to_numpy(),
            "target": own["ill"],
            "sex": own["sex"].tolist(),
            "hospital": own["hospital"].to_numpy(dtype="U"),
            "patient": own["patient"].to_list(),
        }
    return made


def tensors() -> dict[str, dict[str, Any]]:
    """Return the same with tensors and numbers."""
    return {
        name: {
            "inputs": torch.tensor(part["inputs"]),
            "target": torch.tensor((part["target"] == "yes").to_numpy()),
            "sex": [int(sex == "M") for sex in part["sex"]],
            "hospital": part["hospital"],
        }
        for name, part in splits().items()
    }


class Rows(Dataset[Any]):
    """A data set of inputs alone, of a class of the user's own."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.inputs[row]


def datasets() -> dict[str, Any]:
    """Return data sets: of pairs, and of inputs beside their labels."""
    made: dict[str, Any] = {}
    for name, part in tensors().items():
        inputs, target = part["inputs"].float(), part["target"].long()
        made[name] = TensorDataset(inputs, target) if name == "test" else {**part, "inputs": Rows(inputs)}
        if name == "test":
            made[name] = {**part, "inputs": made[name]}
    return made


def pairs() -> dict[str, Any]:
    """Return data sets of pairs, without validation."""
    found = tensors()
    return {
        name: TensorDataset(found[name]["inputs"].float(), found[name]["target"].long()) for name in ("train", "test")
    }


def drawn(seed: int) -> dict[str, Any]:
    """Return what the seed and the global generators say."""
    return {
        name: {"inputs": np.random.normal(size=(8, 1)) + seed, "target": [0, 1] * 4}  # noqa: NPY002
        for name in NAMES.values()
    }


def hidden() -> dict[str, Any]:
    """Return training samples whose groups are not known."""
    return {
        name: {**part, "sex": [""] * len(part["sex"]) if name == "train" else part["sex"]}
        for name, part in splits().items()
    }


def changed(name: str, **fields: Any) -> dict[str, Any]:
    """Return the splits with fields of one of them replaced."""
    return {key: {**part, **fields} if key == name else part for key, part in splits().items()}


def nothing() -> None:
    """Return nothing."""


def misspelt() -> dict[str, Any]:
    """Call a split by another name."""
    return {"trian": splits()["train"]}


def no_test() -> dict[str, Any]:
    """Leave the test split out."""
    return {"train": splits()["train"]}


def no_target() -> dict[str, Any]:
    """Call the target otherwise."""
    return {name: {"inputs": part["inputs"], "targte": part["target"]} for name, part in splits().items()}


def short() -> dict[str, Any]:
    """Lack a label."""
    return changed("validation", target=["no", "yes"])


def not_finite() -> dict[str, Any]:
    """Have a NaN in row 3 of the test split."""
    inputs = splits()["test"]["inputs"].copy()
    inputs[3, 1] = np.nan
    return changed("test", inputs=inputs)


def unlabelled() -> dict[str, Any]:
    """Lack a class's name in row 5 of training."""
    target = splits()["train"]["target"].tolist()
    return changed("train", target=[*target[:5], "", *target[6:]])


def fractions() -> dict[str, Any]:
    """Measure instead of naming classes."""
    return {name: {**part, "target": np.linspace(0, 1, len(part["sex"]))} for name, part in splits().items()}


def wide() -> dict[str, Any]:
    """Have another width in the test split."""
    return changed("test", inputs=np.zeros((len(splits()["test"]["sex"]), 3)))


def objects() -> dict[str, Any]:
    """Give a split that is no mapping."""
    return {"train": 3, "test": 4}


def fails() -> dict[str, Any]:
    """Divide by zero."""
    raise ZeroDivisionError("on purpose")
