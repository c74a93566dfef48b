"""A prior that was computed, with the scores it was made of, and its file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from steelyard._support import _check, _files
from steelyard._support._plain import plain
from steelyard._support._text import parse_json, printable
from steelyard.experiments.data.photographs import Photographs
from steelyard.experiments.errors import RunError
from steelyard.experiments.training.evaluation import number
from steelyard.experiments.training.problem import Problem

__all__ = ["PRIOR", "ComputedPrior", "ComputedScore", "digest"]


PRIOR = "prior.safetensors"  # in a run's directory
_FORMAT, _VERSION = "steelyard.prior", 1
_UNREADABLE = (
    *(OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError),
)


@dataclass(frozen=True, eq=False)
class ComputedScore:
    """One score of the training samples, and the keep-probabilities that its ranks give.

    Attributes:
        name: of the score.
        weight: lambda in the pool.
        keep: whether "high" or "low" scores are kept.
        scores: ``(n,)`` as computed; NaN where missing.
        probabilities: ``(n,)`` float64, under the budget.
        figures: what else is known, such as DR-IS's certificate, by name.
    """

    name: str
    weight: float
    keep: str
    scores: Float[Tensor, " n"]
    probabilities: Float[Tensor, " n"]
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ComputedPrior:
    """The prior of a run: pooled keep-probabilities and what they were pooled from.

    Attributes:
        probabilities: ``(n,)`` float64 in [0, 1], in the order of the training samples.
        index: ``(n,)`` ids of these samples.
        scores: the scores of weight above 0, in the recipe's order.
        digest: of everything that the prior depends on, see `digest`.

    Raises:
        ValueError: lengths differ.
    """

    probabilities: Float[Tensor, " n"]
    index: Int[Tensor, " n"]
    scores: tuple[ComputedScore, ...]
    digest: str

    def __post_init__(self) -> None:
        parts = {f"scores[{k}]": one.scores for k, one in enumerate(self.scores)}
        probabilities = {f"probabilities[{k}]": one.probabilities for k, one in enumerate(self.scores)}
        _check.same_length(probabilities=self.probabilities, index=self.index, **parts, **probabilities)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; the names and figures are JSON in its header."""
        tensors = {"probabilities": self.probabilities, "index": self.index}
        rows = []
        for k, one in enumerate(self.scores):
            tensors |= {f"scores.{k}": one.scores, f"probabilities.{k}": one.probabilities}
            rows.append({"name": one.name, "weight": one.weight, "keep": one.keep, "figures": dict(one.figures)})
        header = {"format": _FORMAT, "version": str(_VERSION), "digest": self.digest, "scores": json.dumps(rows)}
        _files.write_bytes(path, to_bytes({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ComputedPrior:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            RunError: not readable, damaged, of another kind or another version; the message says which.
        """
        try:
            with safe_open(_files.regular(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (header.get("format"), header.get("version")) != (_FORMAT, str(_VERSION)):
                raise ValueError(f"it is not a prior of version {_VERSION}, which this steelyard reads")
            rows = parse_json(header["scores"])
            if not isinstance(rows, list):
                raise TypeError("its scores are no list")
            scores = [
                ComputedScore(**_row(row), scores=tensors[f"scores.{k}"], probabilities=tensors[f"probabilities.{k}"])
                for k, row in enumerate(rows)
            ]
            found = cls(tensors["probabilities"], tensors["index"], tuple(scores), printable(header["digest"]))
            _check_numbers(found)
            return found
        except _UNREADABLE as error:
            remedy = "remove it and it will be computed again"
            raise RunError(f"{path} cannot be read as a prior ({type(error).__name__}: {error}); {remedy}") from error

    @classmethod
    def load_matching(cls, path: str | os.PathLike[str], expected: str, device: torch.device) -> ComputedPrior:
        """Read `path`, and refuse a prior of another digest.

        Raises:
            RunError: as `load`; or the file is of other data, settings or another seed.
        """
        found = cls.load(path)
        if found.digest != expected:
            raise RunError(
                f"{path} is a prior of other data, settings, or another seed (digest {found.digest[:12]}, this run has "
                f"{expected[:12]}); replace the run with --overwrite, or remove the file to compute the prior again"
            )
        return cls(found.probabilities.to(device), found.index.to(device), found.scores, found.digest)


def digest(problem: Problem, settings: Any, budget: float | int, sources: bytes = b"") -> str:
    """Return the SHA-256 of what a prior depends on: training samples, settings, model, seed, budget, `sources`.

    Args:
        problem: its training samples (inputs, labels, environments, groups, ids), model settings and seed. Images on
            disk stand by path, size and time of change.
        settings: a dataclass.
        budget: K.
        sources: what the settings refer to, such as the bytes of a table of scores.
    """
    fixed = {"settings": plain(settings), "model": plain(problem.model_settings), "seed": problem.seed}
    hashed = hashlib.sha256(json.dumps({**fixed, "budget": float(budget)}, sort_keys=True).encode())
    train = problem.splits.train
    if isinstance(train, Photographs):
        hashed.update(train.fingerprint().encode())
    for name in ("inputs", "targets", "environment", "group", "index"):
        tensor = getattr(train, name)
        if tensor is not None and not tensor.is_meta:
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    hashed.update(sources)
    return hashed.hexdigest()


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    figures = {str(key): number(value) for key, value in row["figures"].items()}
    if "radius" in figures and not {"gap", "holds"} <= set(figures):
        raise ValueError("its certificate has no gap, or does not say whether it holds")
    keep = _check.choice("keep", row["keep"], ["high", "low"])
    return {"name": str(row["name"]), "weight": number(row["weight"]), "keep": keep, "figures": figures}


def _check_numbers(prior: ComputedPrior) -> None:
    """Raise ValueError or TypeError if a prior read from a file is not made of vectors of the right kinds."""
    _check.integers("index", prior.index)
    for probabilities in (prior.probabilities, *(one.probabilities for one in prior.scores)):
        _check.floats("probabilities", probabilities, ("n",))
        _check.entries_in("probabilities", probabilities, 0.0, 1.0)
    for one in prior.scores:
        _check.floats("scores", one.scores, ("n",))
