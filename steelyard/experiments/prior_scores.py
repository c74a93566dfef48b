"""Scores of training samples, computed by short runs before MAPLE begins, and the prior that a recipe makes of them.

In a recipe::

    [method.prior]
    anchor = 0.01
    [[method.prior.scores]]
    name = "lhd"
    [[method.prior.scores]]
    name = "rank_disagreement"
    weight = 0.5

Each score is a page of settings with ``scores(problem) -> (n,)``. Only training samples are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import pandas
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from steelyard import _check, reweight, selectors
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.problem import Problem
from steelyard.experiments.trainer import OptimizerSettings, Training, train

__all__ = ["AUM", "EL2N", "LHD", "PriorSettings", "RankDisagreement", "Score", "ScoreFile", "train_ensemble"]

_CHUNK = 8192  # samples a forward pass


def _adam(steps: int, evaluate_every: int = 10) -> Training:
    return Training(steps=steps, evaluate_every=evaluate_every, optimizer=OptimizerSettings("adam", 1e-3))


@dataclass(frozen=True)
class _Term:
    """What every score has.

    Attributes:
        weight: lambda >= 0 of this score in the pool; 0 is as good as absent (and is not computed).
        keep: whether samples of "high" or of "low" score are worth more.
    """

    weight: float = 1.0
    keep: Literal["high", "low"] = "high"

    def __post_init__(self) -> None:
        _check.in_range("weight", self.weight, low=0.0)


@dataclass(frozen=True)
class LHD(_Term):
    """||lh||: how far an ordinary run still is from the moving average of its weights, in loss and embedding.

    The form for known labels: the losses are those of the given labels. Needs a hidden layer (the embedding is the
    input of the model's last `nn.Linear`), a run that is still moving at its end, and an average that lags.

    Attributes:
        decay: of the moving average, which is updated after every optimizer step.
        training: the ordinary run.

    References:
        Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, 4.2.
    """

    name: Literal["lhd"] = "lhd"
    decay: float = 0.9
    training: Training = field(default_factory=lambda: _adam(50))

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return ||lh_i|| ``(n,)``.

        Raises:
            ValueError: model and average agree on every sample, so that there is nothing to rank by.
        """
        averages: list[AveragedModel] = []

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            if not averages:
                averages.append(selectors.ema(model, self.decay, bias_corrected=True))
            averages[0].update_parameters(model)

        model = train(problem, replace(self.training, evaluate_every=1), observe)
        main, hidden = _read(model, problem)
        average, average_hidden = _read(averages[0].module, problem)
        labels = problem.splits.train.targets
        difference = selectors.state_difference(main, average, hidden, average_hidden, labels=labels)
        scores = torch.linalg.vector_norm(difference, dim=1)
        if not bool(scores.any()):
            raise ValueError(
                "the score 'lhd' is 0 for every sample: the model and its average have the same embeddings; "
                "it needs a model with a hidden layer and more than one step of training"
            )
        return scores


@dataclass(frozen=True)
class AUM(_Term):
    """Area under the margin: the margin of the given label, averaged over an ordinary run (low = mislabelled).

    Departure from the paper: margins are read in eval mode at every `training.evaluate_every`-th step, for all samples
    at the same parameters, not as each batch passes.

    References:
        Pleiss et al., Identifying mislabeled data using the area under the margin ranking, NeurIPS 2020.
    """

    name: Literal["aum"] = "aum"
    training: Training = field(default_factory=lambda: _adam(50, evaluate_every=5))

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return AUM ``(n,)``."""
        seen: list[Tensor] = []

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            seen.append(_read(model, problem)[0])

        train(problem, self.training, observe)
        return selectors.aum(torch.stack(seen), problem.splits.train.targets)


@dataclass(frozen=True)
class RankDisagreement(_Term):
    """DR-IS: how differently short, independent proxy runs rank a sample's loss (low = mislabelled in the bulk).

    Attributes:
        models: number of proxies, >= 2.
        training: of each proxy.

    References:
        See `steelyard.selectors.rank_disagreement`.
    """

    name: Literal["rank_disagreement"] = "rank_disagreement"
    models: int = 10
    training: Training = field(default_factory=lambda: _adam(20))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.integer("models", self.models, low=2)

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return D_i ``(n,)``."""
        ensemble = train_ensemble(problem, self.models, self.training)
        with torch.no_grad():
            parts = problem.splits.train.chunks(_CHUNK)
            losses = [_losses(problem, ensemble(p.inputs), p.targets.expand(self.models, -1)) for p in parts]
        return selectors.rank_disagreement(torch.cat(losses, dim=1))


@dataclass(frozen=True)
class EL2N(_Term):
    """||p - e_y|| early in training, averaged over proxies. High = hard, or mislabelled: `keep` is "low" by default.

    Attributes:
        models: number of proxies.
        training: of each proxy.

    References:
        Paul et al., Deep learning on a data diet, NeurIPS 2021 (who keep the high ones, of clean data).
    """

    keep: Literal["high", "low"] = "low"
    name: Literal["el2n"] = "el2n"
    models: int = 10
    training: Training = field(default_factory=lambda: _adam(20))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.integer("models", self.models, low=1)

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return EL2N ``(n,)``."""
        ensemble = train_ensemble(problem, self.models, self.training)
        with torch.no_grad():
            parts = problem.splits.train.chunks(_CHUNK)
            scores = [selectors.el2n(_class_logits(ensemble(p.inputs)).softmax(2), p.targets) for p in parts]
        return torch.cat(scores)


@dataclass(frozen=True)
class ScoreFile(_Term):
    """Scores of your own, from a table with one row a sample.

    Attributes:
        path: a .csv or .parquet file with the columns "index" (the sample's id, as in a run's `result.parquet`) and
            `column`. A training sample without a row, or with an empty cell, has no score; ids of no training
            sample are passed over.
        column: where the scores are.
    """

    name: Literal["file"] = "file"
    path: str = ""
    column: str = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.path).suffix not in (".csv", ".parquet"):
            raise ValueError(f"path must name a .csv or .parquet file of scores, got {self.path!r}")

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return the scores ``(n,)``, NaN where missing.

        Raises:
            DataError: the file cannot be read.
            RecipeError: a column is missing or not numeric, an id is repeated, or no training sample has a row.
        """
        read = pandas.read_csv if self.path.endswith(".csv") else pandas.read_parquet
        try:
            table = read(self.path)
        except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
            raise DataError(f"{self.path} cannot be read as a table of scores: {error}") from error
        for name in ("index", self.column):
            if name not in table or not pandas.api.types.is_numeric_dtype(table[name]):
                raise RecipeError(f"{self.path}: needs a numeric column {name!r}; it has {', '.join(table.columns)}")
        if table["index"].duplicated().any():
            raise RecipeError(f"{self.path}: the id {table['index'][table['index'].duplicated()].iloc[0]} is repeated")
        ids = problem.splits.train.index
        if not table["index"].isin(ids.tolist()).any():
            raise RecipeError(f"{self.path}: no id in 'index' is that of a training sample")
        values = table.set_index("index")[self.column].reindex(ids.tolist()).to_numpy("float64", na_value=float("nan"))
        return torch.from_numpy(values.copy()).to(ids.device)


Score: TypeAlias = LHD | RankDisagreement | EL2N | AUM | ScoreFile


@dataclass(frozen=True)
class PriorSettings:
    """The prior of a recipe: scores, pooled, and what they are used for.

    Attributes:
        scores: which scores, with their weights; none: no prior.
        temperature: of `reweight.keep_probabilities`, for every score.
        start: what begins at the prior: "probabilities", "weights", "both" or "none" (see `reweight.Prior`).
        anchor: coefficient of the KL anchor; 0: none.
        anchor_end: the share of the coefficient that is left at the end of the run (it falls along a cosine).
    """

    scores: tuple[Score, ...] = ()
    temperature: float = 0.2
    start: Literal["probabilities", "weights", "both", "none"] = "probabilities"
    anchor: float = 0.0
    anchor_end: float = 0.0

    def __post_init__(self) -> None:
        _check.in_range("temperature", self.temperature, low=0.0, open_low=True)
        _check.in_range("anchor", self.anchor, low=0.0)
        _check.in_range("anchor_end", self.anchor_end, low=0.0, high=1.0)
        if self.anchor and not self.scores:
            raise ValueError("anchor needs a prior to anchor to: name at least one of scores")

    def build(self, problem: Problem, budget: float | int) -> reweight.Prior | None:
        """Compute the scores, once each, and pool them; None without scores."""
        if not self.scores:
            return None
        terms = [term for term in self.scores if term.weight]
        priors = [self._probabilities(k, term, problem, budget) for k, term in enumerate(terms)]
        if not priors:  # all of weight 0: no opinion
            count = len(problem.splits.train)
            priors = [torch.full((count,), budget / count, dtype=torch.float64)]
        pooled = reweight.pool(priors, budget, weights=[term.weight for term in terms] or None)
        return reweight.Prior(pooled, self.start, self.anchor, reweight.CosineDecay(self.anchor_end))

    def _probabilities(self, number: int, term: Score, problem: Problem, budget: float | int) -> Tensor:
        scores = problem.journal.once(f"score {number}", lambda journal: term.scores(replace(problem, journal=journal)))
        return reweight.keep_probabilities(
            scores if term.keep == "high" else -scores, budget, temperature=self.temperature
        )


def train_ensemble(problem: Problem, models: int, training: Training) -> selectors.Ensemble:
    """Train `models` proxies of `problem` at once, each with its own initial parameters and order of the batches.

    Seeds are drawn from the problem's own. With ``training.batch_size = 0`` every step takes all samples and the
    initial parameters alone tell the proxies apart. (`evaluate_every` has no meaning here.)
    """
    generator = torch.Generator().manual_seed(problem.seed)
    seeds = torch.randint(2**31, (models,), generator=generator).tolist()
    ensemble = selectors.Ensemble([replace(problem, seed=seed).model() for seed in seeds])
    leaves = ensemble.parameters()
    parameters = [nn.Parameter(leaf.detach()) for leaf in leaves]  # the same memory, as the type that `build` asks for
    optimizer = training.optimizer.build(parameters)
    data = problem.splits.train
    whole = not 0 < training.batch_size < len(data)
    positions = _positions(len(data), training.batch_size, models, generator)
    for _ in range(training.steps):
        if whole:
            losses = _losses(problem, ensemble(data.inputs), data.targets.expand(models, -1))
        else:
            batch = next(positions).to(data.index.device)  # (models, b)
            losses = _losses(problem, ensemble(data.inputs[batch], shared=False), data.targets[batch])
        loss = losses.mean(1).sum()  # each member's gradient is that of its own mean
        if training.l2:
            loss = loss + training.l2 * sum(leaf.square().sum() for leaf in leaves)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, leaves), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return ensemble


