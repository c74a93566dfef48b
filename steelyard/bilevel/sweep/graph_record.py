"""What the forward pass of a recorded step computed, kept so that its derivative needs not compute it again.

A dispatch mode around the per-sample losses notes every operator that something optimised flows through, with the
tensors that its derivative reads (`tangents`): references, as autograd keeps them. Which tensors those are is
taken from autograd itself (``requires_grad``), so `detach` and `no_grad` mean what they mean there. Whatever
the notes cannot follow, a record is given up for, and the estimator takes its plain path: a write in place to a tensor
that is needed, a `torch.autograd.Function` (whose backward may be anything), random operators without a rule,
tensors made by an earlier forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from steelyard.bilevel.sweep.forward_rules import Rule, rule_for

__all__ = ["ForwardRecord", "Held", "Link", "Note", "Recording", "Unusable", "held_gradient", "nodes_of"]


_DETACH = torch.ops.aten.detach.default
_LISTS = (list, tuple)


class Unusable(Exception):
    """The record cannot answer."""


@dataclass
class Held:
    """A reference to a tensor, which must stay as it is.

    Attributes:
        tensor: the tensor; without its graph once the forward pass is over (`settle`).
        memory: what names its storage, and `writes`, how often the record had seen that written to.
        version: torch's count of writes at the end of the forward pass.
    """

    tensor: Tensor
    memory: int
    writes: int = 0
    version: int = 0

    def settle(self) -> None:
        """Let go of the graph. (Inside of a dispatch mode `detach` would not share the version.)"""
        self.tensor = self.tensor.detach()
        self.version = self.tensor._version

    def value(self) -> Tensor:
        """Return the tensor; `Unusable` if it was written to since."""
        if self.tensor._version != self.version:
            raise Unusable("an activation was written to after the forward pass")
        return self.tensor


def held_gradient(gradient: Tensor) -> Held | None:
    """Return a gradient held; None for a sparse one, or one of a batch of them, without which a record goes."""
    try:
        held = Held(gradient, _memory(gradient))
    except (Unusable, NotImplementedError):
        return None
    held.settle()
    return held


class Link(NamedTuple):
    """An argument on the path of the derivative: its slot, and its value where a rule reads it."""

    slot: int
    held: Held | None


@dataclass
class Note:
    """One operator call.

    Attributes:
        op, rule: the operator and how it is differentiated.
        args, kwargs: its arguments; tensors are `Link` (on the path), `Held` or None (not needed).
        slots: of its outputs; None for an output that is no floating-point tensor.
        outputs: the outputs that the rule reads.
        shapes: of its outputs.
        parametric: it reads parameters (and what was made of them) only.
        view: a view of a parameter, which is taken again because the parameter has moved on since.
        reads: the slots of its arguments.
    """

    op: Any
    rule: Rule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slots: tuple[int | None, ...]
    outputs: tuple[Held | None, ...]
    shapes: tuple[torch.Size, ...]
    parametric: bool
    view: bool
    reads: tuple[int, ...]

    def held(self) -> Iterator[Held]:
        """Yield the tensors that its derivative reads."""
        for one in chain(self.outputs, (arg.held if isinstance(arg, Link) else arg for arg in _flat(self.args))):
            if isinstance(one, Held):
                yield one


@dataclass
class ForwardRecord:
    """The operators between the optimised parameters and the per-sample losses, in order.

    Attributes:
        notes: the operators that the losses depend on.
        names: parameter name by slot.
        losses: the slot of the losses.
        samples: how many they are.
        gradients: what `backward` sent to an output where parameters enter, by slot, and to the losses.
        listening: whether such gradients are kept.
    """

    notes: list[Note]
    names: dict[int, str]
    losses: int
    samples: int
    gradients: dict[int, Held] = field(default_factory=dict)
    listening: bool = False

    def round_to(self, dtype: torch.dtype) -> None:
        """Hold floating-point values in another precision; those of before are let go, one by one.

        Raises:
            Unusable: one of them was written to since.
        """
        alike: dict[tuple[Any, ...], list[Held]] = {}
        for held in (held for note in self.notes for held in note.held()):
            if held.value().is_floating_point():
                alike.setdefault(_key(held.tensor, _memory(held.tensor)), []).append(held)
        while alike:
            _, group = alike.popitem()
            rounded = group[0].tensor.to(dtype)
            for held in group:
                held.tensor = rounded
                held.settle()


class _GradientListener:
    """Keeps gradients as `backward` passes by. Not the recording's own: the graph owns it, and would own that too."""

    def __init__(self) -> None:
        self.forward_record: ForwardRecord | None = None

    def listen(self, value: Tensor, slot: int) -> None:
        def note(gradient: Tensor | None) -> None:
            # (None: of an output that nothing reads; some fused operators say so instead of zeros.)
            if gradient is None or self.forward_record is None or not self.forward_record.listening:
                return
            held = held_gradient(gradient)
            if held is not None:
                self.forward_record.gradients[slot] = held

        value.register_hook(note)


