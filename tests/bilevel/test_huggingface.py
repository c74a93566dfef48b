"""A Hugging Face classifier in the user's own loop: padded dicts, dropout, AdamW, a schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steelyard._support._torchvision  # noqa: F401 (transformers imports it, beside a CPU's torch too)
from steelyard.bilevel import Batch, FiniteDifference, Recorder, Streamed, Trajectory, Truncated, WeightedLoss
from steelyard.reweight import InnerRun, Maple, MeanRisk
from tests.bilevel.problems import CROSS_ENTROPY, relative

transformers = pytest.importorskip("transformers", reason="the extra [huggingface]")

COUNT, TOKENS, WORDS = 8, 9, 23
OBJECTIVE = WeightedLoss(CROSS_ENTROPY, outputs="logits")


def classifier() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=TOKENS,
        num_labels=3,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
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

    def run(self, weight: Tensor) -> tuple[nn.Module, Trajectory]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = classifier().double().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
            scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 2, 10)
            data, generator = texts(), torch.Generator().manual_seed(4)
            with Recorder(model, optimizer, OBJECTIVE, self.window) as recorder:
                for number in range(self.warmup + self.window):
                    used = weight if number >= self.warmup else torch.ones_like(weight)
                    optimizer.zero_grad()
                    for _ in range(self.accumulate):
                        rows = torch.randint(0, COUNT, (5,), generator=generator)
                        (recorder.loss(data.take(rows), used[rows]) / self.accumulate).backward()
                    if self.clip is not None:
                        self.norms.append(float(recorder.clip_grad_norm_(model.parameters(), self.clip)))
                    optimizer.step()
                    scheduler.step()
                return model, recorder.trajectory()

    def truth(self, step: float = 1e-5) -> Tensor:
        """Central differences of the whole run, every sample."""
        differences = [self._value(i, step) - self._value(i, -step) for i in range(COUNT)]
        return torch.tensor(differences, dtype=torch.float64) / (2 * step)

    def _value(self, sample: int, step: float) -> float:
        weight = start_weight()
        weight[sample] += step
        model, _ = self.run(weight)
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
    _, record = loop.run(start_weight())
    assert all(norm > 1.2 for norm in loop.norms)  # the clip bites at every step
    assert all(
        len(step.micro_batches) == loop.accumulate and bool(step.clips) == (loop.clip is not None)
        for step in record.steps
    )
    expected = loop.truth()
    assert (expected != 0).sum() >= 3
    for estimator in (Truncated(window), FiniteDifference(window)):
        assert relative(estimator(record, outer, torch.arange(COUNT)), expected) < 1e-6


def test_an_outer_run_learns_from_ragged_texts() -> None:
    """Token lists of any length, padded batch by batch; the mislabelled ones lose weight."""
    data = texts(24)
    wrong = torch.arange(24) < 6
    labels = (data.inputs["input_ids"][:, 0] % 2).where(~wrong, 1 - data.inputs["input_ids"][:, 0] % 2)
    lists = [ids[keep > 0].tolist() for ids, keep in zip(*data.inputs.values(), strict=True)]
    items = [{"input_ids": ids, "label": int(y)} for ids, y in zip(lists, labels, strict=True)]

    def padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [torch.tensor(one["input_ids"]) for one in items]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    train = Streamed.of_dataset(items, "label", collate=padded, chunk=16)
    clean = texts(24, seed=5)
    clean = Batch.of(clean.inputs, clean.inputs["input_ids"][:, 0] % 2)
    inner = InnerRun(
        classifier, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2), OBJECTIVE, steps=30, batch_size=12
    )
    result = Maple(inner, MeanRisk(), learn="weights", steps=4).fit(train, clean)
    assert result.weights[wrong].mean() < result.weights[~wrong].mean()
