"""What went into a layer at its last forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NewestInputs"]


class NewestInputs:
    """Keeps the inputs of a layer's last forward pass, with their graph: a hook that `close` takes off.

    Attributes:
        value: ``(n, ...)``, in single precision where they were bfloat16; None before the first pass.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.value: Tensor | None = None
        self._handle = layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0].float() if inputs[0].dtype == torch.bfloat16 else inputs[0]  # under autocast

    def close(self) -> None:
        """Take the hook off the layer."""
        self._handle.remove()
