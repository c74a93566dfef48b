"""What the processes of `test_distributed` run; every case is the same code for one process and for several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard._support import _state
from steelyard.bilevel import (
    Batch,
    FiniteDifference,
    Implicit,
    Recorder,
    Streamed,
    Trajectory,
    Truncated,
    Unrolled,
    WeightedLoss,
)
from steelyard.bilevel.outputs import call_model
from steelyard.checkpoint import Journal
from steelyard.distributed import ALONE, Processes, Ranks
from steelyard.reweight import (
    CubicBudget,
    InnerRun,
    IRMv1,
    LearningToReweight,
    Maple,
    Mask,
    MeanRisk,
    OuterStep,
    Prior,
    Reweighting,
    Shared,
    Sqrt,
    VREx,
)
from tests.support.environments import spurious
from tests.support.problems import CROSS_ENTROPY, OPTIMIZERS, batch_norm, dropout

Case = Callable[[Ranks], dict[str, Tensor]]

SAMPLES = 11  # the shares are of 6 and 5


def data() -> Batch:
    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 4, generator=g, dtype=torch.float64)
    return Batch.of(inputs, torch.randint(0, 3, (SAMPLES,), generator=g))


def apart(samples: Batch) -> Batch:
    """The same with a dict of two tensors as inputs."""
    half = samples.inputs.shape[1] // 2
    return replace(samples, inputs={"left": samples.inputs[:, :half], "right": samples.inputs[:, half:]})


def start_weight() -> Tensor:
    return 0.5 + torch.rand(SAMPLES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Split(nn.Module):
    """`net` of a dict that has the columns apart; its answer is a dict. (The outer loss has them together.)"""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, left: Tensor, right: Tensor | None = None) -> Any:
        return self.net(left) if right is None else {"logits": self.net(torch.cat([left, right], 1))}


def outer_loss(ranks: Ranks) -> Callable[[nn.Module], Tensor]:
    """Cross-entropy over 7 samples, of which each rank has a share: its mean over ranks is theirs over all."""
    g = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(7, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (7,), generator=g)
    own = ranks.share(7)

    def outer(model: nn.Module) -> Tensor:
        return F.cross_entropy(model.eval()(inputs[own]), targets[own], reduction="sum") * ranks.size / 7

    return outer


def loop(
    ranks: Ranks,
    weight: Tensor,
    optimizer: str = "sgd-momentum",
    normalise: Any = "weights",
    window: int = 3,
    make: Callable[[], nn.Module] = net,
    clear: bool = False,
    split: bool = False,
    parts: int = 1,
) -> tuple[nn.Module, Trajectory]:
    """A user's loop: the same batches for any number of ranks, shares of any size in them, also of none.

    With several `parts` the gradients of as many micro-batches are accumulated and clipped.
    """
    module = Split() if split else make()
    model = ranks.wrap(module)
    kind, settings = OPTIMIZERS[optimizer]
    stepper = kind(module.parameters(), **settings)
    regulariser = lambda m: 0.05 * sum(p.square().sum() for p in m.parameters())  # noqa: E731
    objective = WeightedLoss(CROSS_ENTROPY, normalise, regulariser, ranks, outputs="logits" if split else None)
    own, everything = ranks.share(SAMPLES), apart(data()) if split else data()
    g = torch.Generator().manual_seed(4)
    with Recorder(model, stepper, objective, window) as recorder:
        for number in range(2 + window):
            used = weight if number >= 2 else torch.ones_like(weight)
            for part in range(parts):
                rows = torch.randint(0, SAMPLES, (4,), generator=g)  # with replacement
                if number == 1 + window:
                    rows = rows.clamp(min=6)  # the first rank's share of the last batch is empty
                rows = rows[(rows >= own[0]) & (rows <= own[-1])]
                local = isinstance(model, nn.parallel.DistributedDataParallel) and part + 1 < parts
                with model.no_sync() if local else nullcontext():
                    loss = recorder.loss(everything.take(rows), used[rows])
                    if not part:
                        stepper.zero_grad()
                    (loss / parts).backward()
            if parts > 1:
                recorder.clip_grad_norm_(module.parameters(), 0.2)
            stepper.step()
        if clear:
            for p in module.parameters():
                p.grad.zero_()
        return module, recorder.trajectory()


def truncated(ranks: Ranks, **options: Any) -> dict[str, Tensor]:
    module, run = loop(ranks, start_weight(), **options)
    outer, own = outer_loss(ranks), ranks.share(SAMPLES)
    samples = (apart(data()) if options.get("split") else data()).take(own)
    return {
        "parameters": torch.cat([p.detach().flatten() for p in module.parameters()]),
        "T=1, every sample": ranks.gather(Truncated(1)(run, outer, samples=samples)),
        "T=1, the batch": ranks.gather(Truncated(1)(run, outer, own)),
        "T=3": ranks.gather(Truncated(3)(run, outer, own)),
        "differences, T=3": ranks.gather(FiniteDifference(3)(run, outer, own)),
        "differences, T=1": ranks.gather(FiniteDifference(1)(run, outer, samples=samples)),
    }


def whole_run(ranks: Ranks, make: Callable[[], nn.Module] = net, parts: int = 1) -> dict[str, Tensor]:
    """The hypergradient through all of the window, and central differences of the run of all ranks."""
    own, outer, start, size = ranks.share(SAMPLES), outer_loss(ranks), start_weight(), 1e-5
    _, run = loop(ranks, start, "adam", make=make, parts=parts)
    found = ranks.gather(Truncated(3)(run, outer, own))
    truth = torch.zeros(SAMPLES, dtype=torch.float64)
    for sample in range(SAMPLES):
        for signed in (size, -size):
            weight = start.clone()
            weight[sample] += signed
            module, _ = loop(ranks, weight, "adam", make=make, parts=parts)
            truth[sample] += ranks.total(outer(module.eval())) / ranks.size / (2 * signed)
    return {"T=3": found, "differences of the run": truth}


def learned(result: Reweighting) -> dict[str, Tensor]:
    figures = [[float(value) for value in row.values() if value is not None] for row in result.history]
    return {
        "weights": result.weights,
        "probabilities": result.probabilities,
        "index": result.index,
        "history": torch.tensor(figures, dtype=torch.float64),
    }


def inner_run(ranks: Ranks, steps: int = 8, split: bool = False, **options: Any) -> InnerRun:
    make = partial(nn.Linear, 2, 2, dtype=torch.float64)
    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    call = joined if split else call_model
    return InnerRun(make, optimizer, WeightedLoss(CROSS_ENTROPY, ranks=ranks, call=call), steps, **options)


def joined(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model(torch.cat([inputs["left"], inputs["right"]], 1))


def streamed(samples: Batch) -> Streamed:
    """The same samples with inputs that come from a data set, four at a time."""
    given = Streamed.of([*samples.inputs], samples.targets, environment=samples.environment, chunk=4)
    return replace(given, index=samples.index)


def maple(
    ranks: Ranks,
    run: dict[str, Any],
    validate: bool = False,
    lopsided: bool = False,
    stream: bool = False,
    **options: Any,
) -> Any:
    """Five outer steps from weights that move, on 61 samples."""
    train, _ = spurious(61)
    train = apart(train) if run.get("split") else train
    own = ranks.share(61)
    if lopsided and ranks.size > 1:  # all on the second rank
        own = torch.arange(61 * ranks.rank)
    validation = spurious(31, seed=5)[0].take(ranks.share(31)) if validate else None
    settings = {"risk": Sqrt(VREx()), "budget": 20, "steps": 5, **options}
    samples = streamed(train.take(own)) if stream else train.take(own)
    return learned(Maple(inner_run(ranks, **run), **settings).fit(samples, validation))


def prior() -> Prior:
    guess = torch.rand(61, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return Prior(guess, start="both", anchor=0.3)


CASES: dict[str, Case] = {
    "maple": partial(maple, run={}, draws=2),
    "maple, batches": partial(maple, run={"batch_size": 5, "steps": 12}, clip=0.1, patience=2, validate=True),
    "maple, all on one rank": partial(maple, run={"batch_size": 16}, lopsided=True),
    "maple, streamed": partial(maple, run={"batch_size": 5, "steps": 12}, stream=True),
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
CASES["maple, a dict and shared weights"] = partial(
    maple,
    run={"split": True, "batch_size": 16},
    shared=Shared(torch.arange(61) % 3),
    draws=2,
    clip=0.05,
    outer_chunk=10,
)
CASES |= {"whole run": whole_run, "accumulated and clipped": partial(whole_run, parts=2)}
CASES |= {"truncated, a dict": partial(truncated, optimizer="adam", split=True)}
CASES |= {
    f"truncated {name}": partial(truncated, optimizer=name)
    for name in ("sgd-nesterov", "adam", "adamw-amsgrad", "nadam-decoupled", "rmsprop-centered", "adagrad")
}
CASES |= {f"truncated {kind}": partial(truncated, normalise=kind) for kind in ("batch", "none")}
CASES |= {"truncated, accumulated and clipped": partial(truncated, optimizer="adamw-amsgrad", parts=2)}
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
    """Every case, the killed run resumed, the refusals, and what is said of a silent rank; a file a rank."""
    found = {name: case(ranks) for name, case in CASES.items()}
    with torch.random.fork_rng():
        found["dropout"] = whole_run(ranks, _dropout)
    found["resumed"] = uninterrupted(ranks, folder / "run.safetensors")
    said = {name: _said(partial(call, ranks)) for name, call in {**REFUSED, **DIFFERENT}.items()}
    dist.barrier()  # the group's timeout is one for its making, too, and a busy machine may start one rank late
    waited = Processes(dist.new_group(timeout=timedelta(seconds=5)))
    said["silent"] = _said(lambda: waited.sum(torch.ones(1))) if ranks.rank == 0 else ""
    _state.write(folder / f"found.{ranks.rank}", {"found": found, "said": said}, "found")


def _dropout() -> nn.Module:
    """A net whose noise is another one on every rank, and the same in every run."""
    model = dropout().double()
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).add(0.1 * number).sin().view(p.shape))
    torch.manual_seed(dist.get_rank())
    return model


def _said(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:  # noqa: BLE001 (what a test looks at)
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _record(ranks: Ranks, of_objective: Ranks, of_model: Ranks, make: Callable[[], nn.Module] = net) -> None:
    module = make().double()
    stepper = torch.optim.SGD(module.parameters(), lr=0.1)
    objective = WeightedLoss(CROSS_ENTROPY, ranks=of_objective)
    with Recorder(of_model.wrap(module), stepper, objective) as recorder:
        recorder.loss(data().take(ranks.share(SAMPLES)), start_weight()[ranks.share(SAMPLES)])


def _online(ranks: Ranks) -> None:
    model = ranks.wrap(net().double())
    objective = WeightedLoss(CROSS_ENTROPY)
    LearningToReweight(model, torch.optim.SGD(model.parameters(), lr=0.1), objective, data())


def _negative(ranks: Ranks) -> None:
    train = spurious(8)[0].take(ranks.share(8))
    inner_run(ranks)(train, torch.ones(4, dtype=torch.float64) - 2 * ranks.rank)


def _diverged(ranks: Ranks) -> None:
    """One sample of the second rank, which no mask keeps, is infinite: its hypergradient is NaN there alone."""
    train = spurious(8)[0].take(ranks.share(8))
    train.inputs[3] *= torch.inf if ranks.rank else 1
    maple = Maple(inner_run(ranks), MeanRisk(), budget=6, steps=1)
    start = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    maple.fit(train, train.take(torch.arange(3)), state=maple.begin(train, start))


def _journal_of_one(ranks: Ranks) -> None:
    train = spurious(8)[0].take(ranks.share(8))
    Maple(inner_run(ranks), MeanRisk(), budget=4, steps=1).fit(train, journal=Journal("nothing_here.safetensors"))


def _fit(ranks: Ranks, change: Callable[[Batch], Batch] = lambda own: own, run: Any = None, **options: Any) -> None:
    """A run of MAPLE on shares that `change` may change."""
    train = change(spurious(8)[0].take(ranks.share(8)))
    settings = {"risk": Sqrt(VREx()), "budget": 4, "steps": 2, **options}
    Maple(inner_run(ranks) if run is None else run, **settings).fit(train)


def _on_second(ranks: Ranks, change: Callable[[Batch], Batch]) -> None:
    _fit(ranks, change if ranks.rank else lambda own: own)


def _closed_over(ranks: Ranks, rate: float, width: int = 2) -> InnerRun:
    """An inner run whose settings no one sees from outside: functions that hold them."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=rate)

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2)).double()

    return InnerRun(model, optimizer, WeightedLoss(CROSS_ENTROPY, ranks=ranks), 3)


