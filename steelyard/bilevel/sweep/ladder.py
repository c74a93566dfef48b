"""One ladder of ways to d l_i along u, from the fastest to the plainest; the first that stands the checks answers.

Which rung answered, how often, and why others were passed over, can be asked (`Ladder.answered`, `Ladder.passed_over`):
what falls down the ladder gets slower, and must be seen to.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard._support._finite import all_finite
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.float64 import in_float32
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep import checks
from steelyard.bilevel.sweep.coupling import mixes_samples, moves_recorded
from steelyard.bilevel.sweep.known import Known, known_of
from steelyard.bilevel.sweep.memory import bytes_per_sample
from steelyard.bilevel.sweep.question import Question
from steelyard.bilevel.sweep.rungs import (
    CANNOT,
    EXACT,
    KEPT,
    Curved,
    Differences,
    Rung,
    curvature_rungs,
    general,
    loss_rungs,
)
from steelyard.bilevel.sweep.stopped import stops_gradients
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["ROUNDS_AWAY", "Ladder", "NoDerivative", "StopGradientWarning"]

Answer = TypeVar("Answer")
Objection = Callable[[Any], str | None]


def _none(found: Any) -> None:
    """No objection."""


class NoDerivative(RuntimeError):
    """No way to a derivative of the recorded loss stands the checks."""


class StopGradientWarning(UserWarning):
    """Values leave the graph (`detach`, `no_grad`, `item`): second derivatives leave out what flows through there."""


class Ladder:
    """The rungs in order, for one estimator.

    Args:
        memory: bytes that the activations of one chunk of a sweep may take; the chunk size follows from a probe of
            a few samples. A recorded batch that couples its samples or draws random numbers is never cut.
        differences: take central differences first, instead of rules.

    Attributes:
        answered: how often each rung answered.
        passed_over: why rungs above those did not, the last time that they were tried.
    """

    def __init__(self, memory: int, differences: Differences | None = None) -> None:
        self.memory = _check.integer("memory", memory, low=1)
        self.differences = differences
        self.answered: Counter[str] = Counter()
        self.passed_over: dict[str, str] = {}

    def losses(
        self,
        run: Trajectory,
        step: Step,
        at: Tensors,
        direction: Tensors,
        batch: Batch,
        objection: Objection = _none,
        beside: bool = False,
        rungs: Sequence[Rung] = (),
        over_float64: bool = False,
    ) -> Tensor:
        """Return t_i = <direction, grad l_i(at)> ``(batch,)`` for every sample of `batch`, without a graph.

        Args:
            run, step, at, direction, batch: the question.
            objection: from t_i to what the caller has against them, or None; where a gradient is at hand to compare.
            beside, over_float64: as `Question` has them.
            rungs: to be taken instead of all.

        Raises:
            NoDerivative: no rung's answer stands.
        """
        question = Question(run, step, at, direction, batch, beside=beside, over_float64=over_float64)
        known = known_of(question, "losses beside" if beside else " ".join(["losses", *(rung.name for rung in rungs)]))
        due = run.ranks.any(known.due())
        cut: list[Question] = []

        def in_pieces() -> Question:
            """Return the question as memory allows it; how many samples that are is found out by a probe."""
            if not cut:
                cut.append(replace(question, size=self._size(question, known, due)))
            return cut[0]

        def ask(rung: Rung) -> Tensor:
            if rung.passing:  # the record is there already
                found: Tensor = _answer(rung, question)
                return found
            return torch.cat([_answer(rung, piece) for piece in in_pieces().pieces()])

        finite: list[bool] = []  # of the answer that is looked at

        def fault(rung: Rung, found: Tensor) -> str | None:
            if not finite.pop():
                bad = ~torch.isfinite(found)
                return None if rung.ordinary or not _finite_losses(in_pieces(), bad) else "not finite"
            return checks.signs(in_pieces(), found, known.generator) if due and len(found) else None

        def objection_to_finite(found: Tensor) -> str | None:
            finite[:] = [all_finite([found])]
            if run.ranks.any(not finite[0]):
                return None  # a diverged run, or a sample of which no loss is finite
            return objection(found)

        rungs = rungs or loss_rungs(self.differences)
        return self._climb(question, known, rungs, ask, fault, objection_to_finite)

    def differ(
        self, run: Trajectory, step: Step, direction: Tensors, tangents: Tensor, by: float, surely: bool = False
    ) -> bool:
        """Whether the t_i of the step's batch along `direction` are not `tangents`, but another by more than `by`.

        Looked at where it is due, once was so, or is `surely` asked; else False.
        """
        known = known_of(Question(run, step, step.parameters, direction, step.batch), "differ")
        due = known.due()
        if not run.ranks.any(due or known.differ or surely):
            return False
        found = self.losses(run, step, step.parameters, direction, step.batch)
        differ = bool(((found - tangents).abs() > by).any())
        known.differ = known.differ or differ
        return differ

    def curvature_and_losses(
        self,
        run: Trajectory,
        step: Step,
        at: Tensors,
        direction: Tensors,
        objection: Objection = _none,
        first: Rung | None = None,
    ) -> Curved:
        """Return H u of the step's inner loss at `at`, u = `direction`, and the t_i of its batch, with the gradient.

        H is the transposed derivative of the gradient that `backward` gives, as autograd has it: what the model
        detaches, or computes without gradients, it takes as constant (and a `StopGradientWarning` says so).

        Args:
            run, step, at, direction, objection: as `losses` has them.
            first: a way to be taken before all others.

        Raises:
            NoDerivative: no rung's answer stands.
        """
        question = Question(run, step, at, direction, step.batch)
        known = known_of(question, "curvature")
        due = run.ranks.any(known.due())
        if due:
            known.left_out = None

        def replayed(rung: Rung, found: Curved) -> str | None:
            if not all_finite([*found.product.values(), found.tangents]):
                return "not finite"
            if not due:
                return None
            signs = checks.signs(question, found.tangents, known.generator) if len(found.tangents) else None
            return signs or _bent(question, known, rung.answer, rung.name == EXACT)

        def fault(rung: Rung, found: Curved) -> str | None:
            # (Not by one function that names itself: such a closure lives on with the step's graph until a collection.)
            if due and (rung is first or rung.name == KEPT) and all_finite([*found.product.values(), found.tangents]):
                others = rungs[rungs.index(rung) + 1 :]
                return _unlike(found, self._climb(question, known, others, ask, replayed, objection), step)
            return replayed(rung, found)

        rungs = [*([] if first is None else [first]), *curvature_rungs(step.findings.coupled, self.differences)]
        ask = partial(_answer, question=question)
        found = self._climb(question, known, rungs, ask, fault, objection)
        _say_what_is_left_out(known)
        return found

    def curvature(self, run: Trajectory, step: Step, at: Tensors, direction: Tensors) -> Tensors:
        """Return H u alone, of any objective; see `curvature_and_losses`."""
        if run.is_weighted:
            return self.curvature_and_losses(run, step, at, direction).product
        return self.mixed(run, step, at, direction, ())[0].product

    def mixed(
        self, run: Trajectory, step: Step, at: Tensors, direction: Tensors, tensors: Sequence[Tensor]
    ) -> tuple[Curved, tuple[Tensor, ...]]:
        """Return H u and the gradient of any objective, and the derivative of <u, gradient> by `tensors`.

        Raises:
            NoDerivative: second derivatives of the model are not those of its gradient.
        """
        question = Question(run, step, at, direction, step.batch)
        known = known_of(question, "general")
        found, through = general(question, tensors)
        _check_second_derivative(question, known)
        self.answered[EXACT] += 1
        return found, through

    def check_second_derivative(self, run: Trajectory, step: Step) -> None:
        """Raise NoDerivative, where it is due, if autograd's second derivative of the step's loss is wrong."""
        question = Question(run, step, step.parameters, step.parameters, step.batch)
        _check_second_derivative(question, known_of(question, "unrolled"))

    def couples(self, run: Trajectory, step: Step, samples: Batch) -> bool:
        """Whether the loss of one of `samples` in `step` depends on which others are beside it.

        All are looked at when it is due, else some that are drawn again each time.
        """
        if step.findings.coupled:
            return True
        question = Question(run, step, step.parameters, {}, samples)
        known = known_of(question, "coupling")
        count = max(64, len(samples) // 32)
        due = known.due()
        if not due and len(samples) > count:
            samples = samples.take(torch.randperm(len(samples), generator=known.generator)[:count].sort().values)
        size = self._fitting(question, known, due)
        return mixes_samples(run, step, step.parameters, samples, known.generator, size)

    def couples_beside(self, run: Trajectory, step: Step, samples: Batch) -> bool:
        """Whether that is so, too, where BatchNorm takes its statistics of the recorded batch (see `sweep.beside`).

        Also where the recorded samples would then have other losses than in their batch.
        """
        question = Question(run, step, step.parameters, {}, samples, beside=True)
        known = known_of(question, "coupling beside")
        if known.due() or known.mixes:
            some = samples.take(torch.randperm(len(samples), generator=known.generator)[:64].sort().values)
            known.mixes = moves_recorded(run, step, some) or mixes_samples(
                run, step, step.parameters, some, known.generator, beside=True
            )
        return known.mixes

    def _climb(
        self,
        question: Question,
        known: Known,
        rungs: Sequence[Rung],
        ask: Callable[[Rung], Answer],
        fault: Callable[[Rung, Answer], str | None],
        objection: Callable[[Answer], str | None],
    ) -> Answer:
        """Return the first answer that stands. All ranks take each rung together."""
        ranks = question.run.ranks
        reasons: dict[str, str] = {}
        barred: dict[str, str] = {}
        for rung in rungs:
            if ranks.any(rung.name in known.barred):
                reasons[rung.name] = known.barred.get(rung.name, "another rank cannot")
                continue
            found, why = None, None
            try:
                found = ask(rung)
            except _CannotError as error:
                why = str(error)
            if ranks.any(why is not None):
                lasting = not rung.passing
            else:
                assert found is not None
                lasting = True
                why = objection(found) or fault(rung, found)
                if not ranks.any(why is not None):
                    self.answered[rung.name] += 1
                    self.passed_over = reasons
                    known.barred.update(barred)  # (where none answers, it is this call that is to blame)
                    return found
            reasons[rung.name] = why or "another rank cannot"
            if lasting:
                barred[rung.name] = reasons[rung.name]
        known.calls = 0  # the next call is checked as dearly: it must not pass for want of a look
        said = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        remedies = [_REMEDY if any(rung.name == EXACT for rung in rungs) else _LINEAR]
        if in_float32(question.run.steps[-1]):  # (the question may have been asked in float64 for that)
            remedies.append(_ROUNDED)
        remedy = ROUNDS_AWAY if question.step.conditions.autocast else "; ".join(remedies)
        raise NoDerivative(f"no way to the derivative of the recorded loss stands ({said}); {remedy}")

    def _size(self, question: Question, known: Known, due: bool) -> int | None:
        """Return how many samples at a time fit into memory; None: all, as where the recorded batch may not be cut."""
        batch, step = question.batch, question.step
        own = batch is step.batch
        if len(batch) <= 4 or (own and not step.findings.separable):
            return None
        try:
            size = self._fitting(question, known, due)
        except Exception:  # noqa: BLE001 (whatever a model says that takes only the number of samples it was trained on)
            return None
        if question.beside:  # the recorded rows, which are never cut, come along with every piece
            size = max(size - len(step.batch), len(step.batch))
        if size >= len(batch):
            return None
        if own:
            # All at once is how the training had it; in groups is how it would be cut.
            some = (
                batch if due else batch.take(torch.randperm(len(batch), generator=known.generator)[:16].sort().values)
            )
            known.mixes = known.mixes or mixes_samples(
                question.run, step, question.at, some, known.generator, smaller=size
            )
            if known.mixes:
                return None
        return size

    def _fitting(self, question: Question, known: Known, due: bool) -> int:
        def probe(samples: int) -> Callable[[], Tensor]:
            few = question.batch.take(torch.arange(samples))
            return lambda: replace(question, batch=few).losses(question.at)

        if len(question.batch) <= 4:
            return 4
        kept = self.differences is None
        if due or kept not in known.widths:  # the probe costs a small net as much as the answer
            known.widths[kept] = bytes_per_sample(probe, kept)
        return max(1, self.memory // known.widths[kept])


def _unlike(found: Curved, plain: Curved, step: Step) -> str | None:
    """Compare what a faster way gave with the answer of a plainer one, which was checked; say what differs."""
    sums = [(found.product, plain.product), ({"t": found.tangents}, {"t": plain.tangents})]
    for one, other in sums:
        dtype, own = next(iter(other.values())).dtype, next(iter(one.values())).dtype
        tolerance = _UNLIKE_COUPLED if step.findings.coupled and dtype != torch.float64 else checks.tolerance_in(dtype)
        tolerance = tolerance if own == dtype else _UNLIKE_ROUNDED
        apart = math.sqrt(sum(float((one[name] - value).double().square().sum()) for name, value in other.items()))
        size = math.sqrt(sum(float(value.double().square().sum()) for value in other.values()))
        if not apart <= tolerance * size:
            return f"it is {apart:.3g} away from a replay's answer of size {size:.3g}"
    return None


_UNLIKE_COUPLED = 0.05
"""How far reverse over reverse through BatchNorm, which rounds sums of large terms, may be from the other way."""
_UNLIKE_ROUNDED = 1e-4
"""How far an answer in float32, over values of float64, may be from that in float64 (seen: 2e-6 on a ResNet-18)."""


def _finite_losses(question: Question, rows: Tensor) -> bool:
    """Whether one of the samples at `rows` (a mask) has a finite loss, and so may have a finite derivative."""
    with torch.no_grad():
        losses = [one.losses(one.at) for one in question.pieces()]
    return bool(torch.isfinite(torch.cat(losses)[rows]).any())


class _CannotError(Exception):
    """A rung cannot answer. (What the loading of data raises is not taken for that.)"""


def _answer(rung: Rung, question: Question) -> Any:
    try:
        return rung.answer(question)
    except torch.OutOfMemoryError:
        raise
    except CANNOT as error:
        raise _CannotError(str(error).strip().split("\n")[0][:300] or type(error).__name__) from error


_REMEDY = (
    "Truncated(steps=1) needs no second derivative; or put the operator together from others that torch differentiates "
    "twice"
)

_LINEAR = (
    "a backward pass that clips or normalises what comes back (a hook, a function) has no derivative by the weights: "
    "take it out, or clip by recorder.clip_grad_norm_"
)
_ROUNDED = (
    "if it is rounding: scale inputs that are far from 0 (before BatchNorm, say), leave out a bias that BatchNorm "
    "subtracts again (bias=False), or train in float64"
)


ROUNDS_AWAY = (
    "autocast rounds it away: the rounding of the gradient (of a bias before BatchNorm it is nothing else) decides an "
    "adaptive update, and the step does not replay to the same gradient in float64 or float32; leave such a bias out, "
    "bias=False, or record without autocast"
)
"""Why a step under autocast has no derivative."""


def _check_second_derivative(question: Question, known: Known) -> None:
    if known.due():
        known.left_out = None
        fault = _bent(question, known, lambda asked: general(asked, ())[0], True)
        if fault is not None:
            raise NoDerivative(f"the second derivative of the model is wrong ({fault}); {_REMEDY}")
    _say_what_is_left_out(known)


def _bent(question: Question, known: Known, answer: Callable[[Question], Curved], exact: bool) -> str | None:
    """Check H; where the model stops gradients, what autograd leaves out is meant, and noted.

    (Of all samples: what is wrong of one, a label made by the model or a variance at its floor, no few show.)
    """
    fault = checks.curvature(question, answer, known.generator)
    if (fault is not None and not exact) or not stops_gradients(question):
        return fault
    if fault is None:
        fault = checks.left_out(question, known.generator)
        if fault is None:
            return None
    else:
        other = checks.curvature(question, answer, known.generator, held=True)
        if other is not None:  # (torch's third derivative of BatchNorm, say)
            return f"what the model detaches being held, {other}"
    known.left_out = fault
    return None


def _say_what_is_left_out(known: Known) -> None:
    if known.left_out is not None:
        warnings.warn(
            "the model or the loss takes values out of the graph (detach, no_grad, .data, .item()), and with more than "
            "one step the second derivative leaves out what flows through there: the answer is that of autograd, not "
            f"of training again ({known.left_out}). Truncated(steps=1) does not ask for it",
            StopGradientWarning,
            stacklevel=4,
        )
