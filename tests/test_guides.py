"""The guides' recipes and commands run as they stand."""

from __future__ import annotations

import dataclasses
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from steelyard import Batch, LearningToReweight, Recorder, Truncated, WeightedLoss
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


def test_the_errors_that_the_questions_name() -> None:
    """What stands in the table is what is raised, in its order."""
    text = (GUIDES / "questions.md").read_text(encoding="utf-8")
    table = text[text.index("| the error says") :].split("\n\n")[0]
    said = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draw = torch.Generator().manual_seed(0)
    data = Batch.of(torch.randn(40, 4, generator=draw), torch.arange(40) % 2)

    def online(loss: WeightedLoss, batch: Batch) -> None:
        linear = torch.nn.Linear(4, 2)
        stepping = torch.optim.SGD(linear.parameters(), lr=0.1)
        LearningToReweight(linear, stepping, loss, clean=batch).fit(batch, epochs=1, batch_size=16)

    def recorded(clip: bool) -> None:
        with Recorder(model.train(), optimizer, objective, steps=1) as recorder:
            optimizer.zero_grad()
            recorder.loss(data.take(torch.arange(20)), torch.ones(20)).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            trajectory = recorder.trajectory()
        model.eval()
        Truncated()(trajectory, lambda m: F.cross_entropy(m(data.inputs), data.targets), samples=None if clip else data)

    with pytest.raises(TypeError, match=re.escape(said[0])):
        online(objective, Batch.of(data.inputs.double(), data.targets))
    with pytest.raises(ValueError, match=re.escape(said[1])):
        online(WeightedLoss(F.cross_entropy), data)
    with pytest.raises(RuntimeError, match=re.escape(said[2])):
        recorded(clip=True)
    with pytest.raises(ValueError, match=re.escape(said[3])):
        recorded(clip=False)
    assert said[4:] == ["`NoDerivative`"]
