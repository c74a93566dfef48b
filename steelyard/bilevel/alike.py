"""Are two results of one computation, taken in another order or in another company, the same up to rounding?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "alike"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of each precision, how far such results may be apart, as a share of the largest."""
_COARSE = 2e-2


def alike(found: Sequence[Tensor], expected: Sequence[Tensor], coarse: bool = False) -> bool:
    """Whether they are the same up to rounding, by the size of the largest finite entry of all that is expected.

    Args:
        found, expected: as many tensors of the same shapes; NaN is like NaN.
        coarse: half precision was met on the way. (A type without a tolerance is taken for float32.)
    """
    finite = [one[torch.isfinite(one)] for one in expected]
    scale = max((float(one.abs().max()) for one in finite if len(one)), default=1.0)
    return all(
        torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        for one, other in zip(found, expected, strict=True)
        for tolerance in [_COARSE if coarse else TOLERANCE.get(other.dtype, TOLERANCE[torch.float32])]
    )
