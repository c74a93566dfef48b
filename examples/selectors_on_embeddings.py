"""Which samples to label? Selections from embeddings and from a first model's probabilities.

    python examples/selectors_on_embeddings.py

The pool is scikit-learn's digits, its embeddings their first 20 principal components; yours come from any network.
Without a label TypiClust takes one typical image of every cluster. With those labelled, a first model says where it is
unsure, and BADGE takes images that are unsure in different ways. Random choices of the same size stand beside both.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from steelyard import selectors

FIRST, SECOND = 20, 40  # images to label in the first round, and in the second


def main() -> dict[str, float]:
    """Print accuracies on the images that were not in the pool; return them."""
    pixels, digits = load_digits(return_X_y=True)
    embeddings = PCA(20, random_state=0).fit_transform(pixels / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(digits))
    pool, test = order[:1200], order[1200:]

    def fitted(rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(max_iter=500).fit(embeddings[rows], digits[rows])  # asks for these labels alone

    def at_random(count: int) -> float:
        draws = [np.random.default_rng(seed).choice(pool, count, replace=False) for seed in range(10)]
        return float(np.mean([fitted(rows).score(embeddings[test], digits[test]) for rows in draws]))

    generator = torch.Generator().manual_seed(0)
    first = pool[selectors.typiclust(embeddings[pool], FIRST, generator=generator).numpy()]
    model = fitted(first)

    rest = np.setdiff1d(pool, first)
    probabilities = np.zeros((len(rest), 10))
    probabilities[:, model.classes_] = model.predict_proba(embeddings[rest])  # a class may be missing so far
    picked = selectors.badge(probabilities.astype("float32"), embeddings[rest], SECOND, generator=generator)
    both = np.concatenate([first, rest[picked.numpy()]])

    accuracies = {
        f"{FIRST} by TypiClust": model.score(embeddings[test], digits[test]),
        f"{FIRST} at random": at_random(FIRST),
        f"{FIRST} by TypiClust, {SECOND} by BADGE": fitted(both).score(embeddings[test], digits[test]),
        f"{FIRST + SECOND} at random": at_random(FIRST + SECOND),
    }
    for name, accuracy in accuracies.items():
        print(f"{name}: {accuracy:.3f}")
    return accuracies


if __name__ == "__main__":
    main()
