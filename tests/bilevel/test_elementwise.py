"""Optimizers of others: right against central differences of plain retraining, or refused with what gave them away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import Batch, FlatUpdateWarning, Implicit, Recorder, Storage, Truncated, Unrolled, WeightedLoss
from steelyard.bilevel.optimizers import COVERED, SUPPORTED, ElementwisePullback, ParameterUpdate, pullback_for
from tests.support import problems
from tests.support.places import GUIDES
from tests.support.problems import CROSS_ENTROPY, OPTIMIZERS, Problem, dead_unit, mlp, relative


class Simple(torch.optim.Optimizer):
    """A base: `change(p, g, state, group)` moves one parameter."""

    def __init__(self, params: Any, lr: float = 0.02, **settings: Any) -> None:
        super().__init__(params, {"lr": lr, **settings})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.change(p, p.grad, self.state[p], group)

    def change(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class Lion(Simple):
    """Chen et al. 2023, Algorithm 2."""

    def change(self, p, g, state, group) -> None:
        m = state.setdefault("exp_avg", torch.zeros_like(p))
        p.mul_(1 - group["lr"] * 0.1).add_((m * 0.9 + g * 0.1).sign_(), alpha=-group["lr"])
        m.lerp_(g, 0.01)


class Signum(Simple):
    """Signs of a momentum (Bernstein et al. 2018)."""

    def change(self, p, g, state, group) -> None:
        m = state.setdefault("momentum", torch.zeros_like(p))
        p.add_(m.lerp_(g, 0.2).sign(), alpha=-group["lr"])


class Adan(Simple):
    """Xie et al. 2022, Algorithm 1, written with ``.data`` as much third-party code is."""

    def change(self, p, g, state, group) -> None:
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p), n=torch.zeros_like(p), last=g.clone())
        state["step"] += 1
        change = g - state["last"]
        state["m"].mul_(0.9).add_(g, alpha=0.1)
        state["v"].mul_(0.8).add_(change, alpha=0.2)
        state["n"].mul_(0.95).addcmul_(g + 0.8 * change, g + 0.8 * change, value=0.05)
        corrected = [1 - decay ** state["step"] for decay in (0.9, 0.8, 0.95)]
        scale = (state["n"] / corrected[2]).sqrt_().add_(group.get("eps", 1e-8))
        update = (state["m"] / corrected[0] + 0.8 * state["v"] / corrected[1]).div_(scale)
        p.data.add_(update, alpha=-group["lr"]).div_(1 + group["lr"] * 0.05)
        state["last"].copy_(g)


class Coupled(Simple):
    """A class of one's own: a decay inside of a smooth function, and what is written over the gradient."""

    def change(self, p, g, state, group) -> None:
        b = state.setdefault("buffer", torch.zeros_like(p))
        g.add_(p, alpha=0.1)
        b.mul_(0.7).add_(torch.tanh(5 * g))
        p.sub_(group["lr"] * (b + p.sin() * g))


class Mine(torch.optim.Adam):
    """A subclass that updates in its own way."""

    def step(self, closure=None):
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.99)


OTHERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "Adan": (Adan, {"lr": 0.02}),
    "your own class": (Coupled, {"lr": 0.1}),
    "a subclass of a torch optimizer": (Mine, {"lr": 0.02, "weight_decay": 0.1}),
    "ASGD": (torch.optim.ASGD, {"lr": 0.1, "t0": 1, "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, {"lr": 0.02}),
}


@pytest.fixture
def others(monkeypatch):
    for name, one in OTHERS.items():
        monkeypatch.setitem(problems.OPTIMIZERS, name, one)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("optimizer", [one for one in OTHERS if one != "Adam"])
def test_an_elementwise_optimizer_is_differentiated(others, optimizer: str, warmup: int, steps: int) -> None:
    cold = {"eps": 1e-3} if optimizer in ("Adan", "a subclass of a torch optimizer") and steps == 1 else {}
    case = Problem(optimizer=optimizer, warmup=warmup, window=steps, options=cold)
    assert relative(case.answer(Truncated(steps)), case.truth(step=1e-5 if cold else 1e-6)) < 1e-6


@pytest.mark.parametrize("optimizer", ["Adan", "your own class"])
def test_zero_gradients(others, optimizer: str) -> None:
    case = Problem(make=dead_unit, optimizer=optimizer, warmup=1)
    assert relative(case.answer(Truncated(3)), case.truth()) < 1e-6


@pytest.mark.parametrize(
    "name", ["adam-decay", "nadam", "rmsprop-centered", "adagrad-warm", "adadelta", "sgd-nesterov"]
)
@pytest.mark.parametrize("warm", [0, 3])
def test_differences_are_the_closed_forms(name: str, warm: int) -> None:
    """Every adjoint of one update, entry by entry: gradients from 1e-6 to 1, one of them 0."""
    kind, settings = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(40, generator=generator, dtype=torch.float64))
    optimizer = kind([p], **settings)
    scales = torch.logspace(-6, 0, 40, dtype=torch.float64)
    scales[7] = 0
    for _ in range(warm):
        p.grad = torch.randn(40, generator=generator, dtype=torch.float64) * scales
        optimizer.step()
    closed, general = pullback_for(optimizer), ElementwisePullback(optimizer)
    group = {key: one for key, one in optimizer.param_groups[0].items() if key != "params"}
    gradient = torch.randn(40, generator=generator, dtype=torch.float64) * scales
    adjoint = torch.randn(40, generator=generator, dtype=torch.float64)
    state = optimizer.state.get(p, {})
    update = ParameterUpdate(group, closed.keep(state), p.detach(), gradient, adjoint, {})
    after = closed.pull(update).state
    update = update._replace(
        state_adjoint={k: torch.randn(40, generator=generator, dtype=torch.float64) for k in after}
    )
    one, other = closed.pull(update), general.pull(update._replace(state=general.keep(state)))
    live = gradient != 0
    assert relative(other.gradient[live], one.gradient[live]) < 1e-8
    assert torch.allclose(other.gradient[~live], one.gradient[~live], rtol=1e-4)
    assert relative(other.parameter, one.parameter) < 1e-8
    for key in one.state:
        if key in other.state and one.state[key].any():
            assert relative(other.state[key][live], one.state[key][live]) < 1e-8, key


@pytest.mark.parametrize("kind", [Lion, Signum, torch.optim.Rprop])
def test_signs_have_the_derivative_zero_and_say_so(kind: type[torch.optim.Optimizer], monkeypatch) -> None:
    monkeypatch.setitem(problems.OPTIMIZERS, "signs", (kind, {"lr": 0.02}))
    case = Problem(optimizer="signs", window=1)
    with pytest.warns(FlatUpdateWarning, match=f"update of {kind.__name__}"):
        found = case.answer(Truncated())
    assert torch.equal(found, torch.zeros(8, dtype=torch.float64))
    assert torch.equal(case.truth(), found)


class LARS(Simple):
    def change(self, p, g, state, group) -> None:
        p.sub_(group["lr"] * p.norm() / (g.norm() + 1e-8) * g)


class LAMB(Simple):
    def change(self, p, g, state, group) -> None:
        m, n = state.setdefault("m", torch.zeros_like(p)), state.setdefault("n", torch.zeros_like(p))
        update = m.lerp_(g, 0.1) / n.mul_(0.9).addcmul_(g, g, value=0.1).sqrt().add_(1e-6)
        p.sub_(group["lr"] * p.norm() / update.norm() * update)


class Shampoo(Simple):
    def change(self, p, g, state, group) -> None:
        if p.ndim < 2:
            p.sub_(group["lr"] * g)
            return
        left = state.setdefault("left", torch.eye(len(p), dtype=p.dtype))
        left.add_(g @ g.T)
        values, vectors = torch.linalg.eigh(left)
        p.sub_(group["lr"] * (vectors * values.pow(-0.25)) @ vectors.T @ g)


class SAM(Simple):
    """Its step takes a closure."""

    def step(self, closure=None):
        if closure is None:
            raise TypeError("SAM needs a closure")


