"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import steelyard

MODULES = sorted(m.name for m in pkgutil.walk_packages(steelyard.__path__, "steelyard.") if "__main__" not in m.name)

TRAINERS = {"steelyard.integrations.huggingface": "transformers", "steelyard.integrations.lightning": "lightning"}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    if name in TRAINERS:
        pytest.importorskip(TRAINERS[name], reason="an extra")
    module = importlib.import_module(name)
    outcome = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert outcome.failed == 0
