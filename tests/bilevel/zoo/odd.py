"""What people write beside the modules: saturated inputs, recomputation, rules of their own, rows that meet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from tests.bilevel.zoo.case import CLASSES, CROSS_ENTROPY, FEATURES, Case, Draw, Shell, classes, normal
from tests.bilevel.zoo.losses import elementwise
from tests.bilevel.zoo.modules import Words

__all__ = ["odd_cases"]

Call = Callable[[Any, Tensor], Tensor]


class Between(nn.Module):
    """Linear -> `call(model, hidden)` -> linear; `call` may read the parameters `a` and `matrix` once more."""

    def __init__(self, call: Call, width: int = 4, bias: bool = True, outputs: int = CLASSES) -> None:
        super().__init__()
        self.front = nn.Linear(FEATURES, width, bias)
        self.a = nn.Parameter(torch.tensor(0.8))
        self.matrix = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.call = call
        with torch.no_grad():
            size = self.middle(torch.randn(5, FEATURES)).shape[1]
        self.head = nn.Linear(size, outputs)

    def middle(self, x: Tensor) -> Tensor:
        return self.call(self, self.front(x) @ self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(x)) * self.a


# Saturated inputs, exact zeros.


def zero_row(generator: torch.Generator, rows: int) -> Tensor:
    """The first sample is all zeros."""
    found = torch.randn(rows, FEATURES, generator=generator)
    found[0] = 0
    return found


def saturated(scale: float) -> Draw:
    """The first sample sits far out, on the side of its label."""

    def draw(generator: torch.Generator, rows: int) -> Tensor:
        found = torch.randn(rows, FEATURES, generator=generator)
        found[:, 2] = 0
        found[0, 2] = scale
        return found

    return draw


def first_is_one(generator: torch.Generator, rows: int) -> Tensor:
    found = torch.randint(0, 2, (rows, 1), generator=generator).float()
    found[0] = 1
    return found


class Steep(nn.Module):
    """A logit that the last feature is added to as it is; the two others go through a small net."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.last = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.net(x[:, :2]) + x[:, 2:])


def _saturated() -> Iterator[Case]:
    entropy = elementwise(F.binary_cross_entropy, reduction="none")
    logits = elementwise(F.binary_cross_entropy_with_logits, reduction="none")
    for far in (20.0, 30.0, 120.0, 1000.0):
        draw = saturated(far)
        yield Case(f"sigmoid, entropy at {far:.0f}", "odd", partial(Steep, torch.sigmoid), entropy, draw, first_is_one)
        yield Case(f"logits, entropy at {far:.0f}", "odd", partial(Steep, lambda z: z), logits, draw, first_is_one)
        two = partial(Steep, lambda z: torch.log(torch.cat([1 - z.sigmoid(), z.sigmoid()], 1).clamp_min(1e-12)))
        label = lambda generator, rows: first_is_one(generator, rows).long().squeeze(1)  # noqa: E731
        loss = partial(F.nll_loss, reduction="none")
        # Of parameters only: at 20 the value of log(1 - sigmoid) is 20 to seven digits, too few for differences.
        yield Case(f"clamped logarithm at {far:.0f}", "odd", two, loss, draw, label, predicts=False)
    for name, function in _AT_ZERO.items():
        call = lambda model, h, function=function: function(h)  # noqa: E731
        yield Case(f"zero row, {name}", "odd", partial(Between, call, bias=False), inputs=zero_row)
    for name, function in _ZERO_DISTANCE.items():
        call = lambda model, h, function=function: function(h)  # noqa: E731
        yield Case(f"zero distance, {name}", "odd", partial(Between, call, bias=False), inputs=zero_row)


