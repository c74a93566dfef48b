"""What the methods that balance have in common: by classes, groups or environments."""

from __future__ import annotations

from steelyard.bilevel.batch import Batch
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.methods._reads import ReadsBy
from steelyard.experiments.methods.found_groups import GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.problem import Problem

__all__ = ["CellMethod"]


class CellMethod(ReadsBy, TrainedMethod):
    """A method for which each training sample is of one cell: its class, its group or its environment.

    Attributes:
        by: which labels make the cells.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).
    """

    by: group_labels.Cell
    groups: GroupSource

    def labelled(self, problem: Problem) -> Batch:
        """Return the training samples with the id of their cell as their group.

        Raises:
            DataError: no such labels.
        """
        if self.by == "group":
            return self.groups.label(problem)
        return group_labels.labelled(problem.splits.train, self.by)
