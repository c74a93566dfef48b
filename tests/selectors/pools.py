"""Pools that the tests share, and textbook versions of the two greedy selections."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pool(n: int, classes: int = 4, features: int = 6, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    logits = torch.randn(n, classes, generator=source, dtype=torch.float64) * 2
    embeddings = torch.randn(n, features, generator=source, dtype=torch.float64).relu() + 0.1
    return logits.softmax(1).to(dtype), embeddings.to(dtype)


def gradient_embeddings(probabilities: Tensor, embeddings: Tensor) -> Tensor:
    """(p - onehot(argmax p)) x h, materialised: ``(n, classes * features)``."""
    q = probabilities - torch.nn.functional.one_hot(probabilities.argmax(1), probabilities.shape[1])
    return (q[:, :, None] * embeddings[:, None, :]).flatten(1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] - b[None]).square().sum(2)


def brute_k_center(embeddings: Tensor, k: int, centres: Tensor) -> list[int]:
    """Farthest point first, all distances formed; lowest index at ties."""
    picked: list[int] = []
    if not len(centres):
        picked, centres = [0], embeddings[:1]
    while len(picked) < k:
        nearest = squared_distances(embeddings, centres).amin(1)
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
        centres = torch.cat([centres, embeddings[picked[-1:]]])
    return picked


def sequence_probabilities(vectors: Tensor, start: int | None, length: int, *, stale: bool = False) -> dict:
    """The exact probability of every sequence of `length` centres by D^2 sampling; `start` None: uniform.

    stale: instead let later centres be drawn as if only the first were known, an error the tests must notice.
    """
    distances = squared_distances(vectors.double(), vectors.double()).numpy()
    n = len(distances)
    found = {(i,): 1 / n for i in range(n)} if start is None else {(start,): 1.0}
    for _ in range(length - 1):
        following = {}
        for sequence, probability in found.items():
            known = sequence[:1] if stale else sequence
            mass = distances[list(known)].min(0)
            mass[list(sequence)] = 0
            if mass.sum() == 0:
                mass = np.ones(n)
                mass[list(sequence)] = 0
            for i in np.flatnonzero(mass):
                following[(*sequence, int(i))] = probability * mass[i] / mass.sum()
        found = following
    return found
