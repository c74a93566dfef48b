"""The adjoint of any optimizer whose update is elementwise, by central differences of its own `step` in float64.

What an entry of the parameter becomes must depend on that entry, its gradient and its state alone: Lion, Adan, a class
of the user's own. Optimizers that take norms, factors or products of whole tensors (LARS, LAMB, Adafactor, Muon,
Shampoo) are refused with the entry that gave them away.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled

__all__ = ["ElementwisePullback"]

_LEVELS = 7
"""Lengths of a step from one scale, each a quarter of the one before."""
_FIRST = 2.0**-3
_TINY = 2.0**-27
"""A scale, beside that of a tensor, for entries that are 0: what is added to a denominator may be that small."""
_OWN = ("state", "param_groups", "step")


class ElementwisePullback:
    """Central differences along the adjoint: a pair of updates for each input and length.

    Inputs are gradient, parameter and state. The update is taken in float64 on copies. For each entry the length is
    chosen whose neighbours agree best, after two rounds of Richardson's extrapolation, rounding counted: functions of
    an entry have scales as far apart as the entry itself and the eps of a denominator. Where the update adds to the
    parameter what does not depend on it (up to decoupled weight decay), the differences are taken at parameter 0, so
    that its digits do not cover those of the update. A sign has the derivative 0.

    Cost: about 30 updates in float64 for each input, a step back.

    Args:
        optimizer: what is to be differentiated; it is left as it is.

    Raises:
        TypeError: the update is not elementwise, draws random numbers, needs a closure, wraps another optimizer, or
            keeps what cannot be copied.
    """

    linear = False

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._kind = type(optimizer)
        self._extras = _extras(optimizer)
        self._check(optimizer)

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """All of it."""
        try:
            return {
                key: one.detach().clone() if isinstance(one, Tensor) else copy.deepcopy(one)
                for key, one in state.items()
            }
        except Exception as error:
            raise TypeError(f"the state of {self._kind.__name__} cannot be copied ({error}); {_REMEDY}") from error

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        gradient = update.gradient
        assert gradient is not None
        dtype, shape = update.adjoint.dtype, update.parameter.shape
        given = {"": gradient.double(), "parameter": update.parameter.double()}
        given |= {f"state {key}": one.double() for key, one in update.state.items() if _moves(one, shape)}
        adjoints = {"parameter": update.adjoint.double()}
        adjoints |= {f"state {key}": one.double() for key, one in update.state_adjoint.items()}

        def outputs(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            state = {k: values.get(f"state {k}", one) for k, one in update.state.items()}
            parameter, after = self.step(update.group, values["parameter"], values[""], state)
            return {"parameter": parameter, **{f"state {k}": one for k, one in after.items() if _moves(one, shape)}}

        def value(values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            """The sum of outputs times adjoints, and of their sizes."""
            found = outputs(values)
            terms = [one * found[name] for name, one in adjoints.items() if name in found]
            return torch.stack(terms).sum(0), torch.stack([one.abs() for one in terms]).sum(0)

        def moved(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
            return value({**given, name: x})

        share = _share_of_parameter(outputs, given)
        if share is not None:
            given["parameter"] = torch.zeros_like(given["parameter"])
        along = {}
        for name, one in given.items():
            if name == "parameter" and share is not None:
                continue
            if not name or not update.last:
                along[name] = _derivative(partial(moved, name), one)
        direct = update.adjoint
        if not update.last:
            direct = (adjoints["parameter"] * share if share is not None else along["parameter"]).to(dtype)
        state = {name.removeprefix("state "): one.to(dtype) for name, one in along.items() if name.startswith("state ")}
        return Pulled(along[""].to(update.adjoint.dtype), direct, state)

    def step(
        self, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor, state: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return a parameter and its state after one update by the optimizer's own `step`, taken on copies."""
        twin = object.__new__(self._kind)
        twin.__dict__.update({key: copy.deepcopy(one) for key, one in self._extras.items()})
        twin.__dict__.update({key: OrderedDict() for key in twin.__dict__ if key.endswith("_hooks")})
        leaf = torch.nn.Parameter(parameter.detach().clone())
        leaf.grad = gradient.detach().clone()
        twin.param_groups = [{**copy.deepcopy(dict(group)), "params": [leaf]}]
        twin.state = defaultdict(dict)
        if state:
            twin.state[leaf] = {
                k: one.clone() if isinstance(one, Tensor) else copy.deepcopy(one) for k, one in state.items()
            }
        twin.step()
        return leaf.detach(), dict(twin.state.get(leaf, {}))

    def reproduces(self, update: ParameterUpdate, after: Tensor) -> bool:
        """Whether `step` leads from a recorded parameter to what the training has made of it, up to rounding."""
        assert update.gradient is not None
        found, _ = self.step(update.group, update.parameter, update.gradient, update.state)
        tolerance = 64 * torch.finfo(after.dtype).eps
        return torch.allclose(
            found, after, rtol=tolerance, atol=tolerance * float(after.abs().max()) if after.numel() else 0
        )

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise TypeError unless two updates of made-up gradients are elementwise; on the smallest tensor of a kind."""
        kinds: dict[Any, Tensor] = {}
        for number, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                key = (number, p.ndim)
                if key not in kinds or 1 < p.numel() < kinds[key].numel() or kinds[key].numel() < 2:
                    kinds[key] = p
        generator = torch.Generator().manual_seed(0)
        for (number, _), p in kinds.items():
            group = {key: one for key, one in optimizer.param_groups[number].items() if key != "params"}
            state: dict[str, Any] = self.keep(optimizer.state.get(p, {}))
            state = _in_float64(state, p.shape)
            parameter = p.detach().double()
            for _ in range(2):
                gradient = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device) * 0.1
                parameter, state = self._check_step(group, parameter, gradient, state, generator)

    def _check_step(
        self,
        group: Mapping[str, Any],
        parameter: Tensor,
        gradient: Tensor,
        state: dict[str, Any],
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Any]]:
        name = self._kind.__name__
        before = torch.get_rng_state()
        try:
            after, state_after = self.step(group, parameter, gradient, state)
            again, _ = self.step(group, parameter, gradient, state)
        except Exception as error:
            closure = " (it needs a closure)" if isinstance(error, TypeError) and "closure" in str(error) else ""
            raise TypeError(
                f"a step of {name} on a copy of a parameter failed{closure}: {type(error).__name__}: {error}; {_REMEDY}"
            ) from error
        finally:
            drew = not torch.equal(before, torch.get_rng_state())
            torch.set_rng_state(before)
        if drew or not torch.equal(after, again):
            raise TypeError(f"{name} draws random numbers in its step, or does not repeat it; {_REMEDY}")
        for key, one in state_after.items():
            if isinstance(one, Tensor) and one.shape != parameter.shape and one.numel() > 1:
                raise TypeError(
                    f"{name} is not elementwise: its state {key!r} has the shape {tuple(one.shape)} for a parameter "
                    f"{tuple(parameter.shape)}; {_REMEDY}"
                )
            if isinstance(one, Tensor) and one.shape == parameter.shape and one.ndim and not one.is_floating_point():
                raise TypeError(f"the state {key!r} of {name} is {one.dtype}, which has no derivative; {_REMEDY}")
        if said := self._meets(group, parameter, gradient, state, generator):
            raise TypeError(f"{said}; {_REMEDY}")
        return after, state_after

    def meets(self, update: ParameterUpdate, seed: int) -> str:
        """Return how entries of one recorded update meet, as an error says it; empty where they do not.

        The made-up updates before training (`_check`) do not see everything: a clip that bites, a warm-up that ends, a
        rule for large matrices. At the recorded values, in float64.
        """
        assert update.gradient is not None
        state = _in_float64(update.state, update.parameter.shape)
        generator = torch.Generator().manual_seed(seed)
        return self._meets(update.group, update.parameter.double(), update.gradient.double(), state, generator)

    def _meets(
        self,
        group: Mapping[str, Any],
        parameter: Tensor,
        gradient: Tensor,
        state: Mapping[str, Any],
        generator: torch.Generator,
    ) -> str:
        after, state_after = self.step(group, parameter, gradient, state)
        moving = {
            "gradient": gradient,
            "parameter": parameter,
            **{k: s for k, s in state.items() if _moves(s, parameter.shape)},
        }
        for what, one in moving.items():
            chosen = (torch.rand(one.shape, generator=generator) < 0.5).to(one.device)
            if one.numel() > 1:  # some, not all; a single entry has no others
                chosen.view(-1)[0], chosen.view(-1)[-1] = True, False
            values = {**moving, what: torch.where(chosen, one * 1.7 + 0.01 * (what != "parameter"), one)}
            held = {k: values.get(k, s) for k, s in state.items()}
            moved, state_moved = self.step(group, values["parameter"], values["gradient"], held)
            pairs = [("parameter", after, moved), *((k, s, state_moved[k]) for k, s in state_after.items())]
            for of, here, there in pairs:
                if of == "parameter" or (isinstance(here, Tensor) and here.shape == parameter.shape and here.ndim):
                    same = torch.equal(here[~chosen], there[~chosen])
                elif not parameter.ndim and _moves(here, parameter.shape):
                    same = True  # a state of its own, or a count, which needs no derivative; `pull` takes it as its own
                else:
                    same = bool(torch.equal(here, there)) if isinstance(here, Tensor) else _alike(here, there)
                if not same:
                    return (
                        f"{self._kind.__name__} is not elementwise: other entries of the {what} moved {of!r} of a "
                        f"parameter {tuple(parameter.shape)}"
                    )
        return ""


_REMEDY = (
    "record with an optimizer that is differentiated in closed form or elementwise "
    "(steelyard.bilevel.optimizers.COVERED), or take estimators that do not differentiate the update: train the steps "
    "of the window by SGD"
)


def _extras(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return copies of what an optimizer holds beside groups and state."""
    found: dict[str, Any] = {}
    for key, value in optimizer.__dict__.items():
        if key in _OWN or getattr(value, "__self__", None) is optimizer:  # a schedule wraps `step`
            continue
        if isinstance(value, (torch.optim.Optimizer, torch.nn.Module, torch.nn.Parameter)):
            raise TypeError(
                f"{type(optimizer).__name__}.{key} is a {type(value).__name__}: what wraps or reads another object is "
                "not differentiated; give Recorder the inner optimizer, which is to take the step"
            )
        if key.endswith("_hooks"):
            found[key] = OrderedDict()
            continue
        try:
            found[key] = copy.deepcopy(value)
        except Exception as error:
            raise TypeError(f"{type(optimizer).__name__}.{key} cannot be copied ({error}); {_REMEDY}") from error
    return found


