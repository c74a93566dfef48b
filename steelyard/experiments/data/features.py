"""Features of a frozen backbone, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steelyard._support._files import atomic_path, regular
from steelyard.experiments.data.images import ImageList, Transform, decode
from steelyard.experiments.errors import DataError
from steelyard.experiments.models.backbone import Backbone

__all__ = ["cache_folder", "features", "keep", "kept", "key"]

_FORMAT = 1  # counts up whenever the same key would mean other features


def features(
    images: ImageList, backbone: Backbone, transform: Transform, *, download: bool = False, cache: Path | None = None
) -> Float[Tensor, "n d"]:
    """Return the features of all images, from the cache if they were computed before.

    Args:
        images: the data set.
        backbone: the network and its weights.
        transform: a deterministic transform whose ``repr`` says all its settings, as those of torchvision do.
        download: let torchvision download the weights.
        cache: the folder of the cache (default: `cache_folder()`). A file there is found again by its `key`; one that
            is damaged is computed again.

    Raises:
        DataError: weights missing, an image damaged (its file and its line in the metadata are named), or a backbone
            of the user's that makes something else of images than finite features, a row an image.
    """
    name = key(images, backbone, transform)
    return kept(
        images.name, backbone, name, len(images), lambda: _compute(images, backbone, transform, download), cache
    )


def kept(
    what: str,
    backbone: Backbone,
    key: str,
    count: int,
    compute: Callable[[], Float[Tensor, "n d"]],
    cache: Path | None = None,
) -> Float[Tensor, "n d"]:
    """Return features from the cache; where it has none of this key, they are computed and put there.

    Args:
        what: the name of the data set. backbone: the network. Both are for the file's name.
        key: a digest of all that the features depend on.
        count: of the images. compute: makes the features. cache: see `features`.

    Raises:
        DataError: the file cannot be written.
    """
    path = _path(what, backbone, key, cache)
    found = _read(path, key, count)
    if found is None:
        found = compute()
        _write(found, path, key)
    return found


def keep(
    computed: Float[Tensor, "n d"],
    images: ImageList,
    backbone: Backbone,
    transform: Transform,
    *,
    cache: Path | None = None,
) -> None:
    """Put features that are at hand into the cache, where `features` with the same arguments finds them.

    Raises:
        DataError: there is not one row for each image, or the file cannot be written.
    """
    if len(computed) != len(images):
        raise DataError(f"{len(images)} images need as many rows of features, got {len(computed)}")
    name = key(images, backbone, transform)
    _write(computed, _path(images.name, backbone, name, cache), name)


def key(images: ImageList, backbone: Backbone, transform: Transform) -> str:
    """Return a digest of all that the features depend on.

    These are the images (path, size and time of change of each, in order), the backbone's weights and the transform.
    Labels and groups are not among them, nor where the data set lies.
    """
    parts = {
        "format": _FORMAT,
        "images": images.fingerprint(range(len(images))),
        "weights": backbone.identity(),
        "transform": repr(transform),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Return where features are kept: $STEELYARD_CACHE, or steelyard/ in $XDG_CACHE_HOME (by default ~/.cache)."""
    if named := os.environ.get("STEELYARD_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steelyard" / "features"


def _path(what: str, backbone: Backbone, name: str, cache: Path | None) -> Path:
    known = f"{what[:60]}-{backbone.model.replace(':', '-')}-{name[:20]}.safetensors"
    return (cache_folder() if cache is None else cache) / known


def _write(computed: Tensor, path: Path, name: str) -> None:
    try:
        with atomic_path(path) as temporary:
            save_file({"features": computed.contiguous()}, temporary, metadata={"key": name})
    except OSError as error:
        raise DataError(
            f"the features cannot be kept at {path}: {error}; set STEELYARD_CACHE to a folder that can be written"
        ) from error


def _compute(images: ImageList, backbone: Backbone, transform: Transform, download: bool) -> Float[Tensor, "n d"]:
    network = backbone.build(download).to(backbone.device)
    rows = torch.arange(len(images)).split(backbone.batch_size)
    with torch.no_grad():
        decoded = decode(images, rows, transform, workers=backbone.workers)
        found = [_checked(network, inputs.to(backbone.device), backbone).cpu() for inputs in decoded]
    return torch.cat(found)


def _checked(network: nn.Module, inputs: Float[Tensor, "n 3 h w"], backbone: Backbone) -> Float[Tensor, "n d"]:
    """Return what a network makes of images; DataError if these are no features, which one of the user's may be."""
    if not backbone.is_own:
        found = network(inputs)
        assert isinstance(found, Tensor)
        return found
    try:
        found = network(inputs)
    except Exception as error:
        raise DataError(
            f"the backbone {backbone.model} failed on images {tuple(inputs.shape)}: {type(error).__name__}: {error}"
        ) from error
    what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape[:1] != inputs.shape[:1]:
        raise DataError(f"the backbone {backbone.model} must return features ({len(inputs)}, d), got {what}")
    if found.ndim != 2:
        raise DataError(
            f"the backbone {backbone.model} must return features ({len(inputs)}, d), got {what}; flatten or pool them"
        )
    if not bool(found.isfinite().all()):
        raise DataError(f"the backbone {backbone.model} returns features that are not finite (NaN or infinite)")
    return found.float()


def _read(path: Path, name: str, count: int) -> Tensor | None:
    """Return the features in a file of the cache, or None if it is missing, damaged, or of another key."""
    try:
        with safe_open(regular(path), "pt") as opened:
            if (opened.metadata() or {}).get("key") != name:
                return None
            found = opened.get_tensor("features")
    except (OSError, SafetensorError, RuntimeError, MemoryError):
        return None
    return found if found.ndim == 2 and found.is_floating_point() and len(found) == count else None
