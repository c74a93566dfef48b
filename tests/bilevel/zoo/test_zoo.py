"""Every public module and loss of torch, and odd models beside them, retrained: right, or refused with a remedy."""

from __future__ import annotations

import random

import pytest

from tests.bilevel.zoo import every_case
from tests.bilevel.zoo.case import Case
from tests.bilevel.zoo.losses import loss_cases, public_losses
from tests.bilevel.zoo.modules import EXCLUDED, module_cases, public_modules
from tests.bilevel.zoo.outcomes import QUESTIONS, Outcome, Question, judge

CASES = {case.name: case for case in every_case()}
SAMPLE = random.Random(14).sample([name for name in CASES if not name.startswith("Transformer")], 40)

NEVER = {
    "function Clipped": "its backward is not linear: the batch's gradient is not the sum of the samples'",
    "hook on a parameter, bounded": "its backward is not linear: the batch's gradient is not the sum of the samples'",
    "complex parameters": "Adam's update of a complex parameter is not pulled back",
    "table with sparse gradients": "a sparse gradient is not pulled back",
}
"""Refused by `Truncated` for every T, and why. No module or loss of torch is among them."""

REFUSED_AT_3 = {
    **NEVER,
    "CrossMapLRN2d": "torch has no second derivative of it, and its backward pass is not its derivative",
    "tied table, padding row": "of the row's lookups torch forgets the second derivative",
    "function OnceCube": "its author says that it has no second derivative",
    "table with a largest norm": "its forward pass writes to the parameters between two steps",
}
"""Refused by `Truncated` with T = 3, and why. (A `field` may be refused there, too.)"""

UNROLLED_LEAVES_OUT = ("BatchNorm", "InstanceNorm")
"""The path through running statistics, as its documentation says; and of a `field` what autograd leaves out."""


def truncated(outcomes: list[Outcome], steps: int) -> list[Outcome]:
    asked = [o.question for o in outcomes]
    chosen = [q.estimator == "Truncated" and not q.others and q.setting.steps == steps for q in asked]
    return [o for o, one in zip(outcomes, chosen, strict=True) if one]


def documented(case: Case, question: Question) -> bool:
    """Whether the documentation says that this answer leaves something out."""
    return question.estimator == "Unrolled" and (case.field or any(n in case.covers for n in UNROLLED_LEAVES_OUT))


def check(case: Case, questions: tuple[Question, ...]) -> None:
    outcomes = list(judge(case, questions))
    warned = [o for o in outcomes if o.verdict == "warned"]
    assert not warned or (case.field and all(o.question.setting.steps > 1 for o in warned)), warned
    wrong = [o for o in outcomes if o.verdict == "wrong" and not documented(case, o.question)]
    assert not wrong, [f"{o.label}: {o.detail} {o.error}" for o in wrong]
    for steps, listed in ((1, NEVER), (3, REFUSED_AT_3)):
        asked = truncated(outcomes, steps)
        refused = [f"{o.label}: {o.detail}" for o in asked if o.verdict == "refused"]
        if case.name not in listed:
            assert not refused or (case.field and steps == 3), refused
        elif asked:
            assert refused, f"{case.name} is answered: take it off the list"


def test_every_module_of_torch_is_covered_or_excluded_with_a_reason() -> None:
    covered = {case.covers for case in [*module_cases(), *loss_cases()]}
    assert public_modules() - covered - set(EXCLUDED) == set()
    assert set(EXCLUDED) & covered == set()
    assert len(public_modules() & covered) >= 97


def test_every_loss_of_torch_is_covered() -> None:
    """The functions, and the modules made for losses (two of them have parameters and are with the modules)."""
    functions = {case.covers for case in loss_cases()} & public_losses()
    assert functions == public_losses()
    modules = {case.covers for case in CASES.values()} & {name for name in public_modules() if "Loss" in name}
    assert len(functions) >= 21
    assert len(modules) >= 21
    assert len([case for case in loss_cases() if case.covers in functions]) >= 23


def test_names_are_unique_and_the_lists_name_cases() -> None:
    assert len(CASES) == len(every_case())
    assert set(REFUSED_AT_3) <= set(CASES)
    assert set(NEVER) & {case.name for case in [*module_cases(), *loss_cases()]} == set()


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample(name: str) -> None:
    """A quarter of the questions, another one for each case."""
    check(CASES[name], QUESTIONS[SAMPLE.index(name) % 4 :: 4])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all(name: str) -> None:
    check(CASES[name], QUESTIONS)
