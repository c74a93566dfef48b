"""Learn what three sources of data are worth: a weight a source, by differentiating through training.

One source is clean, one is useless (its labels are coin flips), one is mislabelled (its labels are swapped). A
hundred clean samples judge: the weights move down the gradient of their loss through the end of ordinary training.

    python examples/mixture.py
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import InnerRun, Maple, MeanRisk, Shared

SOURCES = ("clean", "useless", "mislabelled")
EACH = 200  # samples a source


def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points in ten dimensions, and whether each lies on the one side of a curve."""
    inputs = torch.randn(count, 10, generator=generator)
    return inputs, (inputs[:, 0] + inputs[:, 1].square() > 1).long()


def mixture(generator: torch.Generator) -> tuple[Batch, torch.Tensor]:
    """Return the samples of all sources, and the source of each ``(n,)``."""
    inputs, labels = draw(len(SOURCES) * EACH, generator)
    source = torch.arange(len(SOURCES)).repeat_interleave(EACH)
    coins = torch.randint(0, 2, labels.shape, generator=generator)
    labels = torch.where(source == 1, coins, torch.where(source == 2, 1 - labels, labels))
    return Batch.of(inputs, labels), source


def network() -> nn.Module:
    """Return a small network, the same at every call of the inner run."""
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))


def main() -> dict[str, float]:
    """Learn the three weights; print them, and how well a model does that trains under them. Return all figures."""
    generator = torch.Generator().manual_seed(0)
    train, source = mixture(generator)
    judges, test = (Batch.of(*draw(count, generator)) for count in (100, 2000))
    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    inner = InnerRun(network, partial(torch.optim.Adam, lr=0.01), objective, steps=100, batch_size=100)

    sources = Shared(source)
    step = partial(torch.optim.Adam, lr=0.3, betas=(0.5, 0.999), eps=1e-12)
    maple = Maple(inner, MeanRisk(), learn="weights", shared=sources, steps=15, weight_optimizer=step)
    result = maple.fit(train, judges)
    weights = dict(zip(SOURCES, sources.mean(result.weights, result.index).tolist(), strict=True))

    found = {}
    for name, used in (("all alike", torch.ones(len(train))), ("learned", result.weights)):
        model, _ = inner(train, used)
        with torch.no_grad():
            found[name] = float((model(test.inputs).argmax(1) == test.targets).float().mean())
    print("weight of a source: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()))
    print("accuracy on the test: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return {**weights, **found}


if __name__ == "__main__":
    main()
