"""The page of hyperparameters, made of what the methods' classes state.

``python -m steelyard.experiments.methods.hyperparameters > docs/reference/hyperparameters.md`` writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_type_hints

from steelyard.experiments.methods import Method
from steelyard.experiments.training.ranges import Drawn, hyperparameters, shown
from steelyard.experiments.training.trainer import Training

__all__ = ["page"]

_HEAD = """# Hyperparameters

Every number that a method's recipe can set: its default, and the range that `steelyard tune` draws it from
([tuning](../guides/tuning.md)). The classes in `steelyard/experiments/methods` state both. This page is made of them:
`python -m steelyard.experiments.methods.hyperparameters > docs/reference/hyperparameters.md`.

`U(a, b)` is uniform, `10^U(a, b)` and `2^U(a, b)` are uniform in the exponent, "whole" is rounded down, and `x setting`
is a share of that setting. A setting without a range keeps the recipe's value.

- SubpopBench: the range of the public code of Yang et al. 2023, *Change is Hard: A Closer Look at Subpopulation Shift*.
  The weight of a penalty, and the step from which it counts, have the ranges of IRM there.
- ours: no range is published that we know of; this one is wide around the default.
"""


def page() -> str:
    """Return the page in Markdown."""
    common = hyperparameters(Training)
    training = {f"training.{one.path}": (one.default, one.range) for one in common}
    parts = [_HEAD, "## Training\n", "The settings `method.training` of all methods but `maple`.\n", _table(common)]
    for kind in get_args(Method):
        found = hyperparameters(kind)
        own = [one for one in found if training.get(one.path) != (one.default, one.range)]
        shared = "And those of training." if len(own) < len(found) else ""
        (name,) = get_args(get_type_hints(kind)["name"])
        parts += [f"## {name}\n", f"{str(kind.__doc__).splitlines()[0]}\n"]
        parts += [_table(own)] * bool(own) + [f"{shared}\n"] * bool(shared)
    return "\n".join(parts)


def _table(rows: Sequence[Drawn]) -> str:
    return "".join(_lines(rows))


def _lines(rows: Sequence[Drawn]) -> Iterator[str]:
    yield "| setting | default | range | from |\n| --- | --- | --- | --- |\n"
    for one in rows:
        drawn = f"as `{one.like}`" if one.like else one.why
        cells: list[Any] = [f"`{one.path}`", shown(one.default), drawn, ""]
        if one.range is not None:
            cells[2:] = [f"`{one.range}`", one.range.source]
        yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
