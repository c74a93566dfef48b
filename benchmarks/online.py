"""Online reweighting on CIFAR-10: the package's ways beside the same through higher and TorchOpt.

    python -m benchmarks.online steps                                  # time of a step; a minute on one core
    python -m benchmarks.online features --data-root ROOT              # a last layer on frozen features
    python -m benchmarks.online table

"steps": a ResNet of 16, 32 and 64 channels (0.17 M parameters, GroupNorm) on 32 x 32 noise and an MLP, batches of 100
and 100 clean samples, SGD with momentum; CPU time of one thread, median of interleaved rounds. The floor: two plain
steps, one of the batch and one of the clean samples.

"features": 1,280 features of EfficientNet-Lite0 with ImageNet's weights at 64 x 64, of 3,000 training, 500 clean and
1,500 test images; 40 % of the labels flipped to a uniformly drawn one, or a long tail of 1 : 100. Batches of 100, 15
epochs, SGD 0.05 with momentum 0.9. Test images decide nothing. Through higher and TorchOpt the look-ahead is plain
gradient descent, as the authors' code has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks import _measure
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import LearningToReweight, MetaWeightNet, WeightNet

RESULTS = _measure.ROOT / "results" / "online"
LOSS = partial(F.cross_entropy, reduction="none")
OBJECTIVE = WeightedLoss(LOSS)
RATE, BATCH, STEPS = 0.05, 100, 450
COUNTS = {
    "few": {"train": 3000, "clean": 500, "test": 1500},
    "all": {"train": 49_000, "clean": 1000, "test": 10_000},
}
Step = Callable[[Batch, Batch], Tensor]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every way."""
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


def _weighted_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, weight: Tensor) -> None:
    optimizer.zero_grad()
    (weight * LOSS(model(batch.inputs), batch.targets)).mean().backward()
    optimizer.step()


def plain(model: nn.Module) -> Step:
    """An ordinary step."""
    optimizer = sgd(model)

    def step(batch: Batch, clean: Batch) -> Tensor:
        _weighted_step(model, optimizer, batch, torch.ones(len(batch)))
        return torch.ones(len(batch))

    return step


def two_plain(model: nn.Module) -> Step:
    """The floor: a step of the batch and one of the clean samples."""
    one = plain(model)

    def step(batch: Batch, clean: Batch) -> Tensor:
        one(clean, clean)
        return one(batch, clean)

    return step


def ours(method: type[LearningToReweight] | type[MetaWeightNet], model: nn.Module) -> Step:
    """A step of an online method of the package; the clean samples of each step are given to it."""
    optimizer = sgd(model)
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


def _learning_to_reweight(look: Callable[..., Any], model: nn.Module) -> Step:
    optimizer = sgd(model)

    def step(batch: Batch, clean: Batch) -> Tensor:
        epsilon = torch.zeros(len(batch), requires_grad=True)
        clean_loss, back = look(model, batch, epsilon, clean)
        weight = (-torch.autograd.grad(clean_loss, epsilon)[0]).clamp(min=0)
        back()
        total = weight.sum()
        weight = len(batch) * weight / total if total > 0 else weight
        if total > 0:
            _weighted_step(model, optimizer, batch, weight)
        return weight

    return step


def _meta_weight_net(look: Callable[..., Any], model: nn.Module) -> Step:
    optimizer = sgd(model)
    torch.manual_seed(0)
    net = WeightNet()
    net_optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(batch: Batch, clean: Batch) -> Tensor:
        with torch.no_grad():
            losses = LOSS(model(batch.inputs), batch.targets)
        clean_loss, back = look(model, batch, net(losses), clean)
        net_optimizer.zero_grad()
        clean_loss.backward()
        back()
        net_optimizer.step()
        with torch.no_grad():
            weight: Tensor = net(losses)
        _weighted_step(model, optimizer, batch, weight)
        return weight

    return step


def by_higher(model: nn.Module, batch: Batch, weight: Tensor, clean: Batch) -> tuple[Tensor, Callable[[], None]]:
    """Return the clean loss after a look ahead through higher, and what puts the model back (nothing is to do)."""
    import higher

    plain_descent = torch.optim.SGD(model.parameters(), lr=RATE)
    with higher.innerloop_ctx(model, plain_descent, copy_initial_weights=True) as (ahead, taken):
        taken.step((weight * LOSS(ahead(batch.inputs), batch.targets)).mean())
        return LOSS(ahead(clean.inputs), clean.targets).mean(), lambda: None


