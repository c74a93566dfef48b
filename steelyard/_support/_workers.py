"""How processes that load data are started."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

__all__ = ["worker_context"]


def worker_context(preload: str) -> BaseContext:
    """Return how worker processes are started: from a server where the platform has one, otherwise each afresh.

    A forked copy of a process with threads, as torch's has, can deadlock. The server is forked from nothing; it imports
    the module `preload` once, else each worker would import torch.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", preload])
    return context
