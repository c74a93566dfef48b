"""A recorded step's update, pulled back for all parameters at once, with a gradient that is exact enough.

Where the rounding of the recorded gradient moves the answer by more than `TOLERANCE` (`rounding` says how far), the
step's gradient is computed once more in float64 (`float64`), and the update pulled back with that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steelyard.bilevel.clipping import clip_stages, pull_through_clips, unclipped
from steelyard.bilevel.float64 import GradientInFloat64, eps_of, gradient_in_float64
from steelyard.bilevel.optimizers import ElementwisePullback, ParameterUpdate, Pullback, Pulled
from steelyard.bilevel.optimizers._pieces import pieces_of, pull_in_pieces
from steelyard.bilevel.optimizers.sgd import SGDPullback
from steelyard.bilevel.replay import quick_dot, step_gradient
from steelyard.bilevel.rounding import Norm, Rounding, noise_of, norm_of, typical_noise
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep.ladder import ROUNDS_AWAY, NoDerivative
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["TOLERANCE", "FlatUpdateWarning", "RoundingWarning", "Update", "pull_update"]

TOLERANCE = 1e-5
"""How far u may move, relative to its norm, where every entry of the gradient moves by its rounding error (entries of
which the gradient is exactly 0 left out of both)."""

_CLIPPED = 1e-4
"""How much of <u, g>, which a clip by the norm multiplies, may be rounding."""

_UNDER_AUTOCAST = 0.05
"""The same under autocast, where a few per cent are what eight bits get."""


class FlatUpdateWarning(UserWarning):
    """An optimizer's update has the derivative 0 by the gradient."""


class RoundingWarning(UserWarning):
    """A derivative hangs on the rounding of a gradient in float32, and float64 has no gradient to take instead."""


_ROUNDED = (
    "the derivative of {name}'s update in a recorded step hangs on how float32 rounds its gradient (a cold start, a "
    "gradient that is all but 0, as that of a bias before BatchNorm), and the step has no gradient in float64 to take "
    "instead: the model or the loss does not take float64, or is another function there. The answer may be off by some "
    "per cent. Take some steps before those that are recorded, leave such a bias out (bias=False), scale inputs that "
    "are far from 0, or have the model take float64"
)


class Update(NamedTuple):
    """Adjoints before an update, by parameter.

    Attributes:
        direction: u, the adjoint of the gradient (before any clip), but for the number `factor`.
        parameters: what reaches the parameters, but for the path through the gradient.
        state: the adjoint of the optimizer's state, by parameter and entry.
        factor: what u is a multiple of `direction` by; 1 but for a last step, where all that follows is in proportion
            to u.
        in_float64: the step in float64, where its derivatives along u should be taken there.
        rounding: what rounding does to an entry of the gradient.
        noise: about how far that may move a derivative along u.
        gradients: the gradient that the step used, where the update reads it.
        exact: the same by float64, where that was taken.
        slope: the gradient of the loss by float64, before any clip.
    """

    direction: Tensors
    parameters: Tensors
    state: dict[str, Tensors]
    factor: float = 1.0
    in_float64: Step | None = None
    rounding: float = 0.0
    noise: float = 0.0
    gradients: Tensors | None = None
    exact: Tensors | None = None
    slope: Tensors | None = None


def pull_update(
    run: Trajectory,
    step: Step,
    adjoint: Tensors,
    state: dict[str, Tensors],
    last: bool = False,
    exact: GradientInFloat64 | None = None,
    exactly: bool = False,
) -> Update:
    """Pull the adjoints of parameters and state back through the update of `step`.

    Args:
        run, step: the step, whole.
        adjoint: of the parameters after it; where it is the `last`, it may be written over.
        state: of the optimizer's state after it.
        last: nothing before the step is asked for: of the answer only `direction` counts.
        exact: the step's gradient in float64, where that has been taken before: it is used.
        exactly: take the gradient in float64 without a look at whether its rounding matters, and the derivatives along
            u as well.
    """
    back = _PullBack(run.pullback, step, adjoint, state, last, exactly)
    if step.clips:
        return _clipped(run, back, exact)
    if back.pullback.linear:
        factor = _multiple(back.pullback, step) if last and not any(state.values()) else None
        # With one number for all, a pass over all parameters less.
        return back({}) if factor is None else Update(adjoint, {}, {}, factor)
    gradients = step.trained(_gradient_of(run, step))
    run.ranks.together(lambda: _check_elementwise(run, back, gradients))
    eps = eps_of(step)
    update = back(gradients) if eps is None else _exact_enough(run, back, gradients, eps, exact)
    if run.differences is not None and run.ranks.any(not any(bool(u.any()) for u in update.direction.values())):
        warnings.warn(
            f"no gradient moves the update of {run.optimizer.__name__} in this step, to first order (it takes signs, "
            "say): the hypergradient through it is 0, and nothing can be learned of it",
            FlatUpdateWarning,
            stacklevel=4,
        )
    return update


