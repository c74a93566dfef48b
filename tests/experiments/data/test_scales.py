"""Numbers are shifted and scaled before they are rounded to float32: how far from 0 they lie does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steelyard._support._scales import scales_of, standardise
from steelyard.estimators import ReweightedClassifier
from steelyard.experiments.data import OwnArrays, OwnTable

ROWS = 60


def numbers(shift: float = 0.0) -> np.ndarray:
    return shift + 10 * np.random.default_rng(0).standard_normal((ROWS, 2)).round(3)


@pytest.mark.parametrize("shift", [0.0, 2048.0, 1.7e9, -1e12])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_table_far_from_0_is_the_table_near_it(tmp_path: Path, shift: float, task: str) -> None:
    def loaded(by: float) -> tuple[torch.Tensor, torch.Tensor]:
        found = numbers(by)
        target = found[:, 1] if task == "regression" else ["no", "yes"] * (ROWS // 2)
        lines = [f"{float(a)!r},{y}" for (a, _), y in zip(found, target, strict=True)]
        path = tmp_path / f"{by:g}.csv"
        path.write_text("\n".join(["a,y", *lines]) + "\n")
        own = OwnTable(file=str(path), target="y", task=task)  # type: ignore[arg-type]
        train = own.load(0).train
        return train.inputs, train.targets

    for near, far in zip(loaded(0.0), loaded(shift), strict=True):
        assert near.dtype == far.dtype
        assert torch.allclose(near.double(), far.double(), atol=2e-4 if abs(shift) > 1e10 else 1e-6)


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_so_are_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.arange(ROWS) % 2
    np.savez("near.npz", x=numbers().round().astype(kind), y=labels)
    np.savez("far.npz", x=numbers(1.7e9).round().astype(kind), y=labels)
    near, far = (
        OwnArrays(file=name, features="x", target="y", standardise=True).load(0).train.inputs
        for name in ("near.npz", "far.npz")
    )
    assert far.dtype == torch.float32
    assert torch.allclose(near, far, atol=1e-6)
    raw = OwnArrays(file="far.npz", features="x", target="y").load(0).train.inputs
    assert raw.dtype == torch.float32


def test_so_are_the_features_of_an_estimator() -> None:
    x, y = numbers(), np.arange(ROWS) % 2
    fits = [ReweightedClassifier(epochs=3, random_state=0).fit(x + by, y).predict_proba(x + by) for by in (0.0, 1.7e9)]
    assert np.allclose(*fits, atol=1e-4)
    with pytest.raises(ValueError, match="too large for float32"):
        ReweightedClassifier(standardise=False).fit(x * 1e300, y)


@given(st.floats(-1e15, 1e15, allow_nan=False), st.integers(1, 50))
def test_a_constant_column_is_shifted_only(value: float, count: int) -> None:
    column = torch.full((count, 1), value, dtype=torch.float64)
    mean, deviation = scales_of(column)
    assert mean.item() == value
    assert deviation.item() == 1
    other = standardise(torch.cat([column, column + 1]), torch.arange(count))
    assert other[:count].abs().max() == 0
    assert other[count:].max() <= 1.01


def test_what_float64_rounds_is_no_deviation() -> None:
    column = torch.tensor([[0.1 + 0.2], [0.3], [0.3]], dtype=torch.float64)
    assert scales_of(column)[1].item() == 1
    assert scales_of(torch.tensor([[1e6], [1e6 + 1e-6]], dtype=torch.float64))[1].item() < 1e-6
