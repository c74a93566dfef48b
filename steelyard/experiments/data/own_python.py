"""Samples that a function of one's own returns."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from steelyard._support import _check
from steelyard._support._code import check_function_name, load_function, source_of
from steelyard._support._random import all_seeded
from steelyard._support._text import few
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.streamed import Streamed
from steelyard.experiments.data.columns import as_texts
from steelyard.experiments.data.groups import PARTS
from steelyard.experiments.data.labelled import Gather, Labelled
from steelyard.experiments.data.own_arrays import EMPTY, finite_inputs, scaled_inputs
from steelyard.experiments.data.own_data import sha256
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, check_columns, file_bytes
from steelyard.experiments.errors import DataError

__all__ = ["OwnPython"]

_SPLIT = "(split)"  # the column that says which split a sample was returned in
_CHUNK = 1024  # samples of a data set that are read at once


@dataclass(frozen=True, kw_only=True)
class OwnPython(Labelled):
    """The splits that a function of your own returns. It is imported and called: its code runs.

    The function takes nothing, or the argument `seed`, and returns a mapping with the keys "train", "test" and, unless
    validation is to be dealt from the training samples, "validation". Each is a mapping of names to what a sample has
    an entry of, ``n`` of them:

    - `features`: an array or a tensor ``(n, ...)`` of finite numbers, or a map-style `Dataset` of tensors ``(...)``;
    - `target`, `id`, `group`, `attributes`, `environment`: arrays, tensors or lists ``(n,)`` of numbers, booleans or
      words, under the names that these settings say; more names may be there.

    Instead of the mapping there may be a map-style `Dataset` of pairs (inputs, target).

    Input: as returned, as 32-bit floats. What the function draws from the global generators of torch, NumPy and Python
        is decided by the run's seed.
    Label, metadata, splits: as the settings of `Labelled` say; `split` is the function's.

    Attributes:
        function: "module:function"; the module is found as Python finds it, or in the working directory.
        features: the name of the inputs.
        standardise: whether each entry of the inputs has mean 0 and standard deviation 1 over the training samples.
        stream: leave the inputs of data sets where they are, and read them batch by batch, at each pass the same.
    """

    name: Literal["python"] = "python"
    function: str
    target: str = "target"
    features: str = "inputs"
    standardise: bool = False
    stream: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_function_name("function", self.function)
        if self.split:
            raise ValueError(f"split is said by the function, which returns {', '.join(PARTS)}; leave it out")
        if self.features in self.roles:
            raise ValueError(f"features names {self.features!r}, which is a label: the model would be told the answer")
        if self.standardise and self.stream:
            raise ValueError("standardise needs all inputs at once, and stream = true reads them batch by batch")

    @property
    def source(self) -> str:
        """The function."""
        return self.function

    @property
    def called(self) -> str:
        """The name in tables and of files."""
        return super().called if self.title else f"{self.name}-{self.function.replace(':', '.')}"

    @property
    def code(self) -> tuple[str, ...]:
        """The function."""
        return (self.function,)

    @property
    def on_disk(self) -> bool:
        """Whether inputs come batch by batch."""
        return self.stream

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the module's file, which is imported; DataError where that cannot be."""
        return {self.function: sha256(file_bytes(source_of(self.function)))}

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the function's splits; `root` and `download` are not needed.

        Raises:
            DataError: there is no such function, it fails, or returns something else; a name is missing, an entry does
                not fit (its split and row are named); a class, a group or an environment has no sample in a split.
        """
        parts = self._returned(seed)
        place = Path(self.function)
        columns: dict[str, list[str]] = {name: [] for name in dict.fromkeys((*self.roles, _SPLIT))}
        lines: list[str] = []
        inputs: list[Any] = []
        for name, part in parts.items():
            check_columns(f"{self.function}, {name!r}", list(part), (self.features, *self.roles))
            one = self._inputs(name, part[self.features])
            for role in dict.fromkeys(self.roles):
                column = as_texts(place, f"{name}: {role}", _as_array(part[role]))
                if len(column) != len(one):
                    raise DataError(
                        f"{self.function}, {name!r}: {role!r} has {len(column)} entries and {self.features!r} has "
                        f"{len(one)}; each sample needs one in both"
                    )
                columns[role] += column
            inputs.append(one)
            columns[_SPLIT] += [name] * len(one)
            lines += [f"{row} of {name}" for row in range(len(one))]
        gather = self._gather(inputs)

        def features(train: Int[Tensor, " k"]) -> tuple[Tensor | Gather, tuple[str, ...]]:
            if not isinstance(gather, Tensor):
                return gather, ()
            return scaled_inputs(gather, train if self.standardise else None)

        own = copy(self)
        _check.store(own, split=_SPLIT)
        return own.splits_of(Table(place, columns, lines, "row"), seed, features, self.digests(), EMPTY)

    def _returned(self, seed: int) -> dict[str, Mapping[str, Any]]:
        """Call the function; return the splits, each a mapping."""
        function = load_function(self.function)
        with all_seeded(seed):
            try:
                takes = "seed" in inspect.signature(function).parameters
                returned = function(seed=seed) if takes else function()
            except Exception as error:
                raise DataError(f"{self.function} failed{_where(error)}: {type(error).__name__}: {error}") from error
            if not isinstance(returned, Mapping):
                raise DataError(
                    f"{self.function} must return a mapping with the keys {', '.join(PARTS)}, got "
                    f"{type(returned).__name__}"
                )
            if unknown := [key for key in returned if key not in PARTS]:
                raise DataError(
                    f"{self.function} returned the key {unknown[0]!r}{_check.nearest(str(unknown[0]), PARTS)}; the "
                    f"keys are {', '.join(PARTS)}"
                )
            if missing := [key for key in (PARTS[0], PARTS[2]) if key not in returned]:
                raise DataError(
                    f"{self.function} returned no {missing[0]!r} (its keys are {few(returned)}); it is needed"
                )
            return {name: self._as_mapping(name, returned[name]) for name in PARTS if name in returned}

    def _as_mapping(self, name: str, part: Any) -> Mapping[str, Any]:
        if isinstance(part, Mapping):
            return part
        if not _is_dataset(part):
            raise DataError(
                f"{self.function}, {name!r}: must be a mapping of names to arrays, tensors or lists, or a map-style "
                f"Dataset of pairs, got {type(part).__name__}"
            )
        try:
            pairs = Streamed.of_dataset(part, chunk=_CHUNK)
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise DataError(f"{self.function}, {name!r}: its items must be pairs (inputs, target): {error}") from error
        return {self.features: _First(part), self.target: pairs.targets}

    def _inputs(self, name: str, found: Any) -> Any:
        """Return inputs as a tensor of finite numbers, or as the data set that they are."""
        if not _is_dataset(found):
            return finite_inputs(Path(f"{self.function}, {name!r}"), self.features, _as_array(found))
        if not len(found):
            raise DataError(f"{self.function}, {name!r}: the data set {self.features!r} has no items")
        if self.stream:
            return found
        try:
            stored = Streamed.of(_First(found), torch.zeros(len(found), dtype=torch.int64), chunk=_CHUNK)
            chunks = [chunk.inputs for chunk in stored.chunks(_CHUNK)]
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise DataError(f"{self.function}, {name!r}: {self.features!r} cannot be read: {error}") from error
        if not all(isinstance(chunk, Tensor) for chunk in chunks):
            raise DataError(f"{self.function}, {name!r}: the items of {self.features!r} must be tensors")
        return finite_inputs(Path(f"{self.function}, {name!r}"), self.features, _as_array(torch.cat(chunks)))

    def _gather(self, inputs: Sequence[Any]) -> Tensor | Gather:
        """Return the inputs of all splits, or what makes samples of some of them."""
        tensors = [one for one in inputs if isinstance(one, Tensor)]
        if len(tensors) == len(inputs):
            if len(shapes := {tuple(one.shape[1:]) for one in tensors}) > 1:
                raise DataError(
                    f"{self.function}: samples of all splits must have one shape, got {few(map(str, shapes))}"
                )
            return torch.cat(tensors)
        return partial(_streamed, ConcatDataset([_First(one) for one in inputs]))


class _First(Dataset[Any]):
    """The inputs of a data set: its items, or the first of each pair."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        item = self.dataset[row]
        return item[0] if isinstance(item, (tuple, list)) else item


def _streamed(
    inputs: Dataset[Any],
    at: Int[Tensor, " k"],
    targets: Shaped[Tensor, " k"],
    environment: Int[Tensor, " k"] | None,
    group: Int[Tensor, " k"] | None,
) -> Batch:
    return Streamed.of(Subset(inputs, at.tolist()), targets, environment=environment, group=group, chunk=_CHUNK)


def _is_dataset(found: Any) -> bool:
    return not isinstance(found, (Tensor, np.ndarray, list, tuple)) and isinstance(found, Dataset)


def _as_array(found: Any) -> np.ndarray:
    """Return an array of a tensor, a list or something of pandas; words are no objects in it."""
    if isinstance(found, Tensor):
        found = found.detach().cpu()
        return (found.float() if found.is_floating_point() and found.itemsize < 4 else found).numpy()
    array = np.asarray(found)
    words = array.dtype == object and array.ndim == 1 and all(isinstance(one, str) for one in array)
    return array.astype("U") if words else array


def _where(error: Exception) -> str:
    """Return the place in the user's code where `error` arose."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
