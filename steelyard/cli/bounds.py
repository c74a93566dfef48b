"""`steelyard bounds`: the terms of the top-q bound for the user's own losses; needs no extra for `.npy` files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard._support._csv import table_text
from steelyard._support._errors import UserError
from steelyard._support._files import write_text
from steelyard._support._outputs import writing
from steelyard.cli.moved import THEOREM
from steelyard.cli.options import check_seeds, check_writable, set_threads

if TYPE_CHECKING:
    from steelyard.theory import HypothesisBound

__all__ = ["bounds"]

_MOST_SHOWN = 20  # hypotheses
_TERMS, _HYPOTHESES = "terms.csv", "summary.csv"
_DEFAULTS = {"s": 16, "q": 4, "delta": 0.05, "draws": 1000}
_SUMMARY = ("hypothesis", "mean loss", "L_q", "bound", "certificate")


def bounds(arguments: Sequence[str]) -> None:
    """Carry out `steelyard bounds` with these arguments; its help says what each does."""
    given = _parser().parse_args(arguments)
    set_threads(given.threads)
    check_seeds("--seed", [given.seed])
    _check_losses(given)
    folder = given.out or Path("runs") / "bounds" / given.losses.stem
    check_writable("--out", folder)
    with writing(folder, [_TERMS, _HYPOTHESES], overwrite=given.overwrite):
        found, hint = _computed(given)
        terms = [row for one in found for row in one.rows()]
        summary = [[*_figures(one), one.sentence] for one in found]
        write_text(folder / _TERMS, table_text(list(terms[0]), [_to_six_digits(row.values()) for row in terms]))
        write_text(folder / _HYPOTHESES, table_text([*_SUMMARY, "sentence"], map(_to_six_digits, summary)))
    if hint:
        _say(hint)
    _print_summary(found)
    _say(f"Written: {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steelyard bounds",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    yes_or_no = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--losses", type=Path, metavar="PATH", help=_LOSSES)
    add("--out", type=Path, metavar="PATH", help=_OUT)
    add("--overwrite", action=yes_or_no, default=False, help="replace what lies there")
    add("--seed", type=int, default=0, metavar="INT", help="of all random draws (default: 0)")
    add("--threads", type=int, default=1, metavar="INT", help=_THREADS)
    add("--transpose", action=yes_or_no, default=False, help=_TRANSPOSE)
    add("--fixed-before-data", action=yes_or_no, default=False, help=_FIXED)
    add("--clean", type=Path, metavar="PATH", help="the same losses on the clean data, where it is known")
    add("--loss-range", type=float, metavar="FLOAT", help=_LOSS_RANGE)
    for name, (kind, words) in _NUMBERS.items():
        add(f"--{name}", type=kind, metavar=kind.__name__.upper(), help=f"{words} (default: {_DEFAULTS[name]})")
    return parser


_DESCRIPTION = """Compute the terms of the top-q generalisation bound for a loss matrix of your own.

Example: steelyard bounds --losses losses.npy --s 64 --q 16 --loss-range 1.0 --out runs/bounds
"""
_OUT = "folder for terms.csv and summary.csv (default: runs/bounds/<losses>, by the name of the file)"
_LOSSES = "losses (hypotheses x samples) on the data as trained on, .npy or, with steelyard[experiments], Parquet"
_THREADS = "torch threads; more than one is slower here. 0 leaves torch's own choice (default: 1)"
_TRANSPOSE = "the rows of the matrix are samples and its columns hypotheses"
_FIXED = (
    "all hypotheses were fixed before those samples were drawn, so none was trained on them or chosen by them; without "
    "this nothing is called a certificate"
)
_LOSS_RANGE = "M, the most by which two losses of one hypothesis can differ, 1 for the 0-1 loss; must be given"
_NUMBERS: dict[str, tuple[type, str]] = {
    "s": (int, "batch size"),
    "q": (int, "how many of the largest losses of a batch count"),
    "delta": (float, "the bound fails with at most this probability"),
    "draws": (int, "Monte Carlo draws"),
}


def _check_losses(given: argparse.Namespace) -> None:
    """Raise UserError where no losses are given, of which all else is said."""
    if given.losses is not None:
        return
    for name in ("clean", *_DEFAULTS, "loss_range", "transpose", "fixed_before_data"):
        if getattr(given, name) not in (None, False):
            option = name.replace("_", "-")
            raise UserError(f"--{option} is about a loss matrix: give --losses FILE too, or leave it out")
    raise UserError(f"bounds needs --losses FILE; the checks of the bound are a study now: {THEOREM}")


def _computed(given: argparse.Namespace) -> tuple[list[HypothesisBound], str]:
    """Return the bound of every hypothesis, and what looks odd about the losses."""
    import torch

    from steelyard.cli.losses import read_losses, turned_hint
    from steelyard.theory import finite_class_bounds

    losses = read_losses(given.losses, given.transpose)
    clean = None if given.clean is None else read_losses(given.clean, given.transpose)
    hint = turned_hint(*losses.shape)
    asked = {name: getattr(given, name) for name in _DEFAULTS}
    settings: dict[str, Any] = {name: _DEFAULTS[name] if value is None else value for name, value in asked.items()}
    try:
        return finite_class_bounds(
            losses,
            clean,
            **settings,
            loss_range=given.loss_range,
            generator=torch.Generator().manual_seed(given.seed),
            fixed=given.fixed_before_data,
        ), hint
    except ValueError as error:
        turned = hint and settings["s"] > losses.shape[1]
        raise UserError(f"{error}. {hint}" if turned else str(error)) from error


def _figures(one: HypothesisBound) -> list[object]:
    """Return the row of a hypothesis under the columns of the summary."""
    return [one.hypothesis, one.mean_loss, one.bound.training.value, one.bound.total.value, one.is_certificate]


def _print_summary(found: list[HypothesisBound]) -> None:
    """Print what the bound says of each hypothesis; of many, of those with the lowest."""
    many = len(found) > _MOST_SHOWN
    shown = sorted(found, key=lambda one: one.bound.total.value)[:_MOST_SHOWN] if many else found
    _say(_aligned([_SUMMARY, *([_digits(value, 4) for value in _figures(one)] for one in shown)]))
    for one in shown:
        _say(f"Hypothesis {one.hypothesis}: {one.sentence}.")
    if many:
        _say(f"Of {len(found)} hypotheses those with the lowest bounds; all are in summary.csv.")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns begin below each other, an empty line before and after it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(["", *lines, ""])


def _digits(value: object, count: int) -> str:
    return f"{value:.{count}g}" if isinstance(value, float) else str(value)


def _to_six_digits(row: Any) -> list[str]:
    return [_digits(value, 6) for value in row]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
