"""Arrays of one's own: features with their labels, as .npy, .npz or safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from steelyard._support._scales import standardise
from steelyard.experiments.data.columns import as_texts, read_npy, read_npz
from steelyard.experiments.data.labelled import Labelled
from steelyard.experiments.data.own_data import sha256
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, check_columns, file_bytes
from steelyard.experiments.data.whole import whole_of
from steelyard.experiments.errors import DataError

__all__ = ["EMPTY", "OwnArrays", "finite_inputs", "scaled_inputs"]

EMPTY = ("", "nan", "None", "NaT")
"""What stands for a missing label in an array."""


@dataclass(frozen=True, kw_only=True)
class OwnArrays(Labelled):
    """Features of your own, a row a sample, and the labels that go with them.

    Input: the array `features`, ``(n, ...)``, as 32-bit floats; with `standardise` each entry has mean 0 and standard
        deviation 1 over the training rows.
    Label, metadata, splits: as the settings of `Labelled` say, with arrays ``(n,)`` of numbers, booleans or words
        where these say columns.

    Each of `features`, `target`, `id`, `group`, `attributes`, `environment` and `split` is the name of an array in
    `file`, or the path of an .npy file. No pickle is opened.

    Attributes:
        file: an .npz archive or a .safetensors file, from the working directory; empty: all are .npy files.
        features: the inputs.
        standardise: whether to scale them.
    """

    name: Literal["arrays"] = "arrays"
    features: str
    file: str = ""
    standardise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file and Path(self.file).suffix not in (".npz", ".safetensors"):
            raise ValueError(f"file must name an .npz or a .safetensors file, got {self.file!r}")
        if self.features in self.roles:
            raise ValueError(f"features names {self.features!r}, which is a label: the model would be told the answer")
        if not self.file and (other := next((one for one in self._arrays if not one.endswith(".npy")), None)):
            raise ValueError(f"{other!r} is no .npy file, and no `file` is given that could have an array of that name")

    @property
    def source(self) -> str:
        """The file, or that of the features."""
        return self.file or self.features

    @property
    def _arrays(self) -> tuple[str, ...]:
        return (self.features, *self.roles)

    @property
    def _files(self) -> list[str]:
        return [*filter(None, [self.file]), *dict.fromkeys(one for one in self._arrays if one.endswith(".npy"))]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file; DataError where one cannot be read."""
        return {name: sha256(file_bytes(Path(name))) for name in self._files}

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that the arrays say, or that `seed` makes; `root` and `download` are not needed.

        Raises:
            DataError: a file is missing or damaged, an array is missing or of another length or kind, a number is not
                finite (its row is named); a class, a group or an environment has no sample in a split.
        """
        inputs, table, digests = self._arrays_read()
        return self.splits_of(table, seed, partial(self._features, inputs), digests, EMPTY)

    def whole(self) -> Splits:
        """Return all samples as the training split (`whole_of`); DataError as `load`."""
        inputs, table, digests = self._arrays_read()
        return whole_of(self, table, partial(self._features, inputs), digests, EMPTY)

    def _features(
        self, inputs: Float[Tensor, "n *features"], train: Int[Tensor, " k"]
    ) -> tuple[Tensor, tuple[str, ...]]:
        return scaled_inputs(inputs, train if self.standardise else None)

    def _arrays_read(self) -> tuple[Float[Tensor, "n *features"], Table, dict[str, str]]:
        """Return the inputs, the labels as a table of text, and the digest of each file."""
        files = {name: file_bytes(Path(name)) for name in self._files}
        arrays = {name: read_npy(Path(name), data) for name, data in files.items() if name != self.file}
        if self.file:
            known = _read(Path(self.file), files[self.file])
            check_columns(self.file, list(known), [one for one in self._arrays if one not in arrays])
            arrays = {**known, **arrays}
        place = Path(self.source)
        inputs = finite_inputs(place, self.features, arrays[self.features])
        columns = {name: as_texts(place, name, arrays[name]) for name in dict.fromkeys(self.roles)}
        for name, column in columns.items():
            if len(column) != len(inputs):
                raise DataError(
                    f"{place}: {name!r} has {len(column)} rows and {self.features!r} has {len(inputs)}; each sample "
                    "needs one in both"
                )
        digests = {name: sha256(data) for name, data in files.items()}
        return inputs, Table(place, columns, range(len(inputs)), "row"), digests


def _read(path: Path, data: bytes) -> Mapping[str, np.ndarray]:
    if path.suffix == ".npz":
        return read_npz(path, data)
    try:
        return {name: _as_numpy(tensor) for name, tensor in load(data).items()}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error


def _as_numpy(tensor: Shaped[Tensor, "*shape"]) -> np.ndarray:
    """Return a tensor as an array; of 16-bit floats, one of which NumPy lacks, as 32-bit ones."""
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def scaled_inputs(
    inputs: Float[Tensor, "n *features"], train: Int[Tensor, " k"] | None
) -> tuple[Float[Tensor, "n *features"], tuple[str, ...]]:
    """Return inputs as 32-bit floats, standardised by the rows `train` unless these are None, and what to say of it."""
    if train is None:
        return inputs.float(), ()
    scaled = standardise(inputs.flatten(1), train).reshape(inputs.shape)
    return scaled, ("Features, standardised by the training rows.",)


def finite_inputs(path: Path, name: str, array: np.ndarray) -> Float[Tensor, "n *features"]:
    """Return an array of inputs; DataError if it is no such array, or a number is not finite as a 32-bit float.

    As 32-bit floats, or 64-bit where the array holds more than those do: to be shifted before they are rounded.
    """
    if array.dtype.kind not in "fiub" or array.ndim < 2 or 0 in array.shape:
        raise DataError(
            f"{path}: the features {name!r} are {array.dtype} of shape {array.shape}; they must be numbers (n, ...)"
        )
    exact = np.float32 if np.can_cast(array.dtype, np.float32) else np.float64
    inputs = torch.from_numpy(array.astype(exact))
    wrong = ~(inputs.abs() <= torch.finfo(torch.float32).max)
    if bool(wrong.any()):
        row, *place = torch.nonzero(wrong)[0].tolist()
        column = ", ".join(map(str, place))
        raise DataError(
            f"{path}, row {row}, column {column}: {name!r} is {array[(row, *place)]}, expected a finite number "
            f"(float32; {int(wrong.sum())} are not)"
        )
    return inputs
