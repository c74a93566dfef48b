"""Backbones: torchvision's networks up to the last layer, or one's own, with published weights or ones of a file."""

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
from steelyard._support._code import check_function_name, load_function, source_of
from steelyard._support._files import open_file, regular
from steelyard._support._random import all_seeded
from steelyard.experiments.errors import DataError

__all__ = ["Architecture", "Backbone", "skeleton"]

Architecture: TypeAlias = Literal["resnet18", "resnet34", "resnet50", "resnet101"]

_FILES = (".pth", ".pt", ".safetensors")


_PUBLISHED = "IMAGENET1K_V1"
_ALIKE = ("resnet18", "resnet34", "resnet50", "resnet101")  # known without an import of torchvision


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns an image into features: one of torchvision's without its last layer, or one's own.

    Attributes:
        model: the name of one of torchvision's classifiers ("resnet50", "efficientnet_b0", "vit_b_16", ...), or
            "module:function": a function of your own that returns a module, images ``(n, 3, h, w)`` -> features
            ``(n, d)``. It is imported and called: its code runs.
        weights: the name of torchvision's weights ("IMAGENET1K_V1" are the ones that the papers on Waterbirds and
            CelebA start from), or the path of a .pth, .pt or .safetensors file with a state dict of `model`. Of
            torchvision's models the last layer in it, if any, is passed over. A module of your own without a file has
            the weights that the function gives it.
        batch_size: images that are computed at once.
        workers: processes that decode images; 0 decodes in the main one.
        device: where the network computes, a torch device.
    """

    model: str = "resnet50"
    weights: str = _PUBLISHED
    batch_size: int = 64
    workers: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check.integer("batch_size", self.batch_size, low=1)
        _check.integer("workers", self.workers, low=0)
        if not self.weights:
            raise ValueError("weights must name torchvision's weights or a file, got an empty string")
        if self.is_own:
            check_function_name("model", self.model)
            if self.file is None and self.weights != _PUBLISHED:
                raise ValueError(
                    f"weights of a module of your own must be a file ({', '.join(_FILES)}), got {self.weights!r}; "
                    "leave them out to take those that the function gives"
                )
        elif self.model not in _ALIKE and self.model not in (known := _architectures()):
            raise ValueError(
                f"model must be one of torchvision's classifiers, or 'module:function' of your own, got {self.model!r}"
                f"{_check.nearest(self.model, known)}"
            )

    @property
    def is_own(self) -> bool:
        """Whether `model` is a function of the user's."""
        return ":" in self.model

    @property
    def file(self) -> Path | None:
        """The weights file, or None where `weights` names torchvision's."""
        return Path(self.weights).expanduser() if self.weights.endswith(_FILES) else None

    def identity(self) -> str:
        """Return what tells these weights from others: torchvision's file name, or the digest of the file.

        Nothing is downloaded. torchvision's file names hold the first eight digits of the file's SHA-256. A module of
        the user's is told by its source file, too, and without weights of a file by the parameters that it has.
        """
        if self.is_own:
            source = hashlib.sha256(source_of(self.model).read_bytes()).hexdigest()
            return f"{self.model}:{source}:{_digest_of(self.build())}"
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
            DataError: weights missing, not to be had, damaged, or those of another model; a function of the user's
                failed, or gave no module.
        """
        if self.is_own:
            return self._own().eval().requires_grad_(False)
        return self.network(lambda features: nn.Identity(), download).eval().requires_grad_(False)

    def network(self, head: Callable[[int], nn.Module], download: bool = False) -> nn.Module:
        """Return the network with these weights and another last layer, `head` of the number of features.

        Args and errors are those of `build`.
        """
        source, state = self.state(download)
        network, name, features = skeleton(self.model)
        _put(network, name, nn.Identity())
        _fill(
            network, {key: value for key, value in state.items() if not key.startswith(f"{name}.")}, source, self.model
        )
        _put(network, name, head(features))
        return network

    def _own(self) -> nn.Module:
        """Return the user's module, with the weights of the file where one is named."""
        make = load_function(self.model)
        with all_seeded(0):  # what it draws is the same each time, and found again in the cache
            try:
                network = make()
            except Exception as error:
                raise DataError(f"the backbone {self.model} failed: {type(error).__name__}: {error}") from error
        if not isinstance(network, nn.Module):
            raise DataError(f"the backbone {self.model} must return a torch.nn.Module, got {_check.shown(network)}")
        if self.file is not None:
            _fill(network, _load(self.file), str(self.file), self.model)
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
                f"copy it from a machine that has it ({entry.url}), or give the path of a file of your own "
                "(--backbone-weights, in a recipe the backbone's `weights`)"
            )
            if not download:
                raise DataError(f"the weights of {self.model} are not at {place}: allow --download, {ways}")
            try:
                entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
            except (OSError, RuntimeError) as error:
                raise DataError(f"torchvision could not download {entry.url}: {error}; offline, {ways}") from error
        return str(place), _load(place)


_SPECIAL: dict[str, dict[str, Any]] = {
    name: {"init_weights": False, "transform_input": True} for name in ("googlenet", "inception_v3")
}


def _architectures() -> list[str]:
    """Return the names of torchvision's classifiers."""
    from steelyard._support._torchvision import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def skeleton(model: str) -> tuple[nn.Module, str, int]:
    """Return a classifier of torchvision's on the meta device, its last layer's name, how many features go into that.

    Raises:
        DataError: the last layer is not linear.
    """
    from steelyard._support._torchvision import torchvision

    with torch.device("meta"):  # the constructor would draw parameters that the weights replace
        network = torchvision.models.get_model(model, weights=None, **_SPECIAL.get(model, {}))
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers or layers[-1][1].out_features != _CLASSES:
        raise DataError(
            f"{model} does not end in a linear layer, whose inputs would be the features; take another model, or "
            "'module:function' that returns one of your own"
        )
    return network, layers[-1][0], layers[-1][1].in_features


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(network.get_submodule(place), last, layer)


_CLASSES = 1000  # of ImageNet, which torchvision's classifiers tell apart


def _fill(network: nn.Module, state: dict[str, Tensor], source: str, model: str) -> None:
    """Put the weights `state` into `network`; DataError if they are those of another."""
    # Weights may be kept in half precision.
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise DataError(f"{source} does not hold the weights of a {model}: {error}") from error


def _digest_of(network: nn.Module) -> str:
    """Return the SHA-256 of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    except pickle.UnpicklingError as error:  # (torch's own words advise to execute what is in it)
        raise DataError(
            f"the weights {path} cannot be read: they are no state dict of tensors alone, and nothing else is taken "
            "out of a pickle; write them by torch.save(model.state_dict(), path), or as safetensors"
        ) from error
    except _UNREADABLE as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the weights {path} cannot be read: {first}") from error
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