class Recording(TorchDispatchMode):
    """Notes a forward pass; afterwards `forward_record(losses)`.

    Args:
        parameters: the optimised parameters by name.
        listen: note gradients as well when `backward` comes by (`ForwardRecord.gradients`).
    """

    def __init__(self, parameters: Mapping[str, Tensor], listen: bool = False) -> None:
        super().__init__()
        self._listens = listen
        self._notes: list[Note] = []
        self._slots: dict[tuple[Any, ...], int] = {}
        self._names: dict[int, str] = {}
        self._leaves: dict[Tensor, int] = {}
        self._parametric: set[int] = set()
        self._frontier: set[int] = set()
        self._alive: list[Any] = []  # storages: memory that is given back would be mistaken for what it was before
        self._writes: dict[int, int] = {}
        self._count = 0
        self._trouble: str | None = None
        self._gradients = _GradientListener()
        self._heard: set[int] = set()
        self._owned: set[int] = set()
        for name, parameter in parameters.items():
            slot = self._leaf(parameter)
            self._names[slot] = name
            self._parametric.add(slot)
            self._owned.add(_memory(parameter))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._trouble is not None:
            return func(*args, **kwargs)
        try:
            return self._note(func, types, args, kwargs)
        except Unusable as trouble:
            self._give_up(str(trouble))
            return func(*args, **kwargs)

    @property
    def trouble(self) -> str | None:
        """Why there is no record, if there is none."""
        return self._trouble

    def forward_record(self, losses: Tensor) -> ForwardRecord | None:
        """Return the record of `losses` ``(batch,)``, or None where it was given up."""
        try:
            if self._trouble is None and not losses.requires_grad:
                self._trouble = "the losses depend on no parameter"
            return self._finish(losses) if self._trouble is None else None
        except Unusable as trouble:
            self._trouble = str(trouble)
            return None
        finally:
            self._notes.clear()
            self._alive.clear()

    def _note(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for kind in types:
            if kind is not Tensor and kind is not nn.Parameter:
                raise Unusable(f"a tensor subclass, {types}")
        places = _written_places(func)
        written = _written(places, args, kwargs) if places else []
        if func is _DETACH:
            return func(*args, **kwargs)
        tensors = [one for one in _flat(args) if isinstance(one, Tensor)]
        moving = [one for one in tensors if one.requires_grad]
        named = bool(kwargs) and any(isinstance(one, Tensor) and one.requires_grad for one in _flat(kwargs.values()))
        if not (moving or named) or not torch.is_grad_enabled():
            if any(one.requires_grad for one in written):
                raise Unusable("a write in place without gradients")
            result = func(*args, **kwargs)
            if written:
                self._wrote(written)
            return result
        if named:
            raise Unusable(f"{func} has tensors in keyword arguments")
        slots = {id(one): self._slot(one) for one in moving}
        # A number, or a tensor of one, does not make a parameter's value anything else than a parameter's.
        parametric = self._parametric.issuperset(slots.values()) and all(
            id(one) in slots or one.numel() <= 1 for one in tensors
        )
        return self._run(func, args, kwargs, slots, written, parametric)

    def _run(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        slots: dict[int, int],
        written: list[Tensor],
        parametric: bool,
    ) -> Any:
        rule = rule_for(func, args)
        if rule is None:
            raise Unusable(f"{func} draws random numbers")
        if written and (len(written) > 1 or written[0] is not args[0]):
            raise Unusable(f"{func} writes to more than its first argument")
        keep = rule.keep(args)
        links = tuple([self._link(one, slots, place in keep, bool(written)) for place, one in enumerate(args)])
        result = func(*args, **kwargs)
        if written:
            self._wrote(written)
        outputs = tuple(result) if isinstance(result, _LISTS) else (result,)
        try:
            made = [self._take(one, parametric, place in rule.outputs) for place, one in enumerate(outputs)]
        except Unusable as trouble:  # not from here: the operator would be run once more
            self._give_up(str(trouble))
            return result
        if not made:
            return result
        slot, held, shape, views = zip(*made, strict=True)
        reads = tuple([one.slot for one in _flat(links) if isinstance(one, Link)])
        note = Note(func, rule, links, kwargs, slot, held, shape, parametric, any(views), reads)
        if note.view and (written or not parametric):
            self._give_up("a parameter was written to in the forward pass")
            return result
        if not parametric and not self._parametric.isdisjoint(slots.values()):
            self._frontier.update([one for one in slot if one is not None])
        self._notes.append(note)
        return result

    def _take(self, output: Any, parametric: bool, keep: bool) -> tuple[int | None, Held | None, torch.Size, bool]:
        """Return an output's slot, itself if it is to be kept, its shape, and whether it is a parameter's memory."""
        if not isinstance(output, Tensor):
            return None, None, torch.Size(), False
        memory = _memory(output)
        self._alive.append(output.untyped_storage())
        held = Held(output, memory, self._writes.get(memory, 0)) if keep else None
        slot = None
        if output.is_floating_point():
            slot = self._slots[_key(output, memory)] = self._next()
            if parametric:
                self._parametric.add(slot)
        return slot, held, output.shape, memory in self._owned

    def _link(self, value: Any, slots: dict[int, int], keep: bool, copy: bool) -> Any:
        if not isinstance(value, Tensor):
            return [self._link(one, slots, keep, copy) for one in value] if isinstance(value, _LISTS) else value
        slot = slots.get(id(value))
        if not keep:
            return None if slot is None else Link(slot, None)
        memory = _memory(value)
        if memory in self._owned:
            if slot is None:
                raise Unusable("a parameter that is read as a constant")
            return Link(slot, None)
        # What is about to be written over is kept as a copy.
        held = Held(value.detach().clone(), 0) if copy else Held(value, memory, self._writes.get(memory, 0))
        return held if slot is None else Link(slot, held)

    def _slot(self, value: Tensor) -> int:
        """Return the slot of a tensor that autograd follows; the first reader of a frontier output listens there."""
        if value.is_leaf:
            return self._leaf(value)
        slot = self._slots.get(_key(value, _memory(value)))
        if slot is None:
            raise Unusable("a tensor that this forward pass did not make")
        if self._listens and slot in self._frontier and slot not in self._heard:
            self._heard.add(slot)
            self._gradients.listen(value, slot)
        return slot

    def _leaf(self, value: Tensor) -> int:
        slot = self._leaves.get(value)
        if slot is None:
            slot = self._leaves[value] = self._next()
        return slot

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _wrote(self, written: Iterable[Tensor]) -> None:
        """Count the write; other views of that memory are no longer what their slots say."""
        for one in written:
            memory = _memory(one)
            self._writes[memory] = self._writes.get(memory, 0) + 1
            for key in [key for key in self._slots if key[0] == memory]:
                del self._slots[key]

    def _give_up(self, why: str) -> None:
        self._trouble = why
        self._notes.clear()
        self._alive.clear()

    def _finish(self, losses: Tensor) -> ForwardRecord:
        if any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in nodes_of(losses)):
            raise Unusable("a torch.autograd.Function")
        last = self._slots.get(_key(losses, _memory(losses)))
        if last is None:
            raise Unusable("losses that this forward pass did not make")
        needed, notes = {last}, []
        for note in reversed(self._notes):
            if any(slot in needed for slot in note.slots):
                needed.update(note.reads)
                notes.append(note)
        for note in notes:
            for held in note.held():
                if self._writes.get(held.memory, 0) != held.writes:
                    raise Unusable("an activation that is needed was written to later")
                held.settle()
        names = {slot: name for slot, name in self._names.items() if slot in needed}
        forward_record = ForwardRecord(notes[::-1], names, last, len(losses))
        if self._listens:
            self._gradients.listen(losses, last)
            self._gradients.forward_record = forward_record
        return forward_record


