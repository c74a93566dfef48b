"""The guides' recipes and commands run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from steelyard.cli.command import main
from tests.experiments.own import write_patients

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "your_data.md"


def test_your_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_patients(tmp_path / "patients.csv")
    text = GUIDE.read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```toml\n(base = .*?)```", text, re.S)
    Path("my.toml").write_text(recipe + "steps = 2\ninner = { steps = 3 }\n")  # a hundred times shorter
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    for command in commands.splitlines():
        name, *arguments = shlex.split(command)
        assert name == "steelyard"
        assert not main(arguments)
    assert Path("runs/my/report.html").is_file()
    assert Path("runs/my/seed1/result.parquet").is_file()
