"""Online reweighting on CIFAR-10: the package's ways beside the same through higher and TorchOpt.

    python -m benchmarks.online steps                                  # time of a step; a minute on one core
    python -m benchmarks.online memory
    python -m benchmarks.online trained --images few --data-root ROOT  # a last layer on frozen features
    python -m benchmarks.online trained --images all --data-root ROOT  # of all 50,000 training images
    python -m benchmarks.online trained --images pixels --noises uniform --data-root ROOT  # a small ResNet
    python -m benchmarks.online trained --ways "meta-weight-net, higher" --noises flip --data-root ROOT  # one of theirs
    python -m benchmarks.online table                                  # and weight_of_loss.svg

"steps": a ResNet of 16, 32 and 64 channels (0.17 M parameters, GroupNorm) on 32 x 32 noise and an MLP, batches of 100
and 100 clean samples, SGD with momentum; CPU time of one thread, median of interleaved rounds. The floor: two plain
steps, one of the batch and one of the clean samples.

"memory": what a process has in memory that is no file's, after 50 steps and after 250, of the MLP.

"trained": `online_data.COUNTS` says of how many images; features are 1,280 of EfficientNet-Lite0 with ImageNet's
weights at 64 x 64, pixels 16 x 16 for a ResNet of 8, 16 and 32 channels. Batches of 100 and 100 clean samples, SGD with
momentum 0.9. The learning rate of each way is that of `RATES` with which it is most accurate on clean images of seed 0
that it does not learn from: on either half of them, where the other half is what it is given. The weighting network
has its default optimizer, the paper's. Test images decide nothing. Through higher and TorchOpt the look-ahead is plain
gradient descent, as the authors' code has it. Rates that `online.jsonl` has already are not chosen again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks import _measure
from benchmarks.online_data import COUNTS, NOISES, corrupted, extracted
from benchmarks.online_tables import LOSSES, drawing, newest, table
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import LearningToReweight, MetaWeightNet, WeightNet

RESULTS = _measure.ROOT / "results" / "online"
LOSS = partial(F.cross_entropy, reduction="none")
OBJECTIVE = WeightedLoss(LOSS)
RATE, BATCH = 0.05, 100
NET_RATE = 0.001  # of the weighting network, by Adam: `MetaWeightNet`'s own, and the paper's
_FEATURES = (0.05, 0.005, 0.0005, 0.00005)
RATES = {"few": _FEATURES, "all": _FEATURES, "pixels": (0.2, 0.05, 0.0125)}
STEPS = {"few": 450, "all": 1000, "pixels": 200}
Step = Callable[[Batch, Batch], Tensor]


def sgd(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """The optimizer of every way."""
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def _weighted_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, weight: Tensor) -> None:
    optimizer.zero_grad()
    (weight * LOSS(model(batch.inputs), batch.targets)).mean().backward()
    optimizer.step()


def plain(model: nn.Module, rate: float = RATE) -> Step:
    """An ordinary step."""
    optimizer = sgd(model, rate)

    def step(batch: Batch, clean: Batch) -> Tensor:
        _weighted_step(model, optimizer, batch, torch.ones(len(batch)))
        return torch.ones(len(batch))

    return step


def two_plain(model: nn.Module, rate: float = RATE) -> Step:
    """The floor: a step of the batch and one of the clean samples."""
    one = plain(model, rate)

    def step(batch: Batch, clean: Batch) -> Tensor:
        one(clean, clean)
        return one(batch, clean)

    return step


def ours(method: Callable[..., Any], model: nn.Module, rate: float = RATE) -> Step:
    """A step of an online method of the package; the clean samples of each step are given to it."""
    optimizer = sgd(model, rate)
    online: Any = None

    def step(batch: Batch, clean: Batch) -> Tensor:
        nonlocal online
        if online is None:
            online = method(model, optimizer, OBJECTIVE, clean)
        online.clean.samples = clean
        found: Tensor = online.step(batch).weights
        step.net = getattr(online, "net", None)  # type: ignore[attr-defined]
        return found

    return step


def _learning_to_reweight(look: Callable[..., Any], model: nn.Module, rate: float = RATE) -> Step:
    optimizer = sgd(model, rate)

    def step(batch: Batch, clean: Batch) -> Tensor:
        epsilon = torch.zeros(len(batch), requires_grad=True)
        clean_loss, back = look(model, batch, epsilon, clean, rate)
        weight = (-torch.autograd.grad(clean_loss, epsilon)[0]).clamp(min=0)
        back()
        total = weight.sum()
        weight = len(batch) * weight / total if total > 0 else weight
        if total > 0:
            _weighted_step(model, optimizer, batch, weight)
        return weight

    return step


def _meta_weight_net(look: Callable[..., Any], model: nn.Module, rate: float = RATE) -> Step:
    optimizer = sgd(model, rate)
    torch.manual_seed(0)
    net = WeightNet()
    net_optimizer = torch.optim.Adam(net.parameters(), lr=NET_RATE)

    def weigh(losses: Tensor) -> Tensor:
        weight: Tensor = net(losses)
        return weight * (len(weight) / weight.sum())

    def step(batch: Batch, clean: Batch) -> Tensor:
        with torch.no_grad():
            losses = LOSS(model(batch.inputs), batch.targets)
        clean_loss, back = look(model, batch, weigh(losses), clean, rate)
        net_optimizer.zero_grad()
        clean_loss.backward()
        back()
        net_optimizer.step()
        with torch.no_grad():
            weight = weigh(losses)
        _weighted_step(model, optimizer, batch, weight)
        return weight

    return step


def by_higher(
    model: nn.Module, batch: Batch, weight: Tensor, clean: Batch, rate: float
) -> tuple[Tensor, Callable[[], None]]:
    """Return the clean loss after a look ahead through higher, and what puts the model back (nothing is to do)."""
    import higher

    plain_descent = torch.optim.SGD(model.parameters(), lr=rate)
    with higher.innerloop_ctx(model, plain_descent, copy_initial_weights=True) as (ahead, taken):
        taken.step((weight * LOSS(ahead(batch.inputs), batch.targets)).mean())
        return LOSS(ahead(clean.inputs), clean.targets).mean(), lambda: None


def by_torchopt(
    model: nn.Module, batch: Batch, weight: Tensor, clean: Batch, rate: float
) -> tuple[Tensor, Callable[[], None]]:
    """Return the clean loss after a look ahead through TorchOpt, and what puts the model back."""
    import torchopt

    taken = torchopt.MetaSGD(model, lr=rate)
    before = torchopt.extract_state_dict(model)
    taken.step((weight * LOSS(model(batch.inputs), batch.targets)).mean())
    value = LOSS(model(clean.inputs), clean.targets).mean()
    return value, lambda: torchopt.recover_state_dict(model, before)


FLOOR, BY_ROWS = "two plain steps (the floor)", 'MetaWeightNet, normalise="batch"'
WAYS: dict[str, Callable[..., Step]] = {
    "plain step": plain,
    FLOOR: two_plain,
    "LearningToReweight": partial(ours, LearningToReweight),
    "learning to reweight, higher": partial(_learning_to_reweight, by_higher),
    "learning to reweight, TorchOpt": partial(_learning_to_reweight, by_torchopt),
    "MetaWeightNet": partial(ours, MetaWeightNet),
    BY_ROWS: partial(ours, partial(MetaWeightNet, normalise="batch")),
    "meta-weight-net, higher": partial(_meta_weight_net, by_higher),
    "meta-weight-net, TorchOpt": partial(_meta_weight_net, by_torchopt),
}
TRAINED = ["plain step", "LearningToReweight", "MetaWeightNet", BY_ROWS]
REMEMBERED = ["plain step", "LearningToReweight", "learning to reweight, higher", "MetaWeightNet"]
REMEMBERED.append("meta-weight-net, higher")


class Block(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(4, after), nn.GroupNorm(4, after)])
        self.past = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        found: Tensor = self.past(x) + self.norms[1](self.two(self.norms[0](self.one(x)).relu()))
        return found.relu()


def resnet(width: int = 16) -> nn.Module:
    """Return a small ResNet of `width`, twice and four times `width` channels."""
    stages = [Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), *stages, head)


def mlp() -> nn.Module:
    """Return a net of 784, 256 and 10 units."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def steps(rounds: int, nets: Sequence[str] = ("ResNet", "MLP")) -> list[dict[str, Any]]:
    """Return the CPU time of a step of every way."""
    rows = []
    for name, make, shape, count in (("ResNet", resnet, (3, 32, 32), rounds), ("MLP", mlp, (784,), 8 * rounds)):
        if name not in nets:
            continue
        torch.manual_seed(0)
        batch, clean = (Batch.of(torch.randn(BATCH, *shape), torch.arange(BATCH) % 10) for _ in range(2))
        made = {way: make_step(make()) for way, make_step in WAYS.items() if way != BY_ROWS}
        spent: dict[str, list[float]] = {way: [] for way in made}
        for number in range(count + 1):
            for way, step in made.items():
                taken, _ = _measure.seconds(partial(step, batch, clean))
                if number:  # the first warms up
                    spent[way].append(taken)
        rows += [{"net": name, "way": way, "seconds": median(times)} for way, times in spent.items()]
    return rows