@lru_cache(maxsize=4096)
def _written_places(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that an operator writes to."""
    schema = func._schema
    if not schema.is_mutable:
        return ()
    return tuple(
        [
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
    )


def _written(places: Iterable[tuple[int, str]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a call writes to; `Unusable` if one of them has no storage."""
    values = [args[position] if position < len(args) else kwargs.get(name) for position, name in places]
    found = [one for one in _flat(values) if isinstance(one, Tensor)]
    if any(one.layout is not torch.strided for one in found):
        raise Unusable("a write to a tensor without a storage")
    return found


def _flat(values: Iterable[Any]) -> Sequence[Any]:
    """Return the values, and those of lists among them in their places."""
    flat: list[Any] = []
    for value in values:
        if isinstance(value, _LISTS) and not isinstance(value, (Link, torch.Size)):
            flat += _flat(value)
        else:
            flat.append(value)
    return flat


def _memory(value: Tensor) -> int:
    if value.layout is not torch.strided:
        raise Unusable("a tensor without a storage (sparse, say)")
    return int(value.untyped_storage()._cdata)


def _key(value: Tensor, memory: int) -> tuple[Any, ...]:
    return (memory, value.storage_offset(), value.shape, value.stride(), value.dtype)


def nodes_of(outputs: Tensor, beyond: Iterable[Any] = ()) -> Iterator[Any]:
    """Yield the nodes of the graph of `outputs`, each once, but for those at and behind the nodes `beyond`."""
    seen: set[Any] = {None, *beyond}
    stack: list[Any] = [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack += [following for following, _ in node.next_functions]
