"""What the processes of `test_distributed` run; every case is the same code for one process and for several."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import _state
from steelyard.bilevel import Batch, FiniteDifference, Recorder, Trajectory, Truncated, WeightedLoss
from steelyard.distributed import ALONE, Processes, Ranks
from steelyard.journal import Journal
from steelyard.reweight import CubicBudget, InnerRun, IRMv1, Maple, Mask, MeanRisk, Prior, Reweighting, Sqrt, VREx

from .bilevel.problems import CROSS_ENTROPY, OPTIMIZERS
from .reweight.problems import spurious

Case = Callable[[Ranks], dict[str, Tensor]]

SAMPLES = 11  # the shares are of 6 and 5


def data() -> Batch:
    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 4, generator=g, dtype=torch.float64)
    return Batch.of(inputs, torch.randint(0, 3, (SAMPLES,), generator=g))


def start_weight() -> Tensor:
    return 0.5 + torch.rand(SAMPLES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def outer_loss(ranks: Ranks) -> Callable[[nn.Module], Tensor]:
    """Cross-entropy over 7 samples, of which each rank has a share: its mean over ranks is theirs over all."""
    g = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(7, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (7,), generator=g)
    own = ranks.share(7)

    def outer(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(inputs[own]), targets[own], reduction="sum") * ranks.size / 7

    return outer


def loop(
    ranks: Ranks,
    weight: Tensor,
    optimizer: str = "sgd-momentum",
    normalise: Any = "weights",
    window: int = 3,
    make: Callable[[], nn.Module] = net,
    clear: bool = False,
) -> tuple[nn.Module, Trajectory]:
    """A user's loop: the same batches for any number of ranks, shares of any size in them, also of none."""
    module = make()
    model = ranks.wrap(module)
    kind, settings = OPTIMIZERS[optimizer]
    stepper = kind(module.parameters(), **settings)
    regulariser = lambda m: 0.05 * sum(p.square().sum() for p in m.parameters())  # noqa: E731
    objective = WeightedLoss(CROSS_ENTROPY, normalise, regulariser, ranks)
    own, everything = ranks.share(SAMPLES), data()
    g = torch.Generator().manual_seed(4)
    with Recorder(model, stepper, objective, window) as recorder:
        for number in range(2 + window):
            rows = torch.randint(0, SAMPLES, (4,), generator=g)  # with replacement
            if number == 1 + window:
                rows = rows.clamp(min=6)  # the first rank's share of the last batch is empty
            rows = rows[(rows >= own[0]) & (rows <= own[-1])]
            used = weight if number >= 2 else torch.ones_like(weight)
            loss = recorder.loss(everything.take(rows), used[rows])
            stepper.zero_grad()
            loss.backward()
            stepper.step()
        if clear:
            for p in module.parameters():
                p.grad.zero_()
        return module, recorder.trajectory()


def truncated(ranks: Ranks, **options: Any) -> dict[str, Tensor]:
    module, run = loop(ranks, start_weight(), **options)
    outer, own = outer_loss(ranks), ranks.share(SAMPLES)
    return {
        "parameters": torch.cat([p.detach().flatten() for p in module.parameters()]),
        "T=1, every sample": ranks.gather(Truncated(1)(run, outer, samples=data().take(own))),
        "T=1, the batch": ranks.gather(Truncated(1)(run, outer, own)),
        "T=3": ranks.gather(Truncated(3)(run, outer, own)),
        "differences, T=3": ranks.gather(FiniteDifference(3)(run, outer, own)),
        "differences, T=1": ranks.gather(FiniteDifference(1)(run, outer, samples=data().take(own))),
    }


def learned(result: Reweighting) -> dict[str, Tensor]:
    figures = [[float(value) for value in row.values() if value is not None] for row in result.history]
    return {
        "weights": result.weights,
        "probabilities": result.probabilities,
        "index": result.index,
        "history": torch.tensor(figures, dtype=torch.float64),
    }


def inner_run(ranks: Ranks, steps: int = 8, **options: Any) -> InnerRun:
    make = partial(nn.Linear, 2, 2, dtype=torch.float64)
    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    return InnerRun(make, optimizer, WeightedLoss(CROSS_ENTROPY, ranks=ranks), steps, **options)


def maple(ranks: Ranks, run: dict[str, Any], validate: bool = False, lopsided: bool = False, **options: Any) -> Any:
    """Five outer steps from weights that move, on 61 samples."""
    train, _ = spurious(61)
    own = ranks.share(61)
    if lopsided and ranks.size > 1:  # all on the second rank
        own = torch.arange(61 * ranks.rank)
    validation = spurious(31, seed=5)[0].take(ranks.share(31)) if validate else None
    settings = {"risk": Sqrt(VREx()), "budget": 20, "steps": 5, **options}
    return learned(Maple(inner_run(ranks, **run), **settings).fit(train.take(own), validation))


def prior() -> Prior:
    guess = torch.rand(61, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return Prior(guess, start="both", anchor=0.3)


CASES: dict[str, Case] = {
    "maple": partial(maple, run={}, draws=2),
    "maple, batches": partial(maple, run={"batch_size": 5, "steps": 12}, clip=0.1, patience=2, validate=True),
    "maple, all on one rank": partial(maple, run={"batch_size": 16}, lopsided=True),
    "maple, folds": partial(maple, run={"batch_size": 7}, folds=2, outer_chunk=10),
    "maple, T = 3 and a warm start": partial(
        maple, run={"window": 3, "restart": False}, estimator=Truncated(3), risk=IRMv1(unbiased=True) + MeanRisk()
    ),
    "maple, prior and constraints": partial(
        maple,
        run={},
        prior=prior(),
        budget=CubicBudget(40, 12),
        equality=False,
        radius=15.0,
        p=1,
        mask=Mask("relaxed"),
        validate=True,
    ),
}
CASES |= {f"truncated {name}": partial(truncated, optimizer=name) for name in OPTIMIZERS}
CASES |= {f"truncated {kind}": partial(truncated, normalise=kind) for kind in ("batch", "none")}
CASES |= {"truncated without gradients": partial(truncated, optimizer="adam", clear=True)}


def worker(rank: int, size: int, folder: Path, body: Callable[[Ranks, Path], None], seconds: float) -> None:
    """Join the group whose meeting place is a file of `folder`, and run `body`; say in a file how it failed."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'meeting'}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=seconds),
        )
        body(Processes(), folder)
        dist.destroy_process_group()
    except Exception:
        (folder / f"error.{rank}").write_text(traceback.format_exc())
        raise


@contextmanager
def started(
    size: int, folder: Path, body: Callable[[Ranks, Path], None], seconds: float = 60
) -> Iterator[list[multiprocessing.process.BaseProcess]]:
    """Run `body` in `size` new processes; none outlives the block."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, size, folder, body, seconds)) for rank in range(size)]
    try:
        for process in processes:
            process.start()
        yield list(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def all_cases(ranks: Ranks, folder: Path) -> None:
    """Every case, its result in a file a rank."""
    _state.write(folder / f"found.{ranks.rank}", {name: case(ranks) for name, case in CASES.items()}, "found")


def alone(name: str) -> dict[str, Tensor]:
    return CASES[name](ALONE)
