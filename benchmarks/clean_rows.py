"""Wrong labels and 50 clean rows: scikit-learn's breast cancer data, methods paired by seed.

    python -m benchmarks.clean_rows                                   # seeds 100 to 119; about ten minutes on one core
    python -m benchmarks.clean_rows --table                           # the table of what was measured

569 rows of 30 features: 30 % are held out as test rows, 50 of the others are clean, and of the rest (348) 30 % have
the other label. Every method trains the same net (30-64-2, ReLU) by Adam, step 0.001, batches of 64, 50 epochs, from
the same parameters; `Maple` with restarts trains it for 100 full-batch steps of 0.01 at each of 20 outer steps, and
`Maple.online` takes as many steps in all as the others. The baseline is written here in a dozen lines, by double
backward, as the paper has it. Test rows are looked at once, after training, and decide nothing.

Seconds are CPU time of one thread. "AUROC": of the wrong labels, by expected weight (as `Reweighting.suspects` has it).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks import _measure
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import InnerRun, LearningToReweight, Maple, MeanRisk, MetaWeightNet, Reweighting

RESULTS = _measure.ROOT / "results" / "online"
EPOCHS, BATCH = 50, 64
LOSS = partial(F.cross_entropy, reduction="none")
OBJECTIVE = WeightedLoss(LOSS)
ADAM = partial(torch.optim.Adam, lr=1e-3)
BASELINE, CHOSEN = "Learning to Reweight, plain lines", "LearningToReweight"


class Problem(NamedTuple):
    """The rows of one seed."""

    train: Batch
    wrong: np.ndarray  # (n,) bool: the label of this row of train was flipped
    clean: Batch
    test: Batch


def problem(seed: int, flipped: float = 0.3, clean: int = 50, test: float = 0.3) -> Problem:
    """Split and corrupt; features are standardised on the noisy training rows."""
    inputs, labels = load_breast_cancer(return_X_y=True)
    random = np.random.RandomState(seed)
    order = random.permutation(len(labels))
    held_out = round(test * len(labels))
    tested, cleaned, trained = np.split(order, [held_out, held_out + clean])
    wrong = np.zeros(len(trained), dtype=bool)
    wrong[random.choice(len(trained), round(flipped * len(trained)), replace=False)] = True
    centre, spread = inputs[trained].mean(0), inputs[trained].std(0)

    def rows(at: np.ndarray, flip: np.ndarray | bool = False) -> Batch:
        return Batch.of(((inputs[at] - centre) / spread).astype(np.float32), np.where(flip, 1 - labels[at], labels[at]))

    return Problem(rows(trained, wrong), wrong, rows(cleaned), rows(tested))


def net(seed: int) -> nn.Module:
    """Return the net at its first parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2))


