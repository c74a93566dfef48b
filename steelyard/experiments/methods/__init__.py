"""Methods, one page each: a frozen dataclass of settings with ``fit(problem, observe) -> Fitted``.

Each page states its paper, its equation, and the labels that it needs.
"""

from steelyard.experiments.methods.erm import ERM
from steelyard.experiments.methods.irmv1 import IRMv1
from steelyard.experiments.methods.maple import Maple
from steelyard.experiments.methods.vrex import VREx

__all__ = ["ERM", "IRMv1", "Maple", "Method", "VREx"]

Method = ERM | IRMv1 | VREx | Maple