def _moves(value: Any, shape: torch.Size) -> bool:
    """Whether a state is a tensor with an entry for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()


def _in_float64(state: Mapping[str, Any], shape: torch.Size) -> dict[str, Any]:
    """Return a state with its tensors that have the parameter's entries in float64."""
    return {key: one.double() if _moves(one, shape) else one for key, one in state.items()}


def _alike(one: Any, other: Any) -> bool:
    return bool(one == other) if isinstance(one, (int, float, str, bool, type(None))) else True


def _share_of_parameter(
    outputs: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], given: Mapping[str, Tensor]
) -> float | None:
    """Return k where the update is k theta plus what does not depend on theta (k is 1 but for decoupled decay)."""
    theta = given["parameter"]
    if not theta.numel() or not bool(theta.any()):
        return None
    there, share = outputs({**given, "parameter": torch.zeros_like(theta)}), 0.0
    # At a second point, too: with one entry, or equal ones, any function is some multiple of theta at one point.
    for factor in (1.0, -0.61):
        point = factor * theta
        here = outputs({**given, "parameter": point})
        if any(not torch.equal(here[name], there[name]) for name in here if name != "parameter"):
            return None
        moved = here["parameter"] - there["parameter"]
        if factor == 1.0:
            share = float((moved.flatten() @ theta.flatten()) / (theta.flatten() @ theta.flatten()))
            share = 1.0 if abs(share - 1) < 1e-13 else share
        size = here["parameter"].abs().max() + point.abs().max()
        if not bool(((moved - share * point).abs() <= 1e-15 * size + 1e-13 * point.abs() * abs(share)).all()):
            return None
    return share


