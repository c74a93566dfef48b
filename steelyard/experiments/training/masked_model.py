"""A model under a random mask over its parameters, with a learned keep-probability for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from steelyard.checkpoint import Stateful
from steelyard.reweight import Mask, project_box_simplex

__all__ = ["MaskedModel"]


class MaskedModel(nn.Module):
    """A model whose weights are multiplied by a mask drawn again at each training forward pass.

    The masked parameters are those with two dimensions or more; biases and the parameters of norms are left alone.
    In training the mask is the relaxed (Gumbel-sigmoid) sample of `steelyard.reweight.Mask`; in evaluation it is a hard
    one, ``1[u < s]`` with uniforms u that stay the same, so that evaluating twice gives the same figures. After `fix`
    the mask is the given one in both modes.

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
        self.fixed = False
        self.masked = {name: p.shape for name, p in model.named_parameters() if p.ndim > 1}
        parameter = next(model.parameters())
        size = sum(shape.numel() for shape in self.masked.values())
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("scores", torch.full((size,), float(start), device=parameter.device).requires_grad_())
        self.register_buffer("uniforms", torch.rand(size, generator=self.generator).to(parameter.device))

    def forward(self, inputs: Shaped[Tensor, "n *features"]) -> Shaped[Tensor, "n *outputs"]:
        """Return the masked model's outputs."""
        mask = self.draw() if self.training and not self.fixed else self.hard()
        parameters = dict(self.model.named_parameters())
        masked = {name: parameters[name] * piece for name, piece in self._pieces(mask).items()}
        return torch.func.functional_call(self.model, masked, (inputs,))

    def _pieces(self, mask: Tensor) -> dict[str, Tensor]:
        """Return each masked parameter's part of `mask`, in its shape."""
        pieces = mask.split([shape.numel() for shape in self.masked.values()])
        return {name: m.reshape(shape) for (name, shape), m in zip(self.masked.items(), pieces, strict=True)}

    def fix(self, mask: Float[Tensor, " m"]) -> None:
        """From now on use this one mask, of zeros and ones; the weights that it leaves out become 0 and stay so.

        The scores become the mask and take no gradients any more.

        Raises:
            ValueError: another length, other values, or a parameter of which nothing is left.
        """
        if mask.shape != self.scores.shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"mask must have {len(self.scores)} entries, each 0 or 1, got shape {tuple(mask.shape)}")
        for name, piece in self._pieces(mask).items():
            if not bool(piece.any()):
                raise ValueError(f"the mask leaves nothing of {name!r}, and the outputs would be constant; keep more")
        self.fixed = True
        with torch.no_grad():
            self.scores = mask.to(self.scores).clone()
            for name, piece in self._pieces(self.scores).items():
                self.model.get_parameter(name).mul_(piece)

    def draw(self) -> Float[Tensor, " m"]:
        """Return a new relaxed mask, with a graph to the scores."""
        return self.mask.relaxed(self.scores, self.generator, progress=self.progress)

    def hard(self) -> Float[Tensor, " m"]:
        """Return the mask of evaluation, zeros and ones."""
        return (self.uniforms < self.scores.detach()).to(self.scores.dtype)

    def follow(self, optimizer: torch.optim.Optimizer, steps: int, budget: float) -> Stateful:
        """After each step of `optimizer` from now on project the scores and move `progress` on by 1 / `steps`.

        Returns:
            What steps change beside parameters and buffers: something that `train` has to `carry`.
        """

        def move(*unused: object) -> None:
            self.progress = (round(self.progress * steps) + 1) / steps
            self.project(budget)

        optimizer.register_step_post_hook(move)
        return _Course(self)

    def project(self, budget: float) -> None:
        """Put the scores onto {0 <= s <= 1, sum s <= budget * number of scores}."""
        with torch.no_grad():
            self.scores.copy_(project_box_simplex(self.scores.detach(), budget * len(self.scores), equality=False))


class _Course:
    """The progress of a masked model and the generator of its masks: its own `state_dict` has tensors alone."""

    def __init__(self, model: MaskedModel) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.model.generator.get_state(), "progress": self.model.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.generator.set_state(state["generator"])
        self.model.progress = float(state["progress"])