def _schedule(ranks: Ranks) -> Callable[[float], float]:
    return lambda progress: 1 - progress * ranks.rank / 2


def _alike_loop(ranks: Ranks, rate: float = 0.1, steps: int = 1, dtype: torch.dtype = torch.float64) -> None:
    """A user's own loop."""
    module = net().to(dtype)
    model, stepper = ranks.wrap(module), torch.optim.SGD(module.parameters(), lr=rate)
    own, weight = data().take(ranks.share(SAMPLES)), start_weight()[ranks.share(SAMPLES)]
    own = replace(own, inputs=own.inputs.to(dtype))
    with Recorder(model, stepper, WeightedLoss(CROSS_ENTROPY, ranks=ranks), 3) as recorder:
        for _ in range(3):
            loss = recorder.loss(own, weight)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
        Truncated(steps)(recorder.trajectory(), outer_loss(ranks))


DIFFERENT: dict[str, Callable[[Ranks], object]] = {
    "budget": lambda ranks: _fit(ranks, budget=4 + ranks.rank),
    "outer steps": lambda ranks: _fit(ranks, steps=2 + ranks.rank),
    "budget in a function": lambda ranks: _fit(ranks, budget=lambda progress: 4 + ranks.rank * progress),
    "schedule": lambda ranks: _fit(ranks, schedule=_schedule(ranks)),
    "seed": lambda ranks: _fit(ranks, seed=ranks.rank),
    "inner steps": lambda ranks: _fit(ranks, run=inner_run(ranks, 3 + ranks.rank)),
    "learning rate": lambda ranks: _fit(ranks, run=_closed_over(ranks, 0.5 + ranks.rank)),
    "learning rate of an inner run alone": lambda ranks: _closed_over(ranks, 0.5 + ranks.rank)(
        spurious(8)[0].take(ranks.share(8)), torch.ones(4, dtype=torch.float64)
    ),
    "learning rate of w": lambda ranks: _fit(
        ranks, weight_optimizer=lambda leaves: torch.optim.Adam(leaves, lr=0.1 + ranks.rank)
    ),
    "model": lambda ranks: _fit(ranks, run=_closed_over(ranks, 0.5, width=2 + ranks.rank)),
    "prior": lambda ranks: _fit(ranks, prior=Prior(torch.full((8,), 0.5 + ranks.rank / 4), anchor=0.1)),
    "journal": lambda ranks: Journal("nothing_here.safetensors", every=1 + ranks.rank, ranks=ranks),
    "environments": lambda ranks: _on_second(ranks, lambda own: replace(own, environment=None)),
    "dtype": lambda ranks: _on_second(ranks, lambda own: replace(own, inputs=own.inputs.float())),
    "labels": lambda ranks: _on_second(ranks, lambda own: replace(own, targets=own.targets.double())),
    "shape": lambda ranks: _on_second(ranks, lambda own: replace(own, inputs=own.inputs[:, :1])),
    "inputs": lambda ranks: _on_second(ranks, lambda own: replace(own, inputs={"x": own.inputs})),
    "shared": lambda ranks: _fit(ranks, shared=Shared(torch.arange(8) % (2 + ranks.rank))),
    "no samples": lambda ranks: _on_second(ranks, lambda own: Batch.of(torch.zeros(0), torch.zeros(0))),
    "weight's dtype": lambda ranks: inner_run(ranks)(
        spurious(8)[0].take(ranks.share(8)), torch.ones(4, dtype=torch.float32 if ranks.rank else torch.float64)
    ),
    "loop's learning rate": lambda ranks: _alike_loop(ranks, rate=0.1 * (1 + ranks.rank)),
    "loop's dtype": lambda ranks: _alike_loop(ranks, dtype=torch.float32 if ranks.rank else torch.float64),
    "estimator": lambda ranks: _alike_loop(ranks, steps=1 + ranks.rank),
    "calls": lambda ranks: _fit(ranks) if ranks.rank else _alike_loop(ranks),
    "named calls": lambda ranks: Journal(ranks=ranks) if ranks.rank else _alike_loop(ranks),
}
"""What the second rank is given otherwise."""

