"""Nested state (dicts, lists, tuples, tensors, plain values) as one file that holds no code.

A safetensors file: the tensors, and in its header the tree that they belong to, as JSON, and a digest of both.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from steelyard._support import _files

__all__ = ["StateError", "clone", "decode", "digest", "digest_of_tree", "encode", "read", "write"]


class StateError(ValueError):
    """A file of state that is missing, damaged, of another kind, or cannot be written; the message names it."""


def encode(state: Any, kind: str) -> bytes:
    """Return the bytes of a file of `kind`.

    Raises:
        TypeError: something in `state` is none of None, bool, int, float, str, tensor, list, tuple, or dict with
            strings or integers as keys; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(state, tensors, "state"))
    header = {"format": kind, "tree": tree, "sha256": digest_of_tree(tree, tensors)}
    return to_bytes(tensors, header)


def digest(state: Any) -> str:
    """Return the SHA-256 of `state`, the same wherever and whenever it is taken."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(state, tensors, "state"))
    return digest_of_tree(tree, tensors)


def decode(data: bytes, kind: str) -> Any:
    """Return what `encode` was given, its tensors on the CPU; nothing in `data` is executed.

    Raises:
        StateError: the bytes are not a whole, undamaged file of `kind`.
    """
    try:
        tensors = from_bytes(data)
        header = _header(data)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise StateError(f"it is damaged or cut short ({type(error).__name__}: {error})") from error
    if header.get("format") != kind:
        raise StateError(f"it holds {header.get('format', 'no format name')!r}, not {kind!r}")
    tree = header.get("tree", "")
    if header.get("sha256") != digest_of_tree(tree, tensors):
        raise StateError("it is damaged: its digest does not fit its contents")
    try:
        return _unflatten(json.loads(tree), tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"its tree cannot be read ({type(error).__name__}: {error})") from error


def write(path: str | os.PathLike[str], state: Any, kind: str) -> None:
    """Write `state` to `path`, whole or not at all; StateError where that fails."""
    data = encode(state, kind)
    try:
        _files.write_bytes(path, data)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror or error}") from error


def read(path: str | os.PathLike[str], kind: str) -> Any:
    """Return the state in `path`; StateError, which names the file, where it is missing or not whole."""
    try:
        data = _files.read_bytes(path)
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return decode(data, kind)
    except StateError as error:
        raise StateError(f"{path}: {error}") from error


def clone(state: Any) -> Any:
    """Return a copy of `state` that shares no memory with it, its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, Mapping):
        return {key: clone(value) for key, value in state.items()}
    return type(state)(map(clone, state)) if type(state) in (list, tuple) else state


def _flatten(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """Return `value` for JSON: plain values as they are, the others as an object with one key, their kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = clone(value)
        return {"tensor": name}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{place} has the key {key!r}; keys must be strings or integers")
        return {"dict": [[key, _flatten(item, tensors, f"{place}[{key!r}]")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, tensors, f"{place}[{k}]") for k, item in enumerate(value)]}
    raise TypeError(f"{place} is a {type(value).__name__}; kept are tensors, lists, tuples, dicts and plain values")


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise TypeError("a bare list")
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    if kind not in ("list", "tuple"):
        raise TypeError(f"the kind {kind!r} is unknown")
    items = [_unflatten(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _header(data: bytes) -> dict[str, str]:
    """Return the header's metadata (the format: eight bytes of length, little-endian, then JSON)."""
    table = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(table.get("__metadata__", {}))


def digest_of_tree(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 that the header of a file has of its tree and its tensors."""
    found = hashlib.sha256(tree.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode("utf-8", "surrogatepass"))
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
