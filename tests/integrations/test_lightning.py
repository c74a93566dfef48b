"""A Lightning module records its last steps: the derivative is that of training again under its Trainer."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steelyard._support._torchvision  # noqa: F401 (torchmetrics imports it, beside a CPU's torch too)
from steelyard.bilevel import Batch, Truncated, WeightedLoss
from tests.support.problems import CROSS_ENTROPY, relative

lightning = pytest.importorskip("lightning", reason="the extra [lightning]")

DATA = Batch.of(torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(6) % 3)


def outer(model: nn.Module) -> Tensor:
    source = torch.Generator().manual_seed(2)
    return F.cross_entropy(model(torch.randn(5, 4, generator=source, dtype=torch.float64)), torch.arange(5) % 3)


def net(weight: Tensor, recorded: bool = True) -> Any:
    from steelyard.integrations.lightning import RecordingMixin

    class Plain(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layers(inputs)

        def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
            losses = CROSS_ENTROPY(self(DATA.inputs[rows]), DATA.targets[rows])
            return (weight[rows] * losses).sum() / weight[rows].sum()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    class Recording(RecordingMixin, Plain):
        objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        record_steps = 2

        def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
            return self.recorded_loss(DATA.take(rows), weight[rows])

    return Recording() if recorded else Plain()


def fitted(module: Any, folder: Path, **settings: Any) -> Any:
    rows = torch.randint(6, (8, 3), generator=torch.Generator().manual_seed(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **settings,
        )
        trainer.fit(module, torch.utils.data.DataLoader(list(rows), batch_size=None))
    return module


def start() -> Tensor:
    return 0.5 + torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


SETTINGS = [
    {},
    {"gradient_clip_val": 0.2},
    {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    {"accumulate_grad_batches": 2, "gradient_clip_val": 0.2},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_training_is_that_of_lightning(tmp_path: Path, settings: dict[str, Any]) -> None:
    ours, plain = fitted(net(start()), tmp_path, **settings), fitted(net(start(), False), tmp_path, **settings)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert ours.trainer.global_step == plain.trainer.global_step


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_derivative_is_that_of_training_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Of the last two steps: the first steps' weights stay, as the truncated derivative claims."""
    settings = {**settings, "limit_train_batches": 2 * settings.get("accumulate_grad_batches", 1)}
    found = Truncated(steps=2)(fitted(net(start()), tmp_path, **settings).trajectory, outer, torch.arange(6))
    expected = torch.zeros(6, dtype=torch.float64)
    for i in range(6):
        for sign in (1, -1):
            weight = start()
            weight[i] += sign * 1e-5
            expected[i] += sign * float(outer(fitted(net(weight, False), tmp_path, **settings)).detach()) / 2e-5
    assert relative(found, expected) < 1e-6


def test_outside_of_fit_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="call it in training_step"):
        net(start()).training_step(torch.arange(3), 0)


def test_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bf16-mixed' or '32-true'"):
        fitted(net(start()), tmp_path, precision="16-true")
