"""A Hugging Face classifier in the user's own loop: padded dicts, dropout, AdamW, a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steelyard._support._torchvision  # noqa: F401 (transformers imports it, beside a CPU's torch too)
from steelyard.bilevel import Batch, FiniteDifference, Recorder, Streamed, Trajectory, Truncated, WeightedLoss
from steelyard.reweight import InnerRun, Maple, MeanRisk
from tests.support.problems import CROSS_ENTROPY, relative

transformers = pytest.importorskip("transformers", reason="the extra [huggingface]")

COUNT, TOKENS, WORDS = 8, 9, 23
OBJECTIVE = WeightedLoss(CROSS_ENTROPY, outputs="logits")


def classifier(dropout: float = 0.1) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=TOKENS,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.5,  # so that gradients are large enough to be clipped
    )
    return transformers.BertForSequenceClassification(config)


def texts(count: int = COUNT, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, TOKENS + 1, (count,), generator=generator)
    mask = (torch.arange(TOKENS) < lengths.unsqueeze(1)).long()
    ids = torch.randint(1, WORDS, (count, TOKENS), generator=generator) * mask
    return Batch.of({"input_ids": ids, "attention_mask": mask}, torch.randint(0, 3, (count,), generator=generator))


def outer(model: nn.Module) -> Tensor:
    held_out = texts(6, seed=2)
    model.eval()
    return CROSS_ENTROPY(model(**held_out.inputs).logits, held_out.targets).mean()


@dataclass
class Loop:
    """A user's loop; `norms` are of the gradients before they were clipped.

    The weights act inside of the window only: that is the derivative that an estimator claims.
    """

    window: int
    accumulate: int = 1
    clip: float | None = None
    warmup: int = 2
    norms: list[float] = field(default_factory=list)

    def run(self, weight: Tensor) -> Trajectory:
        with (
            self._started() as (model, optimizer, scheduler),
            Recorder(model, optimizer, OBJECTIVE, self.window) as recorder,
        ):
            for batches in self._steps(weight):
                optimizer.zero_grad()
                for batch, used in batches:
                    (recorder.loss(batch, used) / self.accumulate).backward()
                if self.clip is not None:
                    self.norms.append(float(recorder.clip_grad_norm_(model.parameters(), self.clip)))
                optimizer.step()
                scheduler.step()
            return recorder.trajectory()

    def plain(self, weight: Tensor) -> nn.Module:
        """The same without a recorder, and without anything else of ours."""
        with self._started() as (model, optimizer, scheduler):
            for batches in self._steps(weight):
                optimizer.zero_grad()
                for batch, used in batches:
                    losses = CROSS_ENTROPY(model(**batch.inputs).logits, batch.targets)
                    ((used * losses).sum() / used.sum() / self.accumulate).backward()
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                optimizer.step()
                scheduler.step()
            return model

    @contextmanager
    def _started(self) -> Iterator[tuple[nn.Module, torch.optim.Optimizer, Any]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = classifier().double().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
            yield model, optimizer, transformers.get_linear_schedule_with_warmup(optimizer, 2, 10)

    def _steps(self, weight: Tensor) -> Iterator[list[tuple[Batch, Tensor]]]:
        data, generator = texts(), torch.Generator().manual_seed(4)
        for number in range(self.warmup + self.window):
            used = weight if number >= self.warmup else torch.ones_like(weight)
            parts = [torch.randint(0, COUNT, (5,), generator=generator) for _ in range(self.accumulate)]
            yield [(data.take(rows), used[rows]) for rows in parts]

    def truth(self, step: float = 1e-5) -> Tensor:
        """Central differences of plain retraining, every sample."""
        differences = [self._value(i, step) - self._value(i, -step) for i in range(COUNT)]
        return torch.tensor(differences, dtype=torch.float64) / (2 * step)

    def _value(self, sample: int, step: float) -> float:
        weight = start_weight()
        weight[sample] += step
        model = self.plain(weight)
        with torch.no_grad():
            return float(outer(model))


def start_weight() -> Tensor:
    return 0.5 + torch.rand(COUNT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"accumulate": 2, "clip": 1.0}, id="accumulated and clipped"),
    ],
)
def test_the_derivative_is_that_of_training_again(settings: dict[str, Any], window: int) -> None:
    loop = Loop(window, **settings)
    record = loop.run(start_weight())
    assert all(norm > 1.2 for norm in loop.norms)  # the clip bites at every step
    assert all(
        len(step.micro_batches) == loop.accumulate and bool(step.clips) == (loop.clip is not None)
        for step in record.steps
    )
    expected = loop.truth()
    assert (expected != 0).sum() >= 3
    for estimator in (Truncated(window), FiniteDifference(window)):
        assert relative(estimator(record, outer, torch.arange(COUNT)), expected) < 1e-6


def test_an_outer_run_on_ragged_texts_is_that_on_padded_ones() -> None:
    """Token lists of any length, padded batch by batch; what is learned does not hang on the padding."""
    data, clean = texts(24), texts(12, seed=5)
    lists = [ids[keep > 0].tolist() for ids, keep in zip(*data.inputs.values(), strict=True)]
    items = [{"input_ids": ids, "label": int(y)} for ids, y in zip(lists, data.targets, strict=True)]

    def padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(one["input_ids"]) for one in items], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def learned(train: Batch) -> Tensor:
        optimizer = partial(torch.optim.AdamW, lr=1e-2)
        inner = InnerRun(lambda: classifier(dropout=0.0).double(), optimizer, OBJECTIVE, steps=6, batch_size=8)
        return Maple(inner, MeanRisk(), learn="weights", steps=2).fit(train, clean).weights

    expected = learned(data)
    found = learned(Streamed.of_dataset(items, "label", collate=padded, chunk=5))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)  # weights of token ids are float32
    assert expected.std() > 1e-3
