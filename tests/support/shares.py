"""Ranks that are threads of one process: the algorithms of several processes without their start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from steelyard.distributed import RankError, Ranks


class Board:
    """Where threads post what they give to a collective."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.posts: dict[tuple[int, int], Tensor] = {}
        self.ended: set[int] = set()


class Threads(Ranks):
    """One thread of several; `asked` counts its collectives."""

    def __init__(self, rank: int, size: int, board: Board) -> None:
        self.rank, self.size, self.asked, self._board = rank, size, 0, board

    def stack(self, tensor: Tensor) -> Tensor:
        board, places = self._board, [(self.asked, rank) for rank in range(self.size)]
        self.asked += 1
        with board.changed:
            board.posts[places[self.rank]] = tensor.detach().clone()
            board.changed.notify_all()
            board.changed.wait_for(lambda: all(p in board.posts or p[1] in board.ended for p in places), timeout=20)
            if not all(place in board.posts for place in places):
                raise RankError("another thread failed")
            return torch.stack([board.posts[place] for place in places])

    def sum(self, tensor: Tensor) -> Tensor:
        return self.stack(tensor).sum(0)


def in_threads(size: int, body: Callable[[Threads], Any]) -> list[Any]:
    """Return what `body` returns, or the exception that it raises, on every one of `size` ranks."""
    board = Board()

    def run(rank: int) -> Any:
        try:
            return body(Threads(rank, size, board))
        except Exception as error:  # noqa: BLE001 (what a test looks at)
            return error
        finally:
            with board.changed:
                board.ended.add(rank)
                board.changed.notify_all()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
