"""Features by a frozen network, on the principal axes of the training rows, where the recipes look for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from steelyard._support._files import atomic_path
from steelyard.experiments.data import CelebA, Waterbirds
from steelyard.experiments.data.features import features, keep
from steelyard.experiments.data.transforms import evaluation_transform
from steelyard.experiments.errors import DataError
from steelyard.experiments.models.backbone import Backbone
from studies.photographs import backbone

__all__ = ["FILE", "REDUCED", "WHOLE", "axes", "options", "prepare"]

FILE = "backbone.safetensors"
"""The network's weights with the axes, below the data root."""

_HERE = "studies.photographs.backbone"
WHOLE, REDUCED = f"{_HERE}:whole", f"{_HERE}:reduced"
Preset = Waterbirds | CelebA


def options(root: Path) -> tuple[str, ...]:
    """Return what is set in a recipe of Waterbirds or CelebA for the set below `root`."""
    return (f"data.backbone.model={REDUCED}", f"data.backbone.weights={root / FILE}", "data.backbone.workers=0")


def prepare(
    root: Path,
    data: Preset,
    *,
    raw: str = WHOLE,
    small: str = REDUCED,
    build: Callable[[], nn.Sequential] = backbone.reduced,  # type: ignore[assignment]
    cache: Path | None = None,
) -> Float[Tensor, "n axes"]:
    """Compute the features of a set, fit the axes on its training rows, and keep both where recipes find them.

    Written are the weights of the network with the axes as its last layer, `FILE` below `root`, and its features in the
    cache, which a recipe with `options` then takes: the network is not run a second time.

    Args:
        root: the data root of the set.
        data: the preset that reads it.
        raw: "module:function" of the network. small: of the network with a linear layer behind it. build: that
            function.
        cache: the folder of the cache (default: that of the recipes).

    Raises:
        DataError: no set below `root`, or fewer training rows than axes.
    """
    labels, transform = data.read(root), evaluation_transform(data.framing)
    labels.images.check()
    network = Backbone(raw, workers=0)
    seen = features(labels.images, network, transform, cache=cache)
    train = torch.tensor([split == "0" for split in labels.table.columns["split"]])
    module = build()
    module[0].load_state_dict(network.build().state_dict())
    layer = module[-1]
    assert isinstance(layer, nn.Linear)
    centre, directions = axes(seen[train], layer.out_features)
    with torch.no_grad():
        layer.weight.copy_(directions.T)
        layer.bias.copy_(-centre @ directions)
    with atomic_path(root / FILE) as temporary:
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, temporary)
    with torch.no_grad():
        found = layer(seen)
    keep(found, labels.images, Backbone(small, str(root / FILE), workers=0), transform, cache=cache)
    return found


def axes(rows: Float[Tensor, "n d"], count: int) -> tuple[Float[Tensor, " d"], Float[Tensor, "d count"]]:
    """Return the mean of `rows` and their first `count` principal directions, by the largest variance first.

    The sign of a direction is such that its largest entry is positive.

    Raises:
        DataError: fewer rows, or columns, than axes.
    """
    if min(rows.shape) < count:
        raise DataError(f"{count} principal axes need as many training rows and features, got {tuple(rows.shape)}")
    wide = rows.double()
    centre = wide.mean(0)
    _, vectors = torch.linalg.eigh((wide - centre).T @ (wide - centre))
    chosen = vectors.flip(1)[:, :count]
    signs = chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    return centre.float(), (chosen * signs).float()