def memory() -> list[dict[str, Any]]:
    """Return what the process has in memory after 50 steps and after 250, in MB."""
    rows = []
    batch, clean = (Batch.of(torch.randn(BATCH, 784), torch.arange(BATCH) % 10) for _ in range(2))
    for way in REMEMBERED:
        step = WAYS[way](mlp())
        found = []
        for count in (50, 200):
            for _ in range(count):
                step(batch, clean)
            found.append(_measure.anonymous() / 2**20)
        rows.append({"memory": found, "way": way})
    return rows


def tuned(data: dict[str, Tensor], noise: str, way: str, images: str) -> dict[str, Any]:
    """Return the row of a way's learning rate: the most accurate on seed 0 and clean images it has not learned from."""
    train, _ = corrupted(data, noise, seed=0)

    def accuracy(rate: float) -> float:
        right = []
        for learned, held_out in permutations(range(2)):
            halves = [data[name].chunk(2) for name in ("clean", "clean_labels")]
            own = {**data, "clean": halves[0][learned], "clean_labels": halves[1][learned]}
            try:
                model, *_ = fitted(own, train, way, 0, images, rate)
            except FloatingPointError:  # it has diverged
                return 0.0
            with torch.no_grad():
                right.append(model(halves[0][held_out]).argmax(1) == halves[1][held_out])
        return round(100 * float(torch.cat(right).double().mean()), 2)

    found = {rate: accuracy(rate) for rate in RATES[images]}
    best = max(found, key=lambda rate: found[rate])
    return {
        "tuned": images,
        "noise": noise,
        "way": way,
        "rate": best,
        "accuracies": {f"{r:g}": a for r, a in found.items()},
    }


