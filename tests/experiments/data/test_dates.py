"""Columns of dates: the day of each against the standard library's, and what is said of dates that are not clear."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from steelyard.experiments.data import OwnTable, Splits
from steelyard.experiments.data.dates import as_day, written_day
from steelyard.experiments.data.encoding import Encoding
from steelyard.experiments.errors import DataError
from tests.support.own import patients

DAYS = pandas.date_range("1968-11-03", periods=240, freq="37D")


def table(file: Path, dates: list[str] | pandas.Series, **settings: object) -> OwnTable:
    """Write `patients` with a column of dates; the model sees age and the date."""
    frame = patients().assign(seen=dates)
    frame.to_parquet(file) if file.suffix == ".parquet" else frame.to_csv(file, index=False)
    fixed = {"file": str(file), "target": "ill", "split": "part", "features": ("age", "seen")}
    return OwnTable(**{**fixed, **settings})  # type: ignore[arg-type]


def standardised(splits: Splits) -> None:
    """The second input is the day, standardised by the training rows."""
    frame = patients()
    day = (DAYS - pandas.Timestamp("1970-01-01")) / pandas.Timedelta(days=1)
    train = np.asarray(day[frame["part"] == "train"])
    for part, name in ((splits.train, "train"), (splits.validation, "val"), (splits.test, "test")):
        expected = (np.asarray(day[frame["part"] == name]) - train.mean()) / train.std()
        torch.testing.assert_close(part.inputs[:, 1].double(), torch.tensor(expected), atol=1e-6, rtol=1e-6)
        assert part.inputs.shape[1] == 2


@pytest.mark.parametrize(
    ("form", "order"),
    [
        ("%Y-%m-%d", "year first"),
        ("%Y/%m/%d", "year first"),
        ("%Y-%m-%dT00:00:00Z", "year first"),
        ("%d.%m.%Y", "day first"),
        ("%d/%m/%Y", "day first"),
        ("%m-%d-%Y", "month first"),
    ],
)
def test_dates_are_days_however_they_are_written(tmp_path: Path, form: str, order: str) -> None:
    splits = table(tmp_path / "patients.csv", [day.strftime(form) for day in DAYS]).load(0)
    standardised(splits)
    assert f"Dates, as days, standardised by the training rows: seen ({order})." in splits.notes


@pytest.mark.parametrize("kind", ["datetime64[ns]", "datetime64[s]", "date"])
def test_dates_of_parquet(tmp_path: Path, kind: str) -> None:
    days = pandas.Series(DAYS)
    standardised(table(tmp_path / "patients.parquet", days.dt.date if kind == "date" else days.astype(kind)).load(0))


def test_times_count_as_parts_of_a_day() -> None:
    zone = timezone(timedelta(hours=-5, minutes=-30))
    moment = datetime(2024, 2, 29, 21, 15, 30, 250_000, tzinfo=zone)
    found = as_day("2024-02-29 21:15:30.25-05:30", "year first")
    assert found == pytest.approx(moment.timestamp() / 86_400, abs=1e-9)
    assert as_day("29/2/2024 21:15", "day first") == as_day("2024-02-29T21:15Z", "year first")
    assert written_day(found or math.nan) == "2024-03-01"  # in UTC


@pytest.mark.parametrize("value", ["2023-02-29", "2024-13-01", "2024-00-10", "2024-1/2", "2024-01-01 24:00", ""])
def test_what_is_no_date(value: str) -> None:
    assert as_day(value, "year first") is None


def test_missing_dates_take_the_mean_of_the_training_rows_and_the_encoding_is_kept_to_the_bit(tmp_path: Path) -> None:
    texts = [str(day.date()) for day in DAYS]
    texts[3] = "NA"
    data = table(tmp_path / "patients.csv", texts, missing="category")
    splits = data.load(0)
    assert splits.train.inputs.shape[1] == 3
    row = splits.train.inputs[splits.rows["train"].tolist().index(3)]
    assert abs(float(row[1])) < 1e-6
    assert float(row[2]) == 1.0
    assert splits.encoding is not None
    again = Encoding.of_plain(json.loads(json.dumps(splits.encoding.plain())))
    assert again == splits.encoding
    assert torch.equal(again.inputs(data.read())[splits.rows["test"]], splits.test.inputs)
    before = splits.encoding.plain()
    for column in before["numbers"]:
        column["dates"] = "backwards"
    with pytest.raises(ValueError, match="dates must be one of year first, day first, month first, got 'backwards'"):
        Encoding.of_plain(before)


def test_an_encoding_from_before_there_were_dates_is_read(tmp_path: Path) -> None:
    encoding = table(tmp_path / "patients.csv", ["1"] * 240).load(0).encoding
    assert encoding is not None
    old = encoding.plain()
    old["numbers"] = [{key: value for key, value in one.items() if key != "dates"} for one in old["numbers"]]
    assert Encoding.of_plain(old) == encoding


def test_dates_may_be_categories(tmp_path: Path) -> None:
    texts = ["03/04/2020", "05/06/2021"] * 120
    splits = table(tmp_path / "patients.csv", texts, categorical=("seen",)).load(0)
    assert splits.train.inputs.shape[1] == 3
    assert set(splits.train.inputs[:, 1:].flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        (["03/04/2020", "05/06/2021"], r"line 2: 'seen' is '03/04/2020', expected a date of which it is clear what"),
        (["13/04/2020", "04/13/2021"], r"line 3: 'seen' is '04/13/2021', expected a date with the day first, as in li"),
        (["13/04/20", "05/06/21"], r"line 2: 'seen' is '13/04/20', expected a year of four digits; write dates as 202"),
        (["2020-02-28", "2020-02-30"], r"line 3: 'seen' is '2020-02-30', expected a date written as 2024-03-31"),
        (["2020-02-28", "2020-02-27", "late"], r"line 4: 'seen' is 'late', expected a date written as 2024-03-31"),
        (["2020-02-28", "2020-02-27", "3.2.2020"], r"line 4: 'seen' is '3\.2\.2020', expected a date written as 2024"),
    ],
    ids=["ambiguous", "contradiction", "two digits", "no such day", "a word", "two ways"],
)
def test_dates_that_are_not_clear_are_refused(tmp_path: Path, dates: list[str], words: str) -> None:
    data = table(tmp_path / "patients.csv", (dates * 240)[:240])
    with pytest.raises(DataError, match=rf"patients\.csv, {words}") as caught:
        data.load(0)
    assert "or list 'seen' in data.categorical or data.drop" in str(caught.value)


@pytest.mark.parametrize("words", [["10.0.0.1"], ["99-99-2020"], ["May 3, 2020"], ["2020-01-02", "a", "b"]])
def test_what_only_looks_like_dates_stays_a_category(tmp_path: Path, words: list[str]) -> None:
    splits = table(tmp_path / "patients.csv", (words * 240)[:240]).load(0)
    assert "Categories: seen." in splits.notes
