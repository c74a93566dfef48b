"""What a GPU makes of it, in one script of at most eight minutes on an H100.

    python -m benchmarks.gpu                     # on a machine with a GPU; writes results/benchmarks/gpu.md
    python -m benchmarks.gpu --tiny              # the same paths on a CPU, with small nets; writes nothing
    python -m benchmarks.gpu --without           # writes that it was not measured

Parts, each in turn and left out, by name, once the time is spent: `ceiling`, the rate of a large product of matrices
in each precision; `hypergradient`, T = 1 and T = 5 on an MLP and a ResNet-18 beside TorchOpt, in CUDA events, over
plain steps; `sweep`, the derivatives of all samples' losses along a direction, as a share of that ceiling; `maple`,
outer steps on data of Colored MNIST's shape, cross-fitted, plain and with `torch.compile` (CUDA graphs); `resnet50`, a
training step and its hypergradient on images of random pixels. Data are random: this is of speed alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _measure
from steelyard.bilevel import Batch, Recorder, Truncated, WeightedLoss
from steelyard.reweight import CosineDecay, InnerRun, Maple, OuterStep, Sqrt, VREx

BUDGET = 440.0  # seconds of eight minutes, the start of the process left out
LOSS = WeightedLoss(partial(F.cross_entropy, reduction="none"))
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is: `LARGE` on a GPU, `TINY` to try the paths.

    Attributes:
        product: rows of the square matrices.
        batch, image, width: of the nets that are differentiated.
        swept, chunk_bytes: samples of a sweep, and memory of its chunks.
        samples, inner_steps, inner_batch, outer_steps: of MAPLE.
        images, side: of the ResNet-50.
        repeats: times that each thing is timed.
        backend: of `torch.compile`.
    """

    product: int = 8192
    batch: int = 128
    image: int = 32
    width: int = 4096
    swept: int = 200_000
    chunk_bytes: int = 4 * 2**30
    samples: int = 50_000
    inner_steps: int = 300
    inner_batch: int = 500
    outer_steps: int = 4
    images: int = 128
    side: int = 224
    repeats: int = 5
    backend: str = "inductor"


LARGE = Sizes()
TINY = Sizes(64, 4, 8, 8, 40, 2**16, 60, 3, 10, 3, 2, 32, 1, "eager")


class Clock:
    """Seconds of a call on a device: between two CUDA events, or on a CPU of its clock.

    Args:
        device: where the work is.
        repeats: how often a call is timed.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def once(self, call: Callable[[], Any]) -> float:
        """Return what one call takes."""
        if self.device.type != "cuda":
            return _measure.seconds(call)[0]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def __call__(self, call: Callable[[], Any]) -> float:
        """Return the median of a few calls, after two that warm up."""
        for _ in range(2):
            call()
        return median([self.once(call) for _ in range(self.repeats)])


def random_batch(count: int, shape: tuple[int, ...], classes: int, device: torch.device) -> Batch:
    """Return samples that say nothing."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(count, *shape, generator=generator), torch.randint(0, classes, (count,))
    return Batch.of(inputs.to(device), targets.to(device))


