"""`steelyard weigh` and `steelyard suspects`: from a table of the user's to weights, a model, suspects and a page.

What a user has (clean rows, groups, environments, or nothing) decides the method: `plan.plan_for`. Runs are those of
recipes, carried out by `steelyard.experiments.runs`; here is what is chosen, what is written beside the runs, and what
a person reads.
"""

from __future__ import annotations

from steelyard.experiments.weigh.plan import Knowledge, Plan, plan_for
from steelyard.experiments.weigh.predictor import Predictor

__all__ = ["Knowledge", "Plan", "Predictor", "plan_for"]
