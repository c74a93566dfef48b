"""The written model: what it needs to read a table of the user's again stands in its own file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from steelyard._support import _files
from steelyard._support._modules import evaluating
from steelyard._support._plain import plain
from steelyard._support._text import parse_json
from steelyard.experiments.data.columns import read_any
from steelyard.experiments.data.encoding import Encoding
from steelyard.experiments.data.table import Table, check_columns, file_bytes
from steelyard.experiments.errors import DataError
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.runs.schema import parse

__all__ = ["Predictor"]

_FORMAT, _VERSION, _READ = "steelyard.predictor", 2, (1, 2)  # 1 has no scale
_CHUNK = 10_000


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model with what its inputs are made by: from a table of text to probabilities.

    Attributes:
        module: the net.
        settings: what it was built by.
        shape: of an input.
        classes: a name for each output; none of a regression.
        target: the column that it predicts.
        encoding: from columns to inputs; None where the inputs were arrays.
        separator: between the values of a line of text.
        scale: of a regression, the mean and the standard deviation of the targets that it was trained on.
    """

    module: nn.Module
    settings: MLP | Logistic
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    target: str
    encoding: Encoding | None
    separator: str = ","
    scale: tuple[float, float] | None = None

    def logits(self, inputs: Float[Tensor, "n *shape"]) -> Float[Tensor, "n outputs"]:
        """Return the outputs for encoded inputs, in evaluation mode; of a regression standardised values ``(n, 1)``."""
        with evaluating(self.module), torch.no_grad():
            return torch.cat([self.module(part) for part in inputs.split(_CHUNK)])

    def probabilities(self, table: str | os.PathLike[str] | Table) -> Float[Tensor, "n classes"]:
        """Return each row's probabilities of the classes.

        Args:
            table: a file as the one that the model was trained on (the target may be missing), or its columns.

        Raises:
            DataError: the file is missing or damaged, a column is missing, a value does not fit (line and column are
                named); or the model takes arrays, or predicts a number.
        """
        if self.scale is not None:
            raise DataError("this model predicts a number, and has no classes: call values(table)")
        return self._outputs(table, "logits(inputs).softmax(1)").softmax(1)

    def values(self, table: str | os.PathLike[str] | Table) -> Float[Tensor, " n"]:
        """Return each row's number ``(n,)``, of a regression, in the target's own unit; errors as `probabilities`."""
        if self.scale is None:
            raise DataError("this model predicts classes: call probabilities(table)")
        return self.in_units(self._outputs(table, "in_units(model.logits(inputs))"))

    def in_units(self, outputs: Float[Tensor, "n 1"]) -> Float[Tensor, " n"]:
        """Return a regression's outputs in the target's own unit ``(n,)``, in double precision."""
        mean, deviation = self.scale or (0.0, 1.0)
        return mean + deviation * outputs.squeeze(1).double()

    def _outputs(self, table: str | os.PathLike[str] | Table, instead: str) -> Float[Tensor, "n outputs"]:
        if self.encoding is None:
            raise DataError(f"this model takes arrays, not a table: call model.{instead}")
        if not isinstance(table, Table):
            path = Path(table)
            table = read_any(path, file_bytes(path), self.separator)
        check_columns(f"{table.path}, line 1", list(table.columns), self.encoding.columns)
        return self.logits(self.encoding.inputs(table))

    def predict(self, table: str | os.PathLike[str] | Table) -> list[str] | list[float]:
        """Return each row's most probable class, of a regression its number; DataError as `probabilities`."""
        if self.scale is not None:
            return self.values(table).tolist()  # type: ignore[no-any-return]
        return [self.classes[place] for place in self.probabilities(table).argmax(1).tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the parameters, and all else as JSON in its header."""
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": plain(self.settings),
            "shape": list(self.shape),
            "classes": list(self.classes),
            "target": self.target,
            "encoding": None if self.encoding is None else self.encoding.plain(),
            "separator": self.separator,
            "scale": None if self.scale is None else list(self.scale),
        }
        header = {"about": json.dumps(about)}  # one entry: safetensors writes several in any order
        state = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        _files.write_bytes(path, to_bytes(state, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictor:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            DataError: no such file, or it is damaged, of another kind or version.
        """
        try:
            with safe_open(_files.regular(path), framework="pt") as file:
                header = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            parse_json(header.get("about", "{}"))  # refuses what is nested too deep
            about = json.loads(header.get("about", "{}"))
            if about.get("format") != _FORMAT or about.get("version") not in _READ:
                raise ValueError(f"it is not a model of version {_VERSION} or before that `steelyard weigh` wrote")
            return _built(about, state, str(path))
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"{path} cannot be read as a model: {error}") from error


def _built(about: Mapping[str, Any], state: dict[str, Tensor], source: str) -> Predictor:
    """Return the predictor; the strings of `about` are the user's own column names, as the file has them."""
    linear = about["model"]["name"] == "logistic"
    settings = parse(Logistic, about["model"], source) if linear else parse(MLP, about["model"], source)
    shape, classes = tuple(map(int, about["shape"])), tuple(map(str, about["classes"]))
    module = settings.build(shape, len(classes), 0)
    module.load_state_dict(state)
    found, told = about["encoding"], about.get("scale")
    encoding = None if found is None else Encoding.of_plain(found)
    scale = None if told is None else (float(told[0]), float(told[1]))
    return Predictor(module, settings, shape, classes, str(about["target"]), encoding, str(about["separator"]), scale)
