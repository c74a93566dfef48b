"""A recipe's precision: bfloat16 where the device multiplies faster in it.

A recipe's ``bfloat16 = "auto"`` is settled by a measurement once, when its run begins (`runs.settled`), and the run
keeps what was chosen, in its config.json: resumed on another machine it goes on in that precision.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from steelyard._support._precision import Measured, measured

__all__ = ["Bfloat16", "Measured", "measured", "takes_bfloat16"]

Bfloat16: TypeAlias = Literal[True, False, "auto"]
"""Whether a forward pass is taken under autocast to bfloat16; "auto": where that is faster."""


def takes_bfloat16(setting: Bfloat16, device: str | torch.device) -> bool:
    """Return what a setting says; "auto" that no run has settled says what is faster on `device` now."""
    return measured(str(device)).faster if setting == "auto" else setting
