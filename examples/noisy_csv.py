"""A CSV whose labels are partly wrong: which rows to look at first, and a weight for every row.

    python examples/noisy_csv.py [FOLDER]

The table is scikit-learn's breast cancer; the script makes a tenth of the labels wrong and writes it as `tumours.csv`.
Models that were not trained on a row judge its label. Fifty rows that somebody checked then tell how much each row
helps. (By command: `steelyard suspects`, `steelyard weigh --clean`.)
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer

from steelyard import Batch, InnerRun, WeightedLoss
from steelyard.estimators import ReweightedClassifier
from steelyard.reweight import cross_fit_scores

CHECKED = 50  # the last rows of the table: somebody has looked at their labels


def write_table(file: Path) -> np.ndarray:
    """Write the table with wrong labels; return which rows are wrong, for the figures at the end alone."""
    table = load_breast_cancer(as_frame=True).frame.sample(frac=1, random_state=0, ignore_index=True)
    wrong = (np.random.default_rng(0).random(len(table)) < 0.1) & (np.arange(len(table)) < len(table) - CHECKED)
    table["kind"] = np.where((table.pop("target") == 1) ^ wrong, "benign", "malignant")
    table.to_csv(file, index_label="row")
    return wrong


def suspicion(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how suspect each label is, high first: the margin of models that were trained on the other rows."""
    standard = (inputs - inputs.mean(0)) / inputs.std(0)
    data = Batch.of(standard.astype("float32"), (labels == "malignant").astype("int64"))
    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    inner = InnerRun(
        lambda: torch.nn.Linear(inputs.shape[1], 2), partial(torch.optim.Adam, lr=0.01), objective, steps=60
    )
    return -cross_fit_scores(inner, data, torch.ones(len(data)), repeats=1).aum.numpy()


def main(folder: str = ".") -> dict[str, float]:
    """Write tumours.csv and weights.csv; print what was found, and return it."""
    place = Path(folder)
    wrong = write_table(place / "tumours.csv")

    table = pandas.read_csv(place / "tumours.csv", index_col="row")  # from here on nobody knows `wrong`
    inputs, labels = table.drop(columns="kind").to_numpy(), table["kind"].to_numpy()
    train, checked = np.arange(len(table) - CHECKED), np.arange(len(table) - CHECKED, len(table))
    suspect = suspicion(inputs[train], labels[train])
    model = ReweightedClassifier().fit(inputs[train], labels[train], validation=(inputs[checked], labels[checked]))

    found = pandas.DataFrame(
        {"row": train, "label": labels[train], "weight": model.sample_weight_, "suspicion": suspect}
    )
    found.sort_values("suspicion", ascending=False).to_csv(place / "weights.csv", index=False)

    count = int(wrong.sum())
    figures = {
        "wrong labels": count,
        "among as many suspects": int(wrong[np.argsort(-suspect)[:count]].sum()),
        "mean weight of a wrong label": float(model.sample_weight_[wrong[train]].mean()),
        "mean weight of a right label": float(model.sample_weight_[~wrong[train]].mean()),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    return figures


if __name__ == "__main__":
    main(*sys.argv[1:])
