"""Reweighting in scikit-learn's form: `fit(X, y, validation=...)`, and weights for any other estimator.

    python examples/sklearn_estimator.py

scikit-learn's digits, 40 % of the training labels wrong, a hundred rows whose labels are right. The weights then go
into `sample_weight=` of logistic regression, histogram boosting and, where they are installed, XGBoost and LightGBM.
"""

import warnings
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from steelyard.estimators import ReweightedClassifier


def boosters() -> dict[str, Any]:
    """Return XGBoost's and LightGBM's classifiers, as far as these are installed."""
    found: dict[str, Any] = {}
    try:
        from xgboost import XGBClassifier

        found["XGBoost"] = XGBClassifier(n_estimators=30, max_depth=3, n_jobs=1, random_state=0)
    except ImportError:
        pass
    try:
        from lightgbm import LGBMClassifier

        found["LightGBM"] = LGBMClassifier(n_estimators=30, num_leaves=7, n_jobs=1, random_state=0, verbose=-1)
    except ImportError:
        pass
    return found


def main() -> dict[str, tuple[float, float]]:
    """Print accuracies without and with the weights; return them."""
    pixels, digits = load_digits(return_X_y=True)
    pixels, rest_pixels, given, rest = train_test_split(pixels, digits, train_size=900, random_state=0)
    draws = np.random.default_rng(0)
    wrong = draws.random(900) < 0.4
    given = np.where(wrong, (given + draws.integers(1, 10, 900)) % 10, given)
    clean, test = (rest_pixels[:100], rest[:100]), (rest_pixels[100:], rest[100:])

    model = ReweightedClassifier(epochs=10).fit(pixels, given, validation=clean)
    weight = model.sample_weight_
    print(f"mean weight: {weight[wrong].mean():.2f} of wrong labels, {weight[~wrong].mean():.2f} of right ones")

    accuracies = {
        "the weighted model": (ReweightedClassifier(epochs=10).fit(pixels, given).score(*test), model.score(*test))
    }
    others = {
        "logistic regression": LogisticRegression(max_iter=50),
        "histogram boosting": HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=7, random_state=0),
        **boosters(),
    }
    for name, estimator in others.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 50 iterations are enough to compare, and it says they are not to converge
            plain = estimator.fit(pixels, given).score(*test)
            accuracies[name] = (plain, estimator.fit(pixels, given, sample_weight=weight).score(*test))
    for name, (plain, weighted) in accuracies.items():
        print(f"{name:20} {plain:.3f} without weights, {weighted:.3f} with them")
    return accuracies


if __name__ == "__main__":
    main()