def by_torchopt(model: nn.Module, batch: Batch, weight: Tensor, clean: Batch) -> tuple[Tensor, Callable[[], None]]:
    """Return the clean loss after a look ahead through TorchOpt, and what puts the model back."""
    import torchopt

    taken = torchopt.MetaSGD(model, lr=RATE)
    before = torchopt.extract_state_dict(model)
    taken.step((weight * LOSS(model(batch.inputs), batch.targets)).mean())
    value = LOSS(model(clean.inputs), clean.targets).mean()
    return value, lambda: torchopt.recover_state_dict(model, before)


WAYS: dict[str, Callable[[nn.Module], Step]] = {
    "plain step": plain,
    "two plain steps (the floor)": two_plain,
    "LearningToReweight": partial(ours, LearningToReweight),
    "learning to reweight, higher": partial(_learning_to_reweight, by_higher),
    "learning to reweight, TorchOpt": partial(_learning_to_reweight, by_torchopt),
    "MetaWeightNet": partial(ours, MetaWeightNet),
    "meta-weight-net, higher": partial(_meta_weight_net, by_higher),
    "meta-weight-net, TorchOpt": partial(_meta_weight_net, by_torchopt),
}
TRAINED = [name for name in WAYS if name not in ("two plain steps (the floor)", "learning to reweight, TorchOpt")]
TRAINED.remove("meta-weight-net, TorchOpt")  # the mathematics of higher's


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


def resnet() -> nn.Module:
    """Return a small ResNet."""
    stages = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), *stages, head)


