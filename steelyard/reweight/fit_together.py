"""Several MAPLE runs at once, their inner runs trained as one: the seeds of an experiment, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain

from steelyard._support import _check
from steelyard.bilevel import Batch
from steelyard.checkpoint import Journal, Stateful
from steelyard.reweight.course import Asked, Course, driven
from steelyard.reweight.maple import Callback, Maple
from steelyard.reweight.result import Reweighting
from steelyard.reweight.together import Together, Trained

__all__ = ["fit_together"]


def fit_together(
    maples: Sequence[Maple],
    train: Sequence[Batch],
    validation: Sequence[Batch | None] | None = None,
    callbacks: Sequence[Iterable[Callback]] | None = None,
    *,
    journals: Sequence[Journal | None] | None = None,
    carry: Sequence[Mapping[str, Stateful] | None] | None = None,
) -> list[Reweighting]:
    """Return what ``maple.fit`` returns of each of `maples`, up to rounding, in less time where the nets are small.

    The runs take their outer steps beside each other, and the inner runs of a step are trained as one (see `Together`,
    with the first one's ``together``); where that cannot be, or the nets are large, each run trains its own. One that
    stops before the others leaves them alone.

    Args:
        maples: runs whose inner runs have the same settings but for the seed.
        train: the samples of each.
        validation: where each outer risk is evaluated, as in ``Maple.fit``; None: on the training samples.
        callbacks: of each.
        journals: of each; a file of its own for every run.
        carry: what each keeps with its checkpoints.

    Raises:
        ValueError: these are not as many as `maples`; and what ``Maple.fit`` raises. An error of one run ends all.

    Example:
        >>> from functools import partial
        >>> import torch, torch.nn.functional as F
        >>> from steelyard.bilevel import WeightedLoss
        >>> from steelyard.reweight import InnerRun, Maple, Sqrt, VREx
        >>> loss = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> data = Batch.of(torch.randn(40, 2), torch.arange(40) % 2, environment=torch.arange(40) // 20)
        >>> def maple(seed):
        ...     inner = InnerRun(lambda: torch.nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), loss, 20, seed=seed)
        ...     return Maple(inner, Sqrt(VREx()), budget=20, steps=3, seed=seed)
        >>> [len(one.weights) for one in fit_together([maple(seed) for seed in range(5)], [data] * 5)]
        [40, 40, 40, 40, 40]
    """
    maples = list(maples)
    nothing = [None] * len(maples)
    given = {
        "train": list(train),
        "validation": nothing if validation is None else list(validation),
        "callbacks": [()] * len(maples) if callbacks is None else list(callbacks),
        "journals": nothing if journals is None else list(journals),
        "carry": nothing if carry is None else list(carry),
    }
    for name, one in given.items():
        if len(one) != len(maples):
            raise ValueError(f"{name} has {len(one)} entries for {len(maples)} runs: give one for each")
    for maple in maples:
        _check.instance("an entry of maples", maple, Maple, "a Maple")
    courses: list[Course] = [
        maple.course(data, held_out, watch, journal=journal, carry=kept, progress=False)
        for maple, data, held_out, watch, journal, kept in zip(maples, *given.values(), strict=True)
    ]
    return driven(courses, _Pool(maples))


class _Pool:
    """Trains what several runs ask for as one, or each one's by itself."""

    def __init__(self, maples: Sequence[Maple]) -> None:
        self._maples = maples
        self._together: dict[tuple[tuple[int, int], ...], Together] = {}

    def __call__(self, asked: Mapping[int, Asked]) -> dict[int, Iterator[Trained]]:
        if len(asked) == 1:
            return {number: self._maples[number].trained(one) for number, one in asked.items()}
        key = tuple((number, len(one.weights)) for number, one in asked.items())
        if key not in self._together:  # another one where a run has ended
            inners = list(chain(*(self._maples[number].inner_runs(count) for number, count in key)))
            self._together = {key: Together(inners, self._maples[0].together)}
        found = _Found(self._together[key], list(asked.values()))
        starts = accumulate((count for _, count in key), initial=0)
        return {
            number: self._of(number, one, found, start)
            for (number, one), start in zip(asked.items(), starts, strict=False)
        }

    def _of(self, number: int, asked: Asked, found: _Found, start: int) -> Iterator[Trained]:
        """Yield what run `number` asked for; nothing is trained before the first of it is wanted."""
        trained = found.get()
        if trained is None:
            yield from self._maples[number].trained(asked)
        else:
            yield from trained[start : start + len(asked.weights)]


class _Found:
    """What all runs asked for, trained once; None where each is to train its own."""

    def __init__(self, together: Together, asked: Sequence[Asked]) -> None:
        self._together, self._asked = together, asked
        self._known = False
        self._trained: list[Trained] | None = None

    def get(self) -> list[Trained] | None:
        if not self._known:
            train = list(chain(*(one.train for one in self._asked)))
            self._trained = self._together.trained(train, list(chain(*(one.weights for one in self._asked))))
            self._known = True
        return self._trained
