"""An outer risk of one's own, its hypergradient checked against training again, and weights that lower it.

    python examples/own_risk.py

A tumour that is missed costs ten times as much as a false alarm. A `Risk` is a function of the outputs, so that is
three lines. The data are scikit-learn's breast cancer; 40 % of the malignant tumours of the training rows were recorded
as benign, and a hundred rows that somebody checked judge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from steelyard import Batch, InnerRun, Maple, MeanRisk, Truncated, WeightedLoss
from steelyard.reweight import Risk

STEPS = 30
MALIGNANT, BENIGN = 0, 1
SampleLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cost(Risk):
    """Mean loss, each sample's multiplied by what a mistake on its class costs.

    Attributes:
        costs: one a class.
    """

    costs: tuple[float, ...]

    def __call__(self, outputs: Tensor, batch: Batch, loss: SampleLoss) -> Tensor:
        """Return the risk, a scalar with a graph to `outputs`."""
        return (outputs.new_tensor(self.costs)[batch.targets] * loss(outputs, batch.targets)).mean()


def check(inner: InnerRun, train: Batch, outer: Callable[[torch.nn.Module], Tensor], rows: list[int]) -> float:
    """Return the greatest relative error of d outer / d weight against central differences of training again."""
    weight, step, errors = torch.ones(len(train), dtype=torch.float64), 1e-4, []
    gradient = Truncated(steps=STEPS)(inner(train, weight)[1], outer)  # all steps of the run: nothing is truncated
    for row in rows:
        moved = step * (torch.arange(len(train)) == row)
        above, below = (float(outer(inner(train, changed)[0]).detach()) for changed in (weight + moved, weight - moved))
        errors.append(abs(float(gradient[row]) * 2 * step / (above - below) - 1))
    return max(errors)


def main() -> dict[str, float]:
    """Print the error of the hypergradient, and the mistakes on a test before and after; return them."""
    torch.manual_seed(0)
    x, y = map(torch.tensor, load_breast_cancer(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)  # float64, so that differences are exact to many digits
    rows, judged, tested = torch.randperm(len(x)).split([269, 100, 200])
    overlooked = (y[rows] == MALIGNANT) & (torch.rand(269) < 0.4)
    train = Batch.of(x[rows], torch.where(overlooked, BENIGN, y[rows]))
    judges, test = Batch.of(x[judged], y[judged]), Batch.of(x[tested], y[tested])

    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    make, optimizer = partial(torch.nn.Linear, 30, 2, dtype=torch.float64), partial(torch.optim.Adam, lr=0.05)
    inner = InnerRun(make, optimizer, objective, steps=STEPS, window=STEPS)
    risk = 0.9 * Cost((10.0, 1.0)) + 0.1 * MeanRisk()  # risks add and scale

    def outer(model: torch.nn.Module) -> Tensor:
        return risk(model(judges.inputs), judges, objective.loss)

    figures = {"relative error of the hypergradient": check(inner, train, outer, rows=[0, 1, 2, 3])}

    adam = partial(torch.optim.Adam, lr=0.2)
    result = Maple(inner, risk, learn="weights", weight_optimizer=adam, steps=20).fit(train, judges)
    for name, weight in (("before", torch.ones(269, dtype=torch.float64)), ("after", result.weights)):
        model, _ = inner(train, weight)
        found = model(test.inputs).argmax(1)
        figures[f"tumours missed {name}"] = int((found[test.targets == MALIGNANT] == BENIGN).sum())
        figures[f"false alarms {name}"] = int((found[test.targets == BENIGN] == MALIGNANT).sum())
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    return figures


if __name__ == "__main__":
    main()
