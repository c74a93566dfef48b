"""The README's Python runs as it stands, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 2
    names: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    assert names["gradient"].shape == names["trajectory"].index.shape
    assert names["result"].weights.shape == (64,)
    assert len(list(names["loader"])) > 0
    assert (tmp_path / "weights.safetensors").exists()
