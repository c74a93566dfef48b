"""`examples/mixture.py`: the useless source and the mislabelled one are found by their weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import steelyard

EXAMPLE = Path(steelyard.__file__).parent.parent / "examples" / "mixture.py"


def test_the_useless_and_the_mislabelled_source_are_found() -> None:
    found = runpy.run_path(str(EXAMPLE))["main"]()
    assert found["clean"] > 1.5
    assert max(found["useless"], found["mislabelled"]) < 0.3
    assert found["learned"] > found["all alike"] + 0.3
