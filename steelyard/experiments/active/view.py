"""What a selector may look at: the models and the pool's inputs, never an oracle label that was not asked for."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import selectors
from steelyard._support._modules import evaluating, inputs_of_last_linear
from steelyard.bilevel.batch import Batch
from steelyard.experiments.active.fitting import Learned

__all__ = ["View", "read"]

_CHUNK = 256  # samples a forward pass: LeNet-5 on 28 x 28 takes twice the time at 4096, whose layers leave the cache


@torch.no_grad()
def read(model: nn.Module, inputs: Tensor) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n features"]]:
    """Return logits and embeddings of `inputs` in eval mode; the mode is put back."""
    with evaluating(model), inputs_of_last_linear(model) as hidden:
        logits = [model(part) for part in inputs.split(_CHUNK)]
    return torch.cat(logits), torch.cat(hidden)


class View:
    """The state between two rounds, as a selector sees it. Everything is computed when it is first asked for.

    Args:
        learned: the models of the round before.
        candidates: ``(m, ...)`` inputs of the unlabelled pool; a selector returns positions in it.
        labelled: the samples labelled so far.
        seed: of stochastic forward passes.
    """

    def __init__(self, learned: Learned, candidates: Tensor, labelled: Batch, seed: int) -> None:
        self.learned, self.candidates, self.labelled, self.seed = learned, candidates, labelled, seed

    @property
    def model(self) -> nn.Module:
        """The main model."""
        return self.learned.model

    @property
    def logits(self) -> Tensor:
        """Logits ``(m, classes)`` of the main model."""
        return self._main[0]

    @property
    def probabilities(self) -> Tensor:
        """Softmax outputs ``(m, classes)`` of the main model."""
        return self.logits.softmax(1)

    @property
    def embeddings(self) -> Tensor:
        """Embeddings ``(m, features)`` of the main model."""
        return self._main[1]

    @property
    def average_logits(self) -> Tensor:
        """Logits ``(m, classes)`` of the moving average."""
        return self._average[0]

    @property
    def average_embeddings(self) -> Tensor:
        """Embeddings ``(m, features)`` of the moving average."""
        return self._average[1]

    @property
    def labelled_probabilities(self) -> Tensor:
        """Softmax outputs ``(l, classes)`` of the labelled samples, by the main model."""
        return self._known[0].softmax(1)

    @property
    def labelled_embeddings(self) -> Tensor:
        """Embeddings ``(l, features)`` of the labelled samples, by the main model."""
        return self._known[1]

    def dropout_probabilities(self, draws: int) -> Float[Tensor, "draws m classes"]:
        """Return softmax outputs of passes with the dropout layers on."""
        return selectors.dropout_probabilities(self.model, self.candidates, draws, seed=self.seed, chunk=_CHUNK)

    @cached_property
    def _main(self) -> tuple[Tensor, Tensor]:
        return read(self.model, self.candidates)

    @cached_property
    def _average(self) -> tuple[Tensor, Tensor]:
        return read(self.learned.average, self.candidates)

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor]:
        return read(self.model, self.labelled.inputs)