REFUSED: dict[str, Callable[[Ranks], object]] = {
    "no ranks": lambda ranks: _record(ranks, ALONE, ranks),
    "no average": lambda ranks: _record(ranks, ranks, ALONE),
    "batch norm": lambda ranks: _record(ranks, ranks, ranks, batch_norm),
    "implicit": lambda ranks: Implicit()(loop(ranks, start_weight())[1], outer_loss(ranks)),
    "unrolled": lambda ranks: Unrolled(3)(loop(ranks, start_weight())[1], outer_loss(ranks)),
    "tensors": lambda ranks: Truncated(3).tensors(loop(ranks, start_weight())[1], outer_loss(ranks), []),
    "online": _online,
    "negative": _negative,
    "diverged": _diverged,
    "journal of one": _journal_of_one,
}


def killed(ranks: Ranks, folder: Path) -> None:
    """Outer steps, a checkpoint each; the second rank is killed in the fourth."""

    def kill(step: OuterStep) -> None:
        if step.step == 3 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    uninterrupted(ranks, folder / "run.safetensors", [kill])


def uninterrupted(ranks: Ranks, path: Path | None = None, callbacks: Any = ()) -> dict[str, Tensor]:
    journal = Journal(path, every=1, ranks=ranks)
    maple = Maple(inner_run(ranks, restart=False), Sqrt(VREx()), budget=20, steps=6)
    return learned(maple.fit(spurious(61)[0].take(ranks.share(61)), callbacks=callbacks, journal=journal))


CASES |= {"uninterrupted": uninterrupted}


def alone(name: str) -> dict[str, Tensor]:
    return CASES[name](ALONE)