def _column(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


_AT_ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky relu": F.leaky_relu,
    "relu6": F.relu6,
    "absolute value": torch.abs,
    "hardtanh": lambda h: F.hardtanh(h, 0.0, 1.0),
    "clamp": lambda h: h.clamp_min(0),
    "maximum": lambda h: torch.maximum(h, 0.5 * h),
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "softsign": F.softsign,
    "hardshrink": lambda h: F.hardshrink(h, 0.1),
    "sign times square": lambda h: h.sign() * h.square(),
    "power 1.5": lambda h: h.abs().pow(1.5),
    "power 3": lambda h: h.pow(3),
    "normalize": lambda h: F.normalize(h, dim=1),
    "normalize, norm 1": lambda h: F.normalize(h, p=1, dim=1),
    "layer norm": lambda h: F.layer_norm(h, (4,)),
    "rms norm": lambda h: F.rms_norm(h, (4,)),
    "group norm": lambda h: F.group_norm(h, 2),
    "instance norm": lambda h: _column(F.instance_norm(h.view(len(h), 2, 2))),
    "local response norm": lambda h: _column(F.local_response_norm(h.view(len(h), 4, 1), 2)),
    "batch norm": lambda h: F.batch_norm(h, None, None, training=True),
    "norm": lambda h: _column(h.norm(dim=1)),
    "vector norm": lambda h: _column(torch.linalg.vector_norm(h, dim=1)),
    "norm 3": lambda h: _column(h.norm(p=3, dim=1)),
    "cosine similarity": lambda h: _column(F.cosine_similarity(h, h.flip(1) + h.sin())),
    "safe square root": lambda h: torch.sqrt(h.square() + 1e-12),
    "clamped square root": lambda h: torch.sqrt(h.square().clamp_min(1e-6)),
    "where": lambda h: torch.where(h > 0, torch.sqrt(torch.where(h > 0, h, torch.ones_like(h))), h),
    "x log x": lambda h: torch.xlogy(h.relu() * h, h.abs() + 1e-3),
    "sinc": torch.sinc,
    "product": lambda h: _column(h.prod(1)),
    "cumulative product": lambda h: h.cumprod(1),
    "softmax": lambda h: F.softmax(h, 1),
    "log softmax": lambda h: F.log_softmax(h, 1),
    "logsumexp": lambda h: _column(h.logsumexp(1)),
    "variance": lambda h: _column(h.var(1)),
    "standard deviation": lambda h: _column(torch.sqrt(h.var(1) + 1e-5)),
    "max pool": lambda h: F.max_pool1d(h, 2),
    "lp pool": lambda h: F.lp_pool1d(h, 2, 2),
}
_ZERO_DISTANCE: dict[str, Callable[[Tensor], Tensor]] = {
    "pairwise distance": lambda h: _column(F.pairwise_distance(h, torch.tanh(h))),
    "cdist": lambda h: torch.cdist(h[:, None], torch.stack([h.sin(), h + 1], 1)).squeeze(1),
    "cdist, norm 1": lambda h: torch.cdist(h[:, None], torch.stack([h + 2, h + 1], 1), p=1).squeeze(1),
    "smooth l1": lambda h: F.smooth_l1_loss(h, h.sin(), reduction="none"),
    "huber": lambda h: F.huber_loss(h, h.sin(), reduction="none"),
    "l1": lambda h: F.l1_loss(h, 0 * h, reduction="none"),
}


# Parametrised weights, tied weights.


def parametrised(function: Callable[[nn.Module], nn.Module], module: Callable[[], nn.Module], *shape: int) -> Any:
    return lambda: Shell(function(module()), shape or (4,))


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


class Tied(nn.Module):
    """The table of the inputs is the weight of the head."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(7, 4, padding_idx=padding_idx), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.mix(self.table(ids).mean(1))), self.table.weight)


class TiedModules(nn.Module):
    """One layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.inner = nn.Linear(FEATURES, 4), nn.Linear(4, 4)
        self.again, self.head = self.inner, nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.inner(self.front(x))))))


