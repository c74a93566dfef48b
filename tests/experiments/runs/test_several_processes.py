"""Runs of several processes: each has its share, and the outcome is that of one."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from steelyard.bilevel import Batch
from steelyard.cli import main
from steelyard.distributed import ALONE, RankError, Ranks
from steelyard.experiments.data import Splits, Waterbirds
from steelyard.experiments.data.photographs import Photographs
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.methods import Method
from steelyard.experiments.models import MLP, ResNet18
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import read_run
from steelyard.experiments.runs.several_processes import SHARED, check_alike, check_model, check_shared, loaded
from steelyard.experiments.training.batch_shards import batch_shards
from steelyard.experiments.training.evaluation import Evaluation
from steelyard.experiments.training.problem import Problem
from steelyard.reweight import Reweighting
from tests.experiments.together import carry_out, recipes
from tests.support.layouts import write_waterbirds
from tests.support.places import ROOT
from tests.support.ranked import started
from tests.support.shares import Threads, in_threads
from tests.support.shrunk import short, shortened

_PATIENCE = 400  # seconds until a test gives up on processes that take some ten on a free machine
FEW = ((3, 2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes carried out, the second of which was killed at the end."""
    folder = tmp_path_factory.mktemp("two")
    write_waterbirds(folder / "data", counts=FEW)
    with started(2, folder, carry_out, seconds=3600) as processes:
        processes[1].join(_PATIENCE)
        processes[0].join(_PATIENCE / 4)  # it notices at once, not after the hour that it would wait for a silent one
        said = "".join(path.read_text() for path in folder.glob("error.*"))
        assert [process.exitcode for process in processes] == [1, -9], said
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what one process carried out."""
    folder = tmp_path_factory.mktemp("one")
    write_waterbirds(folder / "data", counts=FEW)
    carry_out(ALONE, folder)
    return folder


def figures(evaluation: Evaluation) -> list[float]:
    """All numbers of an evaluated step."""
    found: list[float] = []

    def collect(value: Any) -> None:
        if dataclasses.is_dataclass(value):
            value = vars(value)
        if isinstance(value, dict):
            value = tuple(value.values())
        if isinstance(value, (tuple, list)):
            for one in value:
                collect(one)
        elif value is not None:
            found.append(float(value))

    visible = evaluation.visible
    collect([visible.step, *(vars(part) for part in (visible.train, visible.validation, evaluation.test))])
    collect(dict(evaluation.extra))
    return found


def assert_same_outcome(found: Path, expected: Path) -> None:
    """Metrics and parameters to 1e-5, and weights and probabilities, all in single precision; of the same samples.

    Adam divides a sample's gradient by its size. Where a sample's gradient is a thousandth of the others', its rounding
    shows: a tenth of the samples may be off by more than 1e-5, and none by 3e-4, of steps of 0.1. (In double precision
    all agree to 1e-11: `tests/test_distributed.py`.)
    """
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    runs = [read_run(place) for place in (found, expected)]
    for one, two in zip(runs[0].history, runs[1].history, strict=True):
        close(torch.tensor(figures(one)), torch.tensor(figures(two)))
    close(*(load_file(place / "model.safetensors") for place in (found, expected)))
    if runs[1].samples is not None:
        one, two = (Reweighting.load(place / "reweighting.safetensors") for place in (found, expected))
        for name in ("weights", "probabilities"):
            difference = (getattr(one, name) - getattr(two, name)).abs()
            assert float(difference.quantile(0.9)) < 1e-5
            assert float(difference.max()) < 3e-4
        assert torch.equal(one.index, two.index)
        assert list(runs[0].samples) == list(runs[1].samples)
        exact = [name for name in runs[1].samples if name not in ("weight", "probability")]
        assert runs[0].samples[exact].equals(runs[1].samples[exact])


@pytest.mark.parametrize("name", recipes())
def test_two_processes_end_where_one_ends(name: str, both: Path, alone: Path) -> None:
    assert_same_outcome(both / "runs" / name, alone / "runs" / name)
    assert read_run(both / "runs" / name).environment["processes"] == 2
    assert {path.name for path in (both / "runs" / name).iterdir()} == {
        path.name for path in (alone / "runs" / name).iterdir()
    }


def test_the_command_goes_on_with_what_a_killed_rank_left(both: Path, alone: Path) -> None:
    """By torchrun, to the bits of the uninterrupted run of as many processes; what is said is said once."""
    assert "RankError: rank 0 of 2 lost another rank" in (both / "error.0").read_text()
    assert not (both / "killed" / "seed1" / "environment.json").exists()
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["steelyard", "run", "coloured_digits/maple", "--seeds", "1", "--out", str(both / "killed"), "--resume"]
    command += [word for field in shortened("coloured_digits/maple") for word in ("--set", field)]
    done = subprocess.run(command, cwd=both, env=settings, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Runs: ") == 1
    place, whole = both / "killed" / "seed1", both / "runs" / "maple"
    for file in ("metrics.jsonl", "model.safetensors", "result.parquet"):
        assert (place / file).read_bytes() == (whole / file).read_bytes()
    assert Reweighting.load(place / "reweighting.safetensors") == Reweighting.load(whole / "reweighting.safetensors")
    assert_same_outcome(place, alone / "runs" / "maple")


class Two(Ranks):
    """Two processes as far as anyone can tell who does not ask them."""

    size = 2


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("lff", [], r"method 'lff' cannot be shared by 2 processes \(erm, irmv1, .*, maple can\); .* in one process"),
        ("sparse_irm", [], "method 'sparse_irm' cannot be shared"),
        ("maple_prior", [], r"method\.prior: scores are not computed by 2 processes"),
        (
            "waterbirds/tiny",
            [],
            r"data\.augment draws by an image's place in the batch",
        ),
        ("erm", ["device='cuda:0'"], "device 'cuda:0' is one device, and 2 processes need one each: take 'cuda'"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_is_loaded(name: str, more: list[str], words: str) -> None:
    recipe = load_recipe(name) if "/" in name else short(f"coloured_digits/{name}", *more)
    with pytest.raises(RecipeError, match=words):
        check_shared(recipe, Two())
    check_shared(recipe, ALONE)


def test_a_model_that_normalises_by_its_batch_is_refused() -> None:
    splits = Splits(
        "tiny", *(Batch.of(torch.zeros(2, 3, 8, 8), torch.arange(2), environment=torch.arange(2)) for _ in range(3)),
        ("a", "b"), ("e", "f"),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="model 'resnet18' has BatchNorm"):
        check_model(Problem(splits, ResNet18(width=1), 0, ranks=Two()))
    check_model(Problem(splits, MLP(hidden=(2,)), 0, ranks=Two()))
    check_model(Problem(splits, ResNet18(width=1), 0))


def test_the_first_loads_before_the_others_and_each_keeps_its_share(tmp_path: Path) -> None:
    write_waterbirds(tmp_path, counts=FEW)
    whole, turns = Waterbirds(inputs="images", workers=0).load(0, tmp_path), []

    def load(rank: int) -> Splits:
        turns.append(rank)
        return whole

    first, second = in_threads(2, lambda ranks: loaded(lambda: load(ranks.rank), ranks))
    assert turns == [0, 1]
    assert isinstance(first.train, Photographs)
    assert [len(part.train) for part in (first, second)] == [5, 4]
    assert torch.cat([first.train.index, second.train.index]).tolist() == list(range(9))
    assert torch.equal(second.train.take(torch.arange(4)).inputs, whole.train.take(torch.arange(5, 9)).inputs)
    assert torch.unique(second.test.environment).tolist() == [0, 1]
    said = in_threads(5, lambda ranks: loaded(lambda: whole, ranks))
    assert str(said[0]) == "the validation split has 4 samples, fewer than the 5 processes; start fewer"


def test_processes_with_other_recipes_options_or_data_say_what_differs(tmp_path: Path) -> None:
    def recipes(ranks: Threads) -> None:
        fields = [f"method.training.l2=0.{1 + ranks.rank}", f"method.training.steps={3 + ranks.rank}"]
        check_alike(ranks, short("coloured_digits/erm", *fields), resume=ranks.rank > 0)

    write_waterbirds(tmp_path, counts=FEW)
    whole = Waterbirds(inputs="images", workers=0).load(0, tmp_path)
    flipped = replace(whole.train, targets=1 - whole.train.targets)

    def data(ranks: Threads) -> Splits:
        return loaded(lambda: replace(whole, train=flipped) if ranks.rank else whole, ranks)

    for body, words in (
        (recipes, "the run is not the same on all ranks: method.training.steps is 3 on rank 0, 4 on rank 1; met"),
        (data, "the data is not the same on all ranks: train.targets is torch.int64 (9,) "),
    ):
        said = in_threads(2, body)
        assert all(isinstance(error, RankError) and str(error).startswith(words) for error in said), said
    assert "resume is False on rank 0, True on rank 1" in str(in_threads(2, recipes)[0])
    check_alike(ALONE, short("coloured_digits/erm"), resume=True)


def test_how_long_a_process_waits_is_an_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """One of two that finds no other gives up after the time that it was given; what is no time is refused."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        monkeypatch.setenv(name, value)
    waited: list[Any] = []

    def meet(backend: str, timeout: Any) -> None:
        waited.append((backend, timeout))
        raise RuntimeError("nobody came")

    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    assert main(["run", "coloured_digits/erm", "--rank-timeout", "90.5"]) == 1
    assert "the other processes cannot be met: nobody came" in capsys.readouterr().err
    assert main(["run", "coloured_digits/erm"]) == 1
    assert waited == [("gloo", timedelta(seconds=90.5)), ("gloo", None)]
    for value in ("0", "-1", "nan", "inf", "1e12"):
        assert main(["run", "coloured_digits/erm", "--rank-timeout", value]) == 2
        assert "--rank-timeout must be above 0 and at most" in capsys.readouterr().err


