"""Backbones: torchvision's residual networks up to the last layer, with its weights or ones of a file."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._files import open_file, regular
from steelyard.experiments.errors import DataError

__all__ = ["Architecture", "Backbone"]

Architecture: TypeAlias = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

_FILES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns an image into features: a ResNet without its last layer.

    Attributes:
        model: which of torchvision's.
        weights: the name of torchvision's weights ("IMAGENET1K_V1" are the ones that the papers on Waterbirds and
            CelebA start from), or the path of a .pth, .pt or .safetensors file with a state dict of `model`. The last
            layer in it, if any, is passed over.
        batch_size: images that are computed at once.
        workers: processes that decode images; 0 decodes in the main one.
        device: where the network computes, a torch device.
    """

    model: Architecture = "resnet50"
    weights: str = "IMAGENET1K_V1"
    batch_size: int = 64
    workers: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check.integer("batch_size", self.batch_size, low=1)
        _check.integer("workers", self.workers, low=0)
        if not self.weights:
            raise ValueError("weights must name torchvision's weights or a file, got an empty string")

    @property
    def file(self) -> Path | None:
        """The weights file, or None where `weights` names torchvision's."""
        return Path(self.weights).expanduser() if self.weights.endswith(_FILES) else None

    def identity(self) -> str:
        """Return what tells these weights from others: torchvision's file name, or the digest of the file.

        Nothing is downloaded. torchvision's file names hold the first eight digits of the file's SHA-256.
        """
        if self.file is None:
            return f"{self.model}:{_file_name(self._published())}"
        try:
            with open_file(self.file) as opened:
                return f"{self.model}:sha256:{_digest(opened)}"
        except OSError as error:
            raise DataError(f"the weights {self.file} cannot be read: {error}") from error

    def build(self, download: bool = False) -> nn.Module:
        """Return the network in evaluation mode: images ``(n, 3, h, w)`` -> features ``(n, d)``.

        Args:
            download: let torchvision download its weights if they are not on this machine.

        Raises:
            DataError: weights missing, not to be had, damaged, or those of another model.
        """
        return self.network(lambda features: nn.Identity(), download).eval().requires_grad_(False)

    def network(self, head: Callable[[int], nn.Module], download: bool = False) -> nn.Module:
        """Return the network with these weights and another last layer, `head` of the number of features.

        Args and errors are those of `build`.
        """
        from steelyard._support._torchvision import torchvision

        source, state = self.state(download)
        with torch.device("meta"):  # the constructor would draw parameters that the weights replace
            network = torchvision.models.get_model(self.model, weights=None)
        features, network.fc = network.fc.in_features, nn.Identity()
        state = {
            key: value.float() if value.is_floating_point() else value  # weights may be kept in half precision
            for key, value in state.items()
            if not key.startswith("fc.")
        }
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise DataError(f"{source} does not hold the weights of a {self.model}: {error}") from error
        network.fc = head(features)
        return network

    def _published(self) -> Any:
        """Return torchvision's entry for `weights`."""
        from steelyard._support._torchvision import torchvision

        entries = torchvision.models.get_model_weights(self.model)
        names = [entry.name for entry in entries]
        if self.weights not in names:
            raise DataError(
                f"{self.model} has no weights {self.weights!r}{_check.nearest(self.weights, names)} (torchvision has "
                f"{', '.join(names)}; a file of your own must end in {', '.join(_FILES)})"
            )
        return entries[self.weights]

    def state(self, download: bool = False) -> tuple[str, dict[str, Tensor]]:
        """Return where the weights come from and the state dict; args and errors are those of `build`."""
        if self.file is not None:
            return str(self.file), _load(self.file)
        entry = self._published()
        place = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(entry)
        if not place.is_file():
            ways = (
                f"copy it from a machine that has it ({entry.url}), or set the backbone's `weights` to the path of a "
                "file of your own"
            )
            if not download:
                raise DataError(f"the weights of {self.model} are not at {place}: allow --download, {ways}")
            try:
                entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
            except (OSError, RuntimeError) as error:
                raise DataError(f"torchvision could not download {entry.url}: {error}; offline, {ways}") from error
        return str(place), _load(place)


def _file_name(entry: Any) -> str:
    return entry.url.rpartition("/")[2]


# What torch's restricted unpickler and its zip reader raise on damaged bytes (found by tests/fuzz).
_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, pickle.UnpicklingError, struct.error, SafetensorError),
)


def _load(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return load_file(regular(path))
        regular(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise DataError(f"the weights {path} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(
            f"{path} must hold a state dict, names to tensors (as torch.save(model.state_dict(), path) writes)"
        )
    return state


def _digest(opened: Any) -> str:
    digest = hashlib.sha256()
    while block := opened.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
