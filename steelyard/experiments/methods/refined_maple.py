"""MAPLE, the groups in what it learned, balance, cleaning within them, and a last training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from steelyard import reweight
from steelyard._support import _check
from steelyard.experiments.methods._reads import ReadsAsMaple
from steelyard.experiments.methods._ways import TogetherSetting, Ways
from steelyard.experiments.methods.found_groups import two_runs
from steelyard.experiments.methods.maple import Maple
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED

__all__ = ["RefinedMaple"]


@dataclass(frozen=True)
class RefinedMaple(ReadsAsMaple):
    """MAPLE finds groups that no column names (`reweight.find_groups`), and `reweight.Refine` trains on them.

    MAPLE's steps are observed as its own; then one more, the model trained under the refined weights, which is the
    result. The table of samples has their `found_group` (true: above the cut), too, and the `maple_probability` that
    was cut. Labels needed: class and environment, in training. Where the keep-probabilities have one hump the run
    ends with the figures that say so, or (``one_hump = "maple"``) trains on MAPLE's s w.

    Attributes:
        maple: MAPLE's settings.
        rounds, score, folds, repeats, shares, calibrations, least_kept: of `reweight.Refine`.
        steps: of the nets that score and of the last training; 0 takes those of MAPLE's inner run.
        second_run: run MAPLE again, with another seed and a budget a third larger, and take groups that both runs
            find (`found_groups.two_runs`).
        one_hump: where there are no two groups all the same: "refuse" or "maple".
        together: whether the nets that score are trained as one, of `reweight.Refine`; how they were is written into
            the run, as "nets that score".
    """

    regression: ClassVar[bool] = False
    maple: Maple
    name: Literal["refined_maple"] = "refined_maple"
    rounds: Annotated[int, FIXED] = 2
    score: Literal["label_probability", "lhd", "aum", "el2n", "rank_disagreement"] = "label_probability"
    folds: Annotated[int, FIXED] = 4
    repeats: Annotated[int, FIXED] = 1
    shares: Literal["equal", "calibrated"] = "equal"
    calibrations: Annotated[int, FIXED] = 4
    least_kept: Annotated[float, FIXED] = 0.1
    steps: Annotated[int, FIXED] = 0
    second_run: bool = True
    one_hump: Literal["refuse", "maple"] = "refuse"
    together: TogetherSetting = "auto"

    def __post_init__(self) -> None:
        self.check_learns()
        _check.integer("rounds", self.rounds, low=0)
        _check.integer("folds", self.folds, low=2)
        _check.integer("repeats", self.repeats, low=1 + (self.score == "rank_disagreement"))
        _check.integer("calibrations", self.calibrations, low=1)
        _check.integer("steps", self.steps, low=0)
        _check.in_range("least_kept", self.least_kept, low=0.0, high=1.0, open_low=True)

    @property
    def last_step(self) -> int:
        """The number of the last step that is observed."""
        return self.maple.last_step + 1

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Learn weights by MAPLE, refine them, and return them with the model trained under them.

        Raises:
            OneHumpError: there are no two groups, and `one_hump` is "refuse".
        """
        begun = self.maple.fit(problem, observe)
        learned, facts = begun.reweighting, dict(begun.facts)
        assert learned is not None  # MAPLE learns weights
        train, inner = problem.splits.train, self.inner_run(problem)
        try:
            found = two_runs(self.maple, problem, learned, self.second_run)
        except reweight.OneHumpError as error:
            if self.one_hump == "refuse":
                raise
            figures, columns = {**error.found.figures(), "refined": 0.0}, {}
        else:
            columns = {"found_group": found.high, "maple_probability": found.probabilities}
            history = learned.history
            learned = self.refine(inner).fit(train, found, history=history, journal=problem.journal)
            figures = {**found.figures(), "refined": 1.0}
            facts |= _scored(learned.history)
        model, _ = inner.fresh()(train, learned.expected_weights)
        observe(self.last_step, model, figures)
        return Fitted(model, learned, columns, facts)

    def inner_run(self, problem: Problem) -> reweight.InnerRun:
        """Return the run of the nets that score, and of the last training."""
        settings = replace(self.maple.inner, steps=self.steps or self.maple.inner.steps)
        return replace(self.maple, inner=settings).inner_run(problem)

    def refine(self, inner: reweight.InnerRun) -> reweight.Refine:
        """Return what makes weights of found groups, with nets trained by `inner`."""
        return reweight.Refine(
            inner,
            rounds=self.rounds,
            score=self.score,
            folds=self.folds,
            repeats=self.repeats,
            shares=self.shares,
            calibrations=self.calibrations,
            least_kept=self.least_kept,
            together=self.together,
        )


def _scored(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how the nets that score were trained, by the rows of `reweight.Refine`; nothing where there was none."""
    ways, phases = Ways(), [row["apart"] for row in history if "phase" in row]
    for apart in phases:
        ways.note(apart)
    return {"nets that score": ways.told()} if phases else {}
