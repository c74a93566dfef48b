"""Wrong labels and a few clean rows: Learning to Reweight in the time of one training run.

    python examples/online_reweighting.py

Two classes of points; 40 % of the training labels are flipped, 20 rows are known to be right.
"""

from functools import partial

import torch
import torch.nn.functional as F

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import LearningToReweight


def points(count: int, flipped: int = 0) -> Batch:
    """Return `count` points of two classes, the first `flipped` of them with the other's label."""
    labels = torch.arange(count) % 2
    inputs = torch.randn(count, 4) + 1.5 * (2 * labels[:, None] - 1)
    return Batch.of(inputs, torch.where(torch.arange(count) < flipped, 1 - labels, labels))


def main() -> None:
    """Train with and without the clean rows; print both accuracies and how many wrong labels were found."""
    torch.manual_seed(0)
    train, clean, test = points(200, flipped=80), points(20), points(1000)
    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))

    def accuracy(model: torch.nn.Module) -> float:
        return float((model(test.inputs).argmax(1) == test.targets).double().mean())

    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    online = LearningToReweight(model, optimizer, objective, clean)
    for _ in range(10):  # a loop of your own; online.fit(train, epochs=10, batch_size=20) is the same
        for rows in torch.randperm(200).split(20):
            loss = online.loss(train.take(rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    result = online.result()

    plain = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(plain(train.inputs), train.targets).backward()
        optimizer.step()

    found = int((result.suspects(80) < 80).sum())
    print(f"test accuracy {accuracy(model):.3f} (without the clean rows {accuracy(plain):.3f})")
    print(f"of the 80 samples that helped least {found} have a wrong label")


if __name__ == "__main__":
    main()