def batches(data: Batch, seed: int) -> Any:
    """Yield the batches of all epochs."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data), generator=generator).split(BATCH):
            yield rows, data.inputs[rows], data.targets[rows]


def plain(data: Batch, seed: int) -> nn.Module:
    """Train on `data` as it is."""
    model = net(seed)
    optimizer = ADAM(model.parameters())
    for _, inputs, targets in batches(data, seed):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def plain_learning_to_reweight(given: Problem, seed: int) -> tuple[nn.Module, Reweighting]:
    """The baseline: Ren et al. 2018, Algorithm 1, by double backward."""
    model, total = net(seed), torch.zeros(len(given.train))
    optimizer = ADAM(model.parameters())
    for rows, inputs, targets in batches(given.train, seed):
        epsilon, theta = torch.zeros(len(rows), requires_grad=True), dict(model.named_parameters())
        losses = LOSS(functional_call(model, theta, inputs), targets)
        slope = torch.autograd.grad((epsilon * losses).sum(), list(theta.values()), create_graph=True)
        ahead = {name: p - 1e-3 * g for (name, p), g in zip(theta.items(), slope, strict=True)}
        clean_loss = LOSS(functional_call(model, ahead, given.clean.inputs), given.clean.targets).mean()
        weight = (-torch.autograd.grad(clean_loss, epsilon)[0]).clamp(min=0)
        if weight.sum() > 0:
            weight /= weight.sum()
            optimizer.zero_grad()
            (weight * LOSS(model(inputs), targets)).sum().backward()
            optimizer.step()
        total[rows] += len(rows) * weight
    return model, Reweighting(total / EPOCHS, torch.ones(len(total)))


def online(method: Callable[..., Any]) -> Callable[..., tuple[nn.Module, Reweighting]]:
    """Return what trains by an online method, at its default settings."""

    def train(given: Problem, seed: int) -> tuple[nn.Module, Reweighting]:
        model = net(seed)
        one = method(model, ADAM(model.parameters()), OBJECTIVE, given.clean, seed=seed)
        return model, one.fit(given.train, epochs=EPOCHS, batch_size=BATCH)

    return train


def restarts(given: Problem, seed: int) -> tuple[nn.Module, Reweighting]:
    """MAPLE: an inner run of 100 full-batch steps at each of 20 outer steps."""
    inner = InnerRun(partial(net, seed), partial(torch.optim.Adam, lr=1e-2), OBJECTIVE, steps=100, seed=seed)
    result = Maple(inner, MeanRisk(), steps=20, learn="weights", seed=seed).fit(given.train, given.clean)
    return inner(given.train, result.weights)[0], result


def warm(given: Problem, seed: int) -> tuple[nn.Module, Reweighting]:
    """MAPLE's online form, at its default settings."""
    steps = EPOCHS * -(-len(given.train) // BATCH)
    maple = Maple.online(partial(net, seed), ADAM, OBJECTIVE, train_steps=steps, batch_size=BATCH, seed=seed)
    result = maple.fit(given.train, given.clean)
    return maple.inner(given.train, result.weights)[0], result


METHODS: dict[str, Callable[[Problem, int], tuple[nn.Module, Reweighting | None]]] = {
    "plain training": lambda given, seed: (plain(given.train, seed), None),
    "the clean rows alone": lambda given, seed: (plain(given.clean, seed), None),
    BASELINE: plain_learning_to_reweight,
    CHOSEN: online(LearningToReweight),
    "MetaWeightNet": online(MetaWeightNet),
    'MetaWeightNet, normalise="batch"': online(partial(MetaWeightNet, normalise="batch")),
    "Maple, restarts": restarts,
    "Maple.online": warm,
}


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the accuracy in per cent."""
    with torch.no_grad():
        return 100 * float((model.eval()(inputs).argmax(1) == labels).double().mean())


def measured(name: str, seed: int) -> dict[str, Any]:
    """Train by one method on one seed."""
    given = problem(seed)
    spent, (model, result) = _measure.seconds(lambda: METHODS[name](given, seed))
    right = torch.where(torch.from_numpy(given.wrong), 1 - given.train.targets, given.train.targets)
    auroc = {} if result is None else {"AUROC": 100 * roc_auc_score(given.wrong, -result.expected_weights.numpy())}
    return {
        "method": name,
        "seed": seed,
        "test": accuracy(model, given.test.inputs, given.test.targets),
        "train, right labels": accuracy(model, given.train.inputs, right),
        **auroc,
        "seconds": spent,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown: mean and standard deviation over seeds, differences paired by seed."""

    def over_seeds(values: list[float], digits: int = 1) -> str:
        return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"

    by = {name: {row["seed"]: row for row in rows if row["method"] == name} for name in METHODS}
    lines = ["| method | test | beside the plain lines | AUROC | seconds |", "|---|---|---|---|---|"]
    for name, found in by.items():
        if not found:
            continue
        paired = [found[seed]["test"] - by[BASELINE][seed]["test"] for seed in found]
        scores = [row["AUROC"] for row in found.values() if "AUROC" in row]
        beside = "" if name == BASELINE else f"{mean(paired):+.1f} ± {stdev(paired):.1f}"
        spent = f"{mean(row['seconds'] for row in found.values()):.1f}"
        test = over_seeds([row["test"] for row in found.values()])
        lines.append(f"| {name} | {test} | {beside} | {over_seeds(scores) if scores else ''} | {spent} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet, one line of JSON each; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", action=_measure.Seeds, default=list(range(100, 120)))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "clean_rows.jsonl")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    known = {(row["method"], row["seed"]) for row in rows}
    for seed in [] if arguments.table else arguments.seeds:
        for name in arguments.methods:
            if (name, seed) not in known:
                rows.append(measured(name, seed))
                with arguments.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