def _clipped(run: Trajectory, back: _PullBack, exact: GradientInFloat64 | None) -> Update:
    """Pull back a step whose gradient was clipped: through the update first, through the clips then."""
    step = back.step
    stages = clip_stages(step.clips, _gradient_of(run, step))
    used = step.trained(stages[-1])
    run.ranks.together(lambda: _check_elementwise(run, back, used))
    eps = None if back.pullback.linear else eps_of(step)
    if eps is None:
        update, rounding = back({} if back.pullback.linear else used), 0.0
    else:  # (the sweep's gradient is unclipped)
        update, rounding = _exact_enough(run, back, used, eps, exact), typical_noise(step.trained(stages[0]), eps)
    slope = update.slope
    if slope is None and eps is not None:
        # u along a bias before BatchNorm is large, and so its product with a gradient that is rounding and should be 0.
        along, blurred = quick_dot(used, update.direction), typical_noise(used, eps) * norm_of(update.direction)
        if run.ranks.any(not blurred <= _CLIPPED * abs(float(along))):
            found = gradient_in_float64(run, step, used)
            slope = None if found is None else found.slope
            if found is None and not step.conditions.autocast:
                warnings.warn(_ROUNDED.format(name=run.optimizer.__name__), RoundingWarning, stacklevel=4)
    if slope is not None:
        stages = clip_stages(step.clips, slope)
    return update._replace(direction=pull_through_clips(step.clips, update.direction, stages), rounding=rounding)


def _check_elementwise(run: Trajectory, back: _PullBack, gradients: Tensors) -> None:
    """Raise RuntimeError where an optimizer without a closed form lets entries meet in this very step.

    (Looked at here and not at every step that is recorded, most of which leave the window unasked.)
    """
    if run.differences is None:
        return
    for name in gradients:
        if said := run.differences.meets(back.of(name, gradients, last=True), len(run.steps)):
            raise RuntimeError(
                f"{said}, in a recorded step of the training: its update is not differentiated; train the steps of "
                "the window by an optimizer that is elementwise, SGD say"
            )


def _multiple(pullback: Pullback, step: Step) -> float | None:
    """Return the one number that u is of the adjoint in all parameters; None where there is no such."""
    if step.skipped or not isinstance(pullback, SGDPullback):
        return None
    factors = {pullback.factor(step.groups[name], step.state[name]) for name in step.parameters}
    return factors.pop() if len(factors) == 1 else None


