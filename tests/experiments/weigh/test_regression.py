"""`steelyard weigh` and `suspects` where the target is a number: plans, files, and every figure of the page again."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas
import pytest

from steelyard.cli import main
from steelyard.experiments.errors import DataError
from steelyard.experiments.weigh import Predictor
from tests.experiments.weigh.recomputed import agree, figures_on
from tests.experiments.weigh.recomputed_numbers import WrittenNumbers
from tests.support.own import patients

ROWS = 160
WRONG = (7, 40, 93)
KNOWN = {
    "nothing": [],
    "clean": ["--clean", "clean.csv", "--method", "self_cleaning"],
    "online": ["--clean", "clean.csv"],
    "groups": ["--groups", "sex"],
    "validation": ["--groups", "sex", "--groups-on", "validation"],
    "environments": ["--environments", "hospital"],
}
BESIDE = {
    "nothing": {"self_cleaning": "model", "plain": "plain"},
    "clean": {"self_cleaning": "model", "plain": "plain"},
    "online": {"online": "model", "plain": "plain"},
    "groups": {"group_dro": "model", "plain": "plain", "upweighting": "upweighting"},
    "validation": {"maple": "model", "plain": "plain"},
    "environments": {"maple": "model", "plain": "plain"},
}


def table(rows: int = ROWS) -> pandas.DataFrame:
    """Patients and what their stay costs; three of the sums have a digit too many."""
    frame = patients(rows).drop(columns=["part", "ill", "beds"])
    cost = 900 + 30 * frame["age"] + 200 * frame["dose"] + np.random.default_rng(2).normal(0, 40, rows)
    frame["cost"] = cost.round(2)
    frame.loc[[row for row in WRONG if row < rows], "cost"] *= 10
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("numbers")
    table().to_csv(place / "stays.csv", index=False)
    table(ROWS + 24).iloc[ROWS:].drop(columns=["patient"]).to_csv(place / "clean.csv", index=False)
    return place


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)


def weigh(*words: str) -> int:
    return main(["weigh", "stays.csv", "--target", "cost", "--id", "patient", "--epochs", "1", *words])


def page(known: str, folder: Path, pages: dict[str, str]) -> str:
    if known not in pages:
        assert weigh("--out", known, *KNOWN[known]) == 0
        pages[known] = (folder / known / "page.html").read_text(encoding="utf-8")
    return pages[known]


@pytest.mark.parametrize("known", KNOWN)
def test_every_figure_is_one_of_the_weights_the_models_and_the_table(
    known: str, folder: Path, pages: dict[str, str]
) -> None:
    shown = figures_on(page(known, folder, pages))
    clean = folder / "clean.csv" if known in ("clean", "online") else None
    written = WrittenNumbers(folder / known, folder / "stays.csv", clean)
    ours = written.errors(BESIDE[known], _groups(known, written.rows("test"))) | written.spread(
        _spreads(known, written)
    )
    assert sorted(set(shown) - set(ours)) == []
    assert len(shown) > 80
    different = {key: (texts, ours[key]) for key, texts in shown.items() if not agree(texts, ours[key])}
    assert different == {}


def _quarters(values: pandas.Series) -> pandas.Series:
    ordered = np.sort(values)
    edges = sorted({ordered[k * len(ordered) // 4] for k in (1, 2, 3)})
    return pandas.Series(np.searchsorted(edges, values, side="right"), index=values.index)


def _groups(known: str, test: pandas.DataFrame) -> pandas.Series:
    if known in ("groups", "validation", "environments"):
        return test["hospital" if known == "environments" else "sex"].astype("category")
    return _quarters(test["cost"].astype(float)).astype("category")


def _spreads(known: str, written: WrittenNumbers) -> list[tuple[pandas.Series, list]]:
    """The quarters of the target, groups and environments, and the columns whose parts differ most."""
    train, seen = written.rows("train"), written.seen()
    found = [(_quarters(train["cost"].astype(float)), [0, 1, 2, 3])]
    if known in ("groups", "validation", "environments"):
        by = "hospital" if known == "environments" else "sex"
        found += [(train[by], sorted(train[by].unique()))] * (1 if known == "environments" else 2)
    encoding, columns = written.about["encoding"], []
    for one in encoding["numbers"]:
        parts = _quarters(train[one["name"]].astype(float))
        columns.append((parts, sorted(parts.unique())))
    for one in encoding["categories"]:
        values = train[one["name"]]
        columns.append((values, sorted(values.unique(), key=lambda value: (-(values == value).sum(), value))))

    def explained(parts: pandas.Series) -> float:
        means = pandas.Series(seen).groupby(parts.to_numpy()).transform("mean")
        return float(((means - seen.mean()) ** 2).sum())

    return [*found, *sorted(columns, key=lambda one: -explained(one[0]))[:6]]


def test_sums_with_a_digit_too_many_weigh_nothing(folder: Path, pages: dict[str, str]) -> None:
    page("nothing", folder, pages)
    weights = pandas.read_csv("nothing/weights.csv")
    train = weights[weights["split"] == "train"]
    wrong = train["row"].isin(WRONG)
    assert wrong.any()
    assert (train.loc[wrong, "keep_probability"] < 0.01).all()
    assert set(train.loc[wrong, "suspect_rank"]) == set(range(1, wrong.sum() + 1))
    assert train.loc[~wrong, "keep_probability"].mean() > 0.9


def test_a_number_is_recognised_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weigh("--out", "said", "--overwrite") == 0
    assert "cost holds numbers: a regression (--task classification would say otherwise)." in capsys.readouterr().out
    assert weigh("--out", "said", "--overwrite", "--task", "regression") == 0
    assert "recognised" not in capsys.readouterr().out
    assert weigh("--out", "wrong", "--task", "classification") == 2
    assert "or say --task regression" in capsys.readouterr().err


def test_whole_numbers_are_classes_unless_said(folder: Path) -> None:
    frame = table()
    frame["cost"] = (frame["cost"] > frame["cost"].median()).astype(int)
    frame.to_csv("whole.csv", index=False)
    words = ["--target", "cost", "--id", "patient", "--epochs", "1", "--overwrite"]
    assert main(["weigh", "whole.csv", *words, "--out", "classes"]) == 0
    assert Predictor.load("classes/model.safetensors").classes == ("0", "1")
    assert main(["weigh", "whole.csv", *words, "--out", "numbers", "--task", "regression"]) == 0
    assert Predictor.load("numbers/model.safetensors").scale is not None


def test_the_lines_on_the_page_run(folder: Path, pages: dict[str, str]) -> None:
    blocks = re.findall(r'<pre class="lines">(.*?)</pre>', page("nothing", folder, pages), re.S)
    assert len(blocks) == 2
    for block in blocks:
        names: dict = {}
        exec(unescape(block), names)
    assert len(names["values"]) == ROWS
    assert all(isinstance(value, float) for value in names["values"])


def test_a_model_of_numbers_has_no_probabilities(folder: Path, pages: dict[str, str]) -> None:
    page("nothing", folder, pages)
    with pytest.raises(DataError, match=r"predicts a number.*values\(table\)"):
        Predictor.load("nothing/model.safetensors").probabilities("stays.csv")


def test_a_finished_one_is_resumed_to_the_same_bytes(folder: Path, pages: dict[str, str]) -> None:
    page("nothing", folder, pages)
    names = ("weights.csv", "model.safetensors", "plain.safetensors", "page.html")
    before = [(folder / "nothing" / name).read_bytes() for name in names[:3]]
    assert weigh("--out", "nothing", "--resume") == 0
    assert [(folder / "nothing" / name).read_bytes() for name in names[:3]] == before


def test_a_word_in_the_target_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table().astype({"cost": str})
    frame.loc[2, "cost"] = "much"
    frame.to_csv("word.csv", index=False)
    assert main(["weigh", "word.csv", "--target", "cost", "--task", "regression"]) == 2
    assert capsys.readouterr().err == "steelyard: error: word.csv, line 4: 'cost' is 'much', expected a number\n"


def test_suspects_of_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["stays.csv", "--target", "cost", "--id", "patient", "--epochs", "1", "--out", "found"]
    assert main(["suspects", *words, "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert "cost holds numbers" in said
    assert "targets that seemed right and were made wrong on purpose" in said
    found, frame = pandas.read_csv("found/suspects.csv"), table()
    assert list(found) == [
        *("suspect_rank", "id", "row", "target", "predicted", "suspicion", "residual", "right_probability"),
    ]
    assert set(found["row"][:3]) == set(WRONG)
    assert np.allclose(found["target"], frame["cost"][found["row"]], rtol=1e-6)
    assert np.allclose(found["residual"], found["target"] - found["predicted"], atol=1e-3)
    assert (found["residual"].abs().diff().dropna() <= 1e-9).all()
    shown = figures_on(Path("found/page.html").read_text(encoding="utf-8"))
    assert shown["share"] == {f"{100 * (1 - found['right_probability']).mean():.1f}"}
    for rank, row in found.head(20).set_index("suspect_rank").iterrows():
        assert agree(shown[f"suspect/{rank}/off"], abs(row["residual"]))
