"""Right, refused or wrong: what an estimator says of a case, against retraining."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from steelyard.bilevel import (
    Batch,
    FiniteDifference,
    Recorder,
    StopGradientWarning,
    Trajectory,
    Truncated,
    Unrolled,
    WeightedLoss,
)
from tests.bilevel.zoo.case import OTHERS, SAMPLES, Case, seed_of, seeded
from tests.bilevel.zoo.retraining import (
    Setting,
    Start,
    Truth,
    batches,
    optimizer_of,
    outer,
    prepared,
    relative,
    restore,
)

__all__ = ["QUESTIONS", "Outcome", "Question", "judge"]

UNSURE = 1e-4
REMEDY = re.compile(
    r"\b(use|pass|record|set|ask|put|take|give|replace|leave|wrap|clone|accept|compute|detach|steps=1)\b", re.IGNORECASE
)
REFUSALS = (RuntimeError, TypeError, NotImplementedError, ValueError)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).rsplit(".")[-1]


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes:
        case: its name.
        question: what was asked.
        verdict: "right"; "rounded", as far as float32's rounding of the samples' gradients moves the truth; "warned",
            answered with a `StopGradientWarning`; "refused"; or "wrong".
        error: relative to the largest entry; None where nothing was returned.
        detail: the refusal's text, or what was wrong.
        doubt: by how much the best two differences of the truth differ, where they were needed.
    """

    case: str
    question: Question
    verdict: str
    error: float | None = None
    detail: str = ""
    doubt: float = 0.0

    @property
    def label(self) -> str:
        s, q = self.question.setting, self.question
        how = (" reuse" if q.reuse else "") + (" graphs" if q.graphs else "") + (" samples" if q.others else "")
        own = "" if q.estimator == "Truncated" else f" {q.estimator}"
        return f"{self.case} | {s.optimizer} T={s.steps} {s.normalise} {_short(q.dtype)}{how}{own}"


@dataclass(frozen=True)
class Question:
    """What is asked of a case: how it is trained and recorded, which estimator, with how many `others`."""

    setting: Setting
    dtype: torch.dtype = torch.float64
    reuse: bool = False
    estimator: Literal["Truncated", "FiniteDifference", "Unrolled"] = "Truncated"
    others: int = 0
    graphs: bool = False

    @property
    def tolerance(self) -> float:
        """Relative to the largest entry."""
        if self.estimator == "FiniteDifference":
            return 1e-5 if self.dtype == torch.float64 else 5e-2
        return 1e-6 if self.dtype == torch.float64 else 5e-3

    def ask(self, case: Case, trajectory: Trajectory) -> Tensor:
        if self.others:
            rows = torch.arange(SAMPLES + self.others)
            rows[:2], rows[4:] = rows[:2].flip(0), rows[4:].flip(0)
            inputs, targets = case.data(self.dtype, self.others)
            samples = Batch(inputs[rows], targets[rows], rows)
            return Truncated(1)(trajectory, outer(case, self.dtype), samples=samples)[rows]
        make: dict[str, Any] = {
            "Truncated": Truncated,
            "FiniteDifference": FiniteDifference,
            "Unrolled": partial(Unrolled, backend="torch"),
        }
        return make[self.estimator](self.setting.steps)(trajectory, outer(case, self.dtype), torch.arange(SAMPLES))


def questions() -> Iterator[Question]:
    """Yield all of float64; of the rest a half, in turn, so that every optimizer, T and normalisation comes by."""
    pairs = [(optimizer, steps) for steps in (1, 3) for optimizer in ("sgd", "adam")]
    for place, (optimizer, steps) in enumerate(pairs):
        for normalise in ("none", "weights"):
            setting = Setting(optimizer, steps, normalise)
            even = (place + (normalise == "weights")) % 2 == 0
            yield Question(setting)
            if even or steps == 1:
                yield Question(setting, reuse=True)
            yield Question(setting, torch.float32, reuse=not even)
    yield Question(Setting("sgd", 1), estimator="FiniteDifference")
    yield Question(Setting("adam", 3), estimator="FiniteDifference")
    yield Question(Setting("adam", 1), torch.float32, estimator="FiniteDifference")
    yield Question(Setting("sgd", 3), estimator="Unrolled")
    yield Question(Setting("sgd", 3), graphs=True)
    yield Question(Setting("adam", 3, "weights"), graphs=True)
    yield Question(Setting("adam", 3), torch.float32, graphs=True)
    yield Question(Setting("sgd", 1), others=OTHERS)
    # (A row of weight 0 may reach an entry whose gradient is 0; the slope there is that of a step of eps.)
    yield Question(Setting("adam, larger eps", 1, "weights"), others=OTHERS)


