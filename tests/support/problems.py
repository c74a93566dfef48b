"""Small inner problems that can be run again with other weights: the finite-difference truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, Recorder, Storage, Trajectory, WeightedLoss

CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.2}),
    "sgd-momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd-dampening": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05}),
    "sgd-nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "sgd-maximize": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.5, "maximize": True, "weight_decay": 0.05}),
    "adam": (torch.optim.Adam, {"lr": 0.02}),
    "adam-decay": (torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.1, "betas": (0.7, 0.9)}),
    "adam-maximize": (torch.optim.Adam, {"lr": 0.01, "maximize": True}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.02, "amsgrad": True, "betas": (0.5, 0.6)}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.2}),
    "adamw-amsgrad": (torch.optim.AdamW, {"lr": 0.02, "amsgrad": True, "betas": (0.5, 0.6), "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.02, "weight_decay": 0.05}),
    "nadam-decoupled": (torch.optim.NAdam, {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.02}),
    "rmsprop-centered": (torch.optim.RMSprop, {"lr": 0.02, "centered": True, "alpha": 0.8, "weight_decay": 0.05}),
    "rmsprop-momentum": (torch.optim.RMSprop, {"lr": 0.02, "momentum": 0.6, "centered": True, "alpha": 0.9}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05}),
    "adagrad-warm": (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.2}),
    "radam": (torch.optim.RAdam, {"lr": 0.2, "betas": (0.8, 0.9)}),  # rectified from the sixth step on
    "radam-decay": (torch.optim.RAdam, {"lr": 0.2, "weight_decay": 0.1, "betas": (0.7, 0.9), "foreach": True}),
    "radam-decoupled": (torch.optim.RAdam, {"lr": 0.2, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "radam-maximize": (torch.optim.RAdam, {"lr": 0.05, "maximize": True, "betas": (0.9, 0.95)}),
    "adamax": (torch.optim.Adamax, {"lr": 0.02}),
    "adamax-decay": (torch.optim.Adamax, {"lr": 0.02, "weight_decay": 0.1, "betas": (0.7, 0.5), "foreach": True}),
    "adamax-maximize": (torch.optim.Adamax, {"lr": 0.01, "maximize": True, "betas": (0.9, 0.8)}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "adadelta-decay": (torch.optim.Adadelta, {"lr": 2.0, "weight_decay": 0.1, "rho": 0.7, "foreach": True}),
    "adadelta-maximize": (torch.optim.Adadelta, {"lr": 1.0, "maximize": True}),
}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def dead_unit() -> nn.Module:
    """One hidden unit that never fires: exactly zero gradients at every step, for its row, bias and outgoing column."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].bias[2] = -1e3
    return model


def batch_norm() -> nn.Module:
    """The bias before BatchNorm has a zero gradient (up to rounding)."""
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def cumulative_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, momentum=None), nn.Tanh(), nn.Linear(5, 3))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2, bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


@dataclass
class Problem:
    """`run(weight)` trains from the same start on the same batches and returns model and record."""

    make: Callable[[], nn.Module] = mlp
    optimizer: str = "sgd-momentum"
    window: int = 3
    warmup: int = 2
    samples: int = 8
    batch: int = 5
    normalise: str = "weights"
    regulariser: Callable[[nn.Module], Tensor] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    schedule: float = 1.0
    evaluation: bool = True
    full_state: bool = False
    dtype: torch.dtype = torch.float64
    storage: Storage = field(default_factory=Storage)
    graphs: bool = False

    def data(self) -> Batch:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(self.samples, 4, generator=generator, dtype=torch.float64).to(self.dtype)
        return Batch.of(inputs, torch.randint(0, 3, (self.samples,), generator=generator))

    def start_weight(self) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return 0.5 + torch.rand(self.samples, generator=generator, dtype=torch.float64).to(self.dtype)

    def outer(self, model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        inputs = torch.randn(7, 4, generator=generator, dtype=torch.float64).to(self.dtype)
        targets = torch.randint(0, 3, (7,), generator=generator)
        model.train(not self.evaluation)
        return F.cross_entropy(model(inputs), targets)

    def run(self, weight: Tensor) -> tuple[nn.Module, Trajectory]:
        """The weights act inside of the window only: that is the derivative that an estimator claims."""
        with torch.random.fork_rng():
            model, optimizer, objective = self._start()
            with Recorder(
                model, optimizer, objective, self.window, self.full_state, storage=self.storage, graphs=self.graphs
            ) as recorder:
                self._train(weight, optimizer, recorder.loss)
                return model, recorder.trajectory()

    def retrained(self, weight: Tensor) -> nn.Module:
        """The same run, which nothing records."""
        with torch.random.fork_rng():
            model, optimizer, objective = self._start()
            self._train(weight, optimizer, partial(objective, model))
            return model

    def _start(self) -> tuple[nn.Module, torch.optim.Optimizer, WeightedLoss]:
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` takes longer than a step
        model = self.make().to(self.dtype)
        kind, settings = OPTIMIZERS[self.optimizer]
        half = len(list(model.parameters())) // 2
        settings = {**settings, **self.options}
        groups = [
            {"params": list(model.parameters())[:half]},
            {"params": list(model.parameters())[half:], "lr": settings["lr"] * 0.7},
        ]
        return model, kind(groups, **settings), WeightedLoss(CROSS_ENTROPY, self.normalise, self.regulariser)

    def _train(
        self, weight: Tensor, optimizer: torch.optim.Optimizer, loss_of: Callable[[Batch, Tensor], Tensor]
    ) -> None:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.schedule)
        data, ones = self.data(), torch.ones(self.samples, dtype=self.dtype)
        generator = torch.Generator().manual_seed(4)
        for number in range(self.warmup + self.window):
            # With replacement: rows repeat inside of a batch and between batches.
            rows = torch.randint(0, self.samples, (self.batch,), generator=generator)
            used = weight if number >= self.warmup else ones
            loss = loss_of(data.take(rows), used[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()

    def truth(self, step: float = 1e-6) -> Tensor:
        """Central differences of plain retraining, every sample."""
        start, result = self.start_weight(), torch.zeros(self.samples, dtype=self.dtype)
        for i in range(self.samples):
            values = []
            for sign in (1.0, -1.0):
                weight = start.clone()
                weight[i] += sign * step
                model = self.retrained(weight)
                with torch.no_grad():
                    values.append(self.outer(model))
            result[i] = (values[0] - values[1]) / (2 * step)
        return result

    def answer(self, estimator: Callable[..., Tensor]) -> Tensor:
        _, trajectory = self.run(self.start_weight())
        return estimator(trajectory, self.outer, torch.arange(self.samples))


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
