"""The course of an outer run as a generator that asks for its inner runs, so that several can be trained together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from torch import Tensor

from steelyard.bilevel import Batch
from steelyard.reweight.result import Reweighting
from steelyard.reweight.together import Trained

__all__ = ["Asked", "Course", "driven"]


class Asked(NamedTuple):
    """The inner runs of an outer step: the samples and the weights ``(n,)`` of each."""

    train: list[Batch]
    weights: list[Tensor]


Course: TypeAlias = Generator[Asked, Iterator[Trained], Reweighting]
"""Yields what is to be trained, is sent models and records (trained when they are asked for), returns the result."""

Trainer: TypeAlias = Callable[[Mapping[int, Asked]], Mapping[int, Iterator[Trained]]]
"""From what the courses that still run ask for, by their number, to what each is sent."""


def driven(courses: Sequence[Course], trainer: Trainer) -> list[Reweighting]:
    """Return the results of `courses`, which go step by step beside each other; the first error ends all of them.

    A Ctrl-C is one for each, so that every journal is written.
    """
    results: dict[int, Reweighting] = {}
    asked = _next(dict.fromkeys(range(len(courses))), courses, results)
    while asked:
        try:
            answers = trainer(asked)
        except BaseException as error:
            _end(courses, error)
            raise
        asked = _next(answers, courses, results)
    return [results[number] for number in range(len(courses))]


def _next(
    answers: Mapping[int, Iterator[Trained] | None], courses: Sequence[Course], results: dict[int, Reweighting]
) -> dict[int, Asked]:
    """Send each course its answer; return what those ask for that have not ended."""
    asked = {}
    for number, answer in answers.items():
        try:
            asked[number] = courses[number].send(answer)  # type: ignore[arg-type]  # a generator begins with None
        except StopIteration as end:
            results[number] = end.value
        except BaseException as error:
            _end(courses, error)
            raise
    return asked


def _end(courses: Sequence[Course], error: BaseException) -> None:
    for course in courses:
        if not isinstance(error, KeyboardInterrupt):
            course.close()
            continue
        with suppress(KeyboardInterrupt, StopIteration):
            course.throw(KeyboardInterrupt())