def ceiling(sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Yield the rate of a product of two square matrices, in TFLOP/s, in each precision."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.ones(sizes.product, sizes.product, dtype=dtype, device=clock.device) for _ in range(2))
        seconds = clock(lambda a=left, b=right: a @ b)  # type: ignore[misc]
        yield {"part": "ceiling", "what": f"product, {name}", "TFLOP/s": 2 * sizes.product**3 / seconds / 1e12}


def mlp(width: int, inputs: int, classes: int) -> nn.Module:
    """Return a net of two hidden layers."""
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
    return nn.Sequential(*layers)


def resnet18() -> nn.Module:
    """Return a ResNet-18 for small images."""
    from steelyard._support._torchvision import torchvision

    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # type: ignore[assignment]
    return model


def ours(model: nn.Module, batches: list[Batch], held_out: Batch, estimator: Truncated, **options: bool) -> Tensor:
    """Record a step for each of `batches`, and return the hypergradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with Recorder(model, optimizer, LOSS, steps=len(batches), **options) as recorder:
        for batch in batches:
            optimizer.zero_grad()
            recorder.loss(batch, torch.ones(len(batch), device=batch.device)).backward()
            optimizer.step()
        return estimator(recorder.trajectory(), lambda m: F.cross_entropy(m(held_out.inputs), held_out.targets))


def torchopt(model: nn.Module, batches: list[Batch], held_out: Batch) -> Tensor:
    """Do so by TorchOpt, which unrolls; the model is put back."""
    import torchopt as peer

    before = peer.extract_state_dict(model, by="copy")
    weights = [torch.ones(len(batch), device=batch.device, requires_grad=True) for batch in batches]
    optimizer = peer.MetaSGD(model, lr=0.01, momentum=0.9)
    for batch, weight in zip(batches, weights, strict=True):
        optimizer.step(LOSS(model, batch, weight))
    found = torch.autograd.grad(F.cross_entropy(model(held_out.inputs), held_out.targets), weights)
    peer.recover_state_dict(model, before)
    return torch.cat(found)


def plain(model: nn.Module, batch: Batch) -> None:
    """Take one training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    LOSS(model, batch, torch.ones(len(batch), device=batch.device)).backward()
    optimizer.step()
    optimizer.zero_grad()


def peak(device: torch.device, call: Callable[[], Any]) -> float | None:
    """Return the most memory that a call takes beyond what is there, in MiB; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def hypergradient(sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Yield cells: time over T + 1 plain steps, and memory."""
    image, device = (3, sizes.image, sizes.image), clock.device
    nets: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
        ("MLP", lambda: mlp(512, 784, 10), (784,)),
        ("ResNet-18", resnet18, image),
    ]
    for name, build, shape in nets:
        for steps in (1, 5):
            data = random_batch(sizes.batch * steps, shape, 10, device)
            batches, held_out = list(data.chunks(sizes.batch)), random_batch(sizes.batch, shape, 10, device)
            ways: dict[str, Callable[[nn.Module], Any]] = {
                "truncated": partial(ours, batches=batches, held_out=held_out, estimator=Truncated(steps)),
                "TorchOpt": partial(torchopt, batches=batches, held_out=held_out),
            }
            more = {"reuse" if steps == 1 else "graphs": True}
            kept = partial(ours, batches=batches, held_out=held_out, estimator=Truncated(steps), **more)
            ways[next(iter(more))] = kept
            for way, ask in ways.items():
                torch.manual_seed(0)
                model, beside = build().to(device), build().to(device)
                row: Row = {"part": "hypergradient", "what": f"{name}, batch {sizes.batch}, T = {steps}, {way}"}
                try:
                    seconds = clock(lambda ask=ask, model=model: ask(model))  # type: ignore[misc]
                except ImportError as error:
                    yield {**row, "note": f"not measured: {error}"}
                    continue
                step = clock(lambda beside=beside, batch=batches[0]: plain(beside, batch))  # type: ignore[misc]
                memory = peak(device, lambda ask=ask, model=model: ask(model))  # type: ignore[misc]
                yield {**row, "seconds": seconds, "over plain steps": seconds / ((steps + 1) * step), "MiB": memory}


