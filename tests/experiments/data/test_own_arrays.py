"""Features of one's own: three formats, one meaning, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from steelyard.experiments.data import OwnArrays
from steelyard.experiments.errors import DataError

ROWS = 48


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arrays() -> dict[str, np.ndarray]:
    rows = np.arange(ROWS)
    return {
        "x": np.random.default_rng(0).normal(3, 2, (ROWS, 2, 3)).astype("f4"),
        "y": rows % 2,
        "place": rows // 2 % 2,
        "split": rows // 4 % 3,
        "id": 100 + rows,
    }


ROLES: dict = {"features": "x", "target": "y", "attributes": ("place",), "split": "split", "id": "id"}


def written(ending: str, **changed: np.ndarray) -> OwnArrays:
    known = {**arrays(), **changed}
    if ending == ".npy":
        for name, array in known.items():
            np.save(f"{name}.npy", array)
        roles = {key: f"{name}.npy" for key, name in ROLES.items() if key != "attributes"}
        return OwnArrays(**roles, attributes=("place.npy",))
    if ending == ".npz":
        np.savez("data.npz", **known)
    else:
        save_file(known, "data.safetensors")
    return OwnArrays(file=f"data{ending}", **ROLES)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".npy"])
def test_arrays_become_splits(ending: str) -> None:
    splits, known = written(ending).load(0), arrays()
    for part, own in zip((splits.train, splits.validation, splits.test), range(3), strict=True):
        rows = known["split"] == own
        assert torch.equal(part.inputs, torch.from_numpy(known["x"][rows]))
        assert part.targets.tolist() == known["y"][rows].tolist()
        assert part.group.tolist() == (2 * known["y"] + known["place"])[rows].tolist()
    assert splits.ids == tuple(map(str, known["id"][known["split"] == 0]))
    assert splits.classes == ("0", "1")
    assert len(splits.sources) == (5 if ending == ".npy" else 1)


def test_features_are_standardised_by_the_training_rows() -> None:
    written(".npz")
    scaled, known = OwnArrays(file="data.npz", standardise=True, **ROLES).load(0), arrays()
    train = known["x"][known["split"] == 0].astype("f8")
    expected = (known["x"][known["split"] == 2] - train.mean(0)) / train.std(0)
    torch.testing.assert_close(scaled.test.inputs, torch.from_numpy(expected).float())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": np.where(np.arange(ROWS)[:, None] == 7, np.nan, np.ones((ROWS, 2)))}, "row 7, column 0: 'x' is nan"),
        ({"x": np.full((ROWS, 2), 1e39)}, "row 0, column 0: 'x' is 1e.39, expected a finite number"),
        ({"x": np.zeros(ROWS)}, r"must be numbers \(n, ...\)"),
        ({"y": np.arange(ROWS - 1) % 2}, f"'y' has {ROWS - 1} rows and 'x' has {ROWS}"),
        ({"y": np.zeros((ROWS, 2), dtype="i8")}, "the array 'y' holds int64 of shape"),
        ({"y": np.linspace(0, 1, ROWS)}, "or set data.task = 'regression'"),
        ({"id": np.zeros(ROWS, dtype="i8")}, r"row 1: 'id' is '0', expected an id that no other row has \(row 0"),
        ({"split": np.zeros(ROWS, dtype="i8")}, "no row has 'test'"),
    ],
)
def test_wrong_arrays(changed: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        written(".npz", **changed).load(0)


def test_wrong_names_and_files() -> None:
    written(".npz")
    with pytest.raises(DataError, match=r"data.npz: there is no column 'plac'; did you mean 'place'"):
        OwnArrays(file="data.npz", **{**ROLES, "attributes": ("plac",)}).load(0)
    with pytest.raises(DataError, match=r"none.npz cannot be read"):
        OwnArrays(file="none.npz", **ROLES).load(0)
    with pytest.raises(ValueError, match="is no .npy file"):
        OwnArrays(**ROLES)
    with pytest.raises(ValueError, match="must name an .npz or a .safetensors file"):
        OwnArrays(file="data.pt", **ROLES)
    with pytest.raises(ValueError, match="told the answer"):
        OwnArrays(file="data.npz", features="y", target="y")


def test_no_pickle_is_opened() -> None:
    np.save("x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save("y.npy", np.arange(2))
    with pytest.raises(DataError, match="cannot be read as a plain NumPy array"):
        OwnArrays(features="x.npy", target="y.npy").load(0)
