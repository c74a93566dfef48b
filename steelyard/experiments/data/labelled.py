"""Data sets of one's own: what each column of labels means, and the splits that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard._support._text import few
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.groups import PARTS
from steelyard.experiments.data.label_columns import (
    check_classes,
    check_filled,
    combined,
    covers,
    scale_of,
    sorted_values,
    unique_rows,
)
from steelyard.experiments.data.own_data import OwnData, check_distinct
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table
from steelyard.experiments.data.tabular import deal_parts
from steelyard.experiments.errors import DataError

__all__ = ["Gather", "Labelled"]

_SPLITS = {
    **dict.fromkeys(("train", "training", "0"), 0),
    **dict.fromkeys(("validation", "valid", "val", "dev", "1"), 1),
    **dict.fromkeys(("test", "testing", "2"), 2),
}

Parts = tuple[Tensor, Tensor, Tensor]
Gather = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Batch]
"""Positions, their targets, environments and groups -> these samples, wherever their inputs are."""
Features = Callable[[Tensor], tuple[Tensor | Gather, tuple[str, ...]]]
"""Positions of the training rows -> the inputs of all rows ``(n, ...)``, or what makes samples of some of them, and
what a reader has to know of them.
"""


@dataclass(frozen=True, kw_only=True)
class Labelled(OwnData):
    """What the columns of labels mean.

    Attributes:
        target: the column of the class, or of the number.
        task: "classification", or "regression" of a target that is a number. It is standardised by the training rows,
            and figures in its own units are told beside. Groups are then those of the attributes alone.
        classes: the classes in the order of their ids; empty: all that occur, numbers by size, words by the alphabet.
            The head "one_logit" predicts the second.
        id: the column of each sample's name, no two alike; empty: the row's number, from 0.
        group: the column of each sample's group; or
        attributes: columns whose values make groups together with the class (group = class x attributes). Without
            `environment` they are the environments too. Groups that are not known in training are left empty in all
            rows that `split` calls training; then the methods that need none there run (`Splits.groups_hidden`).
        groups_on: "all", or "validation": without `split` too, groups may be missing; rows that lack them are then for
            training, and the others are dealt to validation and test, half each.
        environment: the column of the environment, which the validation and the training split share.
        split: the column that says "train", "validation" or "test" (or 0, 1, 2) of each sample. Without rows of
            validation, `validation_share` of the training rows are dealt. Empty: all are dealt at random.
        test_share: share of all samples that are dealt to the test split, stratified by class, group and environment.
        validation_share: share of the rest that is dealt to validation.
        split_seed: the seed of the dealing (default: the run's, so that each seed has splits of its own).
    """

    target: str
    task: Literal["classification", "regression"] = "classification"
    classes: tuple[str, ...] = ()
    id: str = ""
    group: str = ""
    attributes: tuple[str, ...] = ()
    groups_on: Literal["all", "validation"] = "all"
    environment: str = ""
    split: str = ""
    test_share: float = 0.2
    validation_share: float = 0.2
    split_seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("test_share", "validation_share"):
            _check.in_range(name, getattr(self, name), low=0.0, high=1.0, open_low=True, open_high=True)
        if self.split_seed is not None:
            _check.seed("split_seed", self.split_seed)
        if not self.target:
            raise ValueError("target must name the column of the class, got ''")
        if self.group and self.attributes:
            raise ValueError(
                "group is a column of whole groups, attributes make groups with the class: give one of them"
            )
        if self.classes and self.task == "regression":
            raise ValueError("classes are for task = 'classification'; a regression's target is a number")
        for name in ("classes", "attributes"):
            check_distinct(name, getattr(self, name))
        if self.groups_on == "validation" and not (self.group or self.attributes):
            raise ValueError("groups_on = 'validation' needs group or attributes: the columns that make the groups")
        others = [column for column in self.roles if column != self.target]
        if len(others) < len(self.roles) - 1:
            raise ValueError(f"the column {self.target!r} is the target; it cannot be anything else too")

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns of labels that are named."""
        named = (self.target, self.id, self.group, *self.attributes, self.environment, self.split)
        return tuple(column for column in named if column)

    @property
    def story(self) -> str:
        """A sentence for the page: what is learned, and what the groups and environments are."""
        crossed = [self.target] * (self.task == "classification")
        groups = self.group or " x ".join([*crossed, *self.attributes] if self.attributes else [])
        known = {"groups": groups, "environments": self.environment or ", ".join(self.attributes)}
        told = "".join(f"; {what}: {columns}" for what, columns in known.items() if columns)
        what = "class" if self.task == "classification" else "number to predict"
        return f"{self.source}: the {what} is {self.target}{told}."

    def splits_of(
        self,
        table: Table,
        seed: int,
        features: Features,
        digests: Mapping[str, str],
        empty: Sequence[str] = ("",),
        clean: int = 0,
    ) -> Splits:
        """Return the splits of the samples whose labels are in `table`.

        Args:
            table: the columns of `roles`, a row a sample.
            seed: of the dealing, unless `split_seed` is given.
            features: see `Features`.
            digests: see `OwnData.digests`.
            empty: values that stand for a missing one; no label may be missing.
            clean: so many of the last rows are the validation split, and no others.

        Raises:
            DataError: a label is missing or unknown, an id is repeated, or a class, a group or an environment has no
                sample in a split.
        """
        for column in dict.fromkeys(column for column in self.roles if column not in self._of_groups):
            check_filled(table, column, empty)
        ids = self.ids_of(table, clean)
        hidden = self._hidden(table, empty)
        numbers = table.numbers(self.target) if self.task == "regression" else None
        targets, classes = (
            self.targets_of(table) if numbers is None else (torch.zeros(len(table), dtype=torch.int64), ())
        )
        groups, group_names = self._groups(table, targets, classes or ("",), hidden)
        environment = combined(table, self._of_environments(hidden))
        strata = unique_rows(targets, groups, environment[0])
        own_seed = self.split_seed if self.split_seed is not None else seed
        parts, dealt = self._parts(table, strata, own_seed, hidden, clean)
        if hidden is not None and dealt and self.split:
            raise DataError(
                f"{table.path}: the training rows have no {few(map(repr, self._of_groups))}, nor would the validation "
                f"rows that are dealt from them; mark rows with groups as {PARTS[1]!r} in the column {self.split!r}"
            )
        if numbers is None:
            self._check_present(table, "class", self.target, targets, classes, parts)
        if group_names:
            columns = self.group or ", ".join([*[self.target] * (numbers is None), *self.attributes])
            self._check_present(table, "group", columns, groups, group_names, parts, since=hidden is not None)
        places, names = self._environments(table, *environment, parts, self._of_environments(hidden))
        inputs, notes = features(parts[0])
        scale = None if numbers is None else scale_of(table, self.target, numbers[parts[0]])
        if numbers is not None and scale is not None:
            numbers = ((numbers - scale[0]) / scale[1]).float()
            units = f"{scale[0]:.6g} + {scale[1]:.6g} x the model's output"
            notes = (f"{self.target} is standardised by the training rows: {units}.", *notes)
        targets = targets if numbers is None else numbers
        gather = inputs if callable(inputs) else partial(_in_memory, inputs)
        train, validation, test = (
            gather(
                at,
                targets[at],
                places[at] if part < 2 or covers(places[at], len(names)) else None,
                groups[at] if group_names and (part > 0 or hidden is None) else None,
            )
            for part, at in enumerate(parts)
        )
        if hidden is not None:
            notes = (f"Groups are known in validation and test alone ({', '.join(self._of_groups)}).", *notes)
        counts = ", ".join(f"{len(at)} in {part}" for part, at in zip(PARTS, parts, strict=True))
        return Splits(
            self.called,
            train,
            validation,
            test,
            classes,
            names,
            groups=group_names,
            ids=tuple(ids[row] for row in parts[0].tolist()),
            notes=(f"{len(table)} samples: {counts}{dealt}.", *notes),
            sources=dict(digests),
            target_scale=scale,
            rows=dict(zip(PARTS, parts, strict=True)),
        )

    def targets_of(self, table: Table) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
        """Return the class of each row ``(n,)``, and the classes; DataError where the values are no classes."""
        found = sorted_values(table.columns[self.target])
        if not self.classes:
            check_classes(table, self.target, found)
        classes = self.classes or found
        if len(classes) < 2:
            raise DataError(f"{table.path}: {self.target!r} is {classes[0]!r} in every row; two classes are needed")
        return table.codes(self.target, {name: code for code, name in enumerate(classes)}), classes

    @property
    def _of_groups(self) -> tuple[str, ...]:
        """The columns that make the groups."""
        return (self.group,) if self.group else self.attributes

    def _of_environments(self, hidden: Sequence[bool] | None) -> tuple[str, ...]:
        """Return the columns that make the environments."""
        return (self.environment,) if self.environment else self.attributes if hidden is None else ()

    def _hidden(self, table: Table, empty: Sequence[str]) -> Sequence[bool] | None:
        """Return which rows are of training, if all of these lack their groups; None if no row lacks them."""
        marks = set(empty)
        gaps = {column: [value in marks for value in table.columns[column]] for column in self._of_groups}
        if not any(map(any, gaps.values())):
            return None
        if not self.split and self.groups_on == "validation":
            hidden = [any(row) for row in zip(*gaps.values(), strict=True)]
            if all(hidden):
                raise DataError(f"{table.path}: the column {next(iter(gaps))!r} has no value that tells a group")
            return hidden
        if not self.split:
            for column in gaps:
                check_filled(
                    table,
                    column,
                    empty,
                    what="a group: fill it in, drop the row, or, where groups are known of some rows alone, judge by "
                    "these (data.groups_on = 'validation', or a column `split`; of training rows they may be missing)",
                )
        training = [code == 0 for code in self._said(table).tolist()]
        for column, gap in gaps.items():
            for row, (missing, trained) in enumerate(zip(gap, training, strict=True)):
                if missing and not trained:
                    raise table.error(row, column, "a value: groups may be missing in training rows alone")
                if trained and not missing:
                    told = f"no value: groups are missing in other training rows ({table.unit} "
                    other = next(table.lines[k] for k, gone in enumerate(zip(*gaps.values(), strict=True)) if any(gone))
                    raise table.error(row, column, f"{told}{other}), and may be so in all of them or in none")
        return training

    def _groups(
        self, table: Table, targets: Int[Tensor, " n"], classes: tuple[str, ...], hidden: Sequence[bool] | None
    ) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
        """Return the group of each row (0 where it is not known), and the groups' names."""
        if self.group:
            return combined(table, [self.group], hidden)
        if not self.attributes:
            return torch.zeros(len(table), dtype=torch.int64), ()
        attribute, names = combined(table, self.attributes, hidden)
        return targets * len(names) + attribute, tuple(
            f"{one}, {other}" if one else other for one in classes for other in names
        )

    def _parts(
        self, table: Table, strata: Int[Tensor, " n"], seed: int, hidden: Sequence[bool] | None, clean: int
    ) -> tuple[Parts, str]:
        """Return the rows of each split, and how they were dealt."""
        own = len(table) - clean
        if not self.split:
            strata_are = "class, group and environment" if self.task == "classification" else "group and environment"
            by = f"dealt at random by {self._whose}, stratified by {strata_are}"
            if clean:
                mine = torch.nonzero(~self._repeated(table, own)).flatten()
                rest, _, test = (mine[at] for at in deal_parts(strata[mine], self.test_share, 0.0, seed))
                twice = own - len(mine)
                out = f"; {twice} rows that are among them by their id are left out" if twice else ""
                dealt = (rest, torch.arange(own, len(table)), test)
                return dealt, f" (validation is the clean rows{out}; the others {by})"
            if hidden is not None:
                untold = torch.tensor(hidden)
                told = torch.nonzero(~untold).flatten()
                validation, _, test = (told[at] for at in deal_parts(strata[told], 0.5, 0.0, seed))
                dealt = (torch.nonzero(untold).flatten(), validation, test)
                return dealt, f" (training has the rows whose group is not told; the others are {by})"
            return deal_parts(strata, self.test_share, self.validation_share, seed), f" ({by})"
        said = self._said(table)
        train, validation, test = (torch.nonzero(said == part).flatten() for part in range(3))
        if not len(train) or not len(test):
            missing = PARTS[0] if not len(train) else PARTS[2]
            raise DataError(
                f"{table.path}: no {table.unit} has {missing!r} in the column {self.split!r}; "
                "mark some, or leave `split` out to have splits dealt"
            )
        if clean and len(validation) > clean:
            row = int(validation[0])
            raise table.error(row, self.split, "train or test: the clean rows are the validation split")
        if clean:
            again = self._repeated(table, own)
            train, test = (at[~again[at]] for at in (train, test))
        if len(validation):
            return (train, validation, test), ""
        own_rows, held, _ = deal_parts(strata[train], 0.0, self.validation_share, seed)
        return (train[own_rows], train[held], test), f" (validation dealt from the training rows by {self._whose})"

    def _repeated(self, table: Table, own: int) -> Bool[Tensor, " own"]:
        """Return which of the first `own` rows are among the others, by their ids."""
        others = set(table.columns[self.id][own:]) if self.id else set()
        return torch.tensor([name in others for name in table.columns[self.id][:own]] if others else [False] * own)

    def _said(self, table: Table) -> Int[Tensor, " n"]:
        """Return the split that the table says of each row, 0, 1 or 2."""
        return table.lower(self.split).codes(self.split, _SPLITS)

    @property
    def _whose(self) -> str:
        return "the run's seed" if self.split_seed is None else f"seed {self.split_seed}"

    def _check_present(
        self,
        table: Table,
        kind: str,
        column: str,
        ids: Int[Tensor, " n"],
        names: tuple[str, ...],
        parts: Sequence[Int[Tensor, " _"]],
        since: int = 0,
    ) -> None:
        """Raise DataError unless every class, or group, has a sample in each split, from number `since` on."""
        for part, at in list(zip(PARTS, parts, strict=True))[since:]:
            counts = torch.bincount(ids[at], minlength=len(names)).tolist()
            if 0 not in counts:
                continue
            absent = counts.index(0)
            rows = torch.nonzero(ids == absent).flatten().tolist()
            first = f", the first in {table.place(rows[0]) if table.more else table.line(rows[0])}" if rows else ""
            total = f"{len(rows)} row{'s' * (len(rows) != 1)} in all{first}"
            remedy = self._more_of(table, len(rows))
            if table.more and part == PARTS[1]:
                remedy = f"add some to {table.more[0][1].path}"
            elif table.more and rows and rows[0] >= table.more[0][0]:  # clean rows name what no other row does
                remedy = f"write it there as in {table.path} (there, {kind} is one of {few(_others(names, absent))})"
            raise DataError(
                f"{table.path}, column {column!r}: the {kind} {names[absent]!r} has no sample in the {part} split "
                f"({total}); {remedy}"
            )

    def _more_of(self, table: Table, rows: int) -> str:
        """Return what helps where a split has none of so many rows."""
        if self.split:
            return "mark some of its rows so"
        if rows < len(PARTS):
            return "it has too few rows for all splits: add some, drop it, or join it to another value"
        return "add rows, or give the split a larger share"

    def _environments(
        self, table: Table, codes: Int[Tensor, " n"], names: tuple[str, ...], parts: Parts, said: Sequence[str]
    ) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
        """Return each row's environment (-1: none that training has), and the names of training's environments."""
        seen = torch.unique(codes[parts[0]])
        places = torch.full((max(len(names), 1),), -1)
        places[seen] = torch.arange(len(seen))
        found = places[codes]
        columns = ", ".join(said)
        kept = tuple(names[code] for code in seen.tolist()) if names else ("all",)
        for row in parts[1].tolist():
            if found[row] < 0:
                raise DataError(
                    f"{table.place(row)}, column {columns!r}: a row of the validation split "
                    f"is of the environment {names[int(codes[row])]!r}, which no training row is of; validation is for "
                    f"the training environments ({few(kept)})"
                )
        counts = torch.bincount(found[parts[1]], minlength=len(kept)).tolist()
        if 0 in counts:
            raise DataError(
                f"{table.path}, column {columns!r}: the environment {kept[counts.index(0)]!r} has no sample in the "
                f"{PARTS[1]} split; {self._more_of(table, int((codes == seen[counts.index(0)]).sum()))}"
            )
        return found, kept

    def ids_of(self, table: Table, clean: int = 0) -> Sequence[str]:
        """Return each row's name; DataError where two rows have one (a clean row may be one of the others, checked).

        Args:
            table: the rows.
            clean: so many of the last are clean ones.
        """
        if not self.id:
            return [str(row) for row in range(len(table))]
        names = table.columns[self.id]
        own = len(table) - clean
        for rows in (range(own), range(own, len(table))):
            first: dict[str, int] = {}
            for row in rows:
                if first.setdefault(names[row], row) != row:
                    other = f"an id that no other {table.unit} has ({table.line(first[names[row]])} has it)"
                    raise table.error(row, self.id, other)
        return names


def _in_memory(
    inputs: Shaped[Tensor, "n *shape"],
    at: Int[Tensor, " k"],
    targets: Shaped[Tensor, " k"],
    environment: Int[Tensor, " k"] | None,
    group: Int[Tensor, " k"] | None,
) -> Batch:
    return Batch.of(inputs[at], targets, environment=environment, group=group)


def _others(names: Sequence[str], left_out: int) -> list[str]:
    """Return the names in quotes, but one."""
    return [repr(name) for place, name in enumerate(names) if place != left_out]
