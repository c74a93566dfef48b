"""The wording of argument errors: name, value, remedy."""

from __future__ import annotations

import pytest
import torch

from steelyard import _check


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _check.integer("steps", 0, low=1), ValueError, "steps must be >= 1, got 0"),
        (lambda: _check.integer("steps", 5, low=1, high=4), ValueError, r"steps must be in \[1, 4\], got 5"),
        (lambda: _check.integer("steps", True), TypeError, "steps must be an int, got True"),
        (lambda: _check.in_range("rate", 0.0, low=0.0, open_low=True), ValueError, "rate must be finite and > 0.0"),
        (lambda: _check.in_range("rate", float("nan")), ValueError, "rate must be finite"),
        (lambda: _check.in_range("p", 1.0, high=1.0, open_high=True), ValueError, "< 1.0, got 1.0"),
        (lambda: _check.choice("risk", "irm", ["irmv1", "vrex"]), ValueError, "did you mean 'irmv1'?"),
        (
            lambda: _check.finite("w", torch.tensor([1.0, float("inf")])),
            ValueError,
            r"w has 1 entries .* at \[1\]: inf",
        ),
        (lambda: _check.same_length(a=torch.ones(2), b=torch.ones(3)), ValueError, "a has 2, b has 3"),
    ],
)
def test_errors(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_values_come_back() -> None:
    assert _check.integer("n", 3, low=3) == 3
    assert _check.in_range("x", 0.5, low=0, high=1) == 0.5
    assert _check.choice("c", "a", ["a"]) == "a"
    assert _check.same_length(a=torch.ones(2), b=None) == 2
