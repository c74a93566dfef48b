"""Files of state: what goes in comes out, and no bytes do anything else than fail by their own error."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from steelyard._support import _state
from steelyard._support._state import StateError, decode, encode

KIND = "test.1"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
TENSORS = st.builds(
    lambda dtype, shape: torch.arange(int(torch.tensor(shape).prod()) if shape else 1).reshape(shape).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text())
STATES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(one: object, two: object) -> bool:
    """Equal in value and type, all the way down; NaN equals NaN, and -0.0 does not equal 0.0."""
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)


@given(STATES)
@settings(deadline=None)
def test_state_comes_back_as_it_was(state: object) -> None:
    assert same(decode(encode(state, KIND), KIND), state)


@given(STATES, st.data())
@settings(deadline=None)
def test_any_changed_byte_is_noticed(state: object, data: st.DataObject) -> None:
    whole = encode(state, KIND)
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    try:
        found = decode(damaged, KIND)
    except StateError:
        return
    assert same(found, state)  # a space of the header's padding, say


@given(STATES, st.data())
@settings(deadline=None)
def test_a_file_that_was_cut_short_is_refused(state: object, data: st.DataObject) -> None:
    whole = encode(state, KIND)
    with pytest.raises(StateError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))], KIND)


TREES = st.one_of(
    st.text(),
    st.recursive(
        PLAIN.map(lambda value: None if isinstance(value, str) else value) | st.just({"tensor": "0"}),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["tensor", "dict", "list", "x"]), inner),
        max_leaves=6,
    ).map(json.dumps),
)


@given(
    st.binary()
    | st.builds(lambda size, rest: size.to_bytes(8, "little") + rest, st.integers(0, 2**64 - 1), st.binary())
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        decode(data, KIND)


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_any_tree_with_the_right_digest_is_read_or_refused(tree: str) -> None:
    """Someone may well compute the digest: then the tree is all that stands between the bytes and us."""
    tensors = {"0": torch.zeros(2)}
    header = {"format": KIND, "tree": tree, "sha256": _state.digest_of_tree(tree, tensors)}
    try:
        data = save(tensors, header)
    except UnicodeEncodeError:  # a lone surrogate cannot be in a file
        return
    try:
        decode(data, KIND)
    except StateError:
        return


@pytest.mark.parametrize(
    "tree", ["[" * 100_000, '{"list": ' * 100_000, "{}", '{"a": 1, "b": 2}', '{"dict": [[[], 1]]}'], ids=range(5)
)
def test_deep_and_odd_trees_are_refused(tree: str) -> None:
    header = {"format": KIND, "tree": tree, "sha256": _state.digest_of_tree(tree, {})}
    with pytest.raises(StateError, match="tree cannot be read"):
        decode(save({}, header), KIND)


def test_other_kinds_of_file_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"holds 'other\.1', not 'test\.1'"):
        decode(encode({}, "other.1"), KIND)
    with pytest.raises(StateError, match="holds 'no format name'"):
        decode(save({"a": torch.zeros(1)}), KIND)
    with pytest.raises(StateError, match="none cannot be read: No such file"):
        _state.read(tmp_path / "none", KIND)
    with pytest.raises(StateError, match="cannot be read: Is a directory"):
        _state.read(tmp_path, KIND)


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a set"):
        encode({"a": [1, {2}]}, KIND)
    with pytest.raises(TypeError, match=r"state has the key \(1, 2\)"):
        encode({(1, 2): 3}, KIND)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Malice:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(mark),)

    (tmp_path / "state.safetensors").write_bytes(pickle.dumps(Malice()))
    torch.save(Malice(), tmp_path / "torch.safetensors")
    for name in ("state", "torch"):
        with pytest.raises(StateError):
            _state.read(tmp_path / f"{name}.safetensors", KIND)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malice()))  # it would have
    assert mark.exists()