class Lookahead(torch.optim.Optimizer):
    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        self.inner.step()


class Noisy(Simple):
    def change(self, p, g, state, group) -> None:
        p.sub_(group["lr"] * (g + 0.01 * torch.randn_like(g)))


class Uncopied(Simple):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.source = (one for one in range(3))

    def change(self, p, g, state, group) -> None:
        p.sub_(g)


REFUSED = {
    "LBFGS": (torch.optim.LBFGS, "closure"),
    "Muon": (lambda p: torch.optim.Muon([one for one in p if one.ndim == 2]), "Muon is not elementwise: other entries"),
    "Adafactor": (torch.optim.Adafactor, "Adafactor is not elementwise"),
    "SparseAdam": (torch.optim.SparseAdam, "SparseAdam on a copy of a parameter failed"),
    "LARS": (LARS, "LARS is not elementwise: other entries of the gradient moved 'parameter'"),
    "LAMB": (LAMB, "LAMB is not elementwise"),
    "Shampoo": (Shampoo, "Shampoo is not elementwise"),
    "SAM": (SAM, "it needs a closure"),
    "Lookahead": (lambda p: Lookahead(torch.optim.SGD(p, lr=0.1)), "Lookahead.inner is a SGD"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_elementwise_is_refused_before_training(name: str) -> None:
    if name == "Muon" and not hasattr(torch.optim, name):
        pytest.skip("this torch has no Muon")
    make, message = REFUSED[name]
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    random = torch.get_rng_state()
    with pytest.raises(TypeError, match=message):
        Recorder(model, make(list(model.parameters())), WeightedLoss(CROSS_ENTROPY))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("kind", "message"), [(Noisy, "draws random numbers"), (Uncopied, "source cannot be copied")])
def test_randomness_and_what_cannot_be_copied_are_refused(kind, message: str) -> None:
    model = mlp()
    with pytest.raises(TypeError, match=message):
        Recorder(model, kind(model.parameters()), WeightedLoss(CROSS_ENTROPY))


def test_a_step_that_reads_what_is_not_recorded_is_refused() -> None:
    class Counting(Simple):
        count = 0

        def change(self, p, g, state, group) -> None:
            self.count += 1
            p.sub_(group["lr"] / self.count * g)

    torch.manual_seed(0)
    batch = Batch.of(torch.randn(8, 4), torch.arange(8) % 3)
    model = mlp()
    optimizer = Counting(model.parameters())
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY)) as recorder:
        recorder.loss(batch, torch.ones(8)).backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="step of Counting cannot be repeated"):
            Truncated()(recorder.trajectory(), lambda m: m[0].weight.sum())


def test_other_estimators_and_storages_say_what_to_use() -> None:
    torch.manual_seed(0)
    batch = Batch.of(torch.randn(8, 4), torch.arange(8) % 3)
    model = mlp()
    optimizer = Adan(model.parameters())
    with pytest.raises(ValueError, match="checkpoint_every=1"):
        Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 3, storage=Storage(checkpoint_every=2))
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), full_state=True) as recorder:
        recorder.loss(batch, torch.ones(8)).backward()
        optimizer.step()
        record = recorder.trajectory()
    for estimator in (Implicit(), Unrolled()):
        with pytest.raises(TypeError, match="use Truncated"):
            estimator(record, lambda m: m[0].weight.sum())
    assert Truncated()(record, lambda m: m[0].weight.sum()).isfinite().all()


def test_the_table_of_optimizers_is_what_is_tested_and_the_guides() -> None:
    closed, elementwise, refused = COVERED.values()
    assert closed == tuple(kind.__name__ for kind in SUPPORTED)
    assert {kind for kind, _ in OPTIMIZERS.values()} == set(SUPPORTED)
    assert set(elementwise) == {*OTHERS, "Lion", "Signum", "Rprop"} - {"Adam"}
    assert set(refused) == set(REFUSED)
    for how, names in COVERED.items():
        assert f"| {how} | {', '.join(names)} |\n" in (GUIDES / "own_loop.md").read_text(encoding="utf-8")
