"""A model under a random mask over its parameters, with a learned keep-probability for each of them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from steelyard.reweight import Mask, project_box_simplex

__all__ = ["MaskedModel"]


class MaskedModel(nn.Module):
    """A model whose weights are multiplied by a mask drawn anew at each training forward pass.

    The masked parameters are those with two dimensions or more; biases and the parameters of norms are left alone.
    In training the mask is the relaxed (Gumbel-sigmoid) sample of `steelyard.reweight.Mask`; in evaluation it is a hard
    one, ``1[u < s]`` with uniforms u that stay the same, so that evaluating twice gives the same figures.

    `parameters()` gives the weights; the keep-probabilities, `scores`, are a buffer that takes gradients (so that an L2
    term over the parameters does not see them). They need an optimizer, and `project` after each of its steps.

    Args:
        model: what is masked; trained in place.
        start: keep-probability to begin with.
        seed: of the masks.
        mask: the relaxation; its temperature reads `progress`.
    """

    scores: Float[Tensor, " m"]
    uniforms: Float[Tensor, " m"]

    def __init__(self, model: nn.Module, start: float, seed: int, mask: Mask | None = None) -> None:
        super().__init__()
        self.model, self.mask, self.progress = model, Mask("relaxed") if mask is None else mask, 0.0
        self.masked = {name: p.shape for name, p in model.named_parameters() if p.ndim > 1}
        parameter = next(model.parameters())
        size = sum(shape.numel() for shape in self.masked.values())
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("scores", torch.full((size,), float(start), device=parameter.device).requires_grad_())
        self.register_buffer("uniforms", torch.rand(size, generator=self.generator).to(parameter.device))

    def forward(self, inputs: Shaped[Tensor, "n *features"]) -> Shaped[Tensor, "n *outputs"]:
        """Return the masked model's outputs."""
        mask = self.draw() if self.training else self.hard()
        pieces = mask.split([shape.numel() for shape in self.masked.values()])
        parameters = dict(self.model.named_parameters())
        masked = {n: parameters[n] * m.reshape(s) for (n, s), m in zip(self.masked.items(), pieces, strict=True)}
        return torch.func.functional_call(self.model, masked, (inputs,))

    def draw(self) -> Float[Tensor, " m"]:
        """Return a new relaxed mask, with a graph to the scores."""
        return self.mask.relaxed(self.scores, self.generator, progress=self.progress)

    def hard(self) -> Float[Tensor, " m"]:
        """Return the mask of evaluation, zeros and ones."""
        return (self.uniforms < self.scores.detach()).to(self.scores.dtype)

    def project(self, budget: float) -> None:
        """Put the scores onto {0 <= s <= 1, sum s <= budget * number of scores}."""
        with torch.no_grad():
            self.scores.copy_(project_box_simplex(self.scores.detach(), budget * len(self.scores), equality=False))