class Transposed(nn.Module):
    """An autoencoder with tied weights, and a product of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(4, FEATURES)), nn.Parameter(torch.rand(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scale * self.weight
        return F.linear(torch.tanh(F.linear(x, weight)), weight.t())


def _tied() -> Iterator[Case]:
    linear, square = partial(nn.Linear, 4, 3), partial(nn.Linear, 4, 4)
    conv = partial(nn.Conv1d, 2, 3, 2)
    made: dict[str, Any] = {
        "weight norm": parametrised(parametrizations.weight_norm, linear),
        "weight norm of a convolution": parametrised(parametrizations.weight_norm, conv, 2, 4),
        "weight norm, over all": parametrised(partial(parametrizations.weight_norm, dim=None), linear),
        "old weight norm": parametrised(_old_weight_norm, linear),
        "spectral norm": parametrised(parametrizations.spectral_norm, linear),
        "old spectral norm": parametrised(nn.utils.spectral_norm, linear),
        "symmetric": parametrised(lambda m: parametrize.register_parametrization(m, "weight", Symmetric()), square),
        "tied layers": TiedModules,
        "tied and transposed": Transposed,
    }
    for kind in ("householder", "cayley", "matrix_exp"):
        made[f"orthogonal, {kind}"] = parametrised(
            partial(parametrizations.orthogonal, orthogonal_map=kind), square if kind != "householder" else linear
        )
    for name, make in made.items():
        loss = elementwise(F.mse_loss, reduction="none") if name == "tied and transposed" else CROSS_ENTROPY
        targets = normal(FEATURES) if name == "tied and transposed" else classes()
        # The power iteration's vectors are buffers that follow the weight, and no gradient goes through them.
        yield Case(name, "odd", make, loss, targets=targets, field="spectral" in name)
    yield Case("tied table", "odd", Tied, inputs=classes(7, 3), targets=classes(7))
    yield Case("tied table, padding row", "odd", partial(Tied, 0), inputs=classes(7, 3), targets=classes(7))


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module)


# Recomputation.


class Checkpointed(nn.Module):
    def __init__(self, inner: Callable[[], nn.Module], reentrant: bool) -> None:
        super().__init__()
        self.front, self.inner, self.head = nn.Linear(FEATURES, 4), inner(), nn.Linear(4, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.inner, torch.tanh(self.front(x)), use_reentrant=self.reentrant))


class CheckpointedScalar(nn.Module):
    """tanh(a x) a, as in the smallest example of what goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: torch.tanh(self.a * x) * self.a, x, use_reentrant=False)


def _checkpointed() -> Iterator[Case]:
    mlp = lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))  # noqa: E731
    noisy = lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 4))  # noqa: E731
    normed = lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU())  # noqa: E731
    for reentrant in (False, True):
        name = "checkpoint, reentrant" if reentrant else "checkpoint"
        yield Case(name, "odd", partial(Checkpointed, mlp, reentrant))
        yield Case(f"{name}, dropout", "odd", partial(Checkpointed, noisy, reentrant))
        yield Case(f"{name}, layer norm", "odd", partial(Checkpointed, normed, reentrant))
    yield Case("checkpoint of one number", "odd", CheckpointedScalar, _squared, normal(), normal())


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().reshape(len(targets), -1).mean(1)


# Functions with rules of their own, and backward passes that are not the derivative of the value.


class Cube(torch.autograd.Function):
    """x^3, as people write it: twice differentiable, no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class OnceCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class HiddenCube(torch.autograd.Function):
    """x^3 whose backward pass reads a tensor that autograd does not know of: a second derivative leaves it out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.kept**2 * grad


class ModernCube(torch.autograd.Function):
    """With a context of its own, forward mode and vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class WrongForwardMode(ModernCube):
    """Its forward mode is not its backward: training knows the backward only."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x**2 * tangent


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -0.7 * grad


class Rounding(torch.autograd.Function):
    """Quantised forward, gradients as if it were not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Sign(torch.autograd.Function):
    """A binarised unit: the gradient passes where |x| < 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1)


