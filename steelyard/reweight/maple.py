"""MAPLE: learn which samples to keep, and their weights, by differentiating through the end of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._finite import broken_samples
from steelyard._support._progress import shown_progress
from steelyard._support._signals import interrupts_held
from steelyard.bilevel import Batch, Streamed, Truncated, WeightedLoss
from steelyard.checkpoint import Journal, Stateful
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.admission import admit, agree_on_state
from steelyard.reweight.constraints import Budget, ConstraintSet
from steelyard.reweight.course import Asked, Course, driven
from steelyard.reweight.cross_fit import CrossFit
from steelyard.reweight.identity import described, samples, settings
from steelyard.reweight.inner import InnerRun
from steelyard.reweight.mask import Mask
from steelyard.reweight.outer_risk import Drawn, Estimator, NotFiniteRiskError, OuterRisk, Spread, hypergradient
from steelyard.reweight.outer_settings import OuterSettings
from steelyard.reweight.outer_state import OuterState, OuterStep
from steelyard.reweight.priors import Prior
from steelyard.reweight.result import Reweighting
from steelyard.reweight.resumable import resumable
from steelyard.reweight.risk import MeanRisk, Risk
from steelyard.reweight.shared import Shared
from steelyard.reweight.together import Together, TogetherName, Trained

__all__ = ["Callback", "Maple"]

Callback = Callable[[OuterStep], bool | None]

_MEAN = MeanRisk()
_REDRAWS = 1000  # at a budget of one sample a mask is empty with probability 1 / e


class _Draws(NamedTuple):
    """What the draws of an outer step give: the spread of gradients, means, and mask and model of the last one."""

    spread: Spread
    outer_loss: float
    kept: float
    mask: Tensor
    model: nn.Module | None


class _Mask(NamedTuple):
    """A mask ``(n,)``, the inner weights under it, and the fold of every sample in a cross-fitted step."""

    mask: Tensor
    weight: Tensor
    fold: Tensor | None


@dataclass(eq=False)
class Maple(OuterSettings):
    """Learn weights w and keep-probabilities s of the training samples (Algorithm 1 of the paper).

    min over (w, s) of E_{m ~ Bern(s)} risk(theta*(w m)) subject to the `ConstraintSet`. An outer step draws a mask,
    trains on the kept samples with their weights, differentiates the outer risk through the last step of that
    training for all n samples at once, moves w and s by optimizers of the user's choice, and projects them. With
    inner weights a_i = m_i w_i and g_i = d risk / d a_i: d/dw_i = m_i g_i, d/ds_i = w_i g_i times the mask's
    surrogate.

    Departures from the paper, all of them options. The update of s is the default of a study on Colored MNIST that
    chose by validation and the training penalty, with ``Sqrt(VREx())`` as risk and w held at 1 (results/outer_step):

    - the budget is an equality by default; a risk that is a penalty alone otherwise shrinks the kept set;
    - w is learned and bounded (the released code does neither);
    - several draws an outer step average the hypergradient; its variance over the draws is in the history;
    - the mask's surrogate gradient is the identity (`Mask` says why; `Mask("relaxed")` is the paper's Gumbel-softmax,
      and only it has a temperature), and the gradient is not clipped (their code: 3).

    Args:
        inner: the inner run.
        risk: the outer objective; add `MeanRisk` for an ERM term: ``Sqrt(VREx()) + 0.1 * MeanRisk()``.
        budget: K, the expected number of kept samples: in (0, 1) a share of them, from 1 on (1.0 too) their number, or
            a function of progress in [0, 1] that returns either (`CubicBudget`). None, all samples, where only the
            weights are learned.
        equality: hold sum s at K, or only at or below it.
        radius: bound on ||w||_p; None: the norm of w = 1.
        p: 1 or 2.
        mask: how masks are drawn and differentiated.
        estimator: of the hypergradient; default ``Truncated(steps=1, coupled="batch")``: under BatchNorm, samples
            outside of the last minibatch get an approximate derivative (`Truncated` says how near). With more steps
            recorded (``inner.window``) only samples of the window get a gradient.
        outer_chunk: evaluate the outer samples in chunks of this size and recompute their activations on the way
            back: memory of one chunk for a third more time; None: all at once, or a `Streamed`'s own chunk.
        shared: one weight for all samples of a source, `learn` being "weights" or "both": d risk / d w of a source is
            the sum over its samples (of all kept ones, each as a row of the last step; with more steps recorded, of
            those of the window). Weights stay aligned with the samples, and are equal within a source:
            ``shared.mean(result.weights, result.index)`` has one for each.
        together: whether the inner runs of an outer step, of its folds and draws, are trained as one: "auto", where
            that is the same up to rounding and the nets are small (see `Together`), True or False.
        prior: keep-probabilities known beforehand, where w and s start and/or what anchors s (see `Prior`).
        steps, learn, draws, folds, probability_optimizer, weight_optimizer, schedule, clip, patience, tolerance, seed:
            how w and s move; see `OuterSettings`, whose fields they are.

    Where ``inner.objective`` has ``ranks=Processes()``, every rank gives its share of the samples to `fit` and all end
    with the result that one process has for all of them, to rounding: masks and batches are those of one process,
    and sums (norms, the projections' thresholds, the outer gradient) are over all ranks. Each keeps w, s and the
    optimizers' moments of its own samples. A risk is given the outputs of all samples, and not their inputs.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of range; an anchor where s is not learned; at `fit`: a budget or folds above n, a
            validation set of another width or dtype that the model cannot take, a mask that keeps nothing, missing
            environments or groups (from the risk), repeated ids in `train`, a prior of another length.

    The history has one row a step; `OuterStep` says what is in it.

    References:
        Zhou et al., "Model Agnostic Sample Reweighting for Out-of-Distribution Learning", ICML 2022.

    Example:
        See the README; ``Maple(inner, risk, budget=100, steps=20).fit(train).weights``.
    """

    inner: InnerRun
    risk: Risk
    _: KW_ONLY
    budget: Budget = None
    equality: bool = True
    radius: float | int | None = None
    p: int = 2
    mask: Mask | None = None
    estimator: Estimator | None = None
    outer_chunk: int | None = None
    prior: Prior | None = None
    shared: Shared | None = None
    together: TogetherName = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.instance("inner", self.inner, InnerRun, "an InnerRun")
        _check.instance("risk", self.risk, Risk, "a Risk, such as VREx()")
        if self.budget is None and self.learn != "weights":
            raise TypeError(
                "budget must be a real number, got None: give how many samples to keep, or in (0, 1) their share "
                "(learn='weights' alone can do without)"
            )
        if self.budget is not None and not callable(self.budget) and not _check.in_range("budget", self.budget) > 0:
            raise ValueError(f"budget must be > 0 samples to train on, got {self.budget}")
        self.constraints = ConstraintSet(self.budget, self.equality, self.radius, self.p)
        self.mask = Mask() if self.mask is None else _check.instance("mask", self.mask, Mask, "a Mask")
        what = "an estimator, such as Truncated()"
        self.estimator = (
            Truncated(coupled="batch")
            if self.estimator is None
            else _check.instance("estimator", self.estimator, Estimator, what)
        )
        asked = getattr(self.estimator, "steps", 1)
        if isinstance(asked, int) and asked > self.inner.window:
            raise ValueError(
                f"estimator asks for steps={asked}, and the inner run records {self.inner.window}: "
                f"InnerRun(..., window={asked})"
            )
        if self.outer_chunk is not None:
            self.outer_chunk = _check.integer("outer_chunk", self.outer_chunk, low=1)
        _check.instance("prior", self.prior, (Prior, type(None)), "a Prior")
        if self.prior is not None and self.prior.anchor and self.learn == "weights":
            raise ValueError("prior.anchor draws s to the prior, but learn='weights' holds s; use anchor=0 or learn s")
        self._check_shared()
        self._together = Together([self.inner], self.together)
        self.cross_fit = CrossFit(self.inner, self.folds, self.together) if self.folds > 1 else None

    def _check_shared(self) -> None:
        _check.instance("shared", self.shared, (Shared, type(None)), "a Shared, such as Shared(source)")
        if self.shared is None:
            return
        if self.learn == "probabilities":
            raise ValueError("shared is of the weights, but learn='probabilities' holds them; use learn='weights'")
        if self.prior is not None and self.prior.start in ("weights", "both"):
            raise ValueError(
                f"prior.start={self.prior.start!r} starts each sample at a weight of its own, but shared holds those "
                "of a source equal; use start='probabilities' or 'none'"
            )

    @classmethod
    def online(
        cls,
        model: Callable[[], nn.Module],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        objective: WeightedLoss,
        risk: Risk = _MEAN,
        *,
        train_steps: int,
        batch_size: int,
        inner_steps: int = 5,
        seed: int = 0,
        **options: Any,
    ) -> Maple:
        """Make one that trains the model once: warm starts of a few minibatch steps, after each of which w moves.

        ``maple.fit(train, clean)`` learns the weights, and ``maple.inner(train, result.weights)`` trains on under them
        and returns the model.

        Args:
            model, optimizer, objective, batch_size: of the inner run, see `InnerRun`.
            risk: the outer objective; default the mean loss.
            train_steps: optimizer steps in all, rounded up to whole outer steps.
            inner_steps: optimizer steps an outer step.
            seed: of the inner run.
            options: of the constructor, ``learn="weights"`` unless they say otherwise.
        """
        train_steps = _check.integer("train_steps", train_steps, low=1)
        steps = -(-train_steps // _check.integer("inner_steps", inner_steps, low=1))
        inner = InnerRun(model, optimizer, objective, inner_steps, batch_size, restart=False, seed=seed)
        return cls(inner, risk, steps=steps, **{"learn": "weights", **options})

    def fit(
        self,
        train: Batch,
        validation: Batch | None = None,
        callbacks: Iterable[Callback] = (),
        *,
        state: OuterState | None = None,
        journal: Journal | None = None,
        carry: Mapping[str, Stateful] | None = None,
        progress: bool | None = None,
    ) -> Reweighting:
        """Learn the weights of `train`.

        Args:
            train: ``n`` samples with distinct ids; on several ranks this one's share, as in `validation`. (What
                `OuterStep` shows a callback is then of this share, its `row` of all.) Of a `Streamed` only labels and a
                chunk of inputs are in memory, if the inner run has a batch size.
            validation: where the outer risk is evaluated (the paper holds out a tenth of the training data); None:
                on `train` itself, as the authors' code does.
            callbacks: called with an `OuterStep` after each step; True (on any rank) stops the run.
            state: start from here (see `begin`); it is updated in place.
            journal: where checkpoints are written, after steps of which each counts as its inner steps; if it has one
                of this run, the run is resumed after that. It is known by all settings (functions by their names)
                and by checksums of the samples (of a `Streamed` not of the inputs); on any number of ranks.
            carry: what else, of the callbacks, is kept with a checkpoint.
            progress: whether a bar on stderr shows the steps (of rank 0). None: where that is a terminal or a notebook,
                and the package rich is installed.

        Returns:
            The result after the last step, with the history of all steps.

        Raises:
            CheckpointError: the journal has a run of other settings or samples; the message names what differs.
            FloatingPointError: an outer loss or a hypergradient is NaN or infinite; `state` is as before that step.
            RankError: another rank failed or is gone, and the run can be resumed from its journal; or it was given
                other settings, or samples of other types.
            KeyboardInterrupt: Ctrl-C, in the middle of a step or after its callbacks. `state` is that of the last
                finished step; the journal, if there is one, has written it (of several ranks: its last checkpoint),
                and the message says how to resume.
        """
        course = self.course(train, validation, callbacks, state=state, journal=journal, carry=carry, progress=progress)
        (result,) = driven([course], lambda asked: {number: self.trained(one) for number, one in asked.items()})
        return result

    def course(
        self,
        train: Batch,
        validation: Batch | None = None,
        callbacks: Iterable[Callback] = (),
        *,
        state: OuterState | None = None,
        journal: Journal | None = None,
        carry: Mapping[str, Stateful] | None = None,
        progress: bool | None = None,
    ) -> Course:
        """Return `fit` as a generator: it yields the inner runs of each step and is sent what they came to.

        (So that those of several runs can be trained as one: `fit_together`.)
        """
        if progress is not None:
            progress = _check.boolean("progress", progress)
        ranks = self.inner.ranks
        admit(self.inner, self.folds, train, validation, journal, lambda: self._facts(state, journal, carry))
        autocast = self.inner.settle(train.device)
        journal = Journal(ranks=ranks) if journal is None else journal
        identity = {} if journal.path is None else self._identity(journal, train, validation, state)
        state = self.begin(train) if state is None else state
        agree_on_state(state)
        if (shared := self.shared) is not None:
            own = state.weights.detach()
            ranks.together(lambda: shared.check_equal("state.weights", own, train.index))
        target = train if validation is None else validation
        objective = self.inner.objective
        outer = OuterRisk(self.risk, target, objective.loss, self.outer_chunk, autocast, ranks, objective.outputs_of)
        callbacks = _check.callables("callbacks", callbacks)
        watched = ranks.any(len(callbacks) > 0)
        progress = progress if ranks.rank == 0 else False
        with (
            journal.stage(identity, outer=state, inner=self.inner, **(carry or {})) as stage,
            resumable(stage, journal, self.steps),
            shown_progress(progress, "Maple.fit(progress=True)", self.steps) as show,
        ):
            finished = stage.finished
            while state.step < self.steps and not finished:
                with self._undone(state, train, outer):
                    masks = [self._draw(state, state.step / self.steps) for _ in range(self.draws)]
                    trained = yield self._asked(train, masks)
                    drawn = self._draws(state, train, outer, masks, trained)
                with interrupts_held():  # from here on the step is finished
                    seen = self._move(state, train, drawn)
                    if watched and ranks.size > 1:
                        _ = seen.model  # by all together, whoever of them asks for it
                    wishes = [callback(seen) for callback in callbacks]  # all of them, also after one says stop
                    stalled = self.patience is not None and state.step - state.best_step >= self.patience
                    wished = ranks.any(any(wish is True for wish in wishes))
                    finished = wished or stalled or state.step >= self.steps
                    stage.step(state.step, worth=self.inner_steps, last=finished)
                    show(state.step, f"outer loss {seen.outer_loss:.4g}")
        w, s = (ranks.gather(learned.detach()).clone() for learned in (state.weights, state.probabilities))
        return Reweighting(w, s, list(state.history), ranks.gather(train.index))

    def begin(self, train: Batch, probabilities: Float[Tensor, " n"] | Numbers | None = None) -> OuterState:
        """Return the state before the first step: w = 1 and s = K / n, or what the prior's `start` says.

        Args:
            train: the samples.
            probabilities: ``(n,)`` where s starts instead (projected), whatever the prior says.

        Raises:
            ValueError: `train` is empty or repeats an id; a budget above n; `probabilities` or a prior of
                another length.
        """
        prior, ranks = None, self.inner.ranks
        if probabilities is not None:
            probabilities = _check.floats("probabilities", probabilities, ("n",))
        if self.prior is not None:
            prior = self.prior.share(len(train), self.constraints, 0.0, ranks)
            if probabilities is None and self.prior.start in ("probabilities", "both"):
                probabilities = prior
        state = OuterState.start(train, self.constraints, self.optimizers, self.seed, probabilities, ranks)
        if self.prior is not None and prior is not None and self.prior.start in ("weights", "both"):
            with torch.no_grad():
                state.weights.copy_(self.constraints.project_weights(prior / ranks.average(prior), ranks))
        return state

    @property
    def inner_steps(self) -> int:
        """Optimizer steps of an outer step's inner runs (without one that callbacks of a cross-fitted step ask for)."""
        return self.inner.steps * self.draws * self.folds

    def _identity(
        self, journal: Journal, train: Batch, validation: Batch | None, state: OuterState | None
    ) -> dict[str, str]:
        """Return what the journal knows this run by, the same on every rank; see `fit`."""
        found = self._settings()
        vouched = len(journal.identity) > 1
        found |= samples("train", train, self.inner.ranks, not vouched)
        found |= {} if validation is None else samples("validation", validation, self.inner.ranks, not vouched)
        if state is not None:
            saved = state.state_dict()
            found |= {f"state's {name}": described(saved[name]) for name in ("step", "weights", "probabilities")}
        return found

    def _settings(self) -> dict[str, str]:
        """Return all settings as text."""
        inner = {f"inner.{name}": value for name, value in settings(self.inner).items()}
        optimizers = {f"{name}' optimizer": make for name, make in self.optimizers.items()}
        own = {**settings(self), **settings(self.constraints), **optimizers, **inner}
        apart = ("inner", "probability_optimizer", "weight_optimizer")
        return {name: described(value) for name, value in own.items() if name not in apart}

    def _facts(
        self, state: OuterState | None, journal: Journal | None, carry: Mapping[str, Stateful] | None
    ) -> dict[str, object]:
        """Return what all ranks must have in common, beside their samples."""
        given = {"state": state is not None, "journal": journal is not None, "carry": sorted(carry or {})}
        # A function is known by its name, which says nothing of what it was made with.
        course = {
            f"{name} at {at}": function(at) for at in (0.0, 0.25, 0.75) for name, function in self._courses.items()
        }
        return {**self._settings(), **given, **course}

    @property
    def _courses(self) -> dict[str, Callable[[float], float | int | None]]:
        """What changes with progress."""
        inner = {} if self.inner.schedule is None else {"inner.schedule": self.inner.schedule}
        return {"budget": self.constraints.given_budget_at, "schedule": self.schedule, **inner}

    @contextmanager
    def _undone(self, state: OuterState, train: Batch, outer: OuterRisk) -> Iterator[None]:
        """Leave the state as it was where a step ends by Ctrl-C, or at a NaN or an infinity; of that say the step."""
        masks, inner = state.generator.get_state(), self.inner.state_dict()
        try:
            yield
        except KeyboardInterrupt:
            state.generator.set_state(masks)
            self.inner.load_state_dict(inner)
            raise
        except FloatingPointError as error:
            state.generator.set_state(masks)
            said = _blamed(error, outer, train) if isinstance(error, NotFiniteRiskError) else str(error)
            raise FloatingPointError(f"outer step {state.step + 1}: {said}") from error

    def _asked(self, train: Batch, masks: list[_Mask]) -> Asked:
        """Return the inner runs of a step."""
        own, folds = [one.weight.detach() for one in masks], _folds(masks)
        weights = own if self.cross_fit is None else self.cross_fit.tasks(own, folds)
        return Asked([train] * len(weights), weights)

    @property
    def _trains(self) -> Together:
        return self._together if self.cross_fit is None else self.cross_fit.together

    @property
    def apart(self) -> str:
        """Why the inner runs of the last step were trained one after the other; "" where they were trained as one."""
        return self._trains.apart

    def inner_runs(self, count: int) -> list[InnerRun]:
        """Return the runs that train the `count` models of a step, where all of them are in memory."""
        return self._trains.runs(count)

    def trained(self, asked: Asked) -> Iterator[Trained]:
        """Yield the models and records of the inner runs of a step, together where they can be trained so."""
        return self._trains(asked.train, asked.weights)

    def _draws(
        self, state: OuterState, train: Batch, outer: OuterRisk, masks: list[_Mask], trained: Iterator[Trained]
    ) -> _Draws:
        """Return what the draws of a step give."""
        spread, losses, kept, model = Spread(), [], [], None
        leaves, found_of = state.leaves(), self._hypergradients(train, outer, masks, trained)
        for (mask, weight, _), (model, drawn) in zip(masks, found_of, strict=True):  # noqa: B007 (the last is returned)
            found = torch.autograd.grad(weight, list(leaves.values()), drawn.gradient.to(weight.dtype))
            gradients = dict(zip(leaves, found, strict=True))
            if self.shared is not None:
                gradients["weights"] = self.shared.sum(gradients["weights"], train.index, state.ranks)
            spread.add(gradients)
            losses.append(drawn.value)
            kept.append(state.ranks.total(mask))
        return _Draws(spread, sum(losses) / len(losses), sum(kept) / len(kept), mask.detach(), model)

    def _move(self, state: OuterState, train: Batch, drawn: _Draws) -> OuterStep:
        """Finish a step: clip the mean gradient, update, project, and file the row."""
        progress, ranks, spread = state.step / self.steps, state.ranks, drawn.spread
        before = {name: getattr(state, name).detach().clone() for name in ("weights", "probabilities")}
        w, s = before["weights"], before["probabilities"]
        row: dict[str, Any] = {
            "step": state.step,
            "outer_loss": drawn.outer_loss,
            "budget": self.constraints.budget_at(progress, ranks.count(len(train))),
            "kept": drawn.kept,
            **self._clipped(spread, ranks),
        }
        if self.prior is not None and self.prior.anchor:
            row.update(self.prior.add_anchor(s, spread.mean["probabilities"], self.constraints, progress, ranks))
        if self.shared is not None:
            spread.mean["weights"] = self.shared.expand(spread.mean["weights"], train.index)
        state.update(spread.mean, self.constraints, (state.step + 1) / self.steps, scale=self.schedule(progress))
        for name, leaf in state.leaves().items():
            row[f"{name}_change"] = ranks.average((leaf.detach() - before[name]).abs())
        state.close_step(row, self.tolerance)
        make = partial(self._trained, train, drawn.mask * w) if drawn.model is None else partial(_given, drawn.model)
        return OuterStep(row["step"], w, s, drawn.mask, drawn.outer_loss, row, make)

    def _trained(self, train: Batch, weight: Tensor) -> nn.Module:
        """Return the model of all kept samples, which a cross-fitted step does without."""
        return self.inner(train, weight)[0].eval()

    def _clipped(self, spread: Spread, ranks: Ranks) -> dict[str, float | None]:
        """Clip the mean gradients in place; return their norms before that, and their variances, for the history."""
        row: dict[str, float | None] = {}
        for name, gradient in spread.mean.items():
            everywhere = self.shared is not None and name == "weights"  # all ranks have all of it
            norm = row[f"{name}_gradient_norm"] = (ALONE if everywhere else ranks).norm(gradient)
            row[f"{name}_gradient_variance"] = spread.variance(name, ranks)
            if self.clip is not None:
                gradient.mul_(min(1.0, self.clip / max(norm, 1e-30)))
        return row

    def _draw(self, state: OuterState, progress: float) -> _Mask:
        """Draw a mask, and the folds of a cross-fitted step. A mask that leaves nothing to train on is drawn again.

        (So for very small budgets the mask is Bernoulli(s) given that it is not empty.)
        """
        assert self.mask is not None
        least = 1 if self.cross_fit is None else 2
        for _ in range(_REDRAWS):
            mask = self.mask(state.probabilities, state.generator, progress=progress, ranks=state.ranks)
            weight = mask * state.weights
            if state.ranks.count(int((weight > 0).sum())) >= least:
                apart = self.cross_fit
                fold = None if apart is None else apart.split(weight.detach(), state.generator, state.ranks)
                return _Mask(mask, weight, fold)
        raise ValueError(
            f"{_REDRAWS} masks in a row kept fewer than {least} samples of positive weight (the probabilities sum to "
            f"{state.ranks.total(state.probabilities):.3g}); raise the budget"
        )

    def _hypergradients(
        self, train: Batch, outer: OuterRisk, masks: list[_Mask], trained: Iterator[Trained]
    ) -> Iterator[tuple[nn.Module | None, Drawn]]:
        assert self.estimator is not None
        if self.cross_fit is not None:
            weights = [one.weight.detach() for one in masks]
            for drawn in self.cross_fit.each(self.estimator, outer, train, weights, _folds(masks), trained):
                yield None, drawn
            return
        for model, trajectory in trained:
            yield model, hypergradient(self.estimator, model, trajectory, outer, train)


def _folds(masks: list[_Mask]) -> list[Tensor]:
    return [one.fold for one in masks if one.fold is not None]


def _given(model: nn.Module) -> nn.Module:
    return model


def _blamed(said: NotFiniteRiskError, outer: OuterRisk, train: Batch) -> str:
    """Return that the outer loss is not finite, and why: samples that are not (of this rank alone)."""
    for name, data in (("train", train), ("validation", outer.samples)):
        pieces = data.chunks(data.chunk if isinstance(data, Streamed) else None)
        if found := broken_samples((one.inputs, one.targets, one.index) for one in pieces):
            return f"{said}; NaN or infinite in {name}: {found}; mend these samples or leave them out"
    others = "" if outer.ranks.size == 1 else "another rank's samples are not, or "
    return (
        f"{said}; all inputs and targets here are finite: {others}the inner run has diverged (lower its learning "
        "rate), or the risk has no finite value of the outputs"
    )
