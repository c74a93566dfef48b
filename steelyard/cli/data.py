"""Put a published data set in place: say where its files are, verify, unpack, fetch from an address that was given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from steelyard._support._errors import UserError
from steelyard._support._text import few
from steelyard.cli.shared import progress_bars
from steelyard.experiments.data.official import OFFICIAL, prepare

__all__ = ["data"]

_Urls = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="URL")]


def data(name: tyro.conf.Positional[str], to: Path, url: _Urls = ()) -> None:
    """Put a published data set in place below a data root, and verify it.

    Archives that lie there are unpacked; nothing is fetched but what --url names. Where nothing is there, it says where
    the official files are.

    For instance:

    steelyard data waterbirds --to DATA

    steelyard data waterbirds --to DATA --url https://example.org/waterbird_complete95_forest2water2.tar.gz

    Args:
        name: waterbirds or celeba.
        to: the data root.
        url: the address of an archive or a table to fetch first; may be repeated. A fetch that stopped is resumed.
    """
    if name not in OFFICIAL:
        raise UserError(f"there is no data set {name!r} to put in place; there are {few(OFFICIAL)}")
    console = Console()
    with progress_bars(console) as bars:
        tasks: dict[str, object] = {}

        def progress(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of or None)
            bars.update(tasks[what], completed=done, total=of or None)  # type: ignore[arg-type]

        found = prepare(OFFICIAL[name], to, url, progress)
    console.print(f"{name}: {found}", markup=False, highlight=False, soft_wrap=True)
