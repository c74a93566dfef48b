"""Steelyard: bilevel sample reweighting for PyTorch.

Rooms, each usable alone: `steelyard.bilevel` (differentiate through the end of a training run), `steelyard.reweight`
(learn weights and keep-probabilities), `steelyard.selectors` (score and pick samples), `steelyard.theory` (the top-q
bound); beside them `steelyard.checkpoint` and `steelyard.distributed`. What most programs use of them is here too:

    from steelyard import Batch, InnerRun, Maple, Sqrt, VREx

`import steelyard` imports none of them: a name's room is imported when the name is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard import bilevel, checkpoint, distributed, reweight, selectors, theory
    from steelyard._support._report import report
    from steelyard.bilevel import (
        Batch,
        FiniteDifference,
        Implicit,
        MemoryMapped,
        Recorder,
        Storage,
        Streamed,
        Trajectory,
        Truncated,
        Unrolled,
        WeightedLoss,
    )
    from steelyard.checkpoint import Journal
    from steelyard.distributed import Processes
    from steelyard.reweight import (
        Balanced,
        ConstraintSet,
        CrossFit,
        GroupWorst,
        InnerRun,
        IRMv1,
        LearningToReweight,
        Log,
        Maple,
        MeanRisk,
        MetaWeightNet,
        Prior,
        Reweighting,
        Shared,
        SoftGroupWorst,
        Sqrt,
        VREx,
    )

__version__ = "0.2.0"

__all__ = [
    "Balanced",
    "Batch",
    "ConstraintSet",
    "CrossFit",
    "FiniteDifference",
    "GroupWorst",
    "IRMv1",
    "Implicit",
    "InnerRun",
    "Journal",
    "LearningToReweight",
    "Log",
    "Maple",
    "MeanRisk",
    "MemoryMapped",
    "MetaWeightNet",
    "Prior",
    "Processes",
    "Recorder",
    "Reweighting",
    "Shared",
    "SoftGroupWorst",
    "Sqrt",
    "Storage",
    "Streamed",
    "Trajectory",
    "Truncated",
    "Unrolled",
    "VREx",
    "WeightedLoss",
    "bilevel",
    "checkpoint",
    "distributed",
    "report",
    "reweight",
    "selectors",
    "theory",
]

_ROOMS = {
    "bilevel": (
        *("Batch", "FiniteDifference", "Implicit", "MemoryMapped", "Recorder", "Storage", "Streamed", "Trajectory"),
        *("Truncated", "Unrolled", "WeightedLoss"),
    ),
    "reweight": (
        *("Balanced", "ConstraintSet", "CrossFit", "GroupWorst", "IRMv1", "InnerRun", "LearningToReweight", "Log"),
        *("Maple", "MeanRisk", "MetaWeightNet", "Prior", "Reweighting", "Shared", "SoftGroupWorst", "Sqrt", "VREx"),
    ),
    "checkpoint": ("Journal",),
    "distributed": ("Processes",),
    "_support._report": ("report",),
    "selectors": (),
    "theory": (),
}


def __getattr__(name: str) -> Any:
    """Import a room, or a name's room, when it is first asked for (PEP 562)."""
    for room, names in _ROOMS.items():
        if name == room or name in names:
            module = importlib.import_module(f"steelyard.{room}")
            globals()[name] = found = module if name == room else getattr(module, name)
            return found
    raise AttributeError(f"module 'steelyard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