def test_a_part_of_a_batch_gives_the_gradient_of_the_whole() -> None:
    """The average over ranks of what flows back is the gradient of a function of all outputs, whatever it is."""
    g = torch.Generator().manual_seed(0)
    data = Batch.of(
        torch.randn(7, 3, generator=g, dtype=torch.float64), torch.arange(7), environment=torch.arange(7) % 2
    )
    batches = [torch.tensor([6, 0, 3, 3]), torch.tensor([1, 0]), torch.arange(7)]
    layer = nn.Linear(3, 2).double()

    def loss(outputs: Tensor, batch: Batch) -> Tensor:
        weight = (batch.targets + 1)[:, None] * (batch.environment + 1)[:, None]
        return (outputs * weight).tanh().sum() * outputs[0].sum()  # the order of the samples matters

    def gradients(ranks: Threads) -> list[Tensor]:
        own, found = data.take(ranks.share(7)), []
        for piece, rows in zip(batch_shards(own, iter(batches), 0, 0, ranks), batches, strict=True):
            assert torch.equal(piece.whole.index, rows)
            value = loss(piece.outputs_of_all(layer(piece.inputs)), piece.whole)
            found.append(ranks.sum(torch.autograd.grad(value, layer.weight)[0]) / ranks.size)
        return found

    expected = [torch.autograd.grad(loss(layer(data.take(r).inputs), data.take(r)), layer.weight)[0] for r in batches]
    for of_rank in in_threads(3, gradients):
        torch.testing.assert_close(of_rank, expected, rtol=1e-12, atol=1e-12)


def test_what_the_command_says_of_processes_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for size, command, status, words in (
        ("2", ["run", "coloured_digits/erm"], 1, "WORLD_SIZE is 2, but the other processes cannot be met: "),
        ("two", ["run", "coloured_digits/erm"], 1, "WORLD_SIZE must be the number of processes, got 'two'"),
        ("2", ["demo"], 2, "only `run` is carried out by several processes"),
    ):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert main([*command, "--out", str(tmp_path / "out")]) == status
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_guide_names_every_method_and_whether_it_is_shared() -> None:
    guide = (Path(__file__).parents[3] / "docs/guides/several_processes.md").read_text(encoding="utf-8")
    lines = {
        word: set(re.findall(r"`(\w+)`", line))
        for word in ("together", "refused, by name")
        for line in guide.splitlines()
        if line.startswith(f"| {word} |")
    }
    names = {one: str(get_args(get_type_hints(one)["name"])[0]) for one in get_args(Method)}
    assert lines["together"] == {names[one] for one in SHARED}
    assert lines["refused, by name"] == set(names.values()) - lines["together"]
