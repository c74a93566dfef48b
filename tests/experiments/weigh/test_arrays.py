"""`steelyard weigh` and `suspects` on arrays: files, figures, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
from safetensors.numpy import save_file

from steelyard.cli import main
from steelyard.experiments.errors import DataError
from steelyard.experiments.weigh import Predictor
from tests.experiments.weigh.recomputed import OfArrays, agree, figures_on
from tests.experiments.weigh.recomputed_numbers import WrittenNumbers

ROWS = 120


class NumbersOfArrays(OfArrays, WrittenNumbers):
    """What was written for features and numbers."""


@pytest.fixture(autouse=True)
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Six features of two classes in two years, of images with two channels, and a number."""
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    y, year = np.arange(ROWS) % 2, np.arange(ROWS) // 2 % 2
    x = draws.normal(0, 1, (ROWS, 2, 3)).astype(np.float32)
    x[:, 0, 0] += 2 * y
    made = {"x": x, "y": y, "year": 2020 + year, "cost": x[:, 1, 1] * 3 + draws.normal(0, 0.1, ROWS)}
    np.savez("data.npz", **made)
    save_file(made, "data.safetensors")
    for name, values in made.items():
        np.save(f"{name}.npy", values)
    return made


def test_every_figure_is_one_of_the_weights_the_models_and_the_arrays(arrays: dict[str, np.ndarray]) -> None:
    words = ["data.safetensors", "--features", "x", "--target", "y", "--environments", "year", "--epochs", "1"]
    assert main(["weigh", *words, "--out", "out"]) == 0
    labels = pandas.DataFrame({name: arrays[name].astype(str) for name in ("y", "year")})
    written = OfArrays(Path("out"), labels, arrays["x"].reshape(ROWS, -1))
    train, test = written.rows("train"), written.rows("test")
    spreads = [(train["y"], ["0", "1"]), (train["year"], ["2020", "2021"])]
    _compare("out", written.figures({"maple": "model", "plain": "plain"}, test["year"].astype("category"), spreads))


def test_every_figure_of_numbers_is_one_of_the_weights_the_models_and_the_arrays(arrays: dict[str, np.ndarray]) -> None:
    words = ["x.npy", "--target", "cost.npy", "--environments", "year.npy", "--epochs", "1", "--out", "out"]
    assert main(["weigh", *words]) == 0
    labels = pandas.DataFrame({"cost.npy": arrays["cost"], "year": arrays["year"].astype(str)})
    written = NumbersOfArrays(Path("out"), labels, arrays["x"].reshape(ROWS, -1))
    train, test = written.rows("train"), written.rows("test")
    ordered = np.sort(train["cost.npy"])
    edges = [ordered[k * len(ordered) // 4] for k in (1, 2, 3)]
    quarters = pandas.Series(np.searchsorted(edges, train["cost.npy"], side="right"), index=train.index)
    ours = written.errors({"maple": "model", "plain": "plain"}, test["year"].astype("category"))
    _compare("out", ours | written.spread([(quarters, [0, 1, 2, 3]), (train["year"], ["2020", "2021"])]))


def _compare(folder: str, ours: dict[str, float]) -> None:
    shown = figures_on(Path(folder, "page.html").read_text())
    assert sorted(set(shown) - set(ours)) == []
    assert len(shown) > 70
    assert {key: (texts, ours[key]) for key, texts in shown.items() if not agree(texts, ours[key])} == {}


def test_files_of_every_kind_come_to_the_same(arrays: dict[str, np.ndarray]) -> None:
    for name, words in {
        "npy": ["x.npy", "--target", "y.npy"],
        "safetensors": ["data.safetensors", "--features", "x", "--target", "y"],
    }.items():
        assert main(["weigh", *words, "--epochs", "1", "--out", name]) == 0
    assert Path("npy/weights.csv").read_bytes() == Path("safetensors/weights.csv").read_bytes()


def test_the_written_model_takes_arrays(arrays: dict[str, np.ndarray]) -> None:
    assert main(["weigh", "x.npy", "--target", "cost.npy", "--epochs", "1", "--out", "out"]) == 0
    with pytest.raises(DataError, match="takes arrays, not a table: call"):
        Predictor.load("out/model.safetensors").values("data.csv")


def test_suspects_of_arrays(arrays: dict[str, np.ndarray]) -> None:
    words = ["--target", "y.npy", "--epochs", "1", "--no-check", "--model", "linear", "--out", "found"]
    assert main(["suspects", "x.npy", *words]) == 0
    found = pandas.read_csv("found/suspects.csv")
    assert sorted(found["row"]) == list(range(ROWS))
    assert found["label"].tolist() == arrays["y"][found["row"]].tolist()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.npy", "--target", "y.npy", "--drop", "a"], "--drop is for tables, and x.npy holds arrays"),
        (["x.npy", "--target", "y.npy", "--clean", "y.npy"], "--clean is for tables, and x.npy holds arrays"),
        (["data.safetensors", "--target", "y"], "name the one of the inputs, as in --features x"),
        (["data.safetensors", "--features", "z", "--target", "y"], "data.safetensors: there is no column 'z'"),
        (["x.npy", "--target", "z.npy"], "z.npy cannot be read"),
        (["x.npy", "--target", "short.npy"], "'short.npy' has 3 rows and 'x.npy' has 120"),
        (["nan.npy", "--target", "y.npy"], "nan.npy, row 7, column 1, 2: 'nan.npy' is nan, expected a finite number"),
        (
            ["x.npy", "--target", "words.npy", "--task", "regression"],
            "x.npy, row 0: 'words.npy' is 'a', expected a num",
        ),
    ],
    ids=["drop", "clean", "features", "column", "file", "length", "nan", "words"],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], said: str, arrays: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("short.npy", np.arange(3))
    np.save("words.npy", np.array(["a", "b"] * (ROWS // 2)))
    arrays["x"][7, 1, 2] = np.nan
    np.save("nan.npy", arrays["x"])
    assert main(["weigh", *words, "--out", "wrong"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("wrong").exists()
