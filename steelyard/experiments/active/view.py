"""What a selector may look at: the models and the pool's inputs, never an oracle label that was not asked for."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import selectors
from steelyard.bilevel.batch import Batch
from steelyard.experiments.active.fitting import Learned

__all__ = ["View", "last_linear", "read"]

_CHUNK = 4096  # samples a forward pass


def last_linear(model: nn.Module) -> nn.Linear:
    """Return the model's last `nn.Linear`: what goes into it is the embedding h, in every net.

    Raises:
        ValueError: the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear, so that it has no embedding to select by")
    return layers[-1]


@torch.no_grad()
def read(model: nn.Module, inputs: Tensor) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n features"]]:
    """Return logits and embeddings of `inputs` in eval mode; the mode is put back."""
    hidden: list[Tensor] = []
    handle = last_linear(model).register_forward_pre_hook(lambda module, args: hidden.append(args[0].flatten(1)))
    training = model.training
    try:
        model.eval()
        logits = [model(part) for part in inputs.split(_CHUNK)]
    finally:
        handle.remove()
        model.train(training)
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
