"""What convolutional nets for small images share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from steelyard.experiments.models.heads import HEADS, HeadName

__all__ = ["ConvNet", "at_least"]


@dataclass(frozen=True)
class ConvNet:
    """What these nets share: the head, and how parameters are drawn.

    The last layer is the only place where a class's logit is made, an `nn.Linear`; what goes into it is the embedding.
    """

    head: HeadName = "softmax"

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """Return the net for inputs of `shape` (channels, h, w); the same `seed` gives the same parameters.

        Raises:
            ValueError: inputs that are no images, or smaller than the net can take.
        """
        if len(shape) != 3:
            raise ValueError(f"a convolutional net takes images (channels, h, w), got inputs of shape {shape}")
        with torch.random.fork_rng([]):  # torch's own initialisation takes no generator
            torch.default_generator.manual_seed(seed)
            return self._net(shape, HEADS[self.head].width(classes))

    def _net(self, shape: tuple[int, ...], width: int) -> nn.Module:
        """Return the net with `width` outputs, its parameters drawn from torch's global random state."""
        raise NotImplementedError


def at_least(name: str, shape: tuple[int, ...], side: int) -> None:
    """Raise ValueError if images of `shape` (channels, h, w) are smaller than `side` x `side`."""
    if min(shape[1:]) < side:
        raise ValueError(f"{name} needs images of at least {side} x {side}, got {shape[1]} x {shape[2]}")
