"""Differentiate an outer loss through the end of an ordinary training run.

`Recorder` notes the last steps of the user's own loop; an estimator (`Truncated`, `FiniteDifference`,
`Implicit`, `Unrolled`) turns the record into d outer / d w_i for the samples asked for.
"""

from steelyard.bilevel.batch import Batch
from steelyard.bilevel.implicit import Implicit, SolverReport, SolverWarning
from steelyard.bilevel.objective import Objective, SampleLoss, WeightedLoss
from steelyard.bilevel.recorder import Recorder
from steelyard.bilevel.step import Step
from steelyard.bilevel.storage import Storage
from steelyard.bilevel.streamed import MemoryMapped, Streamed
from steelyard.bilevel.sweep.ladder import NoDerivative, StopGradientWarning
from steelyard.bilevel.trajectory import Trajectory
from steelyard.bilevel.truncated import FiniteDifference, Outer, Truncated
from steelyard.bilevel.unrolled import Unrolled
from steelyard.bilevel.update import FlatUpdateWarning, RoundingWarning

__all__ = [
    "Batch",
    "FiniteDifference",
    "FlatUpdateWarning",
    "Implicit",
    "MemoryMapped",
    "NoDerivative",
    "Objective",
    "Outer",
    "Recorder",
    "RoundingWarning",
    "SampleLoss",
    "SolverReport",
    "SolverWarning",
    "Step",
    "StopGradientWarning",
    "Storage",
    "Streamed",
    "Trajectory",
    "Truncated",
    "Unrolled",
    "WeightedLoss",
]