@dataclass(frozen=True)
class _PullBack:
    """The adjoints after a step, to be pulled back with one gradient or another."""

    pullback: Pullback
    step: Step
    adjoint: Tensors
    state: dict[str, Tensors]
    last: bool
    exactly: bool = False

    def __call__(
        self, gradients: Tensors, rounding: Rounding | None = None, into: Mapping[str, Tensor] | None = None
    ) -> Update:
        """Pull back with `gradients`; `rounding` looks on, and what is `into` may be written over."""
        update, into = Update({}, {}, {}), into or {}
        together = self._together() if rounding is None else {}
        for name, parameter in self.step.parameters.items():
            if name in self.step.skipped:
                update.direction[name] = torch.zeros_like(parameter)
                update.parameters[name], update.state[name] = self.adjoint[name], self.state.get(name, {})
                continue
            if together:
                found = together[name]
            else:
                watch = None if rounding is None else rounding.watch(name)
                one = self.of(name, gradients, self.last, sensitive=rounding is not None)
                found = pull_in_pieces(self.pullback, one, watch, into.get(name))
            update.direction[name], update.parameters[name] = found.gradient, found.parameter
            update.state[name] = found.state
        return update

    def _together(self) -> dict[str, Pulled]:
        """Return the answers of an optimizer that gives those of all parameters at once; else nothing."""
        names = [name for name in self.step.parameters if name not in self.step.skipped]
        if not names or not isinstance(self.pullback, SGDPullback):
            return {}
        updates = [self.of(name, {}, self.last) for name in names]
        if not self.pullback.alike(updates):
            return {}
        return dict(zip(names, self.pullback.pull_together(updates), strict=True))

    def of(self, name: str, gradients: Tensors, last: bool, sensitive: bool = False) -> ParameterUpdate:
        """Return what the pull-back reads for the parameter `name`."""
        step = self.step
        return ParameterUpdate(
            step.groups[name],
            step.state[name],
            step.parameters[name],
            gradients.get(name),
            self.adjoint[name],
            self.state.get(name, {}),
            last,
            sensitive,
        )

    def moved(self, gradients: Tensors, noise: Mapping[str, Tensor]) -> float:
        """Return the norm of the difference that the noise makes to u, by pulling back with it and without."""
        total = Norm()
        for piece, size in self._pieces(gradients, noise):
            here = piece.gradient
            assert here is not None
            there = here + here.sign() * size
            moved = self.pullback.pull(piece._replace(gradient=there)).gradient
            total.add(torch.linalg.vector_norm(moved - self.pullback.pull(piece).gradient))
        return total.value()

    def _pieces(self, gradients: Tensors, noise: Mapping[str, Tensor]) -> Iterator[tuple[ParameterUpdate, Tensor]]:
        for name in gradients:
            whole = self.of(name, gradients, last=True)
            for piece in [whole] if isinstance(self.pullback, ElementwisePullback) else pieces_of(whole):
                yield piece, noise[name]


def _exact_enough(
    run: Trajectory, back: _PullBack, gradients: Tensors, eps: float, exact: GradientInFloat64 | None
) -> Update:
    """Pull back with the recorded gradient, or in float64 with that of a replay where its rounding moves u too far."""
    typical, tolerance, seen = typical_noise(gradients, eps), TOLERANCE, gradients
    if back.step.conditions.autocast:
        tolerance = _UNDER_AUTOCAST
        size = torch.stack([torch.linalg.vector_norm(g) / max(1, g.numel()) ** 0.5 for g in gradients.values()])
        seen = {name: g for (name, g), own in zip(gradients.items(), size.tolist(), strict=True) if own > 4 * typical}
    asked = exact is None and back.exactly
    if asked:
        exact = gradient_in_float64(run, back.step, gradients, always=True)
    noise = {name: noise_of(g, eps) for name, g in seen.items()}
    rounding = Rounding(noise)
    update = back(gradients, rounding) if exact is None else None
    if update is not None and run.ranks.any(rounding.exceeds(tolerance, lambda: back.moved(seen, noise))):
        exact = None if asked else gradient_in_float64(run, back.step, gradients)
        if exact is None and back.step.conditions.autocast:
            raise NoDerivative(ROUNDS_AWAY)
        if exact is None:
            warnings.warn(_ROUNDED.format(name=run.optimizer.__name__), RoundingWarning, stacklevel=5)
    if exact is not None:
        rounding = Rounding(noise)
        update = back(exact.gradients, rounding, update.direction if update is not None else None)
        update = update._replace(in_float64=exact.step, exact=exact.gradients, slope=exact.slope)
    assert update is not None
    return update._replace(rounding=typical, noise=typical * rounding.size(), gradients=gradients)


def _gradient_of(run: Trajectory, step: Step) -> Tensors:
    """The gradient of the step before any clip: of what the run still holds, else by reverse passes.

    (Entries that a clip holds constant may be others than they were; it gives the same gradient.)
    """
    held, graph = step.findings.held_gradient(), step.findings.graph
    found = None if held is None else unclipped(step.clips, held)
    if found is None and graph is not None and graph.whole:
        slope = graph.slope()
        found = slope if step.scale == 1.0 else {name: one * step.scale for name, one in slope.items()}
    # All ranks or none: one alone would wait for the others' share.
    lost = run.ranks.any(found is None)
    return run.ranks.mean(step_gradient(run, step)) if lost or found is None else dict(found)
