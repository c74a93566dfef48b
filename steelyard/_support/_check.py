"""Argument checks with one wording: the argument, the value, what would be right.

Every check returns its value, so that it can stand in an assignment.
"""

from __future__ import annotations

import difflib
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy
import torch
from torch import Tensor

__all__ = [
    "Numbers",
    "boolean",
    "choice",
    "distinct",
    "entries_in",
    "finite",
    "floats",
    "function",
    "generator",
    "in_range",
    "instance",
    "integer",
    "integers",
    "nearest",
    "same_length",
    "seed",
    "shown",
    "store",
    "tensor",
]

T = TypeVar("T")


@runtime_checkable
class _Frame(Protocol):
    """pandas' Series, Index and DataFrame, without an import of pandas."""

    def __len__(self) -> int: ...

    def to_numpy(self) -> Any:
        """Return the entries."""


Numbers: TypeAlias = numpy.ndarray | list[Any] | tuple[Any, ...] | _Frame
"""What is taken instead of a tensor, as by `torch.as_tensor`."""


def integer(name: str, value: int, *, low: int | None = None, high: int | None = None) -> int:
    """Return `value` as an int if it is whole (bool excluded) and in [low, high]; ValueError or TypeError otherwise."""
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    number = int(number)
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"{name} must be {_interval(low, high, '[', ']')}, got {_brief(number)}")
    return number


def in_range(
    name: str,
    value: float | int,
    *,
    low: float | int | None = None,
    high: float | int | None = None,
    open_low: bool = False,
    open_high: bool = False,
) -> float | int:
    """Return `value` as a Python number if it is real, finite, in the interval; ValueError or TypeError otherwise."""
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    number = number if isinstance(number, (int, float)) else float(number)
    below = low is not None and (number <= low if open_low else number < low)
    above = high is not None and (number >= high if open_high else number > high)
    if not _is_finite(number) or below or above:
        interval = _interval(low, high, "(" if open_low else "[", ")" if open_high else "]")
        raise ValueError(f"{name} must be finite{' and ' if interval else ''}{interval}, got {_brief(number)}")
    return number


def seed(name: str, value: int) -> int:
    """Return `value` if it is an int that seeds a `torch.Generator`, with room to count up; as `integer` otherwise."""
    return integer(name, value, low=0, high=2**63 - 1)


def boolean(name: str, value: bool) -> bool:
    """Return `value` if it is True or False (NumPy's too); TypeError otherwise."""
    return instance(name, bool(value) if isinstance(value, numpy.bool_) else value, bool, "True or False")


def instance(name: str, value: T, kind: type | tuple[type, ...], what: str) -> T:
    """Return `value` if it is of `kind`; otherwise TypeError, which says `what` it must be."""
    # Of a class the instances can be called; so can it, but in another way.
    if not isinstance(value, kind) or (isinstance(value, type) and kind is not Callable):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return value


def function(name: str, value: T, what: str) -> T:
    """Return `value` if it can be called; otherwise TypeError, which says `what` it must be."""
    return instance(name, value, Callable, what)  # type: ignore[arg-type]


def generator(name: str, value: torch.Generator) -> torch.Generator:
    """Return `value` if it is a `torch.Generator`; otherwise TypeError, which says how to make one."""
    return instance(name, value, torch.Generator, "a torch.Generator, such as torch.Generator().manual_seed(0)")


def tensor(name: str, value: Tensor | Numbers, dims: tuple[str, ...] | None = None) -> Tensor:
    """Return `value` as a tensor, with dimensions of these names where any are given; else TypeError, ValueError.

    Args:
        name: of the argument.
        value: a tensor, or an array, a list or something of pandas, which `torch.as_tensor` makes one of.
        dims: the names of its dimensions, as many as it must have.
    """
    found = value if isinstance(value, Tensor) else _as_tensor(name, value)
    if dims is not None and found.ndim != len(dims):
        raise ValueError(f"{name} must have the shape ({', '.join(dims)}), got {tuple(found.shape)}")
    return found


def integers(name: str, value: Tensor | Numbers) -> Tensor:
    """Return `value` as int64 if it is a `tensor` of integers ``(n,)``; TypeError or ValueError otherwise."""
    found = tensor(name, value, ("n",))
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if not whole and (isinstance(value, Tensor) or found.numel()):  # an empty list has no type
        raise TypeError(f"{name} must hold integers, got {found.dtype}; convert it with .long()")
    return found.long()


def floats(name: str, value: Tensor | Numbers, dims: tuple[str, ...] | None = None) -> Tensor:
    """Return `value` if it is a floating-point `tensor` (or a list of integers); TypeError or ValueError otherwise."""
    found = tensor(name, value, dims)
    if not found.is_floating_point():
        if isinstance(value, Tensor) or found.is_complex():
            raise TypeError(f"{name} must be floating point, got {found.dtype}; convert it with .float()")
        return found.double()
    return found


def distinct(ids: Tensor) -> int:
    """Return how many different ids there are. (Sorting them takes a multiple of their memory, and they mostly are.)"""
    ordered = bool((ids[1:] > ids[:-1]).all())
    return len(ids) if ordered else len(torch.unique(ids))


