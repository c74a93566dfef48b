"""COMPAS: recidivism within two years, with race as the attribute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from steelyard._support import _check
from steelyard._support._scales import standardise
from steelyard.experiments.data.groups import Groups
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, read_csv
from steelyard.experiments.data.tabular import deal_parts, find, one_hot
from steelyard.experiments.errors import DataError

__all__ = ["COMPAS"]

_FILE = "compas-scores-two-years.csv"
_NUMBERS = ("age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count")
_CATEGORIES = {"sex": ("Female", "Male"), "c_charge_degree": ("F", "M")}
_FILTER = ("days_b_screening_arrest", "is_recid", "score_text")
_CLASSES = ("no recidivism", "recidivism")
_RACES = ("African-American", "Caucasian", "Hispanic", "Other", "Asian", "Native American")


@dataclass(frozen=True)
class COMPAS:
    """ProPublica's COMPAS records: is a defendant charged with a new crime within two years?

    Input: a vector. Age, three counts of juvenile offences and the count of prior offences, standardised by the
        training samples; one-hot sex and charge degree. The COMPAS score itself is no input, and race is one (one-hot)
        only with `see_attribute`.
    Label: 1 for `two_year_recid`.
    Metadata: attribute (and environment): the position of the race in `races`; group
        ``len(races) * label + attribute``.
    Splits: rows as in ProPublica's own analysis (screened within 30 days of the arrest, `is_recid` known, an ordinary
        charge, a score: 6,172 of 7,214), of these the ones of the named races (5,278 by default; of the four others
        two have 42 people together). Dealt at random by `seed`, stratified by group: the test split takes `test_share`,
        validation takes `validation_share` of the rest.
    Citation: J. Larson, S. Mattu, L. Kirchner, J. Angwin (2016), How We Analyzed the COMPAS Recidivism Algorithm,
        ProPublica.
    Licence: none stated with the file; published by ProPublica for reuse with attribution.
    """

    story: ClassVar[str] = (
        "Two-year recidivism is more frequent among the African-American than among the Caucasian defendants in these "
        "records, so that race, or what goes with it, predicts the label; errors then differ between groups."
    )
    needs_root: ClassVar[bool] = True
    grayscale: ClassVar[bool] = False
    name: Literal["compas"] = "compas"
    races: tuple[str, ...] = ("African-American", "Caucasian")
    test_share: float = 0.2
    validation_share: float = 0.2
    see_attribute: bool = False

    def __post_init__(self) -> None:
        for race in self.races:
            _check.choice("races", race, _RACES)
        if len(set(self.races)) != len(self.races) or len(self.races) < 2:
            raise ValueError(f"races needs two or more, each once, got {self.races}")
        for name in ("test_share", "validation_share"):
            _check.in_range(name, getattr(self, name), low=0.0, high=1.0, open_low=True, open_high=True)

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes of compas-scores-two-years.csv under `root` (or `root`/compas).

        Raises:
            DataError: the file is missing or does not read as published, or a group has no sample in a split. Nothing
                is downloaded.
        """
        path = find(root, _FILE, self.name)
        wanted = (*_NUMBERS, *_CATEGORIES, *_FILTER, "race", "two_year_recid")
        table = _analysed(read_csv(path, wanted))
        table.codes("race", {race: code for code, race in enumerate(_RACES)})  # a race that is not in the file's list
        table = table.where([race in self.races for race in table.columns["race"]])
        if not len(table):
            raise DataError(f"{path}: no row is of the races {', '.join(self.races)}")
        groups = Groups(
            targets=table.codes("two_year_recid", {"0": 0, "1": 1}),
            attribute=table.codes("race", {race: code for code, race in enumerate(self.races)}),
            classes=_CLASSES,
            attributes=self.races,
        )
        parts = deal_parts(groups.ids, self.test_share, self.validation_share, seed)
        numbers = torch.stack([table.numbers(column) for column in _NUMBERS], 1)
        categories = {**_CATEGORIES, "race": self.races} if self.see_attribute else _CATEGORIES
        inputs = torch.cat([standardise(numbers, parts[0]), one_hot(table, categories)], 1)
        return groups.splits(self.name, inputs, parts, path)


def _analysed(table: Table) -> Table:
    """Return the rows that ProPublica analysed."""
    columns = table.columns
    screened = table.where([value != "" for value in columns["days_b_screening_arrest"]])
    days = screened.numbers("days_b_screening_arrest").abs() <= 30
    columns = screened.columns
    recid = screened.codes("is_recid", {"-1": 0, "0": 1, "1": 1}).tolist()
    known = zip(recid, columns["c_charge_degree"], columns["score_text"], strict=True)
    ordinary = [bool(known) and degree != "O" and score != "N/A" for known, degree, score in known]
    return screened.where([near and kept for near, kept in zip(days.tolist(), ordinary, strict=True)])
