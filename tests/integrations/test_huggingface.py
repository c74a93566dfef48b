"""The Trainer of Hugging Face records its last steps: the derivative is that of training again with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steelyard._support._torchvision  # noqa: F401 (transformers imports it, beside a CPU's torch too)
from steelyard.bilevel import Truncated
from tests.support.problems import CROSS_ENTROPY, relative

transformers = pytest.importorskip("transformers", reason="the extra [huggingface]")
pytest.importorskip("accelerate", reason="the extra [huggingface]")

COUNT, TOKENS, WORDS = 6, 5, 17


def classifier() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=TOKENS,
        num_labels=3,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).double()


def texts(seed: int = 1) -> list[dict[str, Any]]:
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (COUNT, TOKENS), generator=source)
    labels = torch.randint(0, 3, (COUNT,), generator=source)
    return [{"input_ids": row, "labels": int(y), "text": "not read"} for row, y in zip(ids, labels, strict=True)]


def outer(model: nn.Module) -> Tensor:
    held_out = texts(seed=2)
    model.eval()
    logits = model(torch.stack([item["input_ids"] for item in held_out])).logits
    return CROSS_ENTROPY(logits, torch.tensor([item["labels"] for item in held_out])).mean()


def trained(folder: Path, weight: Tensor | None, **settings: Any) -> Any:
    from steelyard.integrations.huggingface import RecordingTrainer

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=2e-3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **{"max_steps": 2, **settings},
    )
    trainer = RecordingTrainer(classifier(), arguments, train_dataset=texts(), weight=weight, steps=2)
    trainer.train()
    return trainer


def start() -> Tensor:
    return 0.5 + torch.rand(COUNT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("settings", [{"max_grad_norm": 0.0}, {"max_grad_norm": 0.5, "gradient_accumulation_steps": 2}])
def test_the_derivative_is_that_of_training_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = trained(tmp_path, start(), **settings)
    found = Truncated(steps=2)(trainer.trajectory, outer, torch.arange(COUNT))
    expected = torch.zeros(COUNT, dtype=torch.float64)
    for i in range(COUNT):
        for sign in (1, -1):
            weight = start()
            weight[i] += sign * 1e-4
            expected[i] += sign * float(outer(trained(tmp_path, weight, **settings).model).detach()) / 2e-4
    assert relative(found, expected) < 1e-5


def test_ones_are_what_trainer_does(tmp_path: Path) -> None:
    ours = trained(tmp_path, None, max_grad_norm=1.0).model
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, learning_rate=2e-3, report_to=[], max_steps=2,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    plain = transformers.Trainer(classifier(), arguments, train_dataset=texts())
    plain.train()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_evaluation_is_that_of_trainer(tmp_path: Path) -> None:
    trainer = trained(tmp_path, None)
    assert trainer.evaluate(texts(seed=2))["eval_loss"] == pytest.approx(float(outer(trainer.model).detach()), rel=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weight has 4 entries, but train_dataset has 6 samples"):
        trained(tmp_path, torch.ones(4))
