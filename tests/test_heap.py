"""Memory that a process keeps is not asked for again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT

_FAULTS = """
import resource
from steelyard._support._heap import keep_freed_memory

kept = keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), faults[-1])
"""


def _kept_and_faults(**settings: str) -> tuple[int, int]:
    """Return whether a new process keeps what it frees, and the page faults of a block of 64 MiB asked for again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _FAULTS]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, **settings}, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return int(kept), int(faults)


def test_a_block_that_was_freed_costs_no_page_fault_again() -> None:
    kept, faults = _kept_and_faults()
    if not kept:
        pytest.skip("the C library is not glibc")
    assert faults < 100  # of 16,384 pages


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_MMAP_MAX_", "65536"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")]
)
def test_who_set_malloc_keeps_that(name: str, value: str) -> None:
    assert not _kept_and_faults(**{name: value})[0]
