"""Active learning: a pool with an oracle, a selector, a training; round after round.

`active_learning` is the loop, `Fitting` and `FineTuning` are what a round trains, `SELECTORS` who picks. A recipe names
all of it; `steelyard active RECIPE` carries it out.
"""

from steelyard.experiments.active.choosing import SELECTORS, Selector
from steelyard.experiments.active.fitting import Epochs, Fit, Fitting, Learned
from steelyard.experiments.active.loop import Past, Pool, Round, Schedule, active_learning
from steelyard.experiments.active.view import View

__all__ = [
    "SELECTORS",
    "Epochs",
    "Fit",
    "Fitting",
    "Learned",
    "Past",
    "Pool",
    "Round",
    "Schedule",
    "Selector",
    "View",
    "active_learning",
]