class Clipped(torch.autograd.Function):
    """Gradients clipped on their way: backward is not linear in what comes in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.tanh(20 * grad) / 20


def _without_gradient(model: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = torch.exp(h @ model.matrix / 3)
    return h * scale * model.a


def _detached(model: Any, h: Tensor) -> Tensor:
    return h * model.a * model.a.detach() + (h @ model.matrix).detach()


def _straight_through(model: Any, h: Tensor) -> Tensor:
    z = h @ model.matrix
    return z + (z.sign() - z).detach()


def _draws_alike() -> bool:
    """Whether torch draws the same exponential numbers in both precisions (2.6 does not): retraining is in float64."""
    drawn = []
    for dtype in (torch.float32, torch.float64):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn.append(torch.empty(8, dtype=dtype).exponential_().double())
    return torch.allclose(drawn[0], drawn[1], rtol=1e-4)


def _hard_gumbel(model: Any, h: Tensor) -> Tensor:
    return F.gumbel_softmax(h @ model.matrix, hard=True)


def _soft_gumbel(model: Any, h: Tensor) -> Tensor:
    return F.gumbel_softmax(h @ model.matrix)


def _bernoulli(model: Any, h: Tensor) -> Tensor:
    p = torch.sigmoid(h @ model.matrix)
    drawn = torch.rand(h.shape, dtype=torch.float32) < p  # the same numbers in both precisions
    return p + (drawn.to(p.dtype) - p).detach()


def _hooked_tensor(model: Any, h: Tensor) -> Tensor:
    z = h @ model.matrix
    if z.requires_grad:
        z.register_hook(lambda grad: 0.5 * grad)
    return torch.tanh(z)


def _stop_gradient_target(outputs: Tensor, targets: Tensor) -> Tensor:
    """A distillation of the model from itself: the softened outputs, detached, are the targets."""
    soft = F.softmax(2 * outputs.detach(), 1)
    return F.cross_entropy(outputs, targets, reduction="none") + (-soft * outputs.log_softmax(1)).sum(1)


def _focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """A focal loss whose factor is detached."""
    entropy = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - torch.exp(-entropy)).square().detach() * entropy


def with_hooks(
    make: Callable[[], nn.Module], hook: Callable[[Tensor], Tensor], which: str = "front.weight"
) -> Callable[[], nn.Module]:
    def built() -> nn.Module:
        model = make()
        dict(model.named_parameters())[which].register_hook(hook)
        return model

    return built


class BackwardHook(nn.Module):
    """A full backward hook on a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.head = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)
        self.head.register_full_backward_hook(lambda module, grad_input, _: tuple(0.5 * g for g in grad_input))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.front(x)))


def _tanh_matrix(model: Any, h: Tensor) -> Tensor:
    return torch.tanh(h @ model.matrix) * model.a


def _halved(grad: Tensor) -> Tensor:
    return 0.5 * grad


def _masked(grad: Tensor) -> Tensor:
    return grad * (torch.arange(grad.numel()).view_as(grad) % 2)


def _bounded(grad: Tensor) -> Tensor:
    return grad / (1 + grad.norm())


def _fields() -> Iterator[Case]:
    """What `backward` gives is not the derivative of the value, or what its derivative gives is not that of it."""

    def between(name: str, call: Call, **kw: Any) -> Case:
        return Case(name, "odd", partial(Between, call), predicts=False, field=True, **kw)

    for function in (Reversal, Rounding, Sign, Clipped, HiddenCube, WrongForwardMode):
        apply = lambda model, h, function=function: function.apply(h @ model.matrix) * model.a  # noqa: E731
        yield between(f"function {function.__name__}", apply)
    yield between("no gradient", _without_gradient)
    yield between("detached", _detached)
    yield between("straight through", _straight_through)
    if _draws_alike():
        yield between("gumbel, hard", _hard_gumbel)
    yield between("bernoulli, straight through", _bernoulli)
    yield between("hook on a tensor", _hooked_tensor)
    yield between("loss against itself, detached", _tanh_matrix, loss=_stop_gradient_target)
    yield between("focal loss, detached", _tanh_matrix, loss=_focal)
    made = partial(Between, _tanh_matrix)
    for name, hook in {"halved": _halved, "masked": _masked, "bounded": _bounded}.items():
        yield Case(f"hook on a parameter, {name}", "odd", with_hooks(made, hook), predicts=False, field=True)
    yield Case("hook on a module", "odd", BackwardHook, predicts=False, field=True)
    scaled = lambda: Words(nn.Embedding(7, 4, scale_grad_by_freq=True))  # noqa: E731
    yield Case("table, gradients by frequency", "odd", scaled, inputs=classes(7, 3), predicts=False, field=True)


