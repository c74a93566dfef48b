"""The guides' recipes and commands run as they stand."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from steelyard.cli.command import main
from steelyard.experiments.data import OwnArrays, OwnImages, OwnPython, OwnTable
from steelyard.experiments.models.backbone import Backbone
from tests.support.layouts import write_waterbirds, write_weights
from tests.support.own import write_patients
from tests.support.places import GUIDES

GUIDE = GUIDES / "your_data.md"


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


def block(start: str) -> str:
    """Return the recipe's part that begins so."""
    (found,) = re.findall(rf"```toml\n({re.escape(start)}.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    return str(found)


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEELYARD_CACHE", str(tmp_path / "cache"))
    write_waterbirds(tmp_path).rename("birds")
    table = Path("birds/metadata.csv")
    table.write_text(table.read_text().replace(",y,", ",kind,"))
    text = block('[data]\nname = "images"').replace("efficientnet_b0", "mobilenet_v3_small")  # a tenth of the weights
    write_weights(tmp_path / "mobilenet_v3_small.safetensors", "mobilenet_v3_small")
    short = "[method]\nbudget = 8\nsteps = 2\nfolds = 2\n[method.inner]\nsteps = 2\n"
    Path("mine.toml").write_text(f'base = "coloured_digits/maple"\n{text}workers = 0\n{short}')
    assert not main(["run", "mine.toml"])
    assert not main(["report", "runs/mine/seed0"])
    assert Path("runs/mine/seed0/result.parquet").is_file()


def test_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```py\n(def splits.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    Path("my_data.py").write_text(code)
    text = block('[data]\nname = "python"')
    Path("mine.toml").write_text(f'base = "coloured_digits/erm"\n{text}[method.training]\nsteps = 2\n')
    assert main(["run", "mine.toml"]) == 2
    assert "--allow-code" in capsys.readouterr().err
    assert not main(["run", "mine.toml", "--allow-code"])


def test_the_settings_in_the_tables_are_all_that_there_are() -> None:
    """A setting that a table of the guide names is one, and each that a data set has is named."""
    text = GUIDE.read_text(encoding="utf-8")
    named = {name for row in re.findall(r"^\| (`[^|]*`) \|", text, re.M) for name in re.findall(r"`([\w.]+)`", row)}
    for kind in (OwnTable, OwnArrays, OwnImages, OwnPython):
        fields = {field.name for field in dataclasses.fields(kind)} - {"name", "backbone"}
        assert fields - named - set(re.findall(r"`(\w+)(?: = [^`]*)?`", text)) == set()
    assert {name.removeprefix("backbone.") for name in named if name.startswith("backbone.")} <= {
        field.name for field in dataclasses.fields(Backbone)
    }


def test_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--set", "method.training.steps=2", "--set", "model.hidden=[4]"]  # a hundred times shorter
    commands: list[str] = []
    for fence in re.findall(r"```sh\n(.*?)```", (GUIDES / "tuning.md").read_text(encoding="utf-8"), re.S):
        for line in fence.splitlines():
            name, *arguments = shlex.split(line.split(" > ")[0], comments=True)
            if name == "parallel":
                for command in commands:
                    assert not main(shlex.split(command)[1:])
                continue
            arguments = [word for word in arguments if word not in ("--jobs", "2", "3")]
            arguments = ["2" if word == "4" else word for word in arguments]
            capsys.readouterr()
            assert not main([*arguments, *(short if arguments[0] == "tune" else [])])
            commands = capsys.readouterr().out.splitlines()
    assert Path("runs/chosen/seed1/environment.json").is_file()
    assert Path("search/trials.md").read_text() == Path("runs/tune/coloured_digits/irmv1/trials.md").read_text()
