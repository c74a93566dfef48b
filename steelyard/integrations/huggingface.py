"""Hugging Face's `Trainer`, with the last steps recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

import steelyard._support._torchvision  # noqa: F401 (transformers imports it, beside a CPU's torch too)
from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._packages import needed_by
from steelyard.bilevel import Batch, Recorder, SampleLoss, Trajectory, WeightedLoss

with needed_by("steelyard.integrations.huggingface", install="steelyard[huggingface]"):
    from transformers import Trainer

__all__ = ["RecordingTrainer"]

_INDEX = "steelyard_index"
_LABELS = "labels"


class RecordingTrainer(Trainer):
    """A `transformers.Trainer` whose samples have weights, and whose last steps are recorded.

    All is as in `Trainer`, but for the training loss: ``sum w_i l_i / sum w_i`` over the samples of a batch, l_i by
    `loss` of the model's logits; the model is called without labels. After `train`, `trajectory` is what an estimator
    takes. Accumulated gradients and clipping (``max_grad_norm``) are recorded as well.

    Args:
        args: as for `Trainer`.
        weight: ``(n,)`` a weight for each sample of `train_dataset`, by its position; None: ones. It may be set between
            two calls of `train`.
        steps: T, how many of the last steps are kept.
        loss: ``(logits, labels) -> (batch,)``, one number a sample.
        kwargs: as for `Trainer`.

    Attributes:
        trajectory: of the last `train`; None before. A model that was put back (``load_best_model_at_end``) is not the
            recorded one, and an estimator then says so.

    Raises:
        ValueError: a train_dataset without a length, weights that do not fit it, fp16 or several devices in one
            process.

    Example:
        ``trainer = RecordingTrainer(model, arguments, train_dataset=data, weight=w, steps=3); trainer.train()``, then
        ``Truncated(steps=3)(trainer.trajectory, outer)``.
    """

    train_dataset: Any
    data_collator: Any
    optimizer: Any
    _signature_columns: Any

    def __init__(
        self,
        *args: Any,
        weight: Tensor | Numbers | None = None,
        steps: int = 1,
        loss: SampleLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError("train_dataset has no length: weights are by a sample's position, so give a map-style one")
        if self.args.fp16:
            raise ValueError(
                "fp16=True scales the loss step by step, which is not recorded here; use bf16=True, or neither"
            )
        if self.args.n_gpu > 1:
            raise ValueError(f"{self.args.n_gpu} devices in one process: start one process a device, by torchrun")
        self.weight = weight
        self.record_steps = _check.integer("steps", steps, low=1)
        self.objective = WeightedLoss(loss or partial(F.cross_entropy, reduction="none"), outputs="logits")
        self.trajectory: Trajectory | None = None
        self.model_accepts_loss_kwargs = False  # so that `Trainer` divides the loss where it accumulates
        self._recorder: Recorder | None = None
        self._set_signature_columns_if_needed()
        columns = set(self._signature_columns) if self.args.remove_unused_columns else None
        self._numbered = _Numbered(self.train_dataset, columns)
        self.data_collator = partial(_collated, self.data_collator)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; the record is in `trajectory` afterwards."""
        self.trajectory, given, clip = None, self.train_dataset, self.accelerator.clip_grad_norm_
        self._weight = self._checked_weight()
        self.train_dataset = self._numbered
        self.accelerator.clip_grad_norm_ = self._clip
        try:
            result = super().train(*args, **kwargs)
            if self._recorder is not None:
                self.trajectory = self._recorder.trajectory()
            return result
        finally:
            self.train_dataset = given
            self.accelerator.clip_grad_norm_ = clip
            if self._recorder is not None:
                self._recorder.close()
            self._recorder = None

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the weighted loss of a training batch, recorded; for any other batch what `Trainer` returns."""
        index = inputs.pop(_INDEX, None)
        if index is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if self._recorder is None:
            raw = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's is a wrapper
            self._recorder = Recorder(model, raw, self.objective, self.record_steps)
        read = {name: value for name, value in inputs.items() if name != _LABELS}
        weight = self._weight[index.cpu()].to(index.device)
        return self._recorder.loss(Batch(read, inputs[_LABELS], index), weight)

    def _clip(self, parameters: Any, max_norm: float, norm_type: float = 2.0) -> Tensor:
        assert self._recorder is not None  # a loss came before
        return self._recorder.clip_grad_norm_(parameters, max_norm, norm_type)

    def _checked_weight(self) -> Tensor:
        count = len(self._numbered)
        if self.weight is None:
            return torch.ones(count)
        weight = _check.floats("weight", self.weight, ("n",)).detach()
        if len(weight) != count:
            raise ValueError(f"weight has {len(weight)} entries, but train_dataset has {count} samples")
        return weight.cpu()


class _Item(NamedTuple):
    """A sample of the training set, and where it stands."""

    position: int
    features: Any


class _Numbered(Dataset):
    """The samples of a data set with their positions; of a dict the entries that the model takes."""

    def __init__(self, dataset: Any, columns: set[str] | None) -> None:
        self.dataset, self.columns = dataset, columns

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> _Item:
        features = self.dataset[position]
        if self.columns is not None and isinstance(features, Mapping):
            features = {name: value for name, value in features.items() if name in self.columns}
        return _Item(position, features)


def _collated(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> dict[str, Any]:
    """Return a batch as `collate` makes it; of numbered samples with their positions."""
    if not isinstance(items[0], _Item):
        return collate(items)
    batch = dict(collate([item.features for item in items]))
    if _LABELS not in batch:
        raise ValueError(f"a batch has no {_LABELS!r}, but {sorted(batch)}: name the labels so in train_dataset")
    return {**batch, _INDEX: torch.tensor([item.position for item in items])}
