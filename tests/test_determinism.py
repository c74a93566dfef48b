"""Same seed, same bits: in another process, whatever its hash seed and its global generators."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import execute

RUNS = {
    "coloured_digits/lff": ["method.training.steps=4", "method.training.batch_size=50"],
    "coloured_digits/maple": ["method.steps=2", "method.inner.steps=3", "method.folds=2"],
}
SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.test_determinism import digest
torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[2]))
for name in sys.argv[3:]:
    print(digest(name, Path(sys.argv[1]) / name))
"""


def digest(name: str, place: Path) -> str:
    """Return the digest of what a run wrote."""
    execute(load_recipe(name, ["model.hidden=[8]", *RUNS[name]]), place, name=name)
    written = [(place / file).read_bytes() for file in ("metrics.jsonl", "model.safetensors")]
    return hashlib.sha256(b"".join(written)).hexdigest()


def test_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    """With another hash seed, other states of the global generators, another working directory."""
    here = [digest(name, tmp_path / "here" / name) for name in RUNS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "there"), "99", *RUNS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stdout.split() == here


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_global_generators_and_settings_alone(name: str, tmp_path: Path) -> None:
    before = (torch.get_rng_state(), numpy.random.get_state()[1].tolist())  # noqa: NPY002
    settings = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    digest(name, tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == numpy.random.get_state()[1].tolist()  # noqa: NPY002
    assert settings == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())


def test_small_batches_give_the_same_bits_on_two_threads(tmp_path: Path) -> None:
    """torch splits no sum of these sizes among threads.

    Larger ones it may, and then bits depend on the number of threads: those of the MAPLE run above do. So a run notes
    its threads in environment.json, and the promise of a resumed run is for the same number.
    """
    one = digest("coloured_digits/lff", tmp_path / "one")
    try:
        torch.set_num_threads(2)
        assert digest("coloured_digits/lff", tmp_path / "two") == one
    finally:
        torch.set_num_threads(1)
