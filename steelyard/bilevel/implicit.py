"""The implicit hypergradient: the inner problem is taken as solved."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.bilevel.agreement import add_scaled
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.replay import dot
from steelyard.bilevel.statistics import statistics_adjoint, tracking_layers
from steelyard.bilevel.step import Tensors, micro_batches
from steelyard.bilevel.sweep.ladder import Ladder
from steelyard.bilevel.trajectory import Trajectory
from steelyard.bilevel.truncated import MEMORY, Outer
from steelyard.bilevel.window import (
    OuterGradient,
    add_by_id,
    check_alone,
    check_detached,
    check_tensors,
    derivatives_as_rows,
    ids_of,
    outer_gradient,
)

__all__ = ["Implicit", "SolverReport", "SolverWarning"]


class SolverWarning(UserWarning):
    """The linear solve behind an implicit hypergradient did not reach its tolerance."""


@dataclass(frozen=True)
class SolverReport:
    """How well (H + damping I) x = v was solved.

    Attributes:
        iterations: Hessian-vector products spent on the solve.
        residual: ||v - (H + damping I) x|| / ||v||, recomputed at the end, not the solver's running estimate.
        converged: whether `residual` is at most the tolerance.
        negative_curvature: a direction p with p' (H + damping I) p <= 0 was met: the inner problem is not at a
            strict minimum, and the implicit function theorem does not apply without more damping.
    """

    iterations: int
    residual: float
    converged: bool
    negative_curvature: bool


class Implicit:
    """d outer / d w = -<(H + damping I)^{-1} v, d grad / d w> at the final parameters (implicit function theorem).

    Source: Bengio 2000; conjugate gradients as Pedregosa 2016, the Neumann series as Lorraine et al. 2020.
    The inner objective is the mean of the recorded steps' inner losses (of several micro-batches their scaled sum),
    taken at the final parameters, plus the optimizer's (coupled) weight decay; clips do not bite where it is solved:
    record one full-batch step, or the batches of one epoch. Which optimizer led there does not matter, so far as it
    stops where that objective's gradient is zero; how far it is from zero bounds what the answer is worth.

    Time: one gradient-of-a-gradient along a direction (9 forward passes) an iteration, over all recorded batches.
    Memory: five vectors of the size of the parameters and one batch's activations.

    Args:
        solver: ``"cg"`` (needs H + damping I positive definite) or ``"neumann"``
            (x = a sum_k (I - a(H + damping I))^k v).
        iterations: at most so many Hessian-vector products.
        damping: added to the diagonal of H, >= 0.
        tolerance: on the relative residual.
        step_size: a of the Neumann series; None: 1 / (largest eigenvalue, by ten power iterations).
        memory: bytes for one chunk of the final sweep.

    Raises (at the call):
        ValueError: decoupled weight decay (AdamW), whose fixed points are not stationary points of a loss; parameter
            groups of which some maximise; `samples` with several recorded steps or a coupled one.
    """

    def __init__(
        self,
        solver: Literal["cg", "neumann"] = "cg",
        iterations: int = 100,
        damping: float = 0.0,
        tolerance: float = 1e-6,
        step_size: float | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.solver = _check.choice("solver", solver, ("cg", "neumann"))
        self.iterations = _check.integer("iterations", iterations, low=1)
        self.damping = _check.in_range("damping", damping, low=0.0)
        self.tolerance = _check.in_range("tolerance", tolerance, low=0.0, open_low=True)
        self.step_size = None if step_size is None else _check.in_range("step_size", step_size, low=0.0, open_low=True)
        self.ladder = Ladder(memory)

    def __call__(
        self,
        trajectory: Trajectory,
        outer: Outer,
        index: Int[Tensor, " k"] | Numbers | None = None,
        samples: Batch | None = None,
    ) -> Float[Tensor, " k"]:
        """Return d outer / d w_i; the arguments are those of `Truncated`.

        Warns with a `SolverWarning` where the solve stopped short of its tolerance.
        """
        value, report = self.with_report(trajectory, outer, index, samples)
        self._warn(report)
        return value

    def with_report(
        self,
        trajectory: Trajectory,
        outer: Outer,
        index: Int[Tensor, " k"] | Numbers | None = None,
        samples: Batch | None = None,
    ) -> tuple[Float[Tensor, " k"], SolverReport]:
        """Return the hypergradient and what the solver says of it, without a warning."""
        check_alone(trajectory, "Implicit")
        if samples is not None and (index is not None or len(trajectory.steps) != 1):
            raise ValueError(
                f"samples need a trajectory of one recorded step (it has {len(trajectory.steps)}) and no index beside "
                "them; record with steps=1, or ask by index"
            )
        if samples is not None and any(
            self.ladder.couples(trajectory, one, samples) for one in micro_batches(trajectory.steps)
        ):
            raise ValueError(
                "the recorded step normalised by its batch (BatchNorm in training mode) or mixed samples otherwise: "
                "ask by index, or put such layers in eval mode"
            )
        ids = ids_of(trajectory, index)
        found = outer_gradient(trajectory, outer, statistics=bool(tracking_layers(trajectory.module)))
        at = _trained(trajectory)
        direction, report = self._solve(trajectory, at, _settled(trajectory, at, found))
        if samples is not None:
            return derivatives_as_rows(trajectory, trajectory.steps[0], at, direction, samples, self.ladder), report
        total = torch.zeros(len(ids), device=ids.device, dtype=trajectory.steps[0].weight.dtype)
        for step in micro_batches(trajectory.steps):
            tangents = self.ladder.losses(trajectory, step, at, direction, step.batch)
            values = trajectory.weighted.pull(tangents, tangents, step.weight) * step.scale
            add_by_id(total, ids, step.batch.index, values)
        return total, report

    def tensors(self, trajectory: Trajectory, outer: Outer, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return d outer / d tensor for any tensors that the losses read; see `Truncated.tensors`."""
        check_alone(trajectory, "Implicit")
        check_tensors(tensors)
        check_detached(trajectory)
        found = outer_gradient(trajectory, outer, tensors, bool(tracking_layers(trajectory.module)))
        at = _trained(trajectory)
        direction, report = self._solve(trajectory, at, _settled(trajectory, at, found))
        self._warn(report)
        total = list(found.direct)
        for step in micro_batches(trajectory.steps):
            _, through = self.ladder.mixed(trajectory, step, at, direction, tensors)
            total = [one.add(more, alpha=step.scale) for one, more in zip(total, through, strict=True)]
        return tuple(total)

    def _warn(self, report: SolverReport) -> None:
        if report.converged:
            return
        curvature = " and met negative curvature" if report.negative_curvature else ""
        warnings.warn(
            f"Implicit(solver={self.solver!r}) stopped at a relative residual of {report.residual:.1e} after "
            f"{report.iterations} iterations{curvature}; raise iterations or damping, or train the inner problem "
            "further",
            SolverWarning,
            stacklevel=3,
        )

    def _product(self, run: Trajectory, at: Tensors, direction: Tensors, sign: float) -> Tensors:
        """(sign H + decay + damping) along, averaged over the recorded steps."""
        total = {name: self.damping * value for name, value in direction.items()}
        for step in run.steps:
            part: Tensors = {}
            for one in step.micro_batches:
                part = add_scaled(part, self.ladder.curvature(run, one, at, direction), one.scale)
            for name, value in direction.items():
                decay = step.groups[name]["weight_decay"]
                total[name] = total[name] + (sign * part[name] + decay * value) / len(run.steps)
        return total

    def _solve(self, run: Trajectory, at: Tensors, v: Tensors) -> tuple[Tensors, SolverReport]:
        """Return the direction u of theta such that d outer / d w = sum over steps of d<u, grad>/dw."""
        sign = _sign(run)
        x, report = self._linear_solve(run, at, v, sign)
        return {name: value * (-sign / len(run.steps)) for name, value in x.items()}, report

    def _linear_solve(self, run: Trajectory, at: Tensors, v: Tensors, sign: float) -> tuple[Tensors, SolverReport]:
        def product(direction: Tensors) -> Tensors:
            return self._product(run, at, direction, sign)

        size = math.sqrt(float(dot(v, v)))
        if size == 0.0:
            return v, SolverReport(0, 0.0, True, False)
        solve = self._conjugate_gradients if self.solver == "cg" else self._neumann
        x, iterations, negative = solve(product, v, size)
        rest = _add(v, product(x), -1.0)
        residual = math.sqrt(float(dot(rest, rest))) / size
        return x, SolverReport(iterations, residual, residual <= self.tolerance, negative)

    def _conjugate_gradients(self, product, v: Tensors, size: float) -> tuple[Tensors, int, bool]:  # type: ignore[no-untyped-def]
        x = {name: torch.zeros_like(value) for name, value in v.items()}
        rest, p = v, v
        squared = dot(rest, rest)
        for number in range(1, self.iterations + 1):
            hp = product(p)
            curvature = float(dot(p, hp))
            if curvature <= 0:
                return x, number, True
            length = float(squared) / curvature
            x, rest = _add(x, p, length), _add(rest, hp, -length)
            fresh = dot(rest, rest)
            if math.sqrt(float(fresh)) <= self.tolerance * size:
                return x, number, False
            p = _add(rest, p, float(fresh / squared))
            squared = fresh
        return x, self.iterations, False

    def _neumann(self, product, v: Tensors, size: float) -> tuple[Tensors, int, bool]:  # type: ignore[no-untyped-def]
        a = self.step_size or 1.0 / _largest_eigenvalue(product, v)
        x = {name: a * value for name, value in v.items()}
        negative = False
        for number in range(1, self.iterations + 1):
            hx = product(x)
            rest = _add(v, hx, -1.0)
            negative = negative or float(dot(x, hx)) < 0
            length = math.sqrt(float(dot(rest, rest)))
            if length <= self.tolerance * size or not math.isfinite(length):
                return x, number, negative
            x = _add(x, rest, a)
        return x, self.iterations, negative