def choice(name: str, value: T, choices: Iterable[T]) -> T:
    """Return `value` if it is among `choices`; otherwise ValueError that names the nearest right one."""
    options = list(choices)
    try:
        return options[options.index(value)]  # 2 for NumPy's 2
    except (ValueError, RuntimeError):  # not among them; an array has no one truth
        kin = [str(one) for one in options if isinstance(one, str) and isinstance(value, str)]
        other = next((one for one in options if str(one) == str(value)), None)  # "2" for 2
        hint = f"; did you mean {other!r}?" if other is not None else nearest(str(value), kin)
        raise ValueError(f"{name} must be one of {options}, got {_brief(value)}{hint}") from None


def callables(name: str, value: Any) -> list[Any]:
    """Return functions as a list; TypeError where they are none, or one alone."""
    if callable(value):
        raise TypeError(f"{name} must be a list of functions, got {_brief(value)}: put it into a list, [{name[:-1]}]")
    try:
        found = list(value)
    except TypeError:
        raise TypeError(f"{name} must be a list of functions, got {_brief(value)}") from None
    wrong = [one for one in found if not callable(one)]
    if wrong:
        raise TypeError(f"{name} must be a list of functions, got {_brief(wrong[0])} in it")
    return found


def nearest(word: str, words: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def finite(name: str, value: Tensor | Numbers) -> Tensor:
    """Return `value` as a `tensor` if all entries are finite; else ValueError with the count and the first position."""
    found = tensor(name, value)
    if not (found.is_floating_point() or found.is_complex()):
        return found
    if found.is_floating_point() and found.numel() and all(map(math.isfinite, map(float, found.detach().aminmax()))):
        return found  # one read, which a NaN passes through; the rest below is for the message
    bad = ~torch.isfinite(found)
    if bad.any():
        where = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} has {int(bad.sum())} entries that are NaN or infinite (of {found.numel()}), "
            f"the first at {where}: {found[tuple(where)].item()}"
        )
    return found


def entries_in(name: str, values: Tensor, low: float | int, high: float | int, remedy: str = "") -> Tensor:
    """Return `values` if all entries are in [low, high]; otherwise ValueError with their count and the first."""
    bad = ~((values >= low) & (values <= high))  # true for NaN too
    if bad.any():
        raise ValueError(
            f"{name} must be in [{low:g}, {high:g}]; {int(bad.sum())} of {bad.numel()} are not, the first "
            f"{values[bad][0].item()}{remedy}"
        )
    return values


def same_length(**tensors: Tensor | Numbers | None) -> int:
    """Return the common first dimension of the tensors given (None is passed over); ValueError otherwise."""
    lengths = {name: len(tensor) for name, tensor in tensors.items() if tensor is not None}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            "these need the same first dimension: " + ", ".join(f"{k} has {v}" for k, v in lengths.items())
        )
    return next(iter(lengths.values()))


def shown(value: object) -> str:
    """Return what `value` is, in one short line: of an array the shape and not the entries."""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape != ():
        held = getattr(value, "dtype", None)
        return f"a {kind} of shape {tuple(shape)}" + ("" if held is None else f" ({held})")
    return f"{_brief(value)} ({kind})"


def _brief(value: object) -> str:
    try:
        text = " ".join(_REPR.repr(value).split())
    except ValueError:  # an int of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."


_REPR = reprlib.Repr()  # of a list of a million the first few
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxdict = 6
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200


def _scalar(value: Any) -> Any:
    """Return a Python number for one of NumPy's, and for an array or a tensor without dimensions."""
    single = isinstance(value, numpy.generic) or (isinstance(value, (Tensor, numpy.ndarray)) and value.ndim == 0)
    return value.item() if single else value


def _is_finite(number: float | int) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int that no float holds
        return False


def _as_tensor(name: str, value: Any) -> Tensor:
    """Return what `torch.as_tensor` makes of an array, a list or something of pandas, where its words are not plain."""
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not (listed or hasattr(value, "__array__")) or isinstance(value, numpy.generic):
        raise TypeError(f"{name} must be a tensor, got {shown(value)}")
    try:
        if listed and len(value) and all(isinstance(one, Tensor) for one in value):
            return torch.stack(list(value))
        if listed and not any(hasattr(one, "__array__") for one in value):
            return torch.as_tensor(list(value))  # floats of torch's default type, as everywhere in torch
        return torch.as_tensor(_plain_array(value))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name} must be a tensor, or numbers of one length that torch.as_tensor takes, got {shown(value)}: "
            f"{' '.join(str(error).split())}; leave out what is missing, and number names by "
            "numpy.unique(names, return_inverse=True)[1]"
        ) from None


def _plain_array(value: Any) -> numpy.ndarray:
    """Return an array that torch can share or copy: of numbers, in the machine's order of bytes, writable."""
    if numpy.ma.is_masked(value):
        raise TypeError("it has masked entries")
    array = numpy.asarray(value)
    if array.dtype == object:  # as pandas gives columns of mixed or nullable types
        array = numpy.asarray(array.tolist())
    if array.dtype.kind not in "biufc":
        raise TypeError(f"its entries are {array.dtype}, no numbers")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return array if shared else array.copy()


def store(owner: object, **values: object) -> None:
    """Put checked values into the fields of a frozen dataclass that is being made."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)


def _interval(low: float | int | None, high: float | int | None, left: str, right: str) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f"{'>' if left == '(' else '>='} {low}"
    if low is None:
        return f"{'<' if right == ')' else '<='} {high}"
    return f"in {left}{low}, {high}{right}"