def _functions() -> Iterator[Case]:
    for function in (Cube, OnceCube, ModernCube):
        apply = lambda model, h, function=function: function.apply(h @ model.matrix) * model.a  # noqa: E731
        yield Case(f"function {function.__name__}", "odd", partial(Between, apply))
    if _draws_alike():
        yield Case("gumbel, soft", "odd", partial(Between, _soft_gumbel), predicts=False)


# Operators.


def _attended(model: Any, h: Tensor, **kw: Any) -> Tensor:
    q = h.view(len(h), 1, 2, 2)
    return F.scaled_dot_product_attention(q, q.tanh(), q.sin(), **kw).flatten(1)


def _grid(model: Any, h: Tensor) -> Tensor:
    picture = h.view(-1, 1, 2, 2)
    theta = torch.eye(2, 3, dtype=h.dtype) * 0.7 + 0.1 * torch.tanh(h[:, :3, None]).mean((1, 2))[:, None, None]
    return F.grid_sample(picture, F.affine_grid(theta, (len(h), 1, 2, 2), False), align_corners=False).flatten(1)


def _matrices(h: Tensor) -> Tensor:
    one = h.view(-1, 2, 2)
    return one @ one.transpose(1, 2) + torch.eye(2, dtype=h.dtype)


def _scattered(h: Tensor) -> Tensor:
    out = torch.zeros(len(h), 3, dtype=h.dtype)
    return out.index_add(1, torch.tensor([0, 2, 2, 1]), h)


def _written(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 1:3] = h[:, :2] * 2
    out[:, 0] += h[:, 3].sin()
    out *= h.exp()
    return out


def _inner_gradient(model: Any, h: Tensor) -> Tensor:
    """The force of an energy: a gradient inside of the model."""
    with torch.enable_grad():
        z = h if h.requires_grad else h.detach().requires_grad_()
        energy = torch.tanh(z @ model.matrix).square().sum()
        return torch.autograd.grad(energy, z, create_graph=True)[0]


def _transformed(model: Any, h: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda row: torch.tanh(row @ model.matrix).square().sum()))(h)


def _fixed_point(model: Any, h: Tensor) -> Tensor:
    z = torch.zeros_like(h)
    for _ in range(4):
        z = torch.tanh(0.4 * z @ model.matrix + h)
    return z


_OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "fft": lambda h: torch.view_as_real(torch.fft.rfft(h)).flatten(1),
    "complex product": lambda h: torch.view_as_real(torch.polar(h[:, :2].exp(), h[:, 2:]) ** 2).flatten(1),
    "complex absolute value": lambda h: torch.complex(h[:, :2], h[:, 2:]).abs(),
    "inverse": lambda h: torch.linalg.inv(_matrices(h)).flatten(1),
    "solve": lambda h: torch.linalg.solve(_matrices(h), h[:, :2]),
    "cholesky": lambda h: torch.linalg.cholesky(_matrices(h)).flatten(1),
    "determinant": lambda h: _column(torch.linalg.slogdet(_matrices(h))[1]),
    "eigenvalues": lambda h: torch.linalg.eigvalsh(_matrices(h)),
    "singular values": lambda h: torch.linalg.svdvals(h.view(-1, 2, 2)),
    "qr": lambda h: torch.linalg.qr(h.view(-1, 2, 2))[1].flatten(1),
    "matrix exponential": lambda h: torch.linalg.matrix_exp(h.view(-1, 2, 2)).flatten(1),
    "einsum": lambda h: torch.einsum("ni,nj->nij", h, h.tanh()).flatten(1),
    "cumulative sum": lambda h: torch.tanh(h).cumsum(1),
    "cumulative maximum": lambda h: h.cummax(1)[0],
    "logcumsumexp": lambda h: h.logcumsumexp(1),
    "sort": lambda h: h.sort(1)[0] * torch.arange(1.0, 5.0, dtype=h.dtype),
    "top k": lambda h: h.topk(2, 1)[0],
    "median": lambda h: _column(h.median(1)[0]),
    "quantile": lambda h: _column(h.quantile(0.3, 1)),
    "minimum and maximum": lambda h: torch.stack([h.amin(1), h.amax(1), h.max(1)[0]], 1),
    "gather": lambda h: h.gather(1, torch.tensor([[3, 0, 0]]).expand(len(h), -1)).square(),
    "scatter": _scattered,
    "written in place": _written,
    "masked fill": lambda h: h.masked_fill(h < 0, -0.5).exp(),
    "roll and flip": lambda h: h.roll(1, 1) * h.flip(1),
    "outer stride": lambda h: h.as_strided((len(h), 3, 2), (4, 1, 1)).prod(2),
    "error function": lambda h: torch.erf(h) + torch.special.erfcx(h) + torch.special.i0e(h),
    "log gamma": lambda h: torch.lgamma(h.exp()) + torch.digamma(h.exp() + 1),
    "angles": lambda h: torch.atan2(h, h.flip(1) + 3) + torch.asinh(h) + torch.acos(torch.tanh(h) * 0.9),
    "remainder": lambda h: torch.remainder(h + 5, 11.0),
    "logaddexp": lambda h: torch.logaddexp(h, h.flip(1)),
    "power of powers": lambda h: h.exp() ** h.flip(1),
    "hypot and lerp": lambda h: torch.hypot(h, h.flip(1)) + torch.lerp(h, h.roll(1, 1), h.sigmoid()),
    "correlation": lambda h: torch.linalg.cross(h[:, :3], h[:, 1:]),
    "pdist": lambda h: torch.stack([F.pdist(row.view(2, 2)) for row in h]),
    "cdist": lambda h: torch.cdist(h.view(-1, 2, 2), h.view(-1, 2, 2) + 1).flatten(1),
    "cdist, norm 1": lambda h: torch.cdist(h.view(-1, 2, 2), h.view(-1, 2, 2).sin() + 1, p=1).flatten(1),
    "cdist, norm 3": lambda h: torch.cdist(h.view(-1, 2, 2), h.view(-1, 2, 2).sin() + 1, p=3).flatten(1),
    "renorm": lambda h: torch.renorm(h, 2, 0, 0.5),
    "trace": lambda h: torch.stack([torch.trace(m) for m in _matrices(h)])[:, None],
    "bilinear form": lambda h: torch.stack([torch.dot(row, row.exp()) for row in h])[:, None],
    "unfolded": lambda h: h.unfold(1, 2, 1).prod(2),
    "repeated": lambda h: h.repeat_interleave(2, 1).sin(),
    "fake quantised": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.01, 0, -128, 127) + h,
    "glu and prelu": lambda h: F.glu(F.prelu(h, torch.tensor([0.2], dtype=h.dtype)), 1),
    "kron": lambda h: torch.stack([torch.kron(row[:2], row[2:]) for row in h]),
    "pinv": lambda h: torch.linalg.pinv(_matrices(h)[:, :, :1]).flatten(1),
    "sparse product": lambda h: torch.sparse.mm(torch.eye(4).to(h.dtype).to_sparse(), h.t()).t().sin(),
    "stft": lambda h: torch.view_as_real(
        torch.stft(h, 4, 2, window=torch.ones(4, dtype=h.dtype), return_complex=True)
    ).flatten(1),
}


def _operators() -> Iterator[Case]:
    for name, function in _OPERATORS.items():
        call = lambda model, h, function=function: function(1.5 * torch.tanh(h @ model.matrix))  # noqa: E731
        field = name == "fake quantised"
        yield Case(f"operator: {name}", "odd", partial(Between, call), predicts=not field, field=field)
    calls: dict[str, Call] = {
        "attention": _attended,
        "attention, causal": partial(_attended, is_causal=True),
        "attention, dropout": partial(_attended, dropout_p=0.3),
        "grid sample": _grid,
        "gradient inside": _inner_gradient,
        "transformed inside": _transformed,
        "fixed point": _fixed_point,
        "noise": lambda model, h: h + torch.randn(h.shape, dtype=torch.float32).to(h.dtype) * model.a,
    }
    for name, call in calls.items():
        yield Case(f"operator: {name}", "odd", partial(Between, call), predicts=name != "attention, dropout")


