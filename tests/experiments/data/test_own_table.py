"""A table of one's own: what its columns become, and what is said of a wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from steelyard.experiments.data import OwnTable, Splits
from steelyard.experiments.data.encoding import Encoding
from steelyard.experiments.data.groups import PARTS
from steelyard.experiments.errors import DataError
from tests.support.own import patients, write_patients

SETTINGS: dict = {"target": "ill", "id": "patient", "attributes": ("sex",), "environment": "hospital", "split": "part"}
SETTINGS |= {"drop": ("beds",)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_patients(tmp_path / "patients.csv")


def table(file: Path, **settings: object) -> OwnTable:
    return OwnTable(**{"file": str(file), **SETTINGS, **settings})  # type: ignore[arg-type]


def parts(splits: Splits) -> tuple:
    return splits.train, splits.validation, splits.test


def edit(file: Path, line: int, change: Callable[[list[str]], list[str]]) -> None:
    lines = file.read_text().splitlines()
    lines[line - 1] = ",".join(change(lines[line - 1].split(",")))
    file.write_text("\n".join(lines) + "\n")


def put(column: str, value: str) -> Callable[[list[str]], list[str]]:
    place = list(patients()).index(column)
    return lambda fields: [*fields[:place], value, *fields[place + 1 :]]


def test_columns_become_labels_groups_environments_and_splits(file: Path) -> None:
    splits = table(file).load(0)
    frame = patients()
    assert splits.classes == ("no", "yes")
    assert splits.environments == ("north", "south")
    assert splits.groups == ("no, F", "no, M", "yes, F", "yes, M")
    for part, name in zip(parts(splits), ("train", "val", "test"), strict=True):
        own = frame[frame["part"] == name]
        assert part.targets.tolist() == (own["ill"] == "yes").astype(int).tolist()
        assert part.environment.tolist() == (own["hospital"] == "south").astype(int).tolist()
        sex = torch.tensor((own["sex"] == "M").to_numpy()).long()
        assert torch.equal(part.group, 2 * part.targets + sex)
    assert list(splits.ids) == frame[frame["part"] == "train"]["patient"].tolist()


def test_features_against_a_recomputation_by_pandas(file: Path) -> None:
    splits = table(file).load(0)
    frame = patients()
    train = frame[frame["part"] == "train"]
    assert sorted(train["ward"].unique()) == ["a", "b"]  # "c" is of other rows alone
    for part, name in zip(parts(splits), ("train", "val", "test"), strict=True):
        own = frame[frame["part"] == name]
        numbers = (own[["age", "dose"]] - train[["age", "dose"]].mean()) / train[["age", "dose"]].std(ddof=0)
        wards = np.stack([own["ward"] == "a", own["ward"] == "b"], 1).astype(float)
        expected = torch.tensor(np.concatenate([numbers.to_numpy(), wards], 1)).float()
        torch.testing.assert_close(part.inputs, expected, atol=1e-5, rtol=1e-5)
    unseen = next(note for note in splits.notes if "'c'" in note)
    first = int((frame["ward"] == "c").to_numpy().nonzero()[0][0])
    count = int((frame["ward"] == "c").sum())
    assert f"ward: {count} rows outside" in unseen
    assert f"the first in line {first + 2}" in unseen


def test_other_splits_do_not_move_what_is_fitted(file: Path) -> None:
    before = table(file).load(0)
    frame = patients()
    others = frame["part"] != "train"
    frame.loc[others, "age"] += 1000
    frame.loc[others, "ward"] = "z"
    frame.to_csv(file, index=False)
    after = table(file).load(0)
    assert torch.equal(before.train.inputs, after.train.inputs)
    assert not torch.equal(before.test.inputs, after.test.inputs)


@pytest.mark.parametrize("ending", [".parquet", ".npz"])
def test_formats_hold_the_same_data(file: Path, tmp_path: Path, ending: str) -> None:
    frame, other = patients(), tmp_path / f"patients{ending}"
    if ending == ".parquet":
        frame.to_parquet(other)
    else:
        words = {name: frame[name].to_numpy(dtype="U") for name in frame if frame[name].dtype.kind != "f"}
        np.savez(other, **words, age=frame["age"].to_numpy(), dose=frame["dose"].to_numpy())
    one, two = table(file).load(0), table(other).load(0)
    for first, second in zip(parts(one), parts(two), strict=True):
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.targets, second.targets)
        assert torch.equal(first.group, second.group)
    assert one.ids == two.ids


def test_semicolons_and_a_hint_for_them(file: Path) -> None:
    whole = table(file).load(0)
    file.write_text(file.read_text().replace(",", ";"))
    assert torch.equal(table(file, separator=";").load(0).train.inputs, whole.train.inputs)
    with pytest.raises(DataError, match=r'one column alone.*Then set data.separator = ";"'):
        table(file).load(0)


def test_splits_are_dealt_by_the_seed_and_stratified(file: Path) -> None:
    data = table(file, split="", drop=("part", "beds"), test_share=0.25, validation_share=0.25)
    one, same, other = (data.load(seed) for seed in (0, 0, 1))
    assert one.ids == same.ids != other.ids
    assert replace(data, split_seed=0).load(5).ids == one.ids
    frame = patients()
    strata = frame.groupby(["ill", "sex", "hospital"]).size().to_numpy()
    group = torch.cat([part.group * 2 + part.environment for part in parts(one)])
    assert sorted(torch.bincount(group).tolist()) == sorted(strata.tolist())
    shares = torch.bincount(one.test.group * 2 + one.test.environment) / torch.bincount(group)
    assert bool(((shares - 0.25).abs() <= 1 / torch.bincount(group)).all())


def test_validation_is_dealt_where_the_column_has_none(file: Path) -> None:
    frame = patients()
    frame["part"] = frame["part"].replace({"val": "train"})
    frame.to_csv(file, index=False)
    splits = table(file, validation_share=0.25).load(0)
    assert len(splits.validation) == int(0.25 * (frame["part"] == "train").sum())
    assert len(splits.test) == (frame["part"] == "test").sum()
    assert "validation dealt" in splits.notes[0]


def test_numbers_name_the_splits_too(file: Path) -> None:
    whole = table(file).load(0)
    frame = patients()
    frame["part"] = frame["part"].map({"train": 0, "val": 1, "test": 2})
    frame.to_csv(file, index=False)
    assert table(file).load(0).ids == whole.ids


def test_a_group_column_of_ones_own(file: Path) -> None:
    splits = table(file, group="sex", attributes=()).load(0)
    assert splits.groups == ("F", "M")
    alone = table(file, group="sex", attributes=(), environment="").load(0)
    assert alone.environments == ("all",)


def test_attributes_are_the_environments_where_none_are_named(file: Path) -> None:
    splits = table(file, environment="").load(0)
    assert splits.environments == ("F", "M")
    assert torch.equal(splits.train.environment, splits.train.group % 2)


def test_a_test_split_of_another_environment_has_no_environment_ids(file: Path) -> None:
    frame = patients()
    frame.loc[frame["part"] == "test", "hospital"] = "east"
    frame.to_csv(file, index=False)
    splits = table(file).load(0)
    assert splits.environments == ("north", "south")
    assert splits.test.environment is None


def without_training_groups(file: Path) -> pandas.DataFrame:
    frame = patients()
    frame.loc[frame["part"] == "train", "sex"] = ""
    frame.to_csv(file, index=False)
    return frame


@pytest.mark.parametrize("settings", [{}, {"group": "sex", "attributes": ()}], ids=["attributes", "group"])
def test_groups_may_be_known_outside_of_training_alone(file: Path, settings: dict) -> None:
    whole = table(file, **settings).load(0)
    without_training_groups(file)
    splits = table(file, **settings).load(0)
    assert splits.groups == whole.groups
    assert splits.train.group is None
    assert splits.groups_hidden
    assert not whole.groups_hidden
    for one, other in zip(parts(splits)[1:], parts(whole)[1:], strict=True):
        assert torch.equal(one.group, other.group)
    assert splits.environments == whole.environments
    assert any(note.startswith("Groups are known in validation and test alone (sex)") for note in splits.notes)
    assert table(file, **settings, environment="").load(0).environments == ("all",)


def test_groups_that_are_known_in_part_are_refused(file: Path) -> None:
    frame = without_training_groups(file)
    lines = {part: int((frame["part"] == part).to_numpy().nonzero()[0][0]) + 2 for part in ("train", "val")}
    with pytest.raises(DataError, match=r"'sex' is '', expected a group: .* a column `split`"):
        table(file, split="", drop=("part", "beds")).load(0)
    edit(file, lines["val"], put("sex", ""))
    with pytest.raises(DataError, match=rf"line {lines['val']}: 'sex' is '', .* missing in training rows alone"):
        table(file).load(0)
    edit(file, lines["val"], put("sex", "F"))
    edit(file, lines["train"] + 1, put("sex", "F"))
    with pytest.raises(DataError, match=rf"line {lines['train'] + 1}: 'sex' is 'F', expected no value: .*\(line 2\)"):
        table(file).load(0)
    frame["part"] = frame["part"].replace({"val": "train"})
    frame.loc[frame["part"] == "train", "sex"] = ""
    frame.to_csv(file, index=False)
    with pytest.raises(DataError, match="training rows have no 'sex'.*mark rows with groups as 'validation'"):
        table(file).load(0)


def test_missing_values_are_refused_or_a_category(file: Path) -> None:
    lines = [row + 2 for row, part in enumerate(patients()["part"]) if part == "train"][:2]
    edit(file, lines[0], put("age", "NA"))
    edit(file, lines[1], put("ward", ""))
    with pytest.raises(DataError, match=rf"line {lines[0]}: 'age' is 'NA', expected a value \(2 are missing in all\)"):
        table(file).load(0)
    splits = table(file, missing="category").load(0)
    train = splits.train.inputs  # age, dose, whether age is missing, ward a, b, missing
    assert train.shape[1] == 6
    assert train[0].tolist()[0] == pytest.approx(0, abs=1e-6)  # the mean
    assert train[:, 2].tolist() == [1.0] + [0.0] * (len(train) - 1)
    assert train[1, 3:].tolist() == [0.0, 0.0, 1.0]
    assert f"age: missing in 1 of {len(patients())} rows (the first in line {lines[0]})" in " ".join(splits.notes)
    assert any(note.startswith("ward: missing in 1 ") for note in splits.notes)


def test_a_column_without_a_name_is_no_input(file: Path) -> None:
    whole = table(file).load(0)
    patients().to_csv(file)
    assert torch.equal(table(file).load(0).train.inputs, whole.train.inputs)


def test_numbers_may_be_categories(file: Path) -> None:
    splits = table(file, features=("beds",), drop=(), categorical=("beds",)).load(0)
    assert splits.train.inputs.unique().tolist() == [0.0, 1.0]
    assert bool((splits.train.inputs.sum(1) == 1).all())


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("age", "forty", "line 3: 'age' is 'forty', expected a number; mend it, or list 'age' in data.categorical"),
        ("age", "1e39", "line 3: 'age' is '1e39', expected a number of size"),
        ("ill", "", "line 3: 'ill' is '', expected a value: labels may not be missing"),
        ("hospital", "NA", "line 3: 'hospital' is 'NA', expected a value"),
        ("part", "hold-out", "line 3: 'part' is 'hold-out', expected one of 'train'"),
        ("patient", "p0", r"line 3: 'patient' is 'p0', expected an id that no other line has \(line 2 has it\)"),
        ("sex", "X", r"column 'ill, sex': the group '.*, X' has no sample in the train|validation|test split"),
    ],
)
def test_errors_name_file_line_and_column(file: Path, column: str, value: str, words: str) -> None:
    edit(file, 3, put(column, value))
    with pytest.raises(DataError, match=words) as caught:
        table(file).load(0)
    assert str(file) in str(caught.value)


def test_a_class_absent_from_a_split_is_named(file: Path) -> None:
    frame = patients()
    frame.loc[(frame["part"] == "test"), "ill"] = "no"
    frame.to_csv(file, index=False)
    first = int((frame["ill"] == "yes").to_numpy().nonzero()[0][0]) + 2
    words = r"column 'ill': the class 'yes' has no sample in the test split \(\d+ rows in all, the first in line %d\)"
    with pytest.raises(DataError, match=words % first):
        table(file).load(0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "il"}, "line 1: there is no column 'il'; did you mean 'ill'"),
        ({"features": ("agee",)}, "line 1: there is no column 'agee'; did you mean 'age'"),
        ({"numeric": ("sex",)}, "there is no column 'sex'"),
        ({"classes": ("no", "maybe")}, "'ill' is 'yes', expected one of 'no', 'maybe'"),
        ({"target": "age"}, r"'age' is '.*', expected a class \([0-9]+ different numbers are there"),
    ],
)
def test_wrong_columns(file: Path, settings: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        table(file, **settings).load(0)


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file .*none.csv .paths begin in the working directory"):
        table(tmp_path / "none.csv").load(0)
    for text in ("", "\n", "patient,ill\n"):
        (tmp_path / "empty.csv").write_text(text)
        with pytest.raises(DataError, match=r"empty\.csv"):
            table(tmp_path / "empty.csv").load(0)


def test_two_columns_of_one_name(file: Path) -> None:
    file.write_text(file.read_text().replace("dose", "age", 1))
    with pytest.raises(DataError, match="line 1: there are two columns 'age'"):
        table(file).load(0)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".npz"])
def test_blanks_around_a_columns_name_are_left_out(file: Path, tmp_path: Path, ending: str) -> None:
    whole, frame, other = table(file).load(0), patients(), tmp_path / f"other{ending}"

    def write(names: dict[str, str]) -> None:
        named = frame.rename(columns=names)
        if ending == ".csv":
            named.to_csv(other, index=False)
        elif ending == ".parquet":
            named.to_parquet(other)
        else:
            np.savez(other, **{name: named[name].to_numpy(dtype="U") for name in named})

    write({"age": " age ", "ill": "ill ", "ward": "\tward"})
    splits = table(other).load(0)
    assert torch.equal(splits.train.inputs, whole.train.inputs)
    assert splits.encoding == whole.encoding
    write({"dose": " age"})
    with pytest.raises(DataError, match=rf"other\{ending}.* there are two columns 'age'"):
        table(other).load(0)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", ill=np.array(["a", None], dtype=object))
    with pytest.raises(DataError, match="cannot be read as an archive of plain NumPy arrays"):
        OwnTable(file=str(tmp_path / "objects.npz"), target="ill").load(0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": ""}, "target must name the column"),
        ({"group": "sex"}, "give one of them"),
        ({"attributes": ("sex", "sex")}, "attributes names 'sex' twice"),
        ({"environment": "ill"}, "is the target"),
        ({"features": ("ill",)}, "would be told the answer"),
        ({"numeric": ("age",), "categorical": ("age",)}, "both name 'age'"),
        ({"separator": ",,"}, "one character"),
        ({"test_share": 1.0}, "test_share"),
        ({"split_seed": -1}, "split_seed"),
    ],
)
def test_settings_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        table(Path("patients.csv"), **settings)


def test_a_parquet_column_of_lists_is_refused_by_name(tmp_path: Path) -> None:
    patients().assign(bad=[[1]] * len(patients())).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="the column 'bad' holds list"):
        table(tmp_path / "bad.parquet").load(0)


def test_a_name_in_a_published_table_is_not_taken(tmp_path: Path) -> None:
    assert table(tmp_path / "adult.csv").called == "table-adult"
    assert table(tmp_path / "a b/c d.csv", title="mine / too").called == "table-mine_too"


def test_empty_cells_of_parquet_are_missing(tmp_path: Path) -> None:
    frame: pandas.DataFrame = patients()
    frame.loc[4, "age"] = np.nan
    frame.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="row 4: 'age' is"):
        table(tmp_path / "p.parquet").load(0)


def test_clean_rows_of_a_second_file_are_the_validation_split(file: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.csv"
    patients().head(12).drop(columns=["patient", "part", "beds"]).to_csv(clean, index=False)
    splits = table(file, clean=str(clean), split="", drop=("beds", "part"), test_share=0.25).load(0)
    assert [len(part) for part in parts(splits)] == [180, 12, 60]
    assert splits.rows["validation"].tolist() == list(range(240, 252))
    assert splits.validation.targets.tolist() == [row % 2 for row in range(12)]
    assert set(splits.sources) == {str(file), str(clean)}
    assert len(splits.ids) == 180


def test_the_encoding_makes_the_inputs_again_to_the_bit(file: Path) -> None:
    edit(file, 2, put("dose", "NA"))
    own = table(file, missing="category")
    splits = own.load(0)
    assert splits.encoding is not None
    again = Encoding.of_plain(json.loads(json.dumps(splits.encoding.plain()))).inputs(own.read())
    assert splits.encoding.width == again.shape[1]
    for part, name in zip(parts(splits), PARTS, strict=True):
        assert torch.equal(part.inputs, again[splits.rows[name]])


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ((3, "age", "old"), "clean.csv, line 3: 'age' is 'old', expected a number"),
        ((4, "ill", ""), "clean.csv, line 4: 'ill' is '', expected a value"),
        ((1, "age", "years"), "clean.csv, line 1: there is no column 'age'"),
    ],
    ids=["word", "label", "column"],
)
def test_what_is_wrong_with_a_clean_row_is_said_of_its_own_file(
    edits: tuple, said: str, file: Path, tmp_path: Path
) -> None:
    clean = write_patients(tmp_path / "clean.csv", 40)
    line, column, value = edits
    edit(clean, line, put(column, value))
    with pytest.raises(DataError, match=said):
        table(file, clean=str(clean), split="", drop=("beds", "part")).load(0)


def test_a_class_that_no_clean_row_has(file: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.csv"
    patients()[::2].assign(patient=range(120)).to_csv(clean, index=False)
    with pytest.raises(
        DataError, match=r"the class 'yes' has no sample in the validation split .* add some to .*clean"
    ):
        table(file, clean=str(clean), split="", drop=("beds", "part")).load(0)


def test_groups_that_some_rows_tell_are_those_of_validation_and_test(file: Path) -> None:
    frame = patients()
    frame.loc[frame["part"] == "train", "sex"] = ""
    frame.to_csv(file, index=False)
    own = table(file, split="", drop=("beds", "part"), environment="")
    with pytest.raises(DataError, match=r"expected a group: .*data.groups_on = 'validation'"):
        own.load(0)
    dealt = replace(own, groups_on="validation").load(0)
    assert [len(part) for part in parts(dealt)] == [128, 56, 56]
    assert dealt.groups_hidden
    assert all(not frame["sex"][row] for row in dealt.rows["train"].tolist())
    assert dealt.validation.group is not None
    male = torch.tensor((frame["sex"] == "M").to_numpy())[dealt.rows["validation"]]
    assert torch.equal(dealt.validation.group, 2 * dealt.validation.targets + male)
    frame["sex"] = ""
    frame.to_csv(file, index=False)
    with pytest.raises(DataError, match="the column 'sex' has no value that tells a group"):
        replace(own, groups_on="validation").load(0)
