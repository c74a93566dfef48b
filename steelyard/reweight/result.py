"""The result of learning sample weights, and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.utils.data import Sampler

from steelyard._support import _check, _files, _state, _text
from steelyard._support._check import Numbers
from steelyard._support._packages import needed_by
from steelyard.reweight.groups import FoundGroups, find_groups
from steelyard.reweight.mask import Mask, check_probabilities

if TYPE_CHECKING:
    import pandas

__all__ = ["Reweighting"]

_FORMAT, _VERSION = "steelyard.reweighting", 1
_TENSORS = ("weights", "probabilities", "index")
_CATEGORIES = 1 << 24  # torch.multinomial takes no more
_AT_ONCE = 1 << 16  # ids that are Python numbers at a time


@dataclass(eq=False, repr=False)
class Reweighting:
    """A weight and a keep-probability for every training sample, and how they came to be.

    Attributes:
        weights: ``(n,)`` w >= 0.
        probabilities: ``(n,)`` s in [0, 1].
        history: one dict of plain numbers (or strings, bools, None) for every outer step.
        index: ``(n,)`` int64 global sample ids; None: 0 .. n-1.

    Raises:
        ValueError: shapes other than (n,), a negative or non-finite weight, a probability outside [0, 1], an id that is
            negative or repeated.
        TypeError: no tensors of floating point, or of integers for the ids, and nothing that `torch.as_tensor` makes
            such of; a history that is not a list of dicts.

    Example:
        >>> result = Reweighting(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
        >>> result
        Reweighting(2 samples, 1 kept on average, weights 1 to 2, 0 outer steps)
        >>> list(result.sampler(3)), result.sample_mask(torch.Generator().manual_seed(0)).tolist()
        ([0, 0, 0], [True, False])
        >>> result.suspects(1).tolist()
        [1]
    """

    weights: Float[Tensor, " n"]
    probabilities: Float[Tensor, " n"]
    history: list[dict[str, Any]] = field(default_factory=list)
    index: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        self.weights = _check.floats("weights", self.weights, ("n",))
        self.probabilities = _check.floats("probabilities", self.probabilities, ("n",))
        if self.index is not None:
            self.index = _distinct_ids(self.index)
        count = _check.same_length(weights=self.weights, probabilities=self.probabilities, index=self.index)
        _check.finite("weights", self.weights)
        if count and float(self.weights.min()) < 0:
            raise ValueError(f"weights must be >= 0, the smallest is {float(self.weights.min())}")
        check_probabilities(self.probabilities)
        _check.instance("history", self.history, list, "a list with a dict for each outer step")
        for number, row in enumerate(self.history):
            _check.instance(f"history[{number}]", row, dict, "a dict of plain numbers")
        if self.index is None:
            self.index = torch.arange(count, device=self.weights.device)

    def __len__(self) -> int:
        return len(self.weights)

    def __eq__(self, other: object) -> bool:
        """Same tensors, bit for bit and of the same dtype, and the same history."""
        if not isinstance(other, Reweighting):
            return NotImplemented
        pairs = [(getattr(self, name), getattr(other, name)) for name in _TENSORS]
        same = all(one.dtype == two.dtype and torch.equal(one.cpu(), two.cpu()) for one, two in pairs)
        return same and json.dumps(self.history) == json.dumps(other.history)  # as text, NaN equals NaN

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        count, kept = len(self), float(self.probabilities.sum(dtype=torch.float64))
        low, high = (float(one) for one in self.weights.aminmax()) if count else (0.0, 0.0)
        weights = f"weights {low:.3g}" if low == high else f"weights {low:.3g} to {high:.3g}"
        return (
            f"Reweighting({count} samples, {kept:.6g} kept on average, {weights}, {len(self.history)} outer "
            f"step{'' if len(self.history) == 1 else 's'})"
        )

    @property
    def expected_weights(self) -> Float[Tensor, " n"]:
        """``(n,)`` s_i w_i: the mean over masks of the weight that sample i trains with."""
        return self.probabilities * self.weights

    def sampler(self, num_samples: int | None = None, generator: torch.Generator | None = None) -> Sampler[int]:
        """Make a sampler for a `DataLoader` over the whole training set: id i in proportion to s_i w_i.

        Weights and probabilities are both in the draw: train on what comes with a plain, unweighted loss.

        Args:
            num_samples: draws an epoch, with replacement; None: sum of s, rounded (the kept-set size, so an epoch is
                shorter than one over all samples).
            generator: of the draws; None: torch's global one, as in any DataLoader sampler.

        Raises:
            ValueError: no sample has s_i w_i > 0, or num_samples < 1.
        """
        expected = self.expected_weights.double()
        if not len(self) or float(expected.max()) <= 0:
            raise ValueError("no sample can be drawn: probabilities * weights is 0 everywhere")
        if num_samples is None:
            num_samples = max(1, round(float(self.probabilities.sum(dtype=torch.float64))))
        num_samples = _check.integer("num_samples", num_samples, low=1)
        if generator is not None:
            _check.generator("generator", generator)
        assert self.index is not None  # set in __post_init__
        return _Ids(expected.cpu(), self.index.cpu(), num_samples, generator)

    def sample_mask(self, generator: torch.Generator) -> Bool[Tensor, " n"]:
        """Draw a kept set: True with probability s_i. Train on it with the loss weighted by `weights`, those kept."""
        return Mask()(self.probabilities.detach(), generator).bool()

    def suspects(self, k: int) -> Int[Tensor, " k"]:
        """Return the ids of the `k` samples that training can best do without, the most suspect first.

        That is those with the smallest s_i w_i; of equal ones those with the smaller s_i, then in the order of `index`.

        Args:
            k: how many; at most n.

        Raises:
            ValueError: k < 0 or k > n.
        """
        k = _check.integer("k", k, low=0, high=len(self))
        assert self.index is not None  # set in __post_init__
        order = self.probabilities.detach().argsort(stable=True)
        return self.index[order[self.expected_weights.detach()[order].argsort(stable=True)[:k]]]

    def groups(
        self, targets: Int[Tensor, " n"] | Numbers | None = None, repeats: Sequence[Reweighting] = (), **options: Any
    ) -> FoundGroups:
        """Cut the keep-probabilities into two groups; see `find_groups`, whose arguments these are.

        Args:
            targets: ``(n,)`` class ids in the order of `index`, for the cells.
            repeats: results of the same samples in the same order, with other seeds or another budget.
            options: of `find_groups`.

        Raises:
            OneHumpError: there are no two groups.
            ValueError: `repeats` of other samples; see `find_groups`.
        """
        assert self.index is not None  # set in __post_init__
        for number, other in enumerate(repeats):
            _check.instance(f"repeats[{number}]", other, Reweighting, "a Reweighting")
            if other.index is None or not torch.equal(other.index.cpu(), self.index.cpu()):
                raise ValueError(f"repeats[{number}] is of other samples, or in another order: its index differs")
        return find_groups(self.probabilities, targets, repeats=[one.probabilities for one in repeats], **options)

    def to_frame(self, **columns: Tensor | Numbers) -> pandas.DataFrame:
        """Return a table: a row a sample with its id (index), w (weight), s (probability) and s w (expected_weight).

        Args:
            columns: more of them by name, ``(n,)`` each in the order of `index`, as in
                ``result.to_frame(label=data.targets)``.

        Raises:
            ValueError: a column of another length, or with the name of one that is there.
            ImportError: pandas is not installed.
        """
        with needed_by("Reweighting.to_frame", install="pandas"):
            import pandas

        assert self.index is not None  # set in __post_init__
        own = {"index": self.index, "weight": self.weights, "probability": self.probabilities}
        own["expected_weight"] = self.expected_weights
        if taken := own.keys() & columns.keys():
            raise ValueError(f"column {min(taken)!r} is there already; give yours another name")
        more = {name: _check.tensor(name, values, ("n",)) for name, values in columns.items()}
        _check.same_length(**own, **more)
        return pandas.DataFrame({name: values.detach().cpu().numpy() for name, values in (own | more).items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file (tensors, and the history as JSON in its header), atomically.

        Raises:
            TypeError: the history holds something that JSON cannot.
        """
        tensors = {name: _state.clone(getattr(self, name)) for name in _TENSORS}  # safetensors takes no shared memory
        metadata = {"format": _FORMAT, "version": str(_VERSION), "history": json.dumps(self.history)}
        _files.write_bytes(path, to_bytes(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reweighting:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            OSError: no such file (FileNotFoundError), or it cannot be read.
            ValueError: the file is damaged, of another kind, or of another version; the message says which.
        """
        with _files.open_file(path):
            pass  # for the error, which names the path; that of safetensors does not always
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file (damaged or cut short?): {error}") from error
        _check_header(path, metadata, tensors)
        try:
            history = _text.parse_json(metadata["history"])
            return cls(tensors["weights"], tensors["probabilities"], history, tensors["index"])
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: damaged Reweighting file: {error}") from error


class _Ids(Sampler[int]):
    """Draws places with replacement and yields the global ids that stand there: a data set is addressed by id."""

    def __init__(self, chance: Tensor, index: Tensor, draws: int, generator: torch.Generator | None) -> None:
        self._chance, self._index, self._draws, self._generator = chance, index, draws, generator

    def __iter__(self) -> Iterator[int]:
        for ids in self._index[self._places()].split(_AT_ONCE):
            yield from ids.tolist()

    def __len__(self) -> int:
        return self._draws

    def _places(self) -> Tensor:
        if len(self._chance) <= _CATEGORIES:
            return torch.multinomial(self._chance, self._draws, replacement=True, generator=self._generator)
        mass = self._chance.cumsum(0)
        total = mass[-1].clone()
        uniform = torch.rand(self._draws, generator=self._generator, dtype=torch.float64)
        # Below the last step of the sum: rounding at its end draws nobody whose chance is 0.
        return torch.searchsorted(mass, (uniform * total).clamp_(max=torch.nextafter(total, total * 0)), right=True)


def _distinct_ids(index: Tensor) -> Tensor:
    found = _check.integers("index", index)
    if len(found) and int(found.min()) < 0:
        raise ValueError(f"index holds global sample ids >= 0, got {int(found.min())}")
    if (different := _check.distinct(found)) < len(found):
        raise ValueError(f"index must hold each id once, got {len(found)} with {different} different ones")
    return found


def _check_header(path: str | os.PathLike[str], metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: holds {metadata.get('format', 'no format name')!r}, not {_FORMAT!r}; "
            "Reweighting.load reads what Reweighting.save wrote"
        )
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"{path}: file version {metadata.get('version')!r}; this steelyard reads version {_VERSION}: "
            "use the release that wrote it, or save it again"
        )
    missing = sorted(set(_TENSORS) - set(tensors))
    if missing:
        raise ValueError(f"{path}: damaged Reweighting file: it has no {', '.join(missing)}")