# Rows that meet.


def _sorted(model: Any, h: Tensor) -> Tensor:
    """Rows sorted by a feature, treated, and sorted back."""
    order = h[:, 0].detach().argsort()
    back = order.argsort()
    return torch.tanh(h[order] @ model.matrix)[back]


def _by_domain(model: Any, h: Tensor) -> Tensor:
    """Centred within a domain, told by the sign of a feature of the input (of the hidden, so it does not move)."""
    domain = (torch.arange(len(h)) % 3 == 0)[:, None].to(h.dtype)
    mean = lambda mask: (h * mask).sum(0) / mask.sum().clamp_min(1)  # noqa: E731
    return h - domain * mean(domain) - (1 - domain) * mean(1 - domain)


def _pairs(model: Any, h: Tensor) -> Tensor:
    """The first two rows exchange something, the others do not."""
    return torch.cat([h[:2] + 0.3 * h[:2].flip(0).tanh(), h[2:]])


def _last_only(model: Any, h: Tensor) -> Tensor:
    return torch.cat([h[:-1], h[-1:] * h[0].sigmoid()])


_MEETING: dict[str, Call] = {
    "sorted and back": _sorted,
    "centred by domain": _by_domain,
    "pairs": _pairs,
    "the last sees the first": _last_only,
    "centred": lambda model, h: h - h.mean(0),
    "softmax over rows": lambda model, h: F.softmax(h, 0) * 3,
    "attention over rows": lambda model, h: F.softmax(h @ h.t(), 1) @ h,
    "cumulative over rows": lambda model, h: h.cumsum(0).tanh(),
    "neighbour": lambda model, h: h + 0.2 * h.roll(1, 0) * model.a,
    "mixed up": lambda model, h: 0.7 * h + 0.3 * h[torch.randperm(len(h))],
    "divided by the largest": lambda model, h: h / h.abs().max(),
    "swapped axes": lambda model, h: (h.t() * torch.arange(1.0, 5.0, dtype=h.dtype)[:, None]).t().tanh(),
    "reversed and back": lambda model, h: torch.tanh(h.flip(0) @ model.matrix).flip(0),
    "in chunks": lambda model, h: torch.cat([torch.tanh(part @ model.matrix) for part in h.split(2)]),
    "centred in chunks": lambda model, h: torch.cat([part - part.mean(0) for part in h.split(2)]),
    "only the largest row": lambda model, h: h + h[h.sum(1).argmax()].tanh(),
}


def _contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    """In-batch negatives: the loss of a row reads all rows."""
    z = F.normalize(outputs, dim=1)
    return F.cross_entropy(z @ z.t() * 2 + z.sum(1), torch.arange(len(z)).roll(1), reduction="none")


def _ranked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each row against the next one's score."""
    return F.softplus(outputs[:, 0] - outputs[:, 0].roll(1)) + outputs[:, 1].square()


class ByColumn(nn.Module):
    """Centred within a domain that stands in a column of the inputs: no two of the first four samples share one."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.head = nn.Linear(FEATURES - 1, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.front(x[:, :-1]))
        same = (x[:, -1:] == x[:, -1]).to(h.dtype)
        return self.head(h - same @ h / same.sum(1, keepdim=True))


def with_domains(generator: torch.Generator, rows: int) -> Tensor:
    values = torch.randn(rows, FEATURES - 1, generator=generator)
    return torch.cat([values, (torch.arange(rows) % 4)[:, None].to(values.dtype)], 1)


def _meeting() -> Iterator[Case]:
    for name, call in _MEETING.items():
        yield Case(f"rows: {name}", "odd", partial(Between, call), predicts=name != "mixed up")
    # Whether the two largest derivatives, or the first samples, give the coupling away hangs on the numbers.
    for number in range(1, 7):
        yield Case(f"rows: sorted and back, again {number}", "odd", partial(Between, _sorted))
        yield Case(f"rows: centred by a column {number}", "odd", ByColumn, inputs=with_domains)
    yield Case("rows: contrastive loss", "odd", partial(Between, _tanh_matrix), _contrastive)
    yield Case("rows: ranked loss", "odd", partial(Between, _tanh_matrix), _ranked)


# Models with a state, or with parameters of an unusual kind.


class MovingMean(nn.Module):
    """Centred by a running mean of its own making, as a home-made BatchNorm has it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.7).add_(0.3 * h.mean(0))
        return torch.tanh(h - self.mean)


