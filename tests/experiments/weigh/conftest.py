"""What the tests of `weigh` and `suspects` have in common."""

from __future__ import annotations

import pytest

from steelyard.experiments.weigh import plan


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps a training: what is tested here is no training."""
    monkeypatch.setattr(plan, "_FEWEST_STEPS", 12)
    monkeypatch.setattr(plan, "_MAPLE_STEPS", (2, 5))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The pages that a module has made so far."""
    return {}