QUESTIONS = tuple(questions())


def weights(case: Case, others: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(case.name, "weights"))
    return torch.cat([0.5 + torch.rand(SAMPLES, generator=generator), torch.zeros(others)])


def answer(case: Case, start: Start, question: Question) -> Tensor:
    """Record the window as a user would, and ask."""
    setting, dtype = question.setting, question.dtype
    model = case.build(dtype)
    optimizer = optimizer_of(model, setting.optimizer)
    restore(start, model, optimizer)
    weight = weights(case).to(dtype)
    objective = WeightedLoss(case.loss, setting.normalise)  # type: ignore[arg-type]
    with Recorder(
        model,
        optimizer,
        objective,
        setting.steps,
        question.estimator == "Unrolled",
        question.reuse,
        graphs=question.graphs,
    ) as recorder:
        with seeded(case.name, "window"):
            for inputs, targets, rows in batches(case, setting.steps, dtype):
                loss = recorder.loss(Batch(inputs, targets, rows), weight[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return question.ask(case, recorder.trajectory())


@dataclass
class Known:
    """The truth of one setting, as precise as the answers need it."""

    truth: Truth
    quick: Tensor | None = None
    exact: tuple[Tensor, float] | None = None

    def error(self, found: Tensor, tolerance: float) -> tuple[float, float]:
        """Return the error of `found` and the doubt about it; better differences before it is called wrong."""
        if self.quick is None:
            self.quick = self.truth.differences(3e-5)
        error = relative(found, self.quick)
        if error <= tolerance or error == float("inf"):
            return error, 0.0
        if self.exact is None:
            self.exact = self.truth.best()
        return relative(found, self.exact[0]), self.exact[1]


@dataclass
class Judge:
    """Asks a case everything; starts and truths are shared."""

    case: Case
    starts: dict[str, Start] = field(default_factory=dict)
    known: dict[tuple[Setting, int], Known] = field(default_factory=dict)

    def __call__(self, question: Question) -> Outcome:
        setting = question.setting
        if setting.optimizer not in self.starts:
            self.starts[setting.optimizer] = prepared(self.case, setting.optimizer)
        start = self.starts[setting.optimizer]
        say = lambda verdict, *rest: Outcome(self.case.name, question, verdict, *rest)  # noqa: E731
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", StopGradientWarning)
                found = answer(self.case, start, question)
        except REFUSALS as refusal:
            text = f"{type(refusal).__name__}: {str(refusal).strip().splitlines()[0][:200]}"
            own = REMEDY.search(str(refusal)) and _raised_here(refusal)
            return say("refused" if own else "wrong", None, text if own else f"crashed, {text}")
        except Exception as crash:  # noqa: BLE001
            return say("wrong", None, f"crashed, {type(crash).__name__}: {str(crash)[:200]}")
        known = self.known.get((setting, question.others))
        if known is None:
            known = Known(Truth(self.case, start, setting, weights(self.case, question.others)))
            self.known[setting, question.others] = known
        tolerance = question.tolerance
        error, doubt = known.error(found, tolerance)
        if error <= max(tolerance, 3 * doubt) and doubt < UNSURE:
            return say("right", error, "", doubt)
        detail = "" if bool(torch.isfinite(found).all()) else "NaN"
        if any(issubclass(one.category, StopGradientWarning) for one in said):
            return say("warned", error, detail, doubt)
        if question.dtype == torch.float32 and error <= 10 * known.truth.conditioning:
            return say("rounded", error, detail, doubt)
        return say("wrong", error, detail, doubt)


def _raised_here(error: BaseException) -> bool:
    """Whether the library said it, not torch in the middle of something."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        last, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    return "steelyard" in last and "torch" not in last.rsplit("/", 2)[-2]


def draws(case: Case) -> bool:
    """Whether the forward pass in training mode draws random numbers."""
    model = case.build(torch.float64)
    with seeded(case.name, "draws"):
        before = torch.get_rng_state()
        model(case.data(torch.float64)[0])
        return not torch.equal(before, torch.get_rng_state())


def judge(case: Case, asked: tuple[Question, ...] = QUESTIONS) -> Iterator[Outcome]:
    """Yield the outcomes of all questions about `case`."""
    ask = Judge(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stochastic = draws(case)  # the noise of a sample outside of the batch is not known
        for question in asked:
            if question.setting.optimizer.split(",")[0] not in case.optimizers or (question.others and stochastic):
                continue
            yield ask(question)
