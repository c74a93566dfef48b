"""Two processes give what one gives; a rank that ends, ends the run; and the run goes on from its checkpoint."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard._support import _state
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.distributed import ALONE, Processes, RankError, Ranks
from steelyard.reweight import Mask, Reweighting
from steelyard.reweight.identity import described
from tests.support.places import ROOT
from tests.support.ranked import CASES, DIFFERENT, all_cases, alone, killed, started, uninterrupted
from tests.support.shares import Threads, in_threads

_PATIENCE = 400  # seconds until a test gives up on processes that take some ten on a free machine


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose second rank was killed."""
    folder = tmp_path_factory.mktemp("killed")
    with started(2, folder, killed, seconds=3600) as processes:
        processes[1].join(_PATIENCE)
        processes[0].join(_PATIENCE / 4)  # it notices at once, not after the hour that it would wait for a silent one
        assert [process.exitcode for process in processes] == [1, -9]
    return folder


@pytest.fixture(scope="module")
def found(killed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either of two processes finds."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copy(killed_run / "run.safetensors", folder)
    with started(2, folder, all_cases) as processes:
        for process in processes:
            process.join(_PATIENCE)
        errors = "".join(path.read_text() for path in folder.glob("error.*"))
        assert [process.exitcode for process in processes] == [0, 0], errors
    return [_state.read(folder / f"found.{rank}", "found") for rank in (0, 1)]


def close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-11) -> None:
    assert set(found) == set(expected)
    for what, value in expected.items():
        size = 1e-6 if "differences" in what else tolerance
        torch.testing.assert_close(found[what], value, rtol=size, atol=size, msg=lambda m, what=what: f"{what}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(name: str, found: list[dict[str, Any]]) -> None:
    """To 1e-11 in float64; where a central difference is taken, to 1e-6."""
    expected = alone(name)
    for of_rank in found:
        close(of_rank["found"][name], expected)


@pytest.mark.parametrize("name", ["whole run", "accumulated and clipped", "dropout"])
def test_the_hypergradient_of_two_processes_is_that_of_central_differences(
    name: str, found: list[dict[str, Any]]
) -> None:
    result = found[0]["found"][name]
    assert result["T=3"][:6].any()  # of both shares
    assert result["T=3"][6:].any()
    torch.testing.assert_close(result["T=3"], result["differences of the run"], rtol=1e-6, atol=1e-9)


SAID = {
    "no ranks": "ValueError: under DistributedDataParallel on 2 ranks the inner loss must be that of the whole batch",
    "no average": "ValueError: objective.ranks are 2 processes, but the gradients of the model are averaged over 1",
    "batch norm": "RuntimeError: the forward pass wrote to a buffer or normalised by its batch",
    "implicit": "NotImplementedError: Implicit works in one process",
    "unrolled": "NotImplementedError: Unrolled works in one process",
    "tensors": "NotImplementedError: the general path",
    "online": "NotImplementedError: LearningToReweight trains in one process, and model averages gradients over 2",
    "negative": ("RankError: rank 1: ValueError: weight must be >= 0", "ValueError: weight must be >= 0"),
    "diverged": ("RankError: rank 1: FloatingPointError: the hypergradient of", "FloatingPointError: outer step 1"),
    "journal of one": "ValueError: journal is kept by 1 processes, not 2",
    "silent": ("RankError: rank 0 of 2 lost another rank, which ended or did not answer in time", ""),
}


@pytest.mark.parametrize("name", SAID)
def test_what_cannot_be_right_is_refused_on_every_rank(name: str, found: list[dict[str, Any]]) -> None:
    expected = SAID[name]
    for rank, of_rank in enumerate(found):
        assert of_rank["said"][name].startswith(expected if isinstance(expected, str) else expected[rank])


DIFFERS = {
    "budget": "Maple.fit is not the same on all ranks: budget is 4 on rank 0, 5 on rank 1; budget at",
    "outer steps": "Maple.fit is not the same on all ranks: steps is 2 on rank 0, 3 on rank 1; give all ranks the same",
    "budget in a function": "Maple.fit is not the same on all ranks: budget at 0.25 is 4.0 on rank 0, 4.25 on rank 1",
    "schedule": "Maple.fit is not the same on all ranks: schedule at 0.25 is 1.0 on rank 0, 0.875 on rank 1",
    "seed": "Maple.fit is not the same on all ranks: seed is 0 on rank 0, 1 on rank 1",
    "inner steps": "Maple.fit is not the same on all ranks: inner.steps is 3 on rank 0, 4 on rank 1",
    "learning rate": "the inner run is not the same on all ranks: inner.optimizer.lr is 0.5 on rank 0, 1.5 on rank 1",
    "learning rate of an inner run alone": "the inner run is not the same on all ranks: inner.optimizer.lr is 0.5 on",
    "learning rate of w": "the outer state is not the same on all ranks: the optimizer of weights.lr is 0.1 on rank 0",
    "model": "the model is not the same on all ranks: parameter '0.weight' is torch.float64 (2, 2) on rank 0, torch.",
    "prior": "Maple.fit is not the same on all ranks: prior is steelyard.reweight.priors.Prior(probabilities=torch.",
    "journal": "the journal is not the same on all ranks: journal.every is 1 on rank 0, 2 on rank 1",
    "environments": "Maple.fit is not the same on all ranks: train.environment is torch.int64 (n) on rank 0, None on r",
    "dtype": "Maple.fit is not the same on all ranks: train.inputs is torch.float64 (n, 2) on rank 0, torch.float32 (",
    "labels": "Maple.fit is not the same on all ranks: train.targets is torch.int64 (n) on rank 0, torch.float64 (n) o",
    "shape": "Maple.fit is not the same on all ranks: train.inputs is torch.float64 (n, 2) on rank 0, torch.float64",
    "inputs": "Maple.fit is not the same on all ranks: train.inputs is torch.float64 (n, 2) on rank 0, missing",
    "shared": "Maple.fit is not the same on all ranks: shared is steelyard.reweight.shared.Shared(source=torch.int64 ",
    "no samples": "Maple.fit is not the same on all ranks: train.inputs is torch.float64 (n, 2) on rank 0, torch",
    "weight's dtype": "the inner run is not the same on all ranks: inner.weight is torch.float64 on rank 0, torch.flo",
    "loop's learning rate": "the record is not the same on all ranks: optimizer.lr is 0.1 on rank 0, 0.2 on rank 1",
    "loop's dtype": "the model is not the same on all ranks: parameter '0.weight' is torch.float64 (5, 4) on rank 0",
    "estimator": "the hypergradient is not the same on all ranks: steps is 1 on rank 0, 2 on rank 1",
    "calls": "the ranks make different calls: all must make the same ones in the same order",
    "named calls": "the ranks make different calls: all must make the same ones in the same order (the model on ",
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_were_given_different_things_all_say_what_differs(name: str, found: list[dict[str, Any]]) -> None:
    """At once, and all are in step afterwards: the cases that follow in the same processes are right."""
    first, second = (of_rank["said"][name] for of_rank in found)
    assert first == second
    assert first.startswith(f"RankError: {DIFFERS[name]}")
    assert "rank 1" in first or name == "calls"


def test_a_killed_rank_ends_the_run_and_the_run_goes_on(
    killed_run: Path, found: list[dict[str, Any]], tmp_path: Path
) -> None:
    """To the bits of the uninterrupted run; and on another number of processes, to rounding."""
    assert "RankError: rank 0 of 2 lost another rank" in (killed_run / "error.0").read_text()
    path = killed_run / "run.safetensors"
    assert _state.read(path, "steelyard.checkpoint.1")["stages"][0]["done"] == 3
    whole = found[0]["found"]["uninterrupted"]
    for of_rank in found:
        assert all(torch.equal(of_rank["found"]["resumed"][name], value) for name, value in whole.items())
    close(uninterrupted(ALONE, Path(shutil.copy(path, tmp_path))), whole)


# A thread of gloo's that outlives the group may abort the process while the interpreter ends: steelyard/distributed.py.
_NO_THREAD_IS_LEFT = """
from pathlib import Path
left = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]     # empty where there is no /proc
assert not any("gloo" in name for name in left), left
"""


def test_the_guide_by_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = re.findall(
        r"```py\n(.*?)```", (ROOT / "docs" / "guides" / "several_processes.md").read_text(encoding="utf-8"), re.S
    )
    (tmp_path / "reweigh.py").write_text(script + _NO_THREAD_IS_LEFT)
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "reweigh.py"]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    result = Reweighting.load(tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.safetensors").unlink()
    one = script.replace("Processes()", "ALONE").replace("import Processes", "import ALONE")
    one = re.sub(r"torch\.distributed\.\w+\(.*?\)", "None", one)
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(compile(one, "several_processes.md", "exec"), names)
    torch.testing.assert_close(result.weights, names["result"].weights, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.probabilities, names["result"].probabilities, rtol=0, atol=1e-5)


def test_there_must_be_a_group() -> None:
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group"):
        Processes()


def test_what_ranks_ask_each_other() -> None:
    shares = [torch.tensor([3.0, -4.0]), torch.zeros(0), torch.tensor([12.0])]

    def body(ranks: Threads) -> list[Any]:
        own = shares[ranks.rank]
        means = ranks.mean({"a": torch.full((2, 1), float(ranks.rank)), "b": torch.tensor(3 * ranks.rank)})
        return [
            ranks.gather(own).tolist(),
            ranks.gather(own[:, None].expand(-1, 2)).shape,
            ranks.place(len(own)),
            (ranks.total(own), ranks.average(own), ranks.norm(own), ranks.norm(own, 1)),
            {name: value.tolist() for name, value in means.items()},
            ranks.share(8).tolist(),
            ranks.together(lambda: ranks.rank),
        ]

    same = [[3.0, -4.0, 12.0], (3, 2)], [(11.0, 11 / 3, 13.0, 19.0), {"a": [[1.0], [1.0]], "b": 3.0}]
    parts = [(0, 3), [0, 1, 2]], [(2, 3), [3, 4, 5]], [(2, 3), [6, 7]]
    for rank, (found, (place, positions)) in enumerate(zip(in_threads(3, body), parts, strict=True)):
        assert found == [*same[0], place, *same[1], positions, rank]


def test_rows_of_all_ranks_keep_their_values_and_multiply_what_flows_back() -> None:
    def body(ranks: Threads) -> tuple[Any, Any]:
        own = torch.tensor([[1.0, -torch.inf, ranks.rank]], requires_grad=True)
        joined = ranks.join(own, ranks.place(1)[0])
        joined[:, 2].square().sum().backward()
        assert own.grad is not None
        return joined.tolist(), own.grad.tolist()

    rows = [[1.0, -torch.inf, float(rank)] for rank in range(3)]
    for rank, found in enumerate(in_threads(3, body)):
        assert found == (rows, [[0.0, 0.0, 3 * 2.0 * rank]])


def test_a_failure_of_one_rank_is_told_on_all() -> None:
    def body(ranks: Threads) -> None:
        def check() -> None:
            if ranks.rank:
                raise OverflowError(f"größer than {ranks.rank}")

        ranks.together(check)

    first, second, third = in_threads(3, body)
    assert isinstance(first, RankError)
    assert str(first) == "rank 1: OverflowError: größer than 1"
    assert (type(second), str(second)) == (OverflowError, "größer than 1")
    assert (type(third), str(third)) == (OverflowError, "größer than 2")


def test_what_ranks_are_to_have_in_common() -> None:
    """One number a rank where they agree; else all have the same words, of any number of ranks and of any text."""

    def body(ranks: Threads, *differ: int) -> tuple[int, str]:
        facts = {"steps": 8, "name": "a" * 300, "größe": "1" if ranks.rank in differ else "\udc80"}
        try:
            ranks.agree("the run", facts)
        except RankError as error:
            return ranks.asked, str(error)
        return ranks.asked, ""

    assert in_threads(3, body) == [(1, "")] * 3
    (_, said), *others = in_threads(7, lambda ranks: body(ranks, 2, 5))
    assert {other for _, other in others} == {said}
    assert said == (
        "the run is not the same on all ranks: größe is \udc80 on ranks 0, 1, 3, 4 and 6, 1 on ranks 2 and 5; give all "
        "ranks the same"
    )
    ALONE.agree("the run", {"anything": object()})


def test_a_device_of_its_own_on_every_rank_is_no_difference() -> None:
    for one, other in (("cuda:0", "cuda:1"), (torch.device("cuda", 0), torch.device("cuda", 3))):
        assert described(partial(torch.nn.Linear, device=one)) == described(partial(torch.nn.Linear, device=other))
    assert described("cuda:0") != described("cpu:0")
    assert described("risk: 1") != described("risk: 2")


@pytest.mark.parametrize("mask", [Mask(), Mask("relaxed", temperature=0.5)], ids=["identity", "relaxed"])
def test_masks_do_not_depend_on_the_number_of_ranks(mask: Mask) -> None:
    s = torch.rand(23, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def body(ranks: Ranks) -> Any:
        g = torch.Generator().manual_seed(5)
        own = s[ranks.share(23)].requires_grad_()
        drawn = [mask(own, g, ranks=ranks), mask(own, g, draws=3, ranks=ranks)]
        (slope,) = torch.autograd.grad(drawn[0].sum(), own)
        return drawn[0].detach(), drawn[1].detach(), slope

    one = body(ALONE)
    for number, found in enumerate(zip(*in_threads(4, body), strict=True)):
        assert torch.equal(torch.cat(found, -1), one[number])


def test_a_journal_of_several_ranks(tmp_path: Path) -> None:
    """The first writes; a wish to stop on one is one on all; and all must see the same file."""

    def run(ranks: Threads, stops: bool) -> None:
        layer = torch.nn.Linear(1, 1)
        path = tmp_path / "run.safetensors"
        journal = Journal(path, every=1, ranks=ranks, stop=lambda: 15 * int(stops and path.exists() and ranks.rank))
        with journal.stage(layer=layer) as stage:
            for done in range(stage.done + 1, 4):
                stage.step(done, last=done == 3)

    stopped = in_threads(2, lambda ranks: run(ranks, stops=True))
    assert [str(error) for error in stopped] == ["stopped (reason 15)"] * 2
    assert in_threads(2, lambda ranks: run(ranks, stops=False)) == [None, None]
    places = [tmp_path / "run.safetensors", tmp_path / "nowhere.safetensors"]
    refused = in_threads(2, lambda ranks: Journal(places[ranks.rank], ranks=ranks))
    assert all(isinstance(e, CheckpointError) and "not the same file on every rank" in str(e) for e in refused)
    blocked = tmp_path / "file"
    blocked.write_text("")

    def write(ranks: Threads) -> None:
        Journal(blocked / "run.safetensors", ranks=ranks).save()

    first, second = in_threads(2, write)
    assert isinstance(first, CheckpointError)
    assert isinstance(second, RankError)
    assert "rank 0: CheckpointError" in str(second)
