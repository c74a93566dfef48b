"""LHD's score: the state difference between a run and the moving average of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from steelyard import selectors
from steelyard.bilevel.batch import Batch
from steelyard.experiments.priors._term import CHUNK, Term, adam, read
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import Training, train

__all__ = ["LHD"]


@dataclass(frozen=True)
class LHD(Term):
    """||lh||: how far an ordinary run still is from the moving average of its weights, in loss and embedding.

    The form for known labels: the losses are those of the given labels. Needs a hidden layer (the embedding is the
    input of the model's last `nn.Linear`), a run that is still moving at its end, and an average that lags.

    Attributes:
        decay: of the moving average, which is updated after every optimizer step.
        training: the ordinary run.

    References:
        Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, 4.2.
    """

    name: Literal["lhd"] = "lhd"
    decay: float = 0.9
    training: Training = field(default_factory=lambda: adam(50))

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return ||lh_i|| ``(n,)``.

        Raises:
            ValueError: model and average agree on every sample, so that there is nothing to rank by.
        """
        averages: list[AveragedModel] = []

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            if not averages:
                averages.append(selectors.ema(model, self.decay, bias_corrected=True))
            averages[0].update_parameters(model)

        model = train(problem, replace(self.training, evaluate_every=1), observe)
        parts = problem.splits.train.chunks(CHUNK)
        scores = torch.cat([_sizes(model, averages[0].module, part) for part in parts])
        if not bool(scores.any()):
            raise ValueError(
                "the score 'lhd' is 0 for every sample: the model and its average have the same embeddings; "
                "it needs a model with a hidden layer and more than one step of training"
            )
        return scores


def _sizes(model: nn.Module, average: nn.Module, batch: Batch) -> Float[Tensor, " b"]:
    """Return ||lh_i|| of a batch."""
    (main, hidden), (other, other_hidden) = read(model, batch), read(average, batch)
    difference = selectors.state_difference(main, other, hidden, other_hidden, labels=batch.targets)
    return torch.linalg.vector_norm(difference, dim=1)
