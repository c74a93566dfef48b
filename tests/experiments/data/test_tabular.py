"""Adult and COMPAS from files in the published layout."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard._support._scales import standardise
from steelyard.experiments.data import COMPAS, Adult, Splits
from steelyard.experiments.data.adult import COLUMNS
from steelyard.experiments.data.groups import Groups
from steelyard.experiments.data.tabular import deal_parts
from steelyard.experiments.errors import DataError
from tests.support.layouts import REAL_ROOT, replace_line, write_adult, write_compas

WRITERS = {"adult": (Adult(), write_adult), "compas": (COMPAS(), write_compas)}


def parts(splits: Splits) -> tuple:
    return splits.train, splits.validation, splits.test


@pytest.fixture(params=WRITERS)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> tuple:
    data, writer = WRITERS[request.param]
    return data, writer(tmp_path)


def test_groups_are_label_and_attribute(tiny: tuple) -> None:
    splits = tiny[0].load(0, tiny[1])
    assert len(splits.groups) == 4
    for part in parts(splits):
        assert torch.equal(part.group, 2 * part.targets + part.environment)
        assert bool((torch.bincount(part.group, minlength=4) > 0).all())
    assert splits.groups[1] == f"{splits.classes[0]}, {splits.environments[1]}"


def test_seeds_deal_the_rows(tiny: tuple) -> None:
    one, same, other = (tiny[0].load(seed, tiny[1]) for seed in (0, 0, 1))
    assert torch.equal(one.train.inputs, same.train.inputs)
    assert not torch.equal(one.train.inputs, other.train.inputs)


def test_the_attribute_is_no_input_unless_asked(tiny: tuple) -> None:
    data, root = tiny
    hidden, seen = data.load(0, root).train, replace(data, see_attribute=True).load(0, root).train
    extra = seen.inputs[:, hidden.inputs.shape[1] :]
    assert torch.equal(seen.inputs[:, : hidden.inputs.shape[1]], hidden.inputs)
    assert torch.equal(extra[:, -1].long(), seen.environment)


def test_missing_files_name_where_was_looked(tiny: tuple, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a data root"):
        tiny[0].load(0)
    with pytest.raises(DataError, match="looked for .*empty"):
        tiny[0].load(0, tmp_path / "empty")


def test_the_file_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    write_adult(tmp_path / "adult")
    assert len(Adult().load(0, tmp_path).test) == 16


def test_scaling_is_fitted_to_the_training_rows_alone() -> None:
    numbers = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
    numbers[:, 1] = 0.1  # constant
    train = torch.arange(20)
    moved = numbers.clone()
    moved[20:] += 100
    assert torch.equal(standardise(numbers, train)[:20], standardise(moved, train)[:20])
    scaled = standardise(numbers, train)[:20]
    torch.testing.assert_close(scaled[:, 0].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0))
    assert not scaled[:, 1].any()


def test_parts_share_no_row_and_are_stratified() -> None:
    strata = torch.arange(200) % 4
    dealt = deal_parts(strata, 0.2, 0.25, seed=3)
    assert sorted(torch.cat(dealt).tolist()) == list(range(200))
    assert [torch.bincount(strata[part]).tolist() for part in dealt] == [[30] * 4, [10] * 4, [10] * 4]


def test_adult_features(tmp_path: Path) -> None:
    splits = Adult().load(0, write_adult(tmp_path))
    assert splits.train.inputs.shape == (52, 5 + 9 + 7 + 15 + 6 + 5 + 42)
    flags = splits.train.inputs[:, 5:]
    assert bool((flags.sum(1) == 6).all())  # six one-hot columns, "?" a category like others
    assert flags.unique().tolist() == [0.0, 1.0]


def test_adult_published_test_split(tmp_path: Path) -> None:
    write_adult(tmp_path)
    with pytest.raises(DataError, match=r"adult\.test is not under"):
        Adult(test="published").load(0, tmp_path)
    write_adult(tmp_path, 30, "adult.test")
    splits = Adult(test="published").load(0, tmp_path)
    assert [len(part) for part in parts(splits)] == [64, 16, 30]
    assert splits.test.targets.tolist() == [row // 2 % 2 for row in range(30)]  # in the file's order
    assert splits.test.environment.tolist() == [row % 2 for row in range(30)]
    without_remark = tmp_path / "adult.test"
    without_remark.write_text(without_remark.read_text().split("\n", 1)[1])
    assert len(Adult(test="published").load(0, tmp_path).test) == 30


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (", Female,", ", female,", "line 3: 'sex' is 'female', expected one of 'Female', 'Male'"),
        ("<=50K", "<=50K.", "line 3: 'income' is '<=50K.'"),
        (", United-States", ", Atlantis", "line 3: 'native-country' is 'Atlantis'"),
        (", 13,", ",", "line 3: has 14 values, expected 15"),
        (", 40,", ", forty,", "line 3: 'hours-per-week' is 'forty', expected a number"),
        (", 40,", ", 1e39,", "line 3: 'hours-per-week' is '1e39', expected a number of size 3.4e"),
        (", 0, 40,", ", -2, 40,", "line 3: 'capital-loss' is '-2', expected a number >= 0"),
    ],
)
def test_adult_errors_name_file_and_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write_adult(tmp_path) / "adult.data"
    if old == "<=50K":
        replace_line(path, 5, old, new)
        words = words.replace("line 3", "line 5")
    else:
        replace_line(path, 3, old, new)
    with pytest.raises(DataError, match=words) as caught:
        Adult().load(0, tmp_path)
    assert str(path) in str(caught.value)


def test_compas_keeps_the_rows_that_propublica_analysed(tmp_path: Path) -> None:
    splits = COMPAS().load(0, write_compas(tmp_path, 120))
    kept = [row for row in range(120) if row % 10 < 8 and row % 3 < 2]
    assert sum(len(part) for part in parts(splits)) == len(kept)
    three = COMPAS(races=("Hispanic", "Caucasian", "African-American")).load(0, tmp_path)
    assert sum(len(part) for part in parts(three)) == 96
    assert three.environments == ("Hispanic", "Caucasian", "African-American")
    assert len(three.groups) == 6


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("race", "ethnicity", "line 1: there is no column 'race'"),
        ("two_year_recid", "2_year_recid", "line 1: there is no column 'two_year_recid'; did you mean '2_year_recid'"),
    ],
)
def test_compas_wrong_column(tmp_path: Path, old: str, new: str, words: str) -> None:
    replace_line(write_compas(tmp_path) / "compas-scores-two-years.csv", 1, old, new)
    with pytest.raises(DataError, match=words):
        COMPAS().load(0, tmp_path)


def test_compas_values_that_are_none(tmp_path: Path) -> None:
    path = write_compas(tmp_path) / "compas-scores-two-years.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    rows[1][rows[0].index("is_recid")] = "2"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(DataError, match=r"line 2: 'is_recid' is '2', expected one of '-1', '0', '1'"):
        COMPAS().load(0, tmp_path)


def test_an_empty_group_is_named_with_the_counts(tmp_path: Path) -> None:
    path = write_compas(tmp_path) / "compas-scores-two-years.csv"
    path.write_text(path.read_text().replace("Caucasian", "Other"))
    with pytest.raises(DataError, match=r"group 'no recidivism, Caucasian' has no sample in the train split \(.*: 0"):
        COMPAS().load(0, tmp_path)


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (Adult, {"test_share": 0.0}, "test_share"),
        (COMPAS, {"validation_share": 1.0}, "validation_share"),
        (COMPAS, {"races": ("Caucasian",)}, "two or more"),
        (COMPAS, {"races": ("Caucasian", "Caucasian")}, "two or more"),
        (COMPAS, {"races": ("Caucasian", "African American")}, "did you mean 'African-American'"),
    ],
)
def test_settings_out_of_range_are_refused(data: type, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        data(**settings)


def test_splits_refuse_group_names_without_group_ids(tmp_path: Path) -> None:
    splits = Adult().load(0, write_adult(tmp_path))
    with pytest.raises(ValueError, match="group ids below 4"):
        replace(splits, test=replace(splits.test, group=None))
    with pytest.raises(ValueError, match="group ids below 3"):
        replace(splits, groups=splits.groups[:3])


def test_group_names_and_ids() -> None:
    groups = Groups(torch.tensor([0, 1]), torch.tensor([2, 0]), ("no", "yes"), ("a", "b", "c"))
    assert groups.ids.tolist() == [2, 3]
    assert [groups.names[k] for k in groups.ids.tolist()] == ["no, c", "yes, a"]


@pytest.mark.data
@pytest.mark.skipif(not (REAL_ROOT / "adult.data").is_file(), reason="adult.data is not at hand")
def test_the_real_adult() -> None:
    splits = Adult().load(0, REAL_ROOT)
    counts = sum(torch.bincount(part.group, minlength=4) for part in parts(splits))
    assert counts.tolist() == [9592, 15128, 1179, 6662]  # counted with the csv module alone
    assert [len(part) for part in parts(splits)] == [20840, 5209, 6512]
    assert len(COLUMNS) == 15


@pytest.mark.data
@pytest.mark.skipif(not (REAL_ROOT / "compas-scores-two-years.csv").is_file(), reason="COMPAS is not at hand")
def test_the_real_compas() -> None:
    splits = COMPAS().load(0, REAL_ROOT)
    counts = sum(torch.bincount(part.group, minlength=4) for part in parts(splits))
    assert counts.tolist() == [1514, 1281, 1661, 822]
    everybody = COMPAS(races=("African-American", "Caucasian", "Hispanic", "Other")).load(0, REAL_ROOT)
    assert sum(len(part) for part in parts(everybody)) == 6172 - 42
