"""`steelyard weigh`: what it chooses, what it writes, and that every figure on its page is one of what it wrote."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas
import pytest

from steelyard.cli import main
from steelyard.experiments.weigh import Predictor
from tests.experiments.weigh.recomputed import Written, agree, figures_on
from tests.support.own import patients

ROWS = 160
KNOWN = {
    "nothing": [],
    "clean": ["--clean", "clean.csv", "--method", "self_cleaning"],
    "online": ["--clean", "clean.csv"],  # a sixth as many as training rows: enough for it
    "groups": ["--groups", "sex"],
    "validation": ["--groups", "sex", "--groups-on", "validation"],
    "environments": ["--environments", "hospital"],
}
MODELS = {
    "nothing": {"self_cleaning": "model", "plain": "plain"},
    "clean": {"self_cleaning": "model", "plain": "plain"},
    "online": {"online": "model", "plain": "plain"},
    "groups": {"group_dro": "model", "plain": "plain", "upweighting": "upweighting", "dfr": "dfr"},
    "validation": {"maple": "model", "plain": "plain"},
    "environments": {"maple": "model", "plain": "plain"},
}


def table() -> pandas.DataFrame:
    """Patients, a sixth of them with the wrong label."""
    frame = patients(ROWS).drop(columns=["part"])
    frame["beds"] = frame["beds"].astype(float) / 2
    wrong = np.random.default_rng(1).random(ROWS) < 1 / 6
    frame["ill"] = np.where(wrong, np.where(frame["ill"] == "yes", "no", "yes"), frame["ill"])
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("weigh")
    table().to_csv(place / "patients.csv", index=False)
    patients(ROWS + 24).iloc[ROWS:].drop(columns=["part", "patient"]).to_csv(place / "clean.csv", index=False)
    return place


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)


def weigh(*words: str) -> int:
    return main(["weigh", "patients.csv", "--target", "ill", "--id", "patient", "--epochs", "1", *words])


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
    written = Written(folder / known, folder / "patients.csv", clean)
    test, train = written.rows("test"), written.rows("train")
    groups, spreads = _groups(known, test), [(train["ill"], ["no", "yes"])]
    if known in ("groups", "validation"):
        spreads.append((train["ill"] + ", " + train["sex"], ["no, F", "no, M", "yes, F", "yes, M"]))
    if known in ("groups", "validation", "environments"):
        by = "hospital" if known == "environments" else "sex"
        spreads.append((train[by], sorted(train[by].unique())))
    spreads += _columns(written, known)
    ours = written.figures(MODELS[known], groups, spreads)
    assert sorted(set(shown) - set(ours)) == []
    assert len(shown) > 100
    different = {key: (texts, ours[key]) for key, texts in shown.items() if not agree(texts, ours[key])}
    assert different == {}


def _groups(known: str, test: pandas.DataFrame) -> pandas.Series:
    if known in ("groups", "validation"):
        names = ["no, F", "no, M", "yes, F", "yes, M"]
        return pandas.Series(pandas.Categorical(test["ill"] + ", " + test["sex"], names))
    if known == "environments":
        return pandas.Series(pandas.Categorical(test["hospital"], ["north", "south"]))
    return pandas.Series(pandas.Categorical(test["ill"], ["no", "yes"]))


def _columns(written: Written, known: str) -> list[tuple[pandas.Series, list]]:
    """The columns that the model sees, those first whose parts differ most; numbers in quarters."""
    train, seen, found = written.rows("train"), written.seen(), []
    encoding = written.about["encoding"]
    for one in encoding["numbers"]:
        values = train[one["name"]].astype(float)
        ordered = np.sort(values)
        edges = sorted({ordered[k * len(ordered) // 4] for k in (1, 2, 3)})
        parts = pandas.Series(np.searchsorted(edges, values, side="right"))
        found.append((parts, [k for k in range(len(edges) + 1) if (parts == k).any()]))
    for one in encoding["categories"]:
        values = train[one["name"]]
        found.append((values, sorted(values.unique(), key=lambda value: (-(values == value).sum(), value))))

    def explained(parts: pandas.Series) -> float:
        means = pandas.Series(seen).groupby(parts.to_numpy()).transform("mean")
        return float(((means - seen.mean()) ** 2).sum())

    return sorted(found, key=lambda one: -explained(one[0]))[:6]


def test_a_row_of_weights_for_each_row_of_the_table(folder: Path, pages: dict[str, str]) -> None:
    page("nothing", folder, pages)
    weights = pandas.read_csv("nothing/weights.csv")
    assert list(weights) == ["id", "row", "split", "weight", "keep_probability", "suspect_rank"]
    assert weights["id"].tolist() == table()["patient"].tolist()
    assert weights["split"].value_counts().to_dict() == {"train": 103, "test": 32, "validation": 25}
    train = weights[weights["split"] == "train"]
    assert sorted(train["suspect_rank"]) == list(range(1, 104))
    assert train["keep_probability"].between(0, 1).all()
    assert (
        weights.loc[weights["split"] != "train", ["weight", "keep_probability", "suspect_rank"]].isna().to_numpy().all()
    )


@pytest.mark.parametrize("known", ["nothing", "environments"])
def test_the_lines_on_the_page_run(known: str, folder: Path, pages: dict[str, str]) -> None:
    blocks = re.findall(r'<pre class="lines">(.*?)</pre>', page(known, folder, pages), re.S)
    assert len(blocks) == 2
    for block in blocks:
        names: dict = {}
        exec(unescape(block), names)
    assert len(names["classes"]) == ROWS
    assert set(names["classes"]) <= {"no", "yes"}


def test_a_column_of_dates_is_shown_by_dates_and_the_lines_of_the_page_read_it(folder: Path) -> None:
    days = pandas.Series(pandas.date_range("2019-12-29", periods=ROWS))
    seen = days.dt.strftime("%d/%m/%Y").mask(days.dt.day == 7, "")
    table().assign(seen=seen).rename(columns={"age": " age "}).to_csv(folder / "visits.csv", index=False)
    words = ["--target", "ill", "--id", "patient", "--epochs", "1", "--model", "linear", "--drop", "ward", "sex"]
    assert main(["weigh", "visits.csv", *words, "hospital", "beds", "dose"]) == 0
    shown = (folder / "runs/weigh/visits/page.html").read_text(encoding="utf-8")
    assert re.search(r"2019-12-\d\d to below 2020-0\d-\d\d", shown)
    assert "(missing)" in shown
    for block in re.findall(r'<pre class="lines">(.*?)</pre>', shown, re.S):
        names: dict = {}
        exec(unescape(block), names)
        if "table" in names:
            given = pandas.to_timedelta(names["table"]["seen"], unit="s") + pandas.Timestamp("1970-01-01")
            assert (given[days.dt.day != 7] == days[days.dt.day != 7]).all()
            assert list(names["features"]) == ["age", "seen"]
    assert len(names["classes"]) == ROWS


def test_the_command_says_what_it_chose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weigh("--out", "said", "--environments", "hospital", "--overwrite") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "You know 2 environments: north, south." in said
    assert "MAPLE with the square root of V-REx" in said
    assert "Written: said/weights.csv, model.safetensors, plain.safetensors, page.html" in said


def test_a_finished_one_is_resumed_to_the_same_bytes(folder: Path, pages: dict[str, str]) -> None:
    page("nothing", folder, pages)
    names = ("weights.csv", "model.safetensors", "plain.safetensors")
    before = [(folder / "nothing" / name).read_bytes() for name in names]
    assert weigh("--out", "nothing") == 2
    assert weigh("--out", "nothing", "--resume") == 0
    assert [(folder / "nothing" / name).read_bytes() for name in names] == before


def test_several_seeds_average_the_weights(folder: Path) -> None:
    assert weigh("--out", "seeds", "--seeds", "3", "4", "--groups", "sex") == 0
    weights = pandas.read_csv("seeds/weights.csv").query("split == 'train'")
    runs = [pandas.read_parquet(f"seeds/runs/group_dro/seed{seed}/result.parquet") for seed in (3, 4)]
    mean = sum(run.set_index("id")["weight"] for run in runs) / 2
    assert np.allclose(weights["weight"], mean[weights["id"]])
    assert "Every seed, test rows" in Path("seeds/page.html").read_text(encoding="utf-8")


def test_checked_rows_are_not_trained_on(folder: Path) -> None:
    patients(ROWS).head(30).drop(columns=["part"]).to_csv("checked.csv", index=False)
    assert weigh("--out", "checked", "--clean", "checked.csv") == 0
    weights = pandas.read_csv("checked/weights.csv")
    assert (weights["split"] == "clean").tolist() == [row < 30 for row in range(ROWS)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--drop", "ages"], "patients.csv, line 1: there is no column 'ages'; did you mean 'age'?"),
        (["--clean", "none.csv"], "there is no file none.csv"),
        (
            ["--numeric", "ward"],
            "patients.csv, line 2: 'ward' is 'a', expected a number; mend it, or list 'ward' in --cat",
        ),
        (["--split", "beds"], "patients.csv, line 2: 'beds' is"),
        (["--groups", "sex", "--environments", "hospital"], "--groups and --environments ask for different methods"),
        (["--groups-on", "validation"], "--groups-on validation needs --groups"),
        (["--method", "online"], "--method online is about clean rows"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--target", "il"], "patients.csv, line 1: there is no column 'il'; did you mean 'ill'?"),
        (["--id", "patnt"], "patients.csv, line 1: there is no column 'patnt'; did you mean 'patient'?"),
        (["--environments", "hospitl"], "patients.csv, line 1: there is no column 'hospitl'; did you mean 'hospital'?"),
        (["--id", "ward"], "patients.csv, line 4: 'ward' is 'b', expected an id that no other line has"),
        (["--environments", "one"], "patients.csv, column 'one': all training rows are of the environment 'x', and"),
        (
            ["--clean", "other.csv"],
            "the class 'maybe' has no sample in the train split (3 rows in all, the first in oth",
        ),
        (
            ["--clean", "words.csv"],
            "words.csv, line 3: 'age' is 'old', expected a number; mend it, or list 'age' in --c",
        ),
        (["--task", "regression"], "patients.csv, line 2: 'ill' is 'no', expected a number"),
        (["--backbone", "resnet18"], "--backbone resnet18 is for images"),
    ],
    ids=[
        *("column", "file", "number", "split", "two", "groups_on", "method", "epochs", "target", "id", "environments"),
        *("ids", "one environment", "clean class", "clean number", "task", "backbone"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table().assign(one="x").to_csv("patients.csv", index=False)
    few = patients(ROWS).head(6).drop(columns=["part", "patient"]).assign(one="x")
    few.assign(ill=["no", "yes", "no", "maybe", "maybe", "maybe"]).to_csv("other.csv", index=False)
    few.astype({"age": str}).assign(age=["50", "old", "40", "30", "50", "40"]).to_csv("words.csv", index=False)
    status = weigh("--out", "wrong", *words)
    table().to_csv("patients.csv", index=False)
    assert status == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rows.csv has no rows"),
        ("age,ill\n", "rows.csv has no rows"),
        ("age,ill\n1,no\n2\n", "rows.csv, line 3: has 1 values, expected 2"),
        (
            'age,ill\n1,no\n"2,no\n3,yes\n',
            "rows.csv, line 3: a value is opened by a quotation mark that nothing closes",
        ),
        ("age;ill\n1;no\n", "rows.csv, line 1: there is one column alone, 'age;ill'; are the values separated by ';'?"),
        ("age,ill\n1,no\n2,\n", "rows.csv, line 3: 'ill' is '', expected a value: labels may not be missing"),
    ],
    ids=["empty", "head", "short", "quote", "separator", "missing"],
)
def test_a_file_that_is_no_table(text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text(text)
    for command in ("weigh", "suspects"):
        assert main([command, "rows.csv", "--target", "ill"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_file_called_as_a_setting_keeps_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table().to_csv("data.csv", index=False)
    assert main(["weigh", "data.csv", "--target", "il"]) == 2
    assert "data.csv, line 1: there is no column 'il'" in capsys.readouterr().err


def test_a_class_that_one_row_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame.loc[5, "ill"] = "maybe"
    frame.to_csv("rare.csv", index=False)
    assert main(["weigh", "rare.csv", "--target", "ill"]) == 2
    error = capsys.readouterr().err
    assert "rare.csv, column 'ill': the class 'maybe' has no sample in the" in error
    assert "the first in line 7" in error


def test_the_model_reads_a_table_without_the_target(folder: Path, pages: dict[str, str]) -> None:
    page("nothing", folder, pages)
    table().drop(columns=["ill"]).to_csv("new.csv", index=False)
    model = Predictor.load("nothing/model.safetensors")
    assert model.predict("new.csv") == model.predict("patients.csv")
