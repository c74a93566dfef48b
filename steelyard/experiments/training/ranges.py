"""What values of a setting a random search draws from, said beside the setting's field and nowhere else.

``alpha: Annotated[float, Range.log10(-2, 0, SUBPOPBENCH)] = 0.5`` is a hyperparameter with its default and its range;
what trains is ``field: Annotated[Training, Within(...)]``, where a method has other ranges than most.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from steelyard._support import _check

__all__ = ["FIXED", "OURS", "SUBPOPBENCH", "Drawn", "Fixed", "Range", "Within", "hyperparameters", "shown"]

SUBPOPBENCH = "SubpopBench"
"""Yang et al. 2023, Change is Hard: A Closer Look at Subpopulation Shift; the ranges of its public code."""

OURS = "ours"
"""No range is published that we know of; this one is wide around the default."""


@dataclass(frozen=True)
class Range:
    """The values that a setting is drawn from, each a number in [low, high] on a scale.

    Attributes:
        scale: "linear" draws U(low, high); "log10" draws 10^U(low, high); "log2" draws 2^U(low, high); "below_one"
            draws 1 - 10^U(low, high).
        low: the lower end, of the exponent where there is one.
        high: the upper end.
        source: who draws from it: `SUBPOPBENCH`, `OURS`, or what a user gave.
        whole: round it down to a whole number.
        of: "": the setting itself. The path of another setting of the method: the drawn number is a share of it, and
            the setting that share, rounded to a whole number and at least 1.
        off: a value of the recipe that says that the setting is not in use: it is then not drawn.

    Example:
        >>> Range.of_text("10^U(-2, 0)")
        Range(scale='log10', low=-2.0, high=0.0, source='given', whole=False, of='', off=None)
        >>> str(Range.log2(6, 6.75, whole=True)), Range.linear(0, 1).draw(Random(0))
        ('2^U(6, 6.75), whole', 0.8444)
    """

    scale: Literal["linear", "log10", "log2", "below_one"]
    low: float | int
    high: float | int
    source: str = OURS
    whole: bool = False
    of: str = ""
    off: float | int | None = None

    def __post_init__(self) -> None:
        _check.in_range("low", self.low)
        _check.in_range("high", self.high, low=self.low)
        if self.scale != "linear":
            _check.in_range("high", self.high, high=18.0)  # more digits than a whole number of a run may have

    @classmethod
    def linear(cls, low: float | int, high: float | int, source: str = OURS, **more: Any) -> Range:
        """Return U(low, high)."""
        return cls("linear", low, high, source, **more)

    @classmethod
    def log10(cls, low: float | int, high: float | int, source: str = OURS, **more: Any) -> Range:
        """Return 10^U(low, high)."""
        return cls("log10", low, high, source, **more)

    @classmethod
    def log2(cls, low: float | int, high: float | int, source: str = OURS, **more: Any) -> Range:
        """Return 2^U(low, high)."""
        return cls("log2", low, high, source, **more)

    @classmethod
    def below_one(cls, low: float | int, high: float | int, source: str = OURS, **more: Any) -> Range:
        """Return 1 - 10^U(low, high), for a share that is close to 1."""
        return cls("below_one", low, high, source, **more)

    @classmethod
    def of_text(cls, text: str) -> Range:
        """Return the range that ``U(a, b)``, ``10^U(a, b)``, ``1 - 10^U(a, b)`` or ``2^U(a, b)`` says.

        Raises:
            ValueError: anything else.
        """
        found = re.fullmatch(r"\s*(10\^|2\^|1\s*-\s*10\^)?U\(([^,()]+),([^,()]+)\)\s*(,\s*whole)?\s*", text)
        try:
            if found is None:
                raise ValueError
            low, high = float(found[2]), float(found[3])
        except ValueError:
            raise ValueError(
                f"a range must be U(a, b), 10^U(a, b), 1 - 10^U(a, b) or 2^U(a, b) with numbers a <= b, got {text!r}"
            ) from None
        scales: Mapping[str, Any] = {"": "linear", "10^": "log10", "2^": "log2", "1-10^": "below_one"}
        return cls(scales["".join((found[1] or "").split())], low, high, "given", whole=bool(found[4]))

    def draw(self, random: Random) -> float | int:
        """Return a value, to four digits so that a command that names it stays short."""
        number = random.uniform(self.low, self.high)
        if self.scale == "below_one":  # four digits of the distance to 1
            return round(1 - float(f"{10.0**number:.4g}"), 15)
        number = {"linear": number, "log10": 10.0**number, "log2": 2.0**number}[self.scale]
        return int(number) if self.whole else float(f"{number:.4g}")

    def __str__(self) -> str:
        power = {"linear": "", "log10": "10^", "log2": "2^", "below_one": "1 - 10^"}[self.scale]
        share = f" x {self.of}" if self.of else ""
        return f"{power}U({self.low:g}, {self.high:g}){share}{', whole' * self.whole}"


@dataclass(frozen=True)
class Fixed:
    """The setting, and what is inside of it, is not drawn.

    Attributes:
        why: for the page of hyperparameters.
    """

    why: str = ""


FIXED = Fixed()


@dataclass(frozen=True)
class Within:
    """Other ranges for settings inside of the one that this stands beside.

    Attributes:
        ranges: by the path from here, such as "optimizer.learning_rate".
        like: the path of another setting of the method of the same kind, whose drawn values this one takes over: the
            stages of a method then train alike.
    """

    ranges: Mapping[str, Range | Fixed] = dataclasses.field(default_factory=dict)
    like: str = ""


@dataclass(frozen=True)
class Drawn:
    """A hyperparameter of a method.

    Attributes:
        path: the field, from the method on ("training.optimizer.learning_rate").
        default: the class's own; `dataclasses.MISSING` where it has none, and for several settings that are not drawn.
        range: what is drawn; None where nothing is.
        why: why it is not drawn, where that is said.
        like: the path of the hyperparameter whose drawn value this one takes over.
        fixed: whether the class says that it is not drawn.
    """

    path: str
    default: Any
    range: Range | None
    why: str = ""
    like: str = ""
    fixed: bool = False


def hyperparameters(kind: type, value: Any = None) -> list[Drawn]:
    """Return the settings of a method's class that are numbers, with the ranges that its fields state.

    Args:
        kind: a dataclass whose hints may be Annotated with `Range`, `Fixed` or `Within`.
        value: an instance, whose values are given as defaults; left out, the class's own.
    """
    return list(_found(kind, value, "", None))


def _found(kind: type, value: Any, path: str, within: Within | None) -> Iterator[Drawn]:
    hints = get_type_hints(kind, include_extras=True)
    for one in dataclasses.fields(kind):
        here = f"{path}{one.name}"
        hint, notes = _split(hints[one.name])
        default = _default(one) if value is None else getattr(value, one.name)
        note = _note(one.name, notes, within)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if isinstance(note, Fixed):
                yield Drawn(here, dataclasses.MISSING, None, note.why, fixed=True)
                continue
            inner = note if isinstance(note, Within) else None
            yield from _found(hint, None if default is dataclasses.MISSING else default, f"{here}.", inner)
        elif _is_number(hint):
            why = note.why if isinstance(note, Fixed) else ""
            like = note.like if isinstance(note, Within) else ""
            yield Drawn(here, default, note if isinstance(note, Range) else None, why, like, isinstance(note, Fixed))


def _note(name: str, notes: tuple[Any, ...], within: Within | None) -> Range | Fixed | Within | None:
    """Return what is said of a field: by what it stands in, else by its own annotation."""
    own = next((note for note in notes if isinstance(note, (Range, Fixed, Within))), None)
    if within is None:
        return own
    if name in within.ranges:
        return within.ranges[name]
    below = {key.removeprefix(f"{name}."): one for key, one in within.ranges.items() if key.startswith(f"{name}.")}
    like = f"{within.like}.{name}" if within.like else ""
    return Within(below, like) if below or like else own


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a hint without its annotations, and these."""
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _is_number(hint: Any) -> bool:
    kinds = [one for one in (get_args(hint) or (hint,)) if one is not type(None)]
    return bool(kinds) and all(one in (int, float) for one in kinds)


def _default(one: dataclasses.Field[Any]) -> Any:
    return one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default


def shown(value: Any) -> str:
    """Return a default as a page shows it."""
    if value is dataclasses.MISSING:
        return ""
    return "all" if value is None else f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