def _derivative(value: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Return the derivative of an elementwise function at `x`, entry by entry.

    `value` gives the function, and the size of the terms that it is a sum of. Where no length gives a finite
    difference (the root of a second moment that is 0) it is 0, as the closed forms have it.
    """
    if not x.numel():
        return torch.zeros_like(x)
    typical = float(torch.linalg.vector_norm(x)) / x.numel() ** 0.5
    typical = typical if typical > 0 else 1.0
    own = torch.where(x == 0, torch.full_like(x, typical * _TINY), x.abs())
    best, smallest = torch.zeros_like(x), torch.full_like(x, torch.inf)
    for scale in (own, torch.full_like(x, typical)):
        plain, noise = [], []
        for level in range(_LEVELS):
            h = scale * (_FIRST * 4.0**-level)
            up, down = x + h, x - h
            (high, size), (low, other) = value(up), value(down)
            plain.append((high - low) / (up - down))
            noise.append(torch.finfo(x.dtype).eps * torch.maximum(size, other) / (up - down))
        candidates = list(
            zip(plain[1:], [_apart(a, b) for a, b in zip(plain[1:], plain, strict=False)], noise[1:], strict=True)
        )
        once = [b + (b - a) / 15 for a, b in pairwise(plain)]
        candidates += [(a, _apart(a, b), n) for a, b, n in zip(once, plain[1:], noise[1:], strict=True)]
        twice = [b + (b - a) / 255 for a, b in pairwise(once)]
        candidates += [(a, _apart(a, b), n) for a, b, n in zip(twice, once[1:], noise[2:], strict=True)]
        for found, error, rounding in candidates:
            total = (error + rounding).nan_to_num(nan=torch.inf)
            better = total < smallest
            best, smallest = torch.where(better, found, best), torch.where(better, total, smallest)
    return best


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs()
