"""Hypergradients of per-sample weights: time, memory and error beside higher, TorchOpt and plain unrolling.

    python -m benchmarks.hypergradient                       # every cell of `CELLS` (hours on a busy core)
    python -m benchmarks.hypergradient --only resnet18/128/1/sgd --runs 5
    python -m benchmarks.hypergradient --report              # the table again from what was measured

A cell is MODEL/BATCH/T/OPTIMIZER. Every figure is of a fresh process on one thread that warms up (the method on four
samples) and runs a plain step, the method, a plain step (small nets: the median of 21 such). Ours has run twice before
on the same model: the first calls are checked by further backward passes (`first call`). `ratio` is the CPU time of
{T training steps, the outer gradient, the hypergradient} over that of T + 1 plain steps; methods take turns. The
process keeps what it frees, as the command `steelyard` has it (`keep_freed_memory`); with `--what returned` it does
not, and every method pays for pages that the system fills with zeros. Memory is the peak above what was resident
before, in a process of its own. Error is relative, in float32, to `Truncated` in
float64, which the tests compare with finite differences: of the same recorded run, its parameters, moments and data
cast to float64 (`error`), and of a run in float64 from the start (`other run`), which ends elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _measure
from steelyard._support._heap import keep_freed_memory
from steelyard.bilevel import Batch, FiniteDifference, Recorder, Trajectory, Truncated, WeightedLoss
from tests.support.widened import widened

MUSTS = ["resnet18/128/1/sgd", "resnet18/32/1/sgd", "resnet18-gn/128/1/sgd"]
CELLS = [
    *MUSTS,
    *(f"mlp/{batch}/{steps}/{kind}" for batch in (32, 128) for steps in (1, 5, 20) for kind in ("sgd", "adam")),
    "mlp/128/1/adam-warm",
    *(f"resnet18/32/{steps}/{kind}" for steps in (1, 5, 20) for kind in ("sgd", "adam")),
    *(f"resnet18/128/{steps}/{kind}" for steps in (1, 5) for kind in ("sgd", "adam")),
]
FLOORS = {"reuse": 8 / 6, "reuse, no BatchNorm": 7 / 6, "truncated": 9 / 6, "difference": 8 / 6, "graphs": None}
CHECKED = 2  # calls that the engine checks more dearly, before the one that is measured; see `benchmarks.checks`
WHAT = ["time", "returned", "memory", "error"]
CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")
SPREAD = WeightedLoss(CROSS_ENTROPY)
RAW = _measure.RESULTS / "hypergradient_raw.json"


@dataclass
class Problem:
    """T batches, their weights, an outer batch, and a model at a fixed start."""

    model: nn.Module
    kind: str
    data: Batch
    weight: Tensor
    outer_inputs: Tensor
    outer_targets: Tensor
    steps: int
    batch: int
    moments: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, cell: str, dtype: torch.dtype) -> Problem:
        """Build the problem of a cell."""
        name, batch, steps, kind = cell.split("/")
        torch.manual_seed(0)
        model, shape = (_mlp(), (784,)) if name == "mlp" else (_resnet(name), (3, 32, 32))
        rows, side = int(batch) * int(steps), int(batch)
        data = Batch.of(torch.randn(rows, *shape).to(dtype), torch.randint(0, 10, (rows,)))
        weight = (0.5 + torch.rand(rows)).to(dtype)
        outer = torch.randn(side, *shape).to(dtype), torch.randint(0, 10, (side,))
        model = model.to(dtype).train()
        sizes = model.parameters() if kind == "adam-warm" else ()
        moments = [(3e-4 * torch.randn_like(p), 1e-7 * (0.1 + torch.rand_like(p))) for p in sizes]
        return cls(model, kind, data, weight, *outer, int(steps), side, moments)

    def optimizer(self) -> torch.optim.Optimizer:
        """Make torch's optimizer."""
        if self.kind == "sgd":
            return torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        for p, (first, second) in zip(self.model.parameters(), self.moments, strict=False):
            optimizer.state[p] = {"step": torch.tensor(100.0), "exp_avg": first, "exp_avg_sq": second}
        return optimizer

    def outer(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the outer loss, in training mode like the inner one."""
        return F.cross_entropy(model(self.outer_inputs), self.outer_targets)

    def batches(self, weight: Tensor) -> list[tuple[Batch, Tensor]]:
        """Return the batches and weights of the steps."""
        return list(zip(self.data.chunks(self.batch), weight.split(self.batch), strict=True))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def _resnet(name: str) -> nn.Module:
    from steelyard._support._torchvision import torchvision

    norm = {} if name == "resnet18" else {"norm_layer": lambda width: nn.GroupNorm(8, width)}
    model = torchvision.models.resnet18(num_classes=10, **norm)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def plain(problem: Problem) -> None:
    """Take one ordinary training step."""
    optimizer = problem.optimizer()
    batch, weight = problem.batches(problem.weight)[0]
    SPREAD(problem.model, batch, weight).backward()
    optimizer.step()
    optimizer.zero_grad()


def steelyard(problem: Problem, estimator: Any, **options: bool) -> Tensor:
    """Record T steps, then ask the estimator."""
    optimizer = problem.optimizer()
    with Recorder(problem.model, optimizer, SPREAD, steps=problem.steps, **options) as recorder:
        for batch, weight in problem.batches(problem.weight):
            optimizer.zero_grad()
            recorder.loss(batch, weight).backward()
            optimizer.step()
        return estimator(recorder.trajectory(), problem.outer)


def same_run(cell: str) -> Tensor:
    """Record in float32, cast what was recorded to float64, and ask the estimator there."""
    problem, exact = Problem.of(cell, torch.float32), Problem.of(cell, torch.float64)

    def there(record: Trajectory, outer: Any) -> Tensor:
        return Truncated(problem.steps)(widened(record), exact.outer)

    return steelyard(problem, there)


def by_higher(problem: Problem) -> Tensor:
    """Unroll with higher."""
    import higher

    weight = problem.weight.clone().requires_grad_()
    optimizer = problem.optimizer()
    with higher.innerloop_ctx(problem.model, optimizer, copy_initial_weights=False) as (model, inner):
        for batch, part in problem.batches(weight):
            inner.step(SPREAD(model, batch, part))
        return torch.autograd.grad(problem.outer(model), weight)[0]


def by_torchopt(problem: Problem) -> Tensor:
    """Unroll with TorchOpt's differentiable optimizers."""
    import torchopt

    weight = problem.weight.clone().requires_grad_()
    kind = {"sgd": partial(torchopt.MetaSGD, lr=0.01, momentum=0.9), "adam": partial(torchopt.MetaAdam, lr=1e-3)}
    optimizer = kind[problem.kind](problem.model)
    for batch, part in problem.batches(weight):
        optimizer.step(SPREAD(problem.model, batch, part))
    return torch.autograd.grad(problem.outer(problem.model), weight)[0]


def unrolled(problem: Problem) -> Tensor:
    """Unroll by hand: `functional_call`, gradients with a graph, the update written out (cold start)."""
    weight = problem.weight.clone().requires_grad_()
    parameters = dict(problem.model.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for count, (batch, part) in enumerate(problem.batches(weight), start=1):
        losses = CROSS_ENTROPY(torch.func.functional_call(problem.model, parameters, batch.inputs), batch.targets)
        loss = (part * losses).sum() / part.sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        for name, gradient in zip(list(parameters), gradients, strict=True):
            if problem.kind == "sgd":
                first[name] = 0.9 * first[name] + gradient
                step = 0.01 * first[name]
            else:
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient.square()
                root = (second[name] / (1 - 0.999**count)).sqrt()
                step = 1e-3 * first[name] / (1 - 0.9**count) / (root + 1e-8)
            parameters[name] = parameters[name] - step
    value = problem.outer(lambda inputs: torch.func.functional_call(problem.model, parameters, inputs))
    return torch.autograd.grad(value, weight)[0]


METHODS: dict[str, Callable[[Problem], Tensor]] = {
    "reuse": lambda problem: steelyard(problem, Truncated(), reuse=True),
    "truncated": lambda problem: steelyard(problem, Truncated(problem.steps)),
    "graphs": lambda problem: steelyard(problem, Truncated(problem.steps), graphs=True),
    "difference": lambda problem: steelyard(problem, FiniteDifference(problem.steps)),
    "higher": by_higher,
    "torchopt": by_torchopt,
    "unrolled": unrolled,
}


def small(cell: str) -> str:
    """Return the cell with batches of four samples."""
    name, _, *rest = cell.split("/")
    return "/".join([name, "4", *rest])


def _pair(cell: str, method: str) -> tuple[float, float, float]:
    """Return the ratio of a call without the dearer checks, what a plain step took, and the ratio of the first call."""
    before, problem, after = (Problem.of(cell, torch.float32) for _ in range(3))
    checked = [_measure.seconds(lambda: METHODS[method](problem))[0] for _ in range(CHECKED if method in FLOORS else 1)]
    first, _ = _measure.seconds(lambda: plain(before))
    spent, _ = _measure.seconds(lambda: METHODS[method](problem))
    last, _ = _measure.seconds(lambda: plain(after))
    step = (first + last) / 2
    return spent / ((problem.steps + 1) * step), step, checked[0] / ((problem.steps + 1) * step)


def errors(cell: str, methods: list[str]) -> dict[str, Any]:
    """Return the relative errors of each method: to the same run in float64, and to another one."""
    truths = same_run(cell), METHODS["truncated"](Problem.of(cell, torch.float64))
    values = {name: METHODS[name](Problem.of(cell, torch.float32)).double() for name in methods}
    return {name: [float((value - one).norm() / one.norm()) for one in truths] for name, value in values.items()}


def worker(cell: str, method: str, what: str) -> dict[str, Any]:
    """Measure one thing in this process."""
    torch.set_num_threads(1)
    if what == "error":
        return errors(cell, method.split(","))
    if what in ("time", "returned"):
        kept = what == "time" and keep_freed_memory()
        METHODS[method](Problem.of(small(cell), torch.float32))
        pairs = sorted(_pair(cell, method) for _ in range(21 if cell.startswith("mlp") else 1))
        found = dict(zip(("ratio", "plain", "first"), pairs[len(pairs) // 2], strict=True))
        return {**found, "memory kept": kept, "processor": _measure.processor()}
    problem = Problem.of(cell, torch.float32)
    METHODS[method](Problem.of(small(cell), torch.float32))  # libraries and kernels load
    before_bytes = _measure.resident()
    _measure.reset_peak()
    METHODS[method](problem)
    return {"memory": (_measure.peak() - before_bytes) / 2**20}


def measure(cell: str, wanted: list[str], runs: int, what: list[str]) -> None:
    """Measure one cell, methods in turn; every figure is kept as it comes."""
    steps = int(cell.split("/")[2])
    methods = [name for name in wanted if name != ("reuse" if steps > 1 else "graphs")]
    if cell.endswith("warm"):  # the others' optimizers start from nothing
        methods = [name for name in methods if name in FLOORS]
    for number, way in ((number, way) for number in range(runs) for way in what if way in ("time", "returned")):
        for name in methods[:: -1 if number % 2 else 1]:
            got = _measure.fresh("benchmarks.hypergradient", "--worker", cell, name, way)
            _keep(cell, name, {"failed": got["failed"]} if "failed" in got else {"ratios": [got]})
    for name in methods if "memory" in what else []:
        _keep(cell, name, _measure.fresh("benchmarks.hypergradient", "--worker", cell, name, "memory"))
    if "error" not in what:
        return
    found = _measure.fresh("benchmarks.hypergradient", "--worker", cell, ",".join(methods), "error")
    for name in methods:
        error, other = found[name]
        # (a warm cell's moments are made by its own run: another run has others)
        _keep(cell, name, {"error": error} if cell.endswith("warm") else {"error": error, "other run": other})


def engine() -> str:
    """Return what git calls the engine's present files, short; it outlives commits elsewhere."""
    asked = ["git", "rev-parse", "--short=7", "HEAD:steelyard/bilevel"]
    return subprocess.run(asked, cwd=_measure.ROOT, capture_output=True, text=True, check=True).stdout.strip()


def keep(rows: list[dict[str, Any]], cell: str, method: str, found: dict[str, Any], engine: str) -> None:
    """Add figures to those of a cell and method: ratios of one engine are collected, of another replaced.

    Args:
        rows: what was measured before; changed.
        cell, method: of which.
        found: the figures.
        engine: that measured Steelyard's; of a peer's method it says nothing.
    """
    row = next((one for one in rows if (one["cell"], one["method"]) == (cell, method)), None)
    if row is None:
        row = {"cell": cell, "method": method, "ratios": []}
        rows.append(row)
    ratios = found.pop("ratios", [])
    if method in FLOORS:
        engines = row.setdefault("engines", {})
        if ratios and engines.get("ratio") != engine:
            row["ratios"] = []
            row.pop("note", None)
        engines.update(dict.fromkeys([*(["ratio"] if ratios else []), *found], engine))
    row["ratios"] += ratios
    row.update(found)


def _keep(cell: str, method: str, found: dict[str, Any]) -> None:
    rows = json.loads(RAW.read_text()) if RAW.exists() else []
    keep(rows, cell, method, found, engine())
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.write_text(json.dumps(rows, indent=1) + "\n")


def _of_engines(row: dict[str, Any]) -> str:
    """Return which engine gave a row's figures, of Steelyard's rows."""
    if row["method"] not in FLOORS:
        return ""
    engines = row.get("engines", {})
    figures = [*(["ratio"] if row["ratios"] else []), *(one for one in ("memory", "error", "failed") if one in row)]
    of = {one: engines.get(one, "older") for one in figures}
    return next(iter(of.values()), "") if len(set(of.values())) < 2 else ", ".join(f"{a} {b}" for a, b in of.items())


def report() -> None:
    """Write the table of all that was measured."""
    rows = []
    for one in json.loads(RAW.read_text()):
        name, batch, steps, kind = one["cell"].split("/")
        floor = FLOORS.get("reuse, no BatchNorm" if one["method"] == "reuse" and name != "resnet18" else one["method"])
        groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        for pair in one["ratios"]:
            groups.setdefault((pair["processor"], pair["memory kept"]), []).append(pair)
        for (processor, kept), pairs in groups.items() or [(("", False), [])]:
            got = _measure.middle([pair["ratio"] for pair in pairs]) if pairs else {}
            firsts = [pair["first"] for pair in pairs if "first" in pair]
            rows.append(
                {
                    "model": name,
                    "batch": int(batch),
                    "T": int(steps),
                    "optimizer": kind,
                    "method": one["method"],
                    "processor": processor,
                    "freed memory": "kept" if kept else "returned",
                    "ratio": got.get("median"),
                    "low": got.get("low"),
                    "high": got.get("high"),
                    "runs": got.get("runs"),
                    "first call": _measure.middle(firsts)["median"] if firsts else None,
                    "floor": floor if steps == "1" else None,
                    "memory MiB": one.get("memory"),
                    "error": one.get("error"),
                    "other run": one.get("other run"),
                    "engine": _of_engines(one),
                    "note": one.get("failed") or one.get("note", ""),
                }
            )
    missing = [
        cell for cell in dict.fromkeys(CELLS) if cell not in {one["cell"] for one in json.loads(RAW.read_text())}
    ]
    notes = [
        "Ratio: CPU time of {T training steps, outer gradient, hypergradient} over T + 1 plain steps, medians of",
        "fresh processes; `first call`: of the first call on a model, which is checked dearly. Floor: forward-pass",
        "units over 6, for T = 1. `reuse`, `truncated`, `graphs`, `difference` are Steelyard's. `error`: relative to",
        "float64 at the recorded float32 steps, `other run` to a run in float64 from the start. `adam` starts cold,",
        "`adam-warm` from moments of a later step (Steelyard's only).",
        "Freed memory `kept`: by the process, as the command `steelyard` has it; `returned`: to the system, malloc's",
        "default, where each method pays for fresh pages. Processors are as they name themselves to a guest.",
        "`engine`: of Steelyard's figures, what `git rev-parse HEAD:steelyard/bilevel` called the engine that gave",
        "them; `older`: one before this was noted, which kept fingerprints of the parameters instead of copies.",
        "Betty: not run (REFERENCE: only the last batch gets a gradient).",
        f"Cells not measured: {', '.join(missing) or 'none'}.",
    ]
    columns = [
        "model",
        "batch",
        "T",
        "optimizer",
        "method",
        "processor",
        "freed memory",
        "ratio",
        "low",
        "high",
        "runs",
    ]
    columns += ["first call", "floor"]
    columns += ["memory MiB", "error", "other run", "engine", "note"]
    _measure.write("hypergradient", "Hypergradient of sample weights", notes, rows, columns)


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, metavar=("CELL", "METHOD", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=CELLS, help="cells")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--what", nargs="+", default=WHAT, choices=WHAT)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(*arguments.worker)))
        return
    if arguments.fresh:
        RAW.unlink(missing_ok=True)
    for cell in [] if arguments.report else dict.fromkeys(arguments.only):
        measure(cell, arguments.methods, arguments.runs, arguments.what)
        report()
    if arguments.report:
        report()


if __name__ == "__main__":
    main()