def sweep(sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Yield the sweep over many samples, as a share of what the products alone would take at the ceiling."""
    rate = max(row["TFLOP/s"] for row in ceiling(sizes, clock) if "float32" in row["what"]) * 1e12
    torch.manual_seed(0)
    model = mlp(sizes.width, 784, 10).to(clock.device)
    data = random_batch(sizes.swept, (784,), 10, clock.device)
    batch, outer = data.take(torch.arange(min(sizes.batch, len(data)))), data.take(torch.arange(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, LOSS) as recorder:
        recorder.loss(batch, torch.ones(len(batch), device=clock.device)).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
        estimator = Truncated(memory=sizes.chunk_bytes)
        seconds = clock(lambda: estimator(trajectory, lambda m: LOSS.sample_losses(m, outer).sum(), samples=data))
    weights = [p.numel() for p in model.parameters() if p.ndim == 2]
    count = sizes.swept * (6 * sum(weights) - 2 * weights[0])
    share = count / seconds / rate
    what = f"{sizes.swept} samples, {sum(weights) / 1e6:.3g} million weights, float32"
    yield {
        "part": "sweep",
        "what": what,
        "seconds": seconds,
        "TFLOP/s": count / seconds / 1e12,
        "of the ceiling": share,
    }


def maple(sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Yield the time of an outer step, two folds, by the net that is compiled and not."""
    data = random_batch(sizes.samples, (392,), 2, clock.device)
    environment = torch.arange(len(data), device=clock.device) % 2
    data = Batch(data.inputs, data.targets, data.index, environment)

    def compiled(mode: str | None) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            net = mlp(390, 392, 2).to(clock.device)
            return net if mode is None else torch.compile(net, backend=sizes.backend, **options[mode])  # type: ignore[return-value, call-overload]

        return build

    options: dict[str, dict[str, str]] = {"compiled": {}, "CUDA graphs": {"mode": "reduce-overhead"}}
    modes = [None, "compiled", *(["CUDA graphs"] if clock.device.type == "cuda" else [])]
    for autocast in (None, torch.bfloat16):
        for mode in modes:
            stamps: list[float] = []

            def stamp(step: OuterStep, stamps: list[float] = stamps) -> None:
                if clock.device.type == "cuda":
                    torch.cuda.synchronize()
                stamps.append(time.perf_counter())

            optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
            inner = InnerRun(
                compiled(mode),
                optimizer,
                LOSS,
                sizes.inner_steps,
                sizes.inner_batch,
                autocast=autocast,
                schedule=CosineDecay(),
            )
            run = Maple(inner, Sqrt(VREx()), budget=0.3, steps=sizes.outer_steps, learn="probabilities", folds=2)
            row: Row = {"part": "maple", "what": f"outer step, {autocast or 'float32'}, {mode or 'as it is'}"}
            try:
                run.fit(data, callbacks=[stamp])
            except Exception as error:  # noqa: BLE001 (a compiler that this machine's driver does not suit)
                yield {**row, "note": f"not measured: {type(error).__name__}: {str(error).splitlines()[0][:120]}"}
                continue
            steps = [late - early for early, late in pairwise(stamps)]
            yield {**row, "seconds": median(steps)}


def resnet50(sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Yield a plain step of a ResNet-50 on random pixels, and T = 1 over two of them."""
    from steelyard._support._torchvision import torchvision

    shape = (3, sizes.side, sizes.side)
    batch, held_out = (random_batch(sizes.images, shape, 1000, clock.device) for _ in range(2))
    model = torchvision.models.resnet50().to(clock.device)
    step = clock(lambda: plain(model, batch))
    what = f"ResNet-50, {sizes.images} images of {sizes.side} x {sizes.side}"
    yield {"part": "resnet50", "what": f"{what}, a plain step", "seconds": step}
    for way, options in (("T = 1", {}), ("T = 1, reuse", {"reuse": True})):
        ask = partial(ours, model, [batch], held_out, Truncated(), **options)
        seconds = clock(ask)
        row: Row = {"part": "resnet50", "what": f"{what}, {way}", "seconds": seconds}
        yield {**row, "over plain steps": seconds / (2 * step), "MiB": peak(clock.device, ask)}


PARTS: dict[str, Callable[[Sizes, Clock], Iterator[Row]]] = {
    "ceiling": ceiling,
    "hypergradient": hypergradient,
    "sweep": sweep,
    "maple": maple,
    "resnet50": resnet50,
}


def measure(sizes: Sizes, device: torch.device, budget: float, parts: list[str]) -> list[Row]:
    """Return the rows of `parts`, in order; what would begin after `budget` seconds is named as not measured."""
    clock, started, rows = Clock(device, sizes.repeats), time.monotonic(), list[Row]()
    for part in parts:
        for row in PARTS[part](sizes, clock):
            rows.append(row)
            print(row, flush=True)
            if time.monotonic() - started > budget:
                rows.append({"part": part, "what": "the rest", "note": "not measured: the time was spent"})
                break
    return rows


def report(rows: list[Row], where: str) -> None:
    """Write results/benchmarks/gpu.md."""
    columns = ["part", "what", "seconds", "over plain steps", "MiB", "TFLOP/s", "of the ceiling", "note"]
    notes = [
        f"GPU: {where}. Data are random; medians of {LARGE.repeats} calls after two that warm up, between CUDA events",
        "(of MAPLE the wall time of outer steps after the first). `of the ceiling`: of that of a float32 product.",
    ]
    _measure.write("gpu", "On a GPU", notes, rows, columns)


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="try the paths on this machine's CPU")
    parser.add_argument("--without", action="store_true", help="write that there was no GPU")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no row is begun")
    arguments = parser.parse_args()
    if arguments.tiny:
        measure(TINY, torch.device("cpu"), arguments.budget, arguments.parts)
        return
    if arguments.without:
        report([{"part": part, "what": "", "note": "not measured"} for part in PARTS], "none was at hand")
        return
    if not torch.cuda.is_available():
        parser.error("no GPU is there: --tiny tries the paths on the CPU, --without writes that it was not measured")
    report(measure(LARGE, torch.device("cuda"), arguments.budget, arguments.parts), torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
