"""Lightning: a module whose last steps are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import steelyard._support._torchvision  # noqa: F401 (torchmetrics imports it, beside a CPU's torch too)
from steelyard._support._check import Numbers
from steelyard._support._modules import parameters_of
from steelyard._support._packages import needed_by
from steelyard.bilevel import Batch, Objective, Recorder, Trajectory

with needed_by("steelyard.integrations.lightning", install="steelyard[lightning]"):
    import lightning  # noqa: F401 (the module that this is mixed into is the user's)

__all__ = ["RecordingMixin"]


class RecordingMixin:
    """For a `LightningModule` with automatic optimization: record its last steps.

    ``class Net(RecordingMixin, LightningModule)`` sets `objective`, and returns `recorded_loss` from `training_step`;
    the module's `forward` is the model. After `Trainer.fit`, `trajectory` is what an estimator takes. Accumulated
    gradients and the Trainer's clipping are recorded as well.

    Attributes:
        objective: the inner loss, usually a `WeightedLoss`.
        record_steps: T, how many of the last steps are kept.
        trajectory: of the last fit; None before.

    Raises (in `fit`):
        ValueError: several optimizers, several processes, or 16-bit precision with a scaled loss.
    """

    objective: Objective
    record_steps: int = 1
    trajectory: Trajectory | None = None
    _recorder: Recorder | None = None

    def recorded_loss(self, batch: Batch, weight: Tensor | Numbers) -> Tensor:
        """Return the weighted loss of a training batch, recorded.

        Args:
            batch: inputs, targets and the ids of its samples.
            weight: ``(batch,)``.

        Raises:
            RuntimeError: outside of `Trainer.fit`.
        """
        if self._recorder is None:
            raise RuntimeError("recorded_loss records a training step: call it in training_step, under Trainer.fit")
        return self._recorder.loss(batch, weight)

    def on_train_start(self) -> None:
        """Begin to record."""
        optimizers = self.optimizers(use_pl_optimizer=False)  # type: ignore[attr-defined]
        trainer = self.trainer  # type: ignore[attr-defined]
        if isinstance(optimizers, list):
            raise ValueError(f"configure_optimizers returned {len(optimizers)} optimizers; one step is recorded of one")
        if trainer.world_size > 1:
            raise ValueError(f"{trainer.world_size} processes: Lightning's are not recorded, use Trainer(devices=1)")
        if trainer.precision.startswith("16"):
            raise ValueError(f"precision={trainer.precision!r} scales the loss; use 'bf16-mixed' or '32-true'")
        self.trajectory = None
        self._recorder = Recorder(self, optimizers, self.objective, self.record_steps)  # type: ignore[arg-type]
        super().on_train_start()  # type: ignore[misc]

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take the step after its gradient, not around it: a recorder sees the gradient before the step begins."""
        if optimizer_closure is not None:
            optimizer_closure()
        trainer = self.trainer  # type: ignore[attr-defined]
        self.on_before_optimizer_step(optimizer)  # type: ignore[attr-defined]
        self.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        getattr(optimizer, "optimizer", optimizer).step()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip through the recorder, as the Trainer was told to."""
        if not gradient_clip_val or self._recorder is None:
            return
        parameters = parameters_of(optimizer)
        if getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm) == "value":  # an enumeration, or its word
            self._recorder.clip_grad_value_(parameters, gradient_clip_val)
        else:
            self._recorder.clip_grad_norm_(parameters, gradient_clip_val)

    def on_train_end(self) -> None:
        """End the record."""
        if self._recorder is not None:
            self.trajectory = self._recorder.trajectory()
            self._recorder.close()
            self._recorder = None
        super().on_train_end()  # type: ignore[misc]