def fitted(
    data: dict[str, Tensor], train: Batch, way: str, seed: int, images: str, rate: float
) -> tuple[nn.Module, Tensor, Step, float]:
    """Train by one way; return the model, each sample's sum of weights (or of helps), the step, and CPU seconds."""
    clean = Batch.of(data["clean"], data["clean_labels"])
    torch.manual_seed(seed)
    model = resnet(8) if images == "pixels" else nn.Linear(train.inputs.shape[1], 10)
    step = WAYS[way](model, rate)
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(train))

    def train_all() -> None:
        order = torch.zeros(0, dtype=torch.int64)
        for _ in range(STEPS[images]):
            order = torch.randperm(len(train), generator=g) if not len(order) else order
            rows, order = order[:BATCH], order[BATCH:]
            weight = step(train.take(rows), clean.take(torch.randperm(len(clean), generator=g)[:BATCH]))
            total[rows] += (weight > 0).float() if "eweight" in way else weight

    spent, _ = _measure.seconds(train_all)
    return model, total, step, spent


def trained(
    data: dict[str, Tensor], noise: str, way: str, seed: int, images: str = "few", rate: float = RATE
) -> dict[str, Any]:
    """Train by one way on one seed; return its row."""
    train, wrong = corrupted(data, noise, seed)
    model, total, step, spent = fitted(data, train, way, seed, images, rate)
    with torch.no_grad():
        outputs = torch.cat([model(some) for some in data["test"].split(500)])
    test = 100 * float((outputs.argmax(1) == data["test_labels"]).double().mean())
    row = {"images": images, "noise": noise, "way": way, "seed": seed, "rate": rate, "test": test, "seconds": spent}
    if bool(wrong.any()) and way != "plain step":
        row["AUROC"] = 100 * roc_auc_score(wrong.numpy(), -total.numpy())
    if (net := getattr(step, "net", None)) is not None:
        with torch.no_grad():
            row["weight of a loss"] = [round(float(one), 4) for one in net(torch.tensor(LOSSES))]
    return row


def main() -> None:
    """Measure, a line of JSON each, or print the tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "memory", "trained", "table"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], action=_measure.Seeds)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nets", choices=["ResNet", "MLP"], nargs="+", default=["ResNet", "MLP"])
    parser.add_argument("--images", choices=[*COUNTS], default="few")
    parser.add_argument("--noises", choices=NOISES, nargs="+", default=NOISES)
    ways = [way for way in WAYS if way != FLOOR]
    parser.add_argument("--ways", choices=ways, nargs="+", default=TRAINED)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "online.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "table":
        rows = newest([json.loads(line) for line in given.out.read_text().splitlines()])
        print(table(rows))
        if not any("images" in row for row in rows):  # nothing was trained, so there is nothing to draw
            return
        (given.out.parent / "weight_of_loss.svg").write_text(drawing(rows))
        return
    with given.out.open("a") as file:
        if given.what in ("steps", "memory"):
            rows = steps(given.rounds, given.nets) if given.what == "steps" else memory()
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        cache = given.cache or Path(f"runs/online_{given.images}.safetensors")
        data = extracted(given.data_root, cache, given.images)
        known = [json.loads(line) for line in given.out.read_text().splitlines()]
        chosen = {(row["tuned"], row["noise"], row["way"]): row["rate"] for row in known if "tuned" in row}

        def note(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        for noise, way in product(given.noises, given.ways):
            if (rate := chosen.get((given.images, noise, way))) is None:
                note(row := tuned(data, noise, way, given.images))
                rate = row["rate"]
            for seed in given.seeds:
                note(trained(data, noise, way, seed, given.images, rate))


if __name__ == "__main__":
    main()
