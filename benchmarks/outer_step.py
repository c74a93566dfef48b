"""An outer step of MAPLE beside a bare loop of the same arithmetic, and beside the floor of that arithmetic.

    STEELYARD_DATA=FOLDER python -m benchmarks.outer_step            # needs MNIST/raw in the folder; or --data-root

The recipe `colored_mnist/maple`, whole: 50,000 samples, K = 15,000, two folds of 300 minibatches of 500. After every
outer step the bare loop takes the same one again: it trains the two folds, takes the risk of their outputs, and sweeps
the samples outside of each fold, in plain torch, for this net and this optimizer alone, without a check. Both in one
process, in turn, in CPU time of one thread, with the memory that they free kept. Evaluation (the three splits, and the
inner run made for it) is timed by itself, and counts with the share of the steps that the recipe evaluates.

The floor is the count of multiplications and additions in matrix products over the rate of one large square product,
measured beside each step. With p weights, p_1 of them in the first layer, a forward pass is 2 p a sample, a training
step 6 p - 2 p_1 (the inputs get no gradient), and a derivative along a direction 6 p - 2 p_1 (the inputs do not move).
So with n samples and B in a batch: training 2 x 300 x B x (6 p - 2 p_1); outer gradient n x (8 p - 2 p_1); sweeps
n x (6 p - 2 p_1).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _measure
from steelyard._support._heap import keep_freed_memory
from steelyard._support._precision import measured
from steelyard.experiments.methods.maple import Maple
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.evaluation import evaluate
from steelyard.experiments.training.problem import Problem
from steelyard.reweight import CosineDecay, OuterStep

RAW = _measure.RESULTS / "outer_step_raw.json"
SWEPT = 4096  # samples of the bare sweep at a time
MUST = 1.25


class Bare:
    """The arithmetic of an outer step with two folds, written out for a net of linear layers and SGD with momentum.

    Args:
        problem: the samples, and the net.
        method: the settings.
        bfloat16: whether products are taken in it.
    """

    def __init__(self, problem: Problem, method: Maple, bfloat16: bool) -> None:
        train = problem.splits.train
        assert train.environment is not None
        self.x, self.y, self.environment = train.inputs.flatten(1), train.targets, train.environment
        self.method, self.seed, self.bfloat16 = method, problem.seed, bfloat16
        self.model = problem.model()
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}

    def autocast(self) -> Any:
        """Return the precision of a forward pass."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def step(self, weight: Tensor, fold: Tensor) -> Tensor:
        """Return d risk / d weight ``(n,)``; `fold` ``(n,)`` is which of the two a sample is in."""
        ends = [self.trained(torch.where(fold == number, 0, weight)) for number in range(2)]
        outputs = torch.empty(len(self.x), 1)
        with torch.no_grad():
            for number, (state, *_) in enumerate(ends):
                outputs[fold == number] = self.outputs(state, self.x[fold == number])
        total = torch.zeros(len(self.x))
        for number, (state, rate, rows, own) in enumerate(ends):
            mine, others = (fold == number).nonzero().flatten(), (fold != number).nonzero().flatten()
            u = self.outer_gradient(state, outputs, mine)
            kept, recorded = own.sum(), self.along(state["before"], u, rows)
            mean = (own * recorded).sum() / kept
            total[others] -= rate * (self.along(state["before"], u, others) - mean) / kept
        return total

    def trained(self, weight: Tensor) -> tuple[dict[str, Any], float, Tensor, Tensor]:
        """Train from the start on the samples of positive weight; return the state, and the last step."""
        inner = self.method.inner
        self.model.load_state_dict(self.start)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=inner.optimizer.learning_rate, momentum=0.9)
        kept, generator, decay = (
            (weight > 0).nonzero().flatten(),
            torch.Generator().manual_seed(self.seed),
            CosineDecay(),
        )
        x, y, w = self.x[kept], self.y[kept], weight[kept]
        batches: list[Tensor] = []
        for step in range(inner.steps):
            batches = batches or list(torch.randperm(len(kept), generator=generator).split(inner.batch_size))
            rows = batches.pop(0)
            rate = optimizer.param_groups[0]["lr"] = inner.optimizer.learning_rate * decay(step / inner.steps)
            own = w[rows]
            with self.autocast():
                outputs = self.model(x[rows])
            losses = F.binary_cross_entropy_with_logits(outputs.float().flatten(), y[rows].float(), reduction="none")
            optimizer.zero_grad()
            ((own * losses).sum() / own.sum()).backward()
            before = (
                {n: p.detach().clone() for n, p in self.model.named_parameters()} if step + 1 == inner.steps else {}
            )
            optimizer.step()
        state = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        return {**state, "before": before}, rate, kept[rows], own

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of the net's parameters."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def outputs(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """Return the net's outputs ``(k, 1)``."""
        with self.autocast():
            found: Tensor = torch.func.functional_call(self.model, {n: p for n, p in state.items() if n != "before"}, x)
        return found.float()

    def outer_gradient(self, state: dict[str, Any], outputs: Tensor, mine: Tensor) -> dict[str, Tensor]:
        """Return the gradient of the square root of the variance of the environments' risks, by a fold's parameters."""
        leaves = {name: p.requires_grad_() for name, p in state.items() if name != "before"}
        pooled = outputs.index_copy(0, mine, self.outputs(leaves, self.x[mine]))
        losses = F.binary_cross_entropy_with_logits(pooled.flatten(), self.y.float(), reduction="none")
        risks = torch.stack([losses[self.environment == e].mean() for e in (0, 1)])
        found = torch.autograd.grad(risks.var(correction=0).sqrt(), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def along(self, state: dict[str, Tensor], u: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Return <u, gradient of a sample's loss> for the samples `rows` ``(k,)``."""
        layers = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
        return torch.cat([self.chunk_along(layers, state, u, some) for some in rows.split(SWEPT)])

    @torch.no_grad()
    def chunk_along(self, layers: list[str], state: dict[str, Tensor], u: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Do so for one chunk: a tangent beside every activation."""
        with self.autocast():
            h, moved = self.x[rows], None
            for number, layer in enumerate(layers):
                weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
                out, along = F.linear(h, weight, bias), F.linear(h, u[f"{layer}.weight"], u[f"{layer}.bias"])
                along = along if moved is None else along + F.linear(moved, weight)
                last = number + 1 == len(layers)
                h, moved = (out, along) if last else (out.relu(), along * (out > 0))
        assert moved is not None
        return (h.float().flatten().sigmoid() - self.y[rows]) * moved.float().flatten()


def products(net: nn.Module, samples: int, batch: int, steps: int) -> dict[str, float]:
    """Return the multiplications and additions of an outer step's parts, see the top."""
    sizes = [p.numel() for p in net.parameters() if p.ndim == 2]
    p, first = sum(sizes), sizes[0]
    training = 2 * steps * batch * (6 * p - 2 * first)
    return {
        "training": training,
        "outer gradient": samples * (8 * p - 2 * first),
        "sweeps": samples * (6 * p - 2 * first),
    }


def worker(root: Path, steps: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Take `steps` outer steps of the recipe in this process, the bare loop after each."""
    torch.set_num_threads(1)
    keep_freed_memory()
    times = measured("cpu")
    more = [f"method.inner.bfloat16={str(times.faster).lower()}", *overrides]
    recipe = load_recipe("colored_mnist/maple", more, seed=seed)
    method, problem = recipe.method, Problem(recipe.data.load(seed, root), recipe.model, seed)
    assert isinstance(method, Maple)
    maple = method.outer_run(problem, method.inner_run(problem))
    cast = method.inner.bfloat16 is True
    bare, found = Bare(problem, method, cast), []
    splits: list[Tensor] = []
    gradients: list[Tensor] = []
    assert maple.cross_fit is not None
    split, hypergradient = maple.cross_fit._split, maple._hypergradient

    def noted_split(*given: Any) -> Tensor:
        splits.append(split(*given))
        return splits[-1]

    def noted(*given: Any) -> Any:
        result = hypergradient(*given)
        gradients.append(result[1].gradient)
        return result

    maple.cross_fit._split, maple._hypergradient = noted_split, noted  # type: ignore[method-assign]
    start = process_time()

    def watch(step: OuterStep) -> bool:
        nonlocal start
        spent = process_time() - start
        seconds, theirs = _measure.seconds(lambda: bare.step(step.mask * step.weights, splits[-1]))
        error = float((theirs - gradients[-1]).norm() / theirs.norm())
        shown = step.step in (1, steps - 1)  # the first step loads libraries
        evaluation = _measure.seconds(lambda: evaluate(problem, step.model, step.step, {}))[0] if shown else None
        size = 2 * 512**3
        product = min(_product(cast) for _ in range(5))
        found.append({"ours": spent, "bare": seconds, "error": error, "evaluation": evaluation, "rate": size / product})
        start = process_time()
        return step.step + 1 == steps

    maple.fit(problem.splits.train, callbacks=[watch])
    count = products(problem.model(), len(problem.splits.train), method.inner.batch_size, method.inner.steps)
    every = method.evaluation_interval(problem)
    evaluated = math.ceil(method.steps / every) / method.steps
    row = {"steps": found, "products": count, "bfloat16": cast, "evaluated": evaluated}
    return {**row, "processor": _measure.processor()}


def _product(bfloat16: bool) -> float:
    left, right = (torch.ones(512, 512, dtype=torch.bfloat16 if bfloat16 else torch.float32) for _ in range(2))
    return _measure.seconds(lambda: F.linear(left, right))[0]


def report() -> None:
    """Write the table."""
    rows = []
    for run in json.loads(RAW.read_text()):
        steps = run["steps"][1:]
        ours, bare = (_measure.middle([step[name] for step in steps]) for name in ("ours", "bare"))
        ratio = _measure.middle([step["ours"] / step["bare"] for step in steps])
        evaluation = _measure.middle([step["evaluation"] for step in steps if step["evaluation"] is not None])
        share = run["evaluated"] * evaluation["median"]
        floors = [sum(run["products"].values()) / step["rate"] for step in steps]
        rows.append(
            {
                "processor": run["processor"],
                "precision": "bfloat16" if run["bfloat16"] else "float32",
                "seed": run["seed"],
                "outer step s": ours["median"],
                "bare loop s": bare["median"],
                "ratio": ratio["median"],
                "low": ratio["low"],
                "high": ratio["high"],
                "steps": len(steps),
                "evaluation s": evaluation["median"],
                "share of steps": run["evaluated"],
                "with evaluation": (ours["median"] + share) / bare["median"],
                "floor s": _measure.middle(floors)["median"],
                "apart": max(step["error"] for step in steps),
            }
        )
    parts = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in run["products"].items())
    notes = [
        "Recipe `colored_mnist/maple`: 50,000 samples, K = 15,000, two folds of 300 minibatches of 500, net",
        "392-390-390-1. CPU seconds of one thread, the bare loop after each step in the same process; the first step,",
        "in which libraries load, left out. `ratio`: of a step and the bare loop after it, median, lowest, highest.",
        f"Must: at most {MUST}. `with evaluation`: each step with its share of the evaluations (and of the inner runs",
        "made for them) that the recipe asks for. `floor`: matrix products alone at the rate of a large one, GFLOP:",
        f"{parts}. `apart`: |ours - bare| / |bare| of the hypergradient, worst step",
        "(the two round differently, in the precision that the row names).",
    ]
    _measure.write("outer_step", "An outer step of MAPLE beside its floor", notes, rows, list(rows[0]))


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, type=int, metavar=("STEPS", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--data-root", default=os.environ.get("STEELYARD_DATA"), help="default: $STEELYARD_DATA")
    parser.add_argument("--steps", type=int, default=4, help="outer steps, at least 2")
    parser.add_argument("--seeds", type=int, nargs="+", action=_measure.Seeds, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="FIELD=VALUE", help="of the recipe")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.data_root or arguments.report):
        parser.error("name the folder of MNIST/raw: --data-root FOLDER, or STEELYARD_DATA")
    if arguments.worker:
        print(json.dumps(worker(Path(arguments.data_root), *arguments.worker, arguments.overrides)))
        return
    for seed in [] if arguments.report else arguments.seeds:
        line = ["--data-root", arguments.data_root, "--worker", str(arguments.steps), str(seed)]
        line += ["--set", *arguments.overrides] if arguments.overrides else []
        got = _measure.fresh("benchmarks.outer_step", *line, timeout=3600)
        if "failed" in got:
            raise SystemExit(got["failed"])
        rows = json.loads(RAW.read_text()) if RAW.exists() else []
        RAW.write_text(json.dumps([*rows, {**got, "seed": seed}], indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
