"""What all tests share."""

import os

# The problems are tiny: a second thread costs more than it gives, and results then depend on no thread count. So it is
# for the processes that tests start, and for the workers of pytest-xdist, which share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import jaxtyping
import pytest
import torch
from hypothesis import settings

from tests.support import shapes

jaxtyping.jaxtyped = shapes.jaxtyped  # before steelyard is imported

torch.set_num_threads(1)

# The same examples in every run, however long they take: no test passes or fails by luck.
# HYPOTHESIS_PROFILE=searching looks for new ones.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("searching", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: without jaxtyping's checks, which would speak before ours."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
