"""The wording of argument errors: name, value, remedy."""

from __future__ import annotations

import numpy
import pandas
import pytest
import torch

from steelyard._support import _check


@pytest.mark.usefixtures("unchecked_shapes")
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
        (lambda: _check.in_range("rate", True), TypeError, r"rate must be a real number, got True \(bool\)"),
        (lambda: _check.seed("seed", 2**63), ValueError, r"seed must be in \[0, 9223372036854775807\], got 92233"),
        (lambda: _check.boolean("b", 1), TypeError, r"b must be True or False, got 1 \(int\)"),
        (lambda: _check.instance("x", "y" * 99, int, "an int"), TypeError, r"x must be an int, got 'y+\.\.\. \(str\)"),
        (lambda: _check.function("f", 3, "a function"), TypeError, r"f must be a function, got 3 \(int\)"),
        (lambda: _check.integers("i", torch.ones(2)), TypeError, r"i must hold integers, got torch\.float32"),
        (lambda: _check.integers("i", torch.ones(2) > 0), TypeError, r"i must hold integers, got torch\.bool"),
        (lambda: _check.floats("w", torch.arange(2)), TypeError, r"w must be floating point, got torch\.int64"),
        (
            lambda: _check.tensor("t", torch.ones(2), ("n", "k")),
            ValueError,
            r"t must have the shape \(n, k\), got \(2,\)",
        ),
        (
            lambda: _check.entries_in("p", torch.tensor([0.5, 2]), 0, 1),
            ValueError,
            r"p must be in \[0, 1\]; 1 of 2 are",
        ),
        (lambda: _check.same_length(a=torch.ones(2), b=torch.ones(3)), ValueError, "a has 2, b has 3"),
        (lambda: _check.integer("n", numpy.float64(3)), TypeError, r"n must be an int, got .*3\.0.* \(float64\)$"),
        (lambda: _check.integer("n", numpy.bool_(True)), TypeError, "n must be an int, got .*True"),
        (
            lambda: _check.integer("n", numpy.zeros((50, 50))),
            TypeError,
            r"got a ndarray of shape \(50, 50\) \(float64\)$",
        ),
        (lambda: _check.integer("n", list(range(10**6))), TypeError, r"got \[0, 1, 2, 3, 4, 5, \.\.\.\] \(list\)$"),
        (lambda: _check.integer("n", torch.ones(3)), TypeError, r"got a Tensor of shape \(3,\) \(torch.float32\)$"),
        (lambda: _check.integer("n", 10**5000, high=9), ValueError, "got a number of thousands of digits$"),
        (
            lambda: _check.in_range("x", numpy.ones(4)),
            TypeError,
            r"x must be a real number, got a ndarray of shape \(4,\)",
        ),
        (lambda: _check.in_range("x", 10**400), ValueError, r"x must be finite, got 1000"),
        (lambda: _check.in_range("x", torch.tensor(float("nan"))), ValueError, "x must be finite, got nan"),
        (lambda: _check.choice("p", numpy.arange(2), [1, 2]), ValueError, r"p must be one of \[1, 2\], got array"),
        (lambda: _check.floats("w", numpy.array(["a"])), TypeError, "w must be a tensor, or numbers .* numpy.unique"),
        (lambda: _check.integers("i", [0.5]), TypeError, "i must hold integers, got torch.float32"),
        (lambda: _check.tensor("t", "abc"), TypeError, r"t must be a tensor, got 'abc' \(str\)"),
        (lambda: _check.tensor("t", [[1], [2, 3]]), TypeError, "t must be a tensor, or numbers of one length"),
        (lambda: _check.tensor("t", [1, 2], ("n", "k")), ValueError, r"t must have the shape \(n, k\), got \(2,\)"),
        (lambda: _check.finite("w", [1.0, float("nan")]), ValueError, r"w has 1 entries .* at \[1\]: nan"),
    ],
)
def test_errors(call, error, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked_shapes")
def test_values_come_back() -> None:
    assert _check.integer("n", 3, low=3) == 3
    assert _check.in_range("x", 0.5, low=0, high=1) == 0.5
    assert _check.choice("c", "a", ["a"]) == "a"
    assert _check.in_range("x", numpy.float32(0.5), low=0) == 0.5
    assert _check.in_range("x", numpy.int64(3)) == 3
    assert _check.function("f", torch.optim.SGD, "a maker of optimizers") is torch.optim.SGD
    assert [_check.distinct(torch.tensor(ids)) for ids in ([1, 2, 5], [3, 1, 3], [])] == [3, 2, 0]
    assert _check.same_length(a=torch.ones(2), b=None) == 2


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    "make", [numpy.int8, numpy.uint64, numpy.array, torch.tensor, int], ids=lambda make: make.__name__
)
def test_numbers_of_numpy_and_torch_become_pythons(make) -> None:
    for found in (_check.integer("n", make(3)), _check.in_range("x", make(3)), _check.choice("c", make(3), [2, 3])):
        assert type(found) is int
        assert found == 3
    assert type(_check.in_range("x", numpy.float32(0.5))) is float
    assert type(_check.in_range("x", torch.tensor(0.5))) is float
    assert _check.boolean("b", numpy.bool_(True)) is True


@pytest.mark.usefixtures("unchecked_shapes")
def test_tensors_are_made() -> None:
    for value in ([1, 2], (1, 2), numpy.array([1, 2]), pandas.Series([1, 2]), pandas.Index([1, 2]), range(1, 3)):
        assert _check.tensor("t", value).tolist() == [1, 2]
        assert _check.integers("i", value).dtype == torch.int64
        assert _check.floats("f", value).dtype == torch.float64
    assert _check.floats("f", [0.5]).dtype == torch.get_default_dtype()
    assert _check.integers("i", []).dtype == torch.int64
    given = torch.ones(2)
    assert _check.tensor("t", given) is given
    assert _check.floats("f", given) is given
    array = numpy.zeros(3)
    assert _check.tensor("t", array).data_ptr() == array.ctypes.data  # shared, as by torch.as_tensor


def test_a_choice_of_another_type_is_pointed_out() -> None:
    with pytest.raises(ValueError, match=r"p must be one of \[1, 2\], got '2'; did you mean 2\?"):
        _check.choice("p", "2", [1, 2])


@pytest.mark.parametrize(
    "value", [print, 3, [print, 4], [None]], ids=["one alone", "a number", "a number among them", "nothing"]
)
def test_callbacks_are_a_list_of_functions(value: object) -> None:
    with pytest.raises(TypeError, match="callbacks must be a list of functions"):
        _check.callables("callbacks", value)
    assert _check.callables("callbacks", (print, len)) == [print, len]