def mlp() -> nn.Module:
    """Return a net of 784, 256 and 10 units."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def steps(rounds: int) -> list[dict[str, Any]]:
    """Return the CPU time of a step of every way."""
    rows = []
    for name, make, shape, count in (("ResNet", resnet, (3, 32, 32), rounds), ("MLP", mlp, (784,), 8 * rounds)):
        torch.manual_seed(0)
        batch, clean = (Batch.of(torch.randn(BATCH, *shape), torch.arange(BATCH) % 10) for _ in range(2))
        made = {way: make_step(make()) for way, make_step in WAYS.items()}
        spent: dict[str, list[float]] = {way: [] for way in made}
        for number in range(count + 1):
            for way, step in made.items():
                taken, _ = _measure.seconds(partial(step, batch, clean))
                if number:  # the first warms up
                    spent[way].append(taken)
        rows += [{"net": name, "way": way, "seconds": median(times)} for way, times in spent.items()]
    return rows


def extracted(root: Path, cache: Path, images: str) -> dict[str, Tensor]:
    """Return standardised features and labels of the images; they are computed once, and kept in `cache`."""
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(_features(root, COUNTS[images]), cache)
    found = load_file(cache)
    centre = found["train"].float().mean(0)
    spread = found["train"].float().std(0) + 1e-6
    return {name: (one - centre) / spread if one.is_floating_point() else one for name, one in found.items()}


def _features(root: Path, counts: dict[str, int]) -> dict[str, Tensor]:
    """Return features in 16 bits and labels, of the first images of each class."""
    from studies.photographs.backbone import whole

    network = whole().eval().network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    found: dict[str, Tensor] = {}
    random = numpy.random.RandomState(0)
    for part, folder in (("train", "train"), ("clean", "train"), ("test", "test")):
        each, first = counts[part] // 10, counts["train"] // 10 if part == "clean" else 0
        features, labels = [], []
        for label, kind in enumerate(sorted((root / "cifar10" / folder).iterdir())):
            paths = sorted(kind.iterdir())[first : first + each]
            pixels = torch.stack([torch.from_numpy(numpy.asarray(Image.open(path).convert("RGB"))) for path in paths])
            images = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
            with torch.inference_mode():
                for some in images.split(100):
                    large = F.interpolate(some, (64, 64), mode="bilinear", align_corners=False)
                    large = large.to(memory_format=torch.channels_last)
                    features.append(network.extract_features(large).mean((2, 3)).half().clone())
            labels.append(torch.full((each,), label))
        order = torch.from_numpy(random.permutation(10 * each))
        found[part], found[f"{part}_labels"] = torch.cat(features)[order], torch.cat(labels)[order]
    return found


def corrupted(data: dict[str, Tensor], noise: str, seed: int) -> tuple[Batch, Tensor]:
    """Return the training samples of a noise, and which labels are wrong."""
    random = numpy.random.RandomState(seed)
    labels = data["train_labels"]
    if noise == "flip":
        chosen = torch.from_numpy(random.rand(len(labels)) < 0.4)
        other = (labels + torch.from_numpy(random.randint(1, 10, len(labels)))) % 10
        return Batch.of(data["train"], torch.where(chosen, other, labels)), chosen
    most = int((labels == 0).sum())
    kept = torch.cat([
        (labels == label).nonzero()[: max(1, round(most * 0.01 ** (label / 9))), 0] for label in range(10)
    ])  # fmt: skip
    kept = kept[torch.from_numpy(random.permutation(len(kept)))]
    return Batch.of(data["train"][kept], labels[kept]), torch.zeros(len(kept), dtype=torch.bool)


def trained(data: dict[str, Tensor], noise: str, way: str, seed: int) -> dict[str, Any]:
    """Train a last layer by one way on one seed; return its row."""
    train, wrong = corrupted(data, noise, seed)
    clean = Batch.of(data["clean"], data["clean_labels"])
    torch.manual_seed(seed)
    model = nn.Linear(train.inputs.shape[1], 10)
    step = WAYS[way](model)
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(train))
    epochs = EPOCHS * max(1, COUNTS["train"] // len(train))

    def train_all() -> None:
        for _ in range(epochs):
            for rows in torch.randperm(len(train), generator=g).split(BATCH):
                weight = step(train.take(rows), clean.take(torch.randperm(len(clean), generator=g)[:BATCH]))
                total[rows] += (weight > 0).float() if "eweight" in way else weight

    spent, _ = _measure.seconds(train_all)
    with torch.no_grad():
        test = 100 * float((model(data["test"]).argmax(1) == data["test_labels"]).double().mean())
    row: dict[str, Any] = {"noise": noise, "way": way, "seed": seed, "test": test, "seconds": spent}
    if bool(wrong.any()) and way != "plain step":
        row["AUROC"] = 100 * roc_auc_score(wrong.numpy(), -total.numpy())
    if (net := getattr(step, "net", None)) is not None:
        row["weight of a loss"] = [round(float(net(torch.tensor([loss]))), 4) for loss in (0.0, 1.0, 2.0, 4.0, 8.0)]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return both tables in Markdown."""
    lines = ["| net | way | ms a step | beside the floor |", "|---|---|---|---|"]
    timed = [row for row in rows if "net" in row]
    for row in timed:
        floor = next(r["seconds"] for r in timed if r["net"] == row["net"] and "floor" in r["way"])
        lines.append(f"| {row['net']} | {row['way']} | {1e3 * row['seconds']:.1f} | {row['seconds'] / floor:.2f} |")
    lines += ["", "| noise | way | test accuracy | AUROC of wrong labels | CPU s |", "|---|---|---|---|---|"]
    for noise in ("flip", "long tail"):
        for way in TRAINED:
            own = [row for row in rows if row.get("noise") == noise and row["way"] == way]
            if own:
                cells = [_over(own, "test"), _over(own, "AUROC"), f"{mean(row['seconds'] for row in own):.1f}"]
                lines.append(f"| {noise} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _over(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "") if values else ""


def main() -> None:
    """Measure, a line of JSON each, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "features", "table"])
    parser.add_argument("--seeds", type=int, nargs="+", action=_measure.Seeds, default=[101, 102, 103])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", choices=[*COUNTS], default="few")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/online_features.safetensors"))
    parser.add_argument("--out", type=Path, default=RESULTS / "online.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "table":
        print(table([json.loads(line) for line in given.out.read_text().splitlines()]))
        return
    with given.out.open("a") as file:
        if given.what == "steps":
            file.writelines(json.dumps(row) + "\n" for row in steps(given.rounds))
            return
        data = extracted(given.data_root, given.cache, given.images)
        for seed in given.seeds:
            for noise in ("flip", "long tail"):
                for way in TRAINED:
                    file.write(json.dumps(trained(data, noise, way, seed)) + "\n")
                    file.flush()


if __name__ == "__main__":
    main()
