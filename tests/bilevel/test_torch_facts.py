"""Facts of torch that the engine is built around; if one changes, the engine may become simpler."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own: steelyard/bilevel/_forward_mode.py
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_reverse_over_forward_is_wrong_through_training_mode_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    at = {name: p.detach() for name, p in model.named_parameters()}
    along = {name: torch.randn_like(p) for name, p in at.items()}

    def loss(parameters):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return functional_call(model, ({**parameters, **buffers}), (x,)).square().sum()

    forward_over_reverse = jvp(grad(loss), (at,), (along,))[1]
    reverse_over_forward = grad(lambda p: jvp(loss, (p,), (along,))[1])(at)
    h = 1e-6
    up, down = (grad(loss)({n: p + s * along[n] for n, p in at.items()}) for s in (h, -h))
    truth = {name: (up[name] - down[name]) / (2 * h) for name in at}
    assert max(float((forward_over_reverse[n] - truth[n]).abs().max()) for n in at) < 1e-6
    assert max(float((reverse_over_forward[n] - truth[n]).abs().max()) for n in at) > 1e-2


class Twice(nn.Module):
    """A module that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.again = self.inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.inner(x))


def test_functional_call_keeps_the_parameters_of_a_module_in_two_places() -> None:
    model = nn.Sequential(Twice())
    before = model[0].inner.weight.detach().clone()
    functional_call(model, {name: torch.zeros_like(p) for name, p in model.named_parameters()}, (torch.ones(1, 2),))
    assert not torch.equal(model[0].inner.weight, before)


def test_the_second_derivative_of_weight_norm_is_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    v, g, z, a, b = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 4, 4, 4, 4))

    def gradient(v: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((torch._weight_norm(v, g[:, :1], 0) * z).sum(), v, create_graph=True)[0]

    leaf = v.clone().requires_grad_()
    product = torch.autograd.grad(gradient(leaf), leaf, a)[0]
    up, down = (gradient((v + h * b).requires_grad_()).detach() for h in (1e-6, -1e-6))
    assert abs(float((product * b).sum() - (a * (up - down)).sum() / 2e-6)) > 0.1