def _largest_eigenvalue(product, v: Tensors) -> float:  # type: ignore[no-untyped-def]
    """Ten power iterations from v, enlarged by a tenth: the estimate comes from below, and 2 / lambda is the limit."""
    value = 1.0
    for _ in range(10):
        length = math.sqrt(float(dot(v, v)))
        if length == 0.0:
            break
        v = product({name: one / length for name, one in v.items()})
        value = math.sqrt(float(dot(v, v)))
    return 1.1 * max(value, torch.finfo(torch.float32).tiny)


def _add(one: Tensors, other: Tensors, factor: float) -> Tensors:
    return {name: one[name] + factor * other[name] for name in one}


def _trained(run: Trajectory) -> Tensors:
    """The final parameters that were trained at all; the others (frozen, unused) have no stationarity condition."""
    moved = {name for step in run.steps for name in step.groups if name not in step.skipped}
    return {name: value.detach() for name, value in run.final().items() if name in moved}


def _settled(run: Trajectory, at: Tensors, found: OuterGradient) -> Tensors:
    """v, with the path through BatchNorm's running statistics: at a fixed point they are the recorded batches' own."""
    v = {name: found.parameters[name] for name in at}
    if found.statistics:
        forward_passes = micro_batches(run.steps)
        for step in (one for one in forward_passes if one.findings.coupled):
            through, _, _ = statistics_adjoint(run, step, at, found.statistics, settled=True)
            v = {name: v[name] + through[name] / len(forward_passes) for name in v}
    return v


def _sign(run: Trajectory) -> float:
    """-1 where the optimizer maximises, +1 where it minimises; refuse what has no stationary point of one loss."""
    signs = {bool(group.get("maximize", False)) for group in run.steps[-1].groups.values()}
    if len(signs) > 1:
        raise ValueError("Implicit needs one loss, but some parameter groups maximise and others minimise it")
    if run.differences is not None:
        raise TypeError(
            f"Implicit reads the weight decay of torch's own optimizers, and knows not what {run.optimizer.__name__} "
            "means by its settings; use Truncated"
        )
    for name, group in run.steps[-1].groups.items():
        if group["weight_decay"] and (group.get("decoupled_weight_decay", False)):
            raise ValueError(
                f"Implicit needs a stationary point of a loss, but {name!r} is trained with decoupled weight decay "
                f"{group['weight_decay']}; use weight_decay=0 with a regulariser in the objective, or Truncated"
            )
    return -1.0 if signs == {True} else 1.0
