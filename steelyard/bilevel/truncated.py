"""The truncated hypergradient: walk back over the recorded steps, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.bilevel.agreement import add_scaled, check_replayed, objection_to
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.float64 import gradient_in_float64, in_float32, kernels_in_float64, step_in_float64
from steelyard.bilevel.near_float64 import curvature_near_float64, near_float64
from steelyard.bilevel.newest_update import is_cold, newest_update
from steelyard.bilevel.replay import gradient
from steelyard.bilevel.rounding import norm_of
from steelyard.bilevel.statistics import statistics_adjoint, tracking_layers
from steelyard.bilevel.step import Step, Tensors, micro_batches
from steelyard.bilevel.storage import newest_first
from steelyard.bilevel.sweep.ladder import ROUNDS_AWAY, Ladder, NoDerivative
from steelyard.bilevel.sweep.rungs import Curved, Differences, Rung
from steelyard.bilevel.trajectory import Trajectory
from steelyard.bilevel.update import Update, pull_update
from steelyard.bilevel.window import (
    add_by_id,
    check_alone,
    check_detached,
    check_tensors,
    derivatives_as_rows,
    ids_of,
    outer_gradient,
)

__all__ = ["FiniteDifference", "Outer", "Truncated"]

Outer: TypeAlias = Callable[[nn.Module], Tensor]
"""The outer loss: a function of the module (at the final parameters) that returns a scalar tensor."""

Coupled: TypeAlias = Literal["batch", "chunk", "refuse"]
"""What a sample outside of the recorded batch is normalised by; see `Truncated`."""

MEMORY = 256 * 2**20


class Truncated:
    """d outer / d w through the last T recorded steps; blind to all before them.

    Exact up to rounding, with T = 1, for whatever the backward pass of the recorded step computed: custom functions,
    reversed or straight-through gradients, hooks and stops included. With T > 1 the gradient of each later step is
    differentiated as well, by autograd: what the model or the loss detaches, or computes under `no_grad`, is constant
    in that derivative, where training again would move it (0.1 to 50 % in our cases; a `StopGradientWarning` says so).
    Of the outer loss the gradient is autograd's as well, at any T: what it, or the model in it, takes out of the graph
    is constant, and nothing warns of that.

    Source: truncated back-propagation (Shaban et al. 2019); T = 1 is the estimator of MAPLE (Zhou et al. 2022,
    Algorithm 1, line 5). Here the optimizer's update is pulled back in closed form and the samples are reached by
    forward-mode differentiation; for T > 1 one step's gradient is differentiated at a time, and its graph let go.

    Time, in forward passes over the window's batches, beside the gradient of the outer loss: T = 1 costs 3 (a layer
    whose input and weight both have tangents multiplies three times), and 3 more with an adaptive optimizer whose last
    gradient has been cleared; each further step costs 9 (reverse over reverse; with BatchNorm forward over reverse),
    and 3 more with an adaptive optimizer, whose adjoint needs the gradient. On the newest step's own samples T = 1
    costs 2, or 1 where samples do not couple, after ``Recorder(..., reuse=True)``. `FiniteDifference` costs 2 where
    this costs 3, and 6 where this costs 9. Memory: one chunk's activations at T = 1, those of one batch and of its
    gradient at T > 1, never T of them. The first calls on a model, and ever fewer later ones, are checked as well: at
    T > 1 H u by itself and two gradients in float64, which takes several times a later call.

    Precision: with an adaptive optimizer (Adam, RMSprop, Adagrad and their kin) in float32, how far the answer
    hangs on the rounding of the recorded gradient is looked at, a few passes over the parameters; where it does (a
    cold start: Adam's update moves by e eps / (|g| + eps)^2), the step's gradient is taken once more in float64,
    one reverse pass, and rounded. Where it then is more than 1e-4 away from the recorded one (the first step of a
    ResNet), the float32 forward pass is too rough for derivatives along u, and those of the step's own samples are
    taken over the values of the float64 pass, in float32 where their sum then agrees with the gradient to 2e-6 of
    its terms, else in float64 (not those of `samples`, nor in `tensors`); the outer loss of such a window has its
    forward pass in float64, its values rounded for the backward pass (or all of it in float64, where that is seen
    to differ: inputs far from 0). With T > 1 a window that starts cold, where
    BatchNorm couples the samples, is taken so in all its steps, and any other one of which the newest step, or an older
    one that is looked at, is that rough: H u by forward over reverse in float32 over the values of float64, where its
    gradient and the sum of its t_i are float64's (to 1e-5 and 2e-6), else in float64. Under autocast the same
    is done from 5 % on; what does not replay to the recorded gradient is refused there. SGD's steps and warm
    ones stay in float32. Left as recorded in float32, with a
    `RoundingWarning` where the answer hangs on it: where module, loss or device give another gradient in
    float64, or none. (Class weights, casts to float32 and noise of the inputs' precision are taken care of.) A
    parameter whose gradient is nothing but rounding keeps it. On a GPU with slow float64 these passes can be the
    longest of all. (`Unrolled` knows nothing of this.)

    Args:
        steps: T; at most as many as were recorded.
        memory: bytes for the activations of one chunk of a sweep without a graph.
        coupled: what to do when all n samples are asked for (``samples=``) and the recorded step normalised by its
            batch (BatchNorm in training mode), so that the derivative for a sample outside of it is an approximation.
            ``"refuse"``, the default: that is an error. ``"batch"``, `Maple`'s own choice: the sample is normalised as
            one more row of the recorded batch of B, for the forward passes of B more samples a chunk. That gets better
            with B (error 0.03 at 16 and 0.002 at 256 with one such layer, 0.24 and 0.02 with four), and was nearer to
            training again than chunks in all our cases (results/benchmarks/batchnorm.md). Layers that couple samples in
            another way are refused. ``"chunk"``: each chunk of samples is normalised by itself, in their order, which
            approximates and wants that to be random. The derivatives of the recorded samples are exact in each case.

    Example:
        See `Recorder`.
    """

    def __init__(self, steps: int = 1, memory: int = MEMORY, coupled: Coupled = "refuse") -> None:
        self.steps = _check.integer("steps", steps, low=1)
        self.coupled = _check.choice("coupled", coupled, ("batch", "chunk", "refuse"))
        self.ladder = Ladder(memory)

    @property
    def answered(self) -> dict[str, int]:
        """How often each way to d l_i along u has answered (`steelyard.bilevel.sweep`), by name."""
        return dict(self.ladder.answered)

    @property
    def passed_over(self) -> dict[str, str]:
        """Why faster ways than the one that answered last did not, by name."""
        return dict(self.ladder.passed_over)

    def __call__(
        self,
        trajectory: Trajectory,
        outer: Outer,
        index: Int[Tensor, " k"] | Numbers | None = None,
        samples: Batch | None = None,
    ) -> Float[Tensor, " k"]:
        """Return d outer / d w_i for the samples asked for.

        On several ranks each asks for samples of its own share, all at the same time; `outer` is then the mean over
        ranks of what it returns on each. A sample that several ranks have trained on within the window gets on each
        what came through that one: sum them.

        Args:
            trajectory: the record, with the module still at its final parameters.
            outer: ``module -> scalar``.
            index: ``(k,)`` global ids; default ``trajectory.index``. An id that the window has not seen gets 0,
                one that it has seen in several batches gets their sum.
            samples: instead of `index`, and with ``steps=1`` only: the last step is replayed virtually over these
                samples, those outside of its batch as rows of weight 0. The answer is aligned with
                ``samples.index``.

        Raises:
            ValueError: `index` and `samples` together, `samples` with T > 1, or with a coupled step that is refused
                (see `coupled`), more steps than recorded.
            RuntimeError: the live parameters were changed after the recording, or a gradient that the optimizer used
                is not that of the recorded loss (clipping, accumulation).
            NoDerivative: no way to the derivative stands the checks: for T > 1, an operator that torch differentiates
                once only, in a gradient that is no symmetric field.
            TypeError: the objective is not a `WeightedLoss`.
        """
        steps = self._window(trajectory)
        _ = trajectory.weighted  # TypeError, before anything is computed
        own = {"estimator": type(self).__name__, "steps": self.steps, "samples given": samples is not None}
        own["micro-batches"] = [len(step.micro_batches) for step in steps]
        trajectory.ranks.agree("the hypergradient", own)
        if samples is not None:
            beside = trajectory.ranks.together(lambda: self._check_samples(trajectory, index, steps[-1], samples))
            step = next(newest_first(trajectory, 1))
            _, update = newest_update(trajectory, outer, step, last=True)
            at, u = step.parameters, update.direction
            values = derivatives_as_rows(trajectory, step, at, u, samples, self.ladder, beside)
            return values * update.factor
        ids = ids_of(trajectory, index)
        cold = len(steps) > 1 and is_cold(steps[0]) and all(in_float32(step) for step in steps)
        exactly = trajectory.ranks.any(cold and any(one.findings.coupled for one in micro_batches(steps)))
        total = self._walked(trajectory, outer, steps, ids, index is None, exactly)
        if total is None:  # only an older step has shown that float32 is too rough
            total = self._walked(trajectory, outer, steps, ids, index is None, exactly=True)
        assert total is not None
        return total

    def _walked(
        self, run: Trajectory, outer: Outer, steps: list[Step], ids: Tensor, window: bool, exactly: bool
    ) -> Tensor | None:
        """Return the derivatives by the weights of `ids` ``(k,)``, those of the `window` or others; newest step first.

        With `exactly` in float64, where the optimizer is adaptive; else None where a step is met that should be.
        """
        total = torch.zeros(len(ids), device=ids.device, dtype=steps[-1].weight.dtype)
        whole = newest_first(run, len(steps))
        step, tracks = next(whole), len(steps) > 1 and _tracks(run, steps)
        found, update = newest_update(run, outer, step, len(steps) == 1, tracks, exactly)
        if found.statistics and any(step.findings.rewritten for step in micro_batches(steps)):
            raise NoDerivative(
                "a layer with running statistics stands in a checkpoint, which updates them once more on the way back: "
                "take it out of the checkpoint, or ask with steps=1"
            )
        running, exactly = found.statistics, exactly or (update.in_float64 is not None and in_float32(step))
        answers: list[tuple[Tensor, Tensor, Tensor, float]] = []
        for number in range(len(steps) - 1, -1, -1):
            product, rows = self._derivatives(run, step, update, curvature=bool(number))
            if number:
                mean = run.ranks.mean(product)
                adjoint, running, _ = _arrive(run, step, update.parameters, mean, running)
            answers += [(one.batch.index, one.weight, t, update.factor * one.scale) for one, t in rows]
            if number:
                step = next(whole)
                update = pull_update(run, step, adjoint, update.state, last=number == 1, exactly=exactly)
                if update.in_float64 is not None and in_float32(step) and not exactly:
                    return None
        for index, weight, t, factor in answers:  # (at the end: small operators between large ones are slow)
            add_by_id(total, ids, index, run.weighted.pull(t, t, weight) * factor, window=window)
        return total

    def tensors(self, trajectory: Trajectory, outer: Outer, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return d outer / d tensor for any tensors that the inner loss (or the outer one) reads.

        The general path: the objective is any callable ``(model, batch, weight) -> scalar`` that uses `tensors`
        (parameters of a weighting network, a temperature, ...), which still hold the values of the recorded
        run. Costs a double backward a step instead of a forward-mode sweep.

        Args:
            trajectory: the record.
            outer: ``module -> scalar``.
            tensors: leaves that require a gradient.

        Returns:
            One tensor for each of `tensors`, of its shape; zeros where nothing depends on it.

        Raises:
            ValueError: one of `tensors` requires no gradient; recorded weights that carry a graph.
            TypeError: one is complex.
        """
        check_alone(trajectory, "the general path, estimator.tensors(...),")
        check_tensors(tensors)
        steps = self._window(trajectory)
        check_detached(trajectory)
        found = outer_gradient(trajectory, outer, tensors, _tracks(trajectory, steps))
        adjoint, running = found.parameters, found.statistics
        total = list(found.direct)
        state: dict[str, Tensors] = {}
        for step in newest_first(trajectory, len(steps)):
            update = pull_update(trajectory, step, adjoint, state)
            slope: Tensors = {}
            product: Tensors = {}
            for one in step.micro_batches:
                curved, through = self.ladder.mixed(trajectory, one, one.parameters, update.direction, tensors)
                slope = add_scaled(slope, curved.gradient, one.scale)
                product = add_scaled(product, curved.product, one.scale)
                total = [t.add(more, alpha=one.scale) for t, more in zip(total, through, strict=True)]
            other = check_replayed(trajectory, step, slope)
            if other is not None:
                raise NoDerivative(f"{other}; ask for sample weights, or with steps=1")
            adjoint, running, moved = _arrive(trajectory, step, update.parameters, product, running, tensors)
            state = update.state
            total = [t + more for t, more in zip(total, moved, strict=True)]
        return tuple(total)

    def _derivatives(
        self, run: Trajectory, step: Step, update: Update, curvature: bool
    ) -> tuple[Tensors, list[tuple[Step, Tensor]]]:
        """Return the curvature along u (where asked for) and the t_i of each micro-batch of the step.

        (The product is rounded to the parameters' precision: on several ranks it travels.)
        """
        if not step.accumulated:
            product, tangents, _ = self._derivatives_of(run, step, step, update, curvature)
            return (product if step.scale == 1.0 else add_scaled({}, product, step.scale)), [(step, tangents)]
        total: Tensors = {}
        slope: Tensors = {}
        rows = []
        for number, one in enumerate(step.micro_batches):
            product, tangents, own = self._derivatives_of(run, step, one, update, curvature, number)
            slope = add_scaled(slope, own, one.scale)
            total = add_scaled(total, product, one.scale)
            rows.append((one, tangents))
        other = check_replayed(run, step, slope, update.slope)
        if other is not None:
            raise NoDerivative(f"{other}; ask with steps=1")
        return total, rows

    def _derivatives_of(
        self, run: Trajectory, step: Step, one: Step, update: Update, curvature: bool, number: int = 0
    ) -> tuple[Tensors, Tensor, Tensors]:
        """Return, of micro-batch `number` of a step, curvature, t_i and (where there are several) its gradient.

        In float64 if that is wanted.
        """
        slope = gradient(run, one, one.parameters) if step.accumulated and not curvature else {}
        found, wide = None, update.in_float64
        if wide is None:
            try:
                found = self._derivatives_at(run, one, one, update.direction, curvature, slope)
            except NoDerivative:
                if update.gradients is None or not one.conditions.autocast:
                    raise
        if wide is None and (found is None or run.ranks.any(self._is_blurred(run, one, update, found[1]))):
            assert update.gradients is not None
            same = gradient_in_float64(run, step, update.gradients)
            wide = None if same is None else same.step or step_in_float64(run, step)
            if wide is None and one.conditions.autocast:
                raise NoDerivative(ROUNDS_AWAY)
        if wide is None:
            assert found is not None
            return found
        if curvature:
            wide.findings.forward_record = None  # of no use here, and large
        near = None if curvature else near_float64(run, step, update, self.ladder)
        if near is not None:
            return {}, near, slope
        first = curvature_near_float64(run, step, update, self.ladder) if curvature else None
        direction = {name: u.to(wide.parameters[name].dtype) for name, u in update.direction.items()}
        with kernels_in_float64(step):
            there = wide.micro_batches[number]
            if slope:
                slope = gradient(run, there, there.parameters)
            exact = None if step.accumulated else update.slope
            return self._derivatives_at(run, one, there, direction, curvature, slope, exact, first)

    def _is_blurred(self, run: Trajectory, step: Step, update: Update, tangents: Tensor) -> bool:
        """Whether rounding may move the t_i of the step by `_BLURRED` of the largest (more under autocast).

        Where the step's gradient is exactly 0, u can be as large as it gets. Mostly no sample's loss moves along it
        there (a dead unit); where samples' derivatives are not 0 but cancel, what is left of them, and of what is added
        to them on the way, is rounding times u. The t_i without these entries of u tell. They are left out where the
        optimizer has never seen another gradient than 0 for any of them, and earlier calls found them to be the same.
        """
        if update.gradients is None:
            return False
        allowed = (_BLURRED_UNDER_AUTOCAST if step.conditions.autocast else _BLURRED) * _size(tangents)
        blurred = update.noise > allowed
        if run.ranks.any(blurred) or not run.ranks.any(allowed < update.rounding * norm_of(update.direction)):
            return blurred
        zero = _where_zero(step, update)
        if not run.ranks.any(allowed < update.rounding * norm_of(zero)):
            return False
        surely = run.ranks.any(allowed < update.rounding * norm_of(_where_zero(step, update, seen=True)))
        rest = {name: u - zero[name] for name, u in update.direction.items()}
        return self.ladder.differ(run, step, rest, tangents, allowed, surely)

    def _derivatives_at(
        self,
        run: Trajectory,
        step: Step,
        there: Step,
        direction: Tensors,
        curvature: bool,
        slope: Tensors,
        exact: Tensors | None = None,
        first: Rung | None = None,
    ) -> tuple[Tensors, Tensor, Tensors]:
        """Do so in the precision of `there`, which is `step` or the same in float64; H u by the `first` way first."""
        if not curvature:
            objection = objection_to(run, step, direction, slope or None, there is not step, exact)
            return {}, self.ladder.losses(run, there, there.parameters, direction, there.batch, objection), slope

        def object_to(curved: Curved) -> str | None:
            other = check_replayed(run, step, add_scaled({}, curved.gradient, step.scale), exact)
            slope = curved.gradient or None
            return other or objection_to(run, step, direction, slope, there is not step, exact)(curved.tangents)

        found = self.ladder.curvature_and_losses(run, there, there.parameters, direction, object_to, first)
        rounded = {name: one.to(step.parameters[name].dtype) for name, one in found.product.items()}
        return rounded, found.tangents, found.gradient

    def _window(self, trajectory: Trajectory) -> list[Step]:
        if self.steps > len(trajectory.steps):
            raise ValueError(
                f"steps={self.steps}, but {len(trajectory.steps)} were recorded; record more with Recorder(steps=...)"
            )
        return trajectory.steps[-self.steps :]

    def _check_samples(self, run: Trajectory, index: Tensor | Numbers | None, step: Step, samples: Batch) -> bool:
        """Return whether samples are evaluated beside the recorded batch (see `coupled`); raise where none can be."""
        if index is not None:
            raise ValueError("give index or samples, not both")
        if self.steps != 1:
            raise ValueError(
                f"samples need steps=1, got steps={self.steps}: a virtual step over other samples would have changed "
                "all the later ones; use index for the samples of the window"
            )
        micro = step.micro_batches
        if self.coupled == "chunk" or not any(self.ladder.couples(run, one, samples) for one in micro):
            return False
        if self.coupled == "refuse" or any(self.ladder.couples_beside(run, one, samples) for one in micro):
            others, remedy = ", and not by layers of BatchNorm alone", 'chunk statistics with coupled="chunk"'
            if self.coupled == "refuse":
                others, remedy = "", 'an approximation: coupled="batch" takes each as one more row of that batch'
            raise ValueError(
                f"the recorded step normalised by its batch (BatchNorm in training mode) or wrote to a buffer{others}, "
                "so the derivative for a sample outside of it is not defined by itself; put such layers in eval mode, "
                f"or accept {remedy}"
            )
        return True


class FiniteDifference(Truncated):
    """`Truncated` with every derivative along a direction taken by a central difference.

    Two plain forward passes instead of a forward-mode one; the optimizer is still pulled back in closed form. The
    error is about eps^(2/3) of the parameters' precision at best, 1e-10 in float64 and 1e-5 in float32; in wide nets
    and across kinks (ReLU) more. It differentiates the VALUE of the losses; where the backward pass is not the
    derivative of that (or the error is larger than the checks allow), the ladder goes on to double backward and
    ordinary backward passes. The general path (`tensors`) is `Truncated`'s.

    Args:
        steps: T.
        length: of the step in parameter space; None: eps^(1/3) of the precision.
        memory: as `Truncated`.
        coupled: as `Truncated`.
    """

    def __init__(
        self,
        steps: int = 1,
        length: float | None = None,
        memory: int = MEMORY,
        coupled: Coupled = "refuse",
    ) -> None:
        super().__init__(steps, memory, coupled)
        if length is not None:
            _check.in_range("length", length, low=0.0, open_low=True)
        self.ladder = Ladder(memory, Differences(length))


def _where_zero(step: Step, update: Update, seen: bool = False) -> Tensors:
    """Return u where the gradient is exactly 0; with `seen`, where the optimizer remembers one that was not."""
    assert update.gradients is not None
    found = {}
    for name, u in update.direction.items():
        gradient = update.gradients.get(name)
        found[name] = torch.zeros_like(u) if gradient is None else u.masked_fill(gradient != 0, 0)
        moments = [m for m in step.state[name].values() if isinstance(m, Tensor) and m.shape == u.shape]
        if seen and gradient is not None:
            remembered = torch.stack([m != 0 for m in moments]).any(0) if moments else torch.zeros_like(u).bool()
            found[name] *= remembered
    return found


_BLURRED = 1e-4
"""What rounding may do to a t_i, relative to the largest, before a step is taken in float64."""
_BLURRED_UNDER_AUTOCAST = 0.01


def _size(tangents: Tensor) -> float:
    return float(tangents.abs().max()) if len(tangents) else 0.0


def _tracks(run: Trajectory, steps: list[Step]) -> bool:
    """Whether running statistics can carry a part of the derivative (see `statistics`)."""
    return any(step.findings.coupled for step in micro_batches(steps)) and bool(tracking_layers(run.module))


def _arrive(
    run: Trajectory,
    step: Step,
    adjoint: Tensors,
    product: Tensors,
    running: Tensors,
    tensors: Sequence[Tensor] = (),
) -> tuple[Tensors, Tensors, tuple[Tensor, ...]]:
    """Sum what reaches the parameters before `step`: directly, through the gradient, through the statistics.

    Also returned: the adjoint of the statistics before the step, and what reaches `tensors` through them.
    """
    sums = torch._foreach_add(list(adjoint.values()), [product[name] for name in adjoint])
    arrived = dict(zip(adjoint, sums, strict=True))
    if not running:
        return arrived, running, tuple(torch.zeros_like(tensor) for tensor in tensors)
    direct = tuple(torch.zeros_like(tensor) for tensor in tensors)
    for one in reversed(step.micro_batches):
        through, running, moved = statistics_adjoint(run, one, one.parameters, running, tensors)
        arrived = {name: arrived[name] + through[name] for name in arrived}
        direct = tuple(here + more for here, more in zip(direct, moved, strict=True))
    return arrived, running, direct