def _positions(count: int, size: int, models: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield positions ``(models, b)`` for ever, shuffled by epoch; an epoch's incomplete last batch is left out."""
    while True:
        order = torch.stack([torch.randperm(count, generator=generator) for _ in range(models)])
        yield from order[:, : count - count % size].split(size, dim=1)


def _losses(problem: Problem, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return losses ``(models, b)`` of outputs ``(models, b, width)`` and targets ``(models, b)``."""
    return problem.loss(outputs.flatten(0, 1), targets.flatten()).view(targets.shape)


@torch.no_grad()
def _read(model: nn.Module, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return logits ``(n, classes)`` and the last `nn.Linear`'s inputs ``(n, features)``, in eval mode."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    hidden: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0].flatten(1)))
    training = model.training
    try:
        model.eval()
        logits = [_class_logits(model(part.inputs)) for part in problem.splits.train.chunks(_CHUNK)]
    finally:
        handle.remove()
        model.train(training)
    return torch.cat(logits), torch.cat(hidden)


def _class_logits(outputs: Tensor) -> Tensor:
    """Return a logit per class: one logit, the log-odds of class 1, becomes the pair (0, logit)."""
    return torch.cat([torch.zeros_like(outputs), outputs], dim=-1) if outputs.shape[-1] == 1 else outputs
