"""Choose settings where the folds of the cross-validation contain wrong labels, too.

    python examples/noisy_folds.py

scikit-learn's breast cancer; two fifths of the malignant training rows were recorded as benign. A search over the size
of a tree's leaves is scored on the folds as they were recorded, on fifty checked rows, and with learned weights.
"""

import numpy as np
import sklearn
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, PredefinedSplit, train_test_split
from sklearn.tree import DecisionTreeClassifier

from steelyard.estimators import ReweightedClassifier

GRID = {"min_samples_leaf": [1, 5, 20, 80]}


def accuracies(seed: int) -> dict[str, float]:
    """Return the test accuracy of what each search chose, on one draw of the data."""
    rows, labels = load_breast_cancer(return_X_y=True)
    X, rest, right, rest_labels = train_test_split(rows, labels, train_size=300, random_state=seed)
    wrong = (right == 0) & (np.random.default_rng(seed).random(300) < 0.4)
    y = np.where(wrong, 1, right)
    clean, second, test = ((rest[part], rest_labels[part]) for part in (slice(50), slice(50, 100), slice(100, None)))
    weight = ReweightedClassifier(epochs=10).fit(X, y, validation=clean).sample_weight_

    recorded = GridSearchCV(DecisionTreeClassifier(random_state=0), GRID, cv=3).fit(X, y)

    fold = np.concatenate([np.full(300, -1), np.zeros(50)])  # -1 always trains; the checked rows are the one fold
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), GRID, cv=PredefinedSplit(fold), refit=False)
    search.fit(np.concatenate([X, second[0]]), np.concatenate([y, second[1]]))
    checked = DecisionTreeClassifier(random_state=0, **search.best_params_).fit(X, y)

    with sklearn.config_context(enable_metadata_routing=True):
        tree = DecisionTreeClassifier(random_state=0).set_fit_request(sample_weight=True)
        scoring = get_scorer("accuracy").set_score_request(sample_weight=True)
        weighted = GridSearchCV(tree, GRID, cv=3, scoring=scoring).fit(X, y, sample_weight=weight)
    return {
        "folds as recorded": recorded.score(*test),
        "scored on checked rows": checked.score(*test),
        "weights in training and in the score": weighted.best_estimator_.score(*test),
    }


def main(draws: int = 10) -> dict[str, float]:
    """Print the mean over draws of the data for each search; return them."""
    found = [accuracies(seed) for seed in range(draws)]
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    for name, mean in means.items():
        print(f"{name:38} {mean:.3f}")
    return means


if __name__ == "__main__":
    main()
