"""Models of several inputs and of answers that are no tensor, in runs that can be repeated with other weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, Recorder, Trajectory, WeightedLoss

COUNT, TOKENS, WORDS, CLASSES = 8, 5, 7, 3
CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")


@dataclass
class Answer:
    """As Hugging Face's models have it."""

    logits: Tensor
    hidden: Tensor | None = None


class Text(nn.Module):
    """The mean over the tokens that count, of padded sequences; a loss a token where `tokens` is asked for."""

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, CLASSES)
        self.dropout, self.tokens = nn.Dropout(0.3), tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Answer:
        rows, mask = self.dropout(torch.tanh(self.table(input_ids))), attention_mask.unsqueeze(2)
        hidden = rows if self.tokens else (rows * mask).sum(1) / mask.sum(1)
        return Answer(self.head(hidden), hidden)


class ImageAndTable(nn.Module):
    """Called with two tensors; answers with a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.table = nn.Conv2d(1, 2, 2), nn.Linear(3, 2)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, image: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([torch.tanh(self.convolution(image)).flatten(1), torch.tanh(self.table(row))], 1)
        return self.head(hidden), hidden


class Deep(nn.Module):
    """Takes a dict that holds a tuple; answers with a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ImageAndTable()

    def forward(self, both: tuple[Tensor, Tensor], scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(*both)[0] * scale.unsqueeze(1)}


def text(generator: torch.Generator) -> tuple[Any, Tensor]:
    lengths = torch.randint(1, TOKENS + 1, (COUNT,), generator=generator)
    mask = torch.arange(TOKENS) < lengths.unsqueeze(1)
    ids = torch.randint(1, WORDS, (COUNT, TOKENS), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask.double()}, classes(generator)


def labelled_tokens(generator: torch.Generator) -> tuple[Any, Tensor]:
    inputs, _ = text(generator)
    labels = torch.randint(0, CLASSES, (COUNT, TOKENS), generator=generator)
    return inputs, labels.where(inputs["attention_mask"] > 0, -100)


def image_and_table(generator: torch.Generator) -> tuple[Any, Tensor]:
    numbers = partial(torch.randn, generator=generator, dtype=torch.float64)
    return (numbers(COUNT, 1, 3, 3), numbers(COUNT, 3)), classes(generator)


def deep(generator: torch.Generator) -> tuple[Any, Tensor]:
    both, targets = image_and_table(generator)
    return {"both": both, "scale": torch.rand(COUNT, generator=generator, dtype=torch.float64)}, targets


def classes(generator: torch.Generator) -> Tensor:
    return torch.randint(0, CLASSES, (COUNT,), generator=generator)


def mean_over_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(logits.mT, targets, reduction="none")
    return losses.sum(1) / (targets != -100).sum(1)


def called(model: nn.Module, inputs: Any) -> Any:
    return model(row=inputs[1], image=inputs[0])


@dataclass(frozen=True)
class Case:
    """`run(weight)` trains from the same start on the same batches and returns model and record."""

    make: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], tuple[Any, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY
    chosen: dict[str, Any] = field(default_factory=dict)
    dropout: bool = False

    @property
    def objective(self) -> WeightedLoss:
        return WeightedLoss(self.loss, **self.chosen)

    def data(self, seed: int = 1) -> Batch:
        return Batch.of(*self.draw(torch.Generator().manual_seed(seed)))

    def outer(self, model: nn.Module) -> Tensor:
        held_out = self.data(seed=2)
        model.eval()
        return self.loss(self.objective.outputs_of(model, held_out.inputs), held_out.targets).mean()

    def run(
        self, weight: Tensor, window: int, warmup: int = 2, batch: int = 5, adaptive: bool = True, **options: Any
    ) -> tuple[nn.Module, Trajectory]:
        """The weights act inside of the window only: that is the derivative that an estimator claims."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, data = self.make().double(), self.data()
            if adaptive:
                optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
            else:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            generator = torch.Generator().manual_seed(4)
            with Recorder(model, optimizer, self.objective, window, **options) as recorder:
                for number in range(warmup + window):
                    rows = torch.randint(0, COUNT, (batch,), generator=generator)
                    used = weight if number >= warmup else torch.ones_like(weight)
                    loss = recorder.loss(data.take(rows), used[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                return model, recorder.trajectory()

    def truth(self, weight: Tensor, window: int, step: float = 1e-6, **options: Any) -> Tensor:
        """Central differences of the whole run, every sample."""
        result = torch.zeros_like(weight)
        for sample in range(COUNT):
            up, down = (self._value(weight, sample, sign * step, window, **options) for sign in (1, -1))
            result[sample] = (up - down) / (2 * step)
        return result

    def _value(self, weight: Tensor, sample: int, step: float, window: int, **options: Any) -> float:
        moved = weight.clone()
        moved[sample] += step
        model, _ = self.run(moved, window, **options)
        with torch.no_grad():
            return float(self.outer(model))


CASES = {
    "a dict, a dataclass": Case(Text, text, chosen={"outputs": "logits"}, dropout=True),
    "a loss a token": Case(
        partial(Text, tokens=True), labelled_tokens, mean_over_tokens, {"outputs": lambda answer: answer.logits}, True
    ),
    "a tuple, a tuple": Case(ImageAndTable, image_and_table, chosen={"outputs": 0}),
    "a call of one's own": Case(ImageAndTable, image_and_table, chosen={"outputs": 0, "call": called}),
    "a tuple in a dict, a dict": Case(Deep, deep, chosen={"outputs": "logits"}),
}


def start_weight() -> Tensor:
    return 0.5 + torch.rand(COUNT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