class Counted(nn.Module):
    """A buffer that only counts, and a factor that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, h: Tensor) -> Tensor:
        self.count += 1
        return torch.tanh(h) / self.count


class Frozen(nn.Module):
    """Half of it is not trained, and one parameter is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.fixed, self.head = nn.Linear(FEATURES, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.unused = nn.Parameter(torch.randn(2))
        self.fixed.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fixed(torch.tanh(self.front(x)))))


class Mixture(nn.Module):
    """Experts chosen by the largest gate: most parameters get no gradient from most samples."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(FEATURES, 3), nn.ModuleList(nn.Linear(FEATURES, CLASSES) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(1)
        chosen = gate.argmax(1)
        out = x.new_zeros(len(x), CLASSES)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * gate[rows, number, None])
        return out


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(FEATURES, 4, dtype=torch.cfloat)), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(self.weight.dtype) @ self.weight).abs())


class Packed(nn.Module):
    """Sequences of different lengths."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.table, self.core, self.head = nn.Embedding(7, 3), kind(3, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        lengths = ids[:, 0] % 3 + 1
        packed = nn.utils.rnn.pack_padded_sequence(self.table(ids), lengths, batch_first=True, enforce_sorted=False)
        _, last = self.core(packed)
        return self.head((last[0] if isinstance(last, tuple) else last).squeeze(0))


class Quantised(nn.Module):
    """A codebook: the nearest row, straight through, and a loss that pulls both together."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.book, self.head = nn.Linear(FEATURES, 4), nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.front(x)
        near = self.book[torch.cdist(z.detach(), self.book.detach()).argmin(1)]
        pull = (z - near.detach()).square().mean(1) + (near - z.detach()).square().mean(1)
        return torch.cat([self.head(z + (near - z).detach()), pull[:, None]], 1)


def _with_pull(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[:, :3], targets, reduction="none") + outputs[:, 3]


def _stateful() -> Iterator[Case]:
    for kind in (MovingMean, Counted):
        yield Case(f"state: {kind.__name__}", "odd", lambda kind=kind: Shell(kind(), (4,)), field=kind is MovingMean)
    yield Case("frozen and unused", "odd", Frozen)
    yield Case("mixture of experts", "odd", Mixture)
    yield Case("complex parameters", "odd", Complex)
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        yield Case(f"packed {kind.__name__}", "odd", partial(Packed, kind), inputs=classes(7, 3))
    yield Case("codebook", "odd", Quantised, _with_pull, predicts=False, field=True)
    renormed = lambda: Words(nn.Embedding(7, 4, max_norm=0.9))  # noqa: E731
    yield Case("table with a largest norm", "odd", renormed, inputs=classes(7, 3), predicts=False, field=True)
    sparse = lambda: Words(nn.Embedding(7, 4, sparse=True))  # noqa: E731
    yield Case("table with sparse gradients", "odd", sparse, inputs=classes(7, 3), optimizers=("sgd",))
    yield Case("deep, wide range", "odd", lambda: nn.Sequential(*_layers()))


def _layers() -> Iterator[nn.Module]:
    for _ in range(4):
        yield nn.Linear(3, 3)
        yield nn.SiLU()


def odd_cases() -> list[Case]:
    """Return everything that is no module or loss of torch by itself."""
    makers = (_saturated, _tied, _checkpointed, _functions, _fields, _operators, _meeting, _stateful)
    return [case for maker in makers for case in maker()]
