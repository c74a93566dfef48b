"""Convolutions of all images at once, in float64, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import _float64_convolution
from steelyard.bilevel._float64_convolution import Float64Convolutions

KINDS = {
    "3 x 3": nn.Conv2d(3, 4, 3, padding=1),
    "stride": nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False),
    "1 x 1": nn.Conv2d(3, 6, 1, stride=2, bias=False),
    "two axes": nn.Conv2d(3, 3, (3, 2), stride=(1, 2), padding=(1, 0)),
    "wide steps": nn.Conv2d(3, 4, 2, stride=3),
    "circular": nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
}
OTHERS = {
    "groups": nn.Conv2d(4, 4, 3, groups=2),
    "dilation": nn.Conv2d(4, 4, 3, dilation=2),
    "transposed": nn.ConvTranspose2d(4, 4, 3),
    "float32": nn.Conv2d(4, 4, 3),
}


def passes(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """Return output and gradients, by the same cotangent each time."""
    x = images.detach().requires_grad_()
    y = layer(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], cotangent)]


@pytest.mark.parametrize("name", KINDS)
def test_outputs_and_gradients_are_torchs(name: str) -> None:
    layer = KINDS[name].double()
    images = torch.randn(3, 3, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = passes(layer, images)
    with Float64Convolutions():
        found = passes(layer, images)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["3 x 3", *OTHERS])
def test_which_are_taken_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    plain = _float64_convolution.convolution
    monkeypatch.setattr(_float64_convolution, "convolution", lambda *args: calls.append(args[0]) or plain(*args))
    layer = {**KINDS, **OTHERS}[name].to(torch.float32 if name == "float32" else torch.float64)
    dtype = next(layer.parameters()).dtype
    channels = 3 if name == "3 x 3" else 4
    with Float64Convolutions():
        layer(torch.randn(2, channels, 6, 6, dtype=dtype))
        layer(torch.randn(2, channels, 20, 20, dtype=dtype))  # of these torch's way is as fast
    assert len(calls) == (1 if name == "3 x 3" else 0)
