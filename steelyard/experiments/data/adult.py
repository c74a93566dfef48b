"""UCI Adult: income, with sex as the attribute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard._support._files import open_file
from steelyard._support._scales import standardise
from steelyard.experiments.data.groups import Groups
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, read_csv
from steelyard.experiments.data.tabular import deal_parts, find, one_hot
from steelyard.experiments.errors import DataError

__all__ = ["COLUMNS", "Adult"]

COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
_NUMBERS = ("age", "education-num", "hours-per-week")
_MONEY = ("capital-gain", "capital-loss")
# The categories that adult.names lists, and "?" where values may be missing: so the width depends on no sample.
_CATEGORIES: dict[str, tuple[str, ...]] = {
    "workclass": (
        *("Private", "Self-emp-not-inc", "Self-emp-inc", "Federal-gov", "Local-gov", "State-gov", "Without-pay"),
        *("Never-worked", "?"),
    ),
    "marital-status": (
        *("Married-civ-spouse", "Divorced", "Never-married", "Separated", "Widowed", "Married-spouse-absent"),
        "Married-AF-spouse",
    ),
    "occupation": (
        *("Tech-support", "Craft-repair", "Other-service", "Sales", "Exec-managerial", "Prof-specialty"),
        *("Handlers-cleaners", "Machine-op-inspct", "Adm-clerical", "Farming-fishing", "Transport-moving"),
        *("Priv-house-serv", "Protective-serv", "Armed-Forces", "?"),
    ),
    "relationship": ("Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"),
    "race": ("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black"),
    "native-country": (
        *("United-States", "Cambodia", "England", "Puerto-Rico", "Canada", "Germany", "Outlying-US(Guam-USVI-etc)"),
        *("India", "Japan", "Greece", "South", "China", "Cuba", "Iran", "Honduras", "Philippines", "Italy", "Poland"),
        *("Jamaica", "Vietnam", "Mexico", "Portugal", "Ireland", "France", "Dominican-Republic", "Laos", "Ecuador"),
        *("Taiwan", "Haiti", "Columbia", "Hungary", "Guatemala", "Nicaragua", "Scotland", "Thailand", "Yugoslavia"),
        *("El-Salvador", "Trinadad&Tobago", "Peru", "Hong", "Holand-Netherlands", "?"),
    ),
}
_SEXES = ("Female", "Male")
_CLASSES = ("<=50K", ">50K")


@dataclass(frozen=True)
class Adult:
    """UCI Adult (the 1994 census): does a person earn more than 50,000 dollars a year?

    Input: a vector. Age, education-num, hours-per-week, and ``log(1 + x)`` of capital gain and loss, each standardised
        by the training samples; one-hot workclass, marital-status, occupation, relationship, race, native-country,
        with "?" (unknown) as a category. `education` says again what education-num says, and fnlwgt is the census'
        sampling weight: neither is an input. Sex is one only with `see_attribute`.
    Label: 1 for ">50K".
    Metadata: attribute (and environment) 0 Female, 1 Male; group ``2 * label + attribute``. In adult.data 11% of the
        women and 31% of the men earn more than 50K.
    Splits, by `test`:
        "share": adult.data alone (32,561 rows), dealt at random by `seed`, stratified by group: the test split takes
        `test_share`, validation takes `validation_share` of the rest;
        "published": the test split is adult.test (16,281 rows), which the publisher set aside; validation takes its
        share of adult.data.
    Citation: B. Becker and R. Kohavi (1996), Adult, UCI Machine Learning Repository, doi:10.24432/C5XW20.
    Licence: CC BY 4.0.
    """

    story: ClassVar[str] = (
        "Women who earn more than 50,000 dollars are 1,179 of 32,561 people: a model can be right about nearly "
        "everybody and wrong about most of them."
    )
    needs_root: ClassVar[bool] = True
    grayscale: ClassVar[bool] = False
    name: Literal["adult"] = "adult"
    test: Literal["share", "published"] = "share"
    test_share: float = 0.2
    validation_share: float = 0.2
    see_attribute: bool = False

    def __post_init__(self) -> None:
        for name in ("test_share", "validation_share"):
            _check.in_range(name, getattr(self, name), low=0.0, high=1.0, open_low=True, open_high=True)

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes of adult.data under `root` (or under `root`/adult).

        Raises:
            DataError: a file is missing or does not read as published, or a group has no sample in a split. Nothing
                is downloaded.
        """
        path = find(root, "adult.data", self.name)
        table = read_csv(path, COLUMNS, COLUMNS)
        test = 0.0 if self.test == "published" else self.test_share
        train, validation, held = deal_parts(_groups(table).ids, test, self.validation_share, seed)
        if self.test == "published":
            other = _published_test(find(root, "adult.test", self.name))
            held = len(table) + torch.arange(len(other))
            numbers, flags, groups = (torch.cat(pair) for pair in zip(_encoded(table), _encoded(other), strict=True))
        else:
            numbers, flags, groups = _encoded(table)
        targets, attribute = groups[:, 0], groups[:, 1]
        inputs = torch.cat([standardise(numbers, train), flags], 1)
        if self.see_attribute:
            inputs = torch.cat([inputs, attribute[:, None].float()], 1)
        problem = Groups(targets, attribute, _CLASSES, _SEXES)
        return problem.splits(self.name, inputs, (train, validation, held), path)


def _published_test(path: Path) -> Table:
    """Return adult.test: its first line is a remark, and its labels end with a full stop."""
    table = read_csv(path, COLUMNS, COLUMNS, skip=int(_begins_with_bar(path)))
    income = [value.removesuffix(".") for value in table.columns["income"]]
    return Table(path, {**table.columns, "income": income}, table.lines)


def _begins_with_bar(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return file.read(1) == b"|"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _groups(table: Table) -> Groups:
    targets = table.codes("income", {name: code for code, name in enumerate(_CLASSES)})
    attribute = table.codes("sex", {name: code for code, name in enumerate(_SEXES)})
    return Groups(targets, attribute, _CLASSES, _SEXES)


def _encoded(table: Table) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers, one-hot columns, and the class and attribute ids as two columns."""
    numbers = [table.numbers(column) for column in _NUMBERS]
    money = [table.numbers(column, low=0.0).log1p() for column in _MONEY]
    groups = _groups(table)
    return (
        torch.stack(numbers + money, 1),
        one_hot(table, _CATEGORIES),
        torch.stack([groups.targets, groups.attribute], 1),
    )
