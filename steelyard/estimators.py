"""Estimators in scikit-learn's form: `fit(X, y, ...)` learns the weights of the rows and a model under them.

What `fit` is given beside X and y decides how the weights are learned:

- nothing: all rows count alike (plain training);
- ``validation=(X, y)``, trusted rows: Learning to Reweight, while the model is trained once;
- ``validation=`` and ``groups=``, a group for each of its rows: MAPLE on the worst group there, then training so;
- ``environments=``, one for each row of X: MAPLE on the square root of V-REx, cross-fitted, then training.

`sample_weight_` is an array: any other estimator that takes ``sample_weight`` can be fitted with it.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._packages import needed_by
from steelyard._support._scales import scales_of
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import (
    CosineDecay,
    GroupWorst,
    InnerRun,
    LearningToReweight,
    Maple,
    Reweighting,
    Sqrt,
    VREx,
)

with needed_by("steelyard.estimators", install="steelyard[experiments]"):
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

__all__ = ["ReweightedClassifier", "ReweightedRegressor"]

_FAR = 3  # standard deviations
_WHOLE = 4096  # rows of a step that are no noise to speak of

Rows = Any
"""What scikit-learn takes as X or y: an array, a list, a data frame."""


class _Reweighted(BaseEstimator):
    """What both have: settings, `fit`, and the model's outputs."""

    def __init__(  # scikit-learn's rule: any value is taken here, and checked by `fit`
        self,
        module: Any = None,
        *,
        lr: Any = 0.01,
        weight_decay: Any = 0.0,
        epochs: Any = 30,
        batch_size: Any = 32,
        standardise: Any = True,
        budget: Any = None,
        outer_steps: Any = 30,
        random_state: Any = 0,
    ) -> None:
        self.module = module
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.standardise = standardise
        self.budget = budget
        self.outer_steps = outer_steps
        self.random_state = random_state

    def fit(
        self,
        X: Rows,
        y: Rows,
        *,
        validation: tuple[Rows, Rows] | None = None,
        groups: Rows = None,
        environments: Rows = None,
    ) -> _Reweighted:
        """Learn the weights of the rows and the model.

        Args:
            X: ``(n, features)`` numbers.
            y: ``(n,)`` targets.
            validation: ``(X, y)`` of other rows, which are trusted and judge the model. Their X is in the units of X:
                a `Pipeline` transforms X alone, so transform them before they go through it.
            groups: ``(rows of validation,)`` labels: the worst of these groups judges.
            environments: ``(n,)`` labels of the rows of X: a model must do equally well in all of them.

        Returns:
            itself.

        Raises:
            ValueError: lengths that do not agree, groups without validation, environments beside validation; a module
                that does not take the rows, or has outputs of another shape.
        """
        X, y = self._checked(X, y)
        if groups is not None and validation is None:
            raise ValueError("groups are those of the validation rows: give validation=(X, y) beside groups")
        if environments is not None and validation is not None:
            raise ValueError("give environments of the training rows, or validation rows, not both: either one judges")
        _check.integer("epochs", self.epochs, low=1)
        _check.integer("batch_size", self.batch_size, low=1)
        self._centre, self._spread = (one.numpy() for one in scales_of(torch.tensor(X)))
        self._mean, self._scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.standardise:
            self._mean, self._scale = self._centre, self._spread
        places = None if environments is None else _codes("environments", environments, len(X))
        train = Batch.of(self._inputs(X), self._targets(y), environment=places)
        judges = None if validation is None else self._judges(validation, groups)
        self._check_module(train.take(torch.arange(min(2, len(train)))))
        self.reweighting_, self.module_ = self._learn(train, judges)
        weights = torch.ones(len(X)) if self.reweighting_ is None else self.reweighting_.expected_weights
        self.sample_weight_ = weights.double().numpy()
        return self

    def _learn(self, train: Batch, judges: Batch | None) -> tuple[Reweighting | None, nn.Module]:
        """Return the weights, if any were learned, and the model."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        optimizer = partial(torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay)
        objective = WeightedLoss(self._loss)
        steps = self.epochs * -(-len(train) // self.batch_size)
        plain = InnerRun(self._build, optimizer, objective, steps, self.batch_size, seed=seed)
        if judges is not None and judges.group is None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = self._build()
                online = LearningToReweight(model, optimizer(model.parameters()), objective, judges, seed=seed)
                return online.fit(train, epochs=self.epochs, batch_size=self.batch_size), model.eval()
        if judges is None and train.environment is None:
            return None, plain(train, torch.ones(len(train)))[0].eval()
        # The noise of minibatches at the end would be what is differentiated: fewer, whole steps instead.
        whole = partial(torch.optim.AdamW, lr=5 * self.lr, weight_decay=self.weight_decay)
        size = None if len(train) <= _WHOLE else _WHOLE
        steps = max(200, self.epochs)
        schedule = None if size is None else CosineDecay()
        inner = InnerRun(self._build, whole, objective, steps, size, seed=seed, schedule=schedule)
        if judges is not None:
            step = partial(torch.optim.Adam, lr=0.3)
            maple = Maple(
                inner, GroupWorst(), learn="weights", weight_optimizer=step, steps=self.outer_steps, seed=seed
            )
        else:
            budget = 0.5 if self.budget is None else self.budget
            maple = Maple(inner, Sqrt(VREx()), budget=budget, folds=2, steps=self.outer_steps, seed=seed)
        found = maple.fit(train, judges, progress=False)
        return found, inner(train, found.expected_weights)[0].eval()

    def _build(self) -> nn.Module:
        inputs, outputs = self.n_features_in_, self._outputs()
        if self.module is None:
            return nn.Linear(inputs, outputs)
        if isinstance(self.module, nn.Module):
            return copy.deepcopy(self.module)
        return _check.instance("module", self.module(inputs, outputs), nn.Module, "what makes a module")

    def _check_module(self, few: Batch) -> None:
        """Raise unless the module gives ``(rows, outputs)`` of a few rows."""
        with torch.random.fork_rng(), torch.no_grad():
            module = self._build().eval()
            try:
                shape = tuple(module(few.inputs).shape)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"module does not take rows of {self.n_features_in_} features: {reason}") from error
        if shape != (wanted := (len(few), self._outputs())):
            raise ValueError(f"module has outputs of shape {shape} for {len(few)} rows, and y needs {wanted}")

    def _checked(self, *rows_and_labels: Rows, reset: bool = True) -> tuple[np.ndarray, ...]:
        """Return rows, and labels where there are some, as arrays; the rows in float64, to be shifted there."""
        found = validate_data(self, *rows_and_labels, dtype=np.float64, reset=reset)
        found = found if isinstance(found, tuple) else (found,)
        largest = float(np.abs(found[0]).max())
        if largest > float(np.finfo(np.float32).max):
            raise ValueError(
                f"X holds {largest:.3g}, a value too large for float32, which modules take: scale that column"
            )
        return found

    def _inputs(self, X: np.ndarray) -> Tensor:
        """Return the features as the module takes them: shifted in float64, then rounded."""
        return torch.from_numpy(np.ascontiguousarray((X - self._mean) / self._scale, dtype=np.float32))

    def _judges(self, validation: tuple[Rows, Rows], groups: Rows) -> Batch:
        try:
            rows, labels = validation
        except (TypeError, ValueError) as error:
            raise ValueError("validation must be a pair (X, y) of other rows than those of fit") from error
        rows, labels = self._checked(rows, labels, reset=False)
        group = None if groups is None else _codes("groups", groups, len(rows))
        self._warn_of_other_units(rows)
        return Batch.of(self._inputs(rows), self._targets(labels, known=True), group=group)

    def _warn_of_other_units(self, rows: np.ndarray) -> None:
        """Warn where most columns of the validation rows lie far from those of X, as if in other units."""
        far = np.abs(rows.mean(axis=0) - self._centre) > _FAR * self._spread
        if far.mean() > 0.5:
            warnings.warn(
                f"{int(far.sum())} of {far.size} columns of the validation rows have means more than {_FAR} standard "
                "deviations from those of X: a pipeline transforms X alone, so transform the validation rows alike, "
                "as by scaler.transform, before they are given",
                UserWarning,
                stacklevel=4,
            )

    def _outputs_of(self, X: Rows) -> np.ndarray:
        check_is_fitted(self, "module_")
        (rows,) = self._checked(X, reset=False)
        with torch.no_grad():
            return self.module_(self._inputs(rows)).numpy()


class ReweightedClassifier(ClassifierMixin, _Reweighted):
    """A classifier whose rows have learned weights.

    Args:
        module: makes the net from (features, classes), whose outputs are logits ``(rows, classes)``; or a module, of
            which a copy is trained; None: a linear layer.
        lr, weight_decay: of AdamW.
        epochs, batch_size: of one training. With groups or environments the model is trained many times, in at least
            200 steps over all rows (4,096 at most) at five times `lr`.
        standardise: scale the features by the training rows.
        budget: with environments: how many rows MAPLE keeps, below 1 as a share; None: half of them.
        outer_steps: with groups or environments: how often the model is trained to move the weights.
        random_state: of everything random.

    Attributes:
        classes_: the labels. sample_weight_: ``(n,)`` the weight times the keep-probability of each row.
        module_: the trained net. reweighting_: weights and keep-probabilities (`Reweighting`), None where none were
            learned; ``reweighting_.suspects(k)`` are rows of X. n_features_in_: features.

    Example:
        >>> rows, labels = np.random.default_rng(0).normal(size=(80, 3)), np.arange(80) % 2
        >>> rows[:, 0] += 4 * labels
        >>> given = np.where(np.arange(80) < 8, 1 - labels, labels)
        >>> model = ReweightedClassifier().fit(rows[:60], given[:60], validation=(rows[60:], labels[60:]))
        >>> bool((model.predict(rows) == labels).mean() > 0.9), bool((model.reweighting_.suspects(8) < 8).sum() > 4)
        (True, True)
    """

    @staticmethod
    def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def _outputs(self) -> int:
        return len(self.classes_)

    def _targets(self, y: np.ndarray, known: bool = False) -> Tensor:
        check_classification_targets(y)
        if not known:
            self.classes_ = np.unique(y)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"y has one class, {self.classes_.tolist()[0]!r}; a classifier needs two classes or more"
                )
        if new := sorted(set(np.unique(y).tolist()) - set(self.classes_.tolist())):
            raise ValueError(f"validation has the label {new[0]!r}, which no training row has")
        return torch.from_numpy(np.searchsorted(self.classes_, y))

    def decision_function(self, X: Rows) -> np.ndarray:
        """Return logits ``(rows, classes)``; of two classes their difference ``(rows,)``, the second less the first."""
        logits = self._outputs_of(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Rows) -> np.ndarray:
        """Return probabilities ``(rows, classes)``."""
        return torch.from_numpy(self._outputs_of(X)).double().softmax(1).numpy()

    def predict(self, X: Rows) -> np.ndarray:
        """Return the likeliest label of each row."""
        likeliest = self._outputs_of(X).argmax(1)  # which says so where nothing was fitted
        return self.classes_[likeliest]


class ReweightedRegressor(RegressorMixin, _Reweighted):
    """A regressor whose rows have learned weights: squared error of targets that are standardised while training.

    Args and attributes are those of `ReweightedClassifier`, without classes; the net has one output.
    """

    @staticmethod
    def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(1) - targets).square()

    def _outputs(self) -> int:
        return 1

    def _targets(self, y: np.ndarray, known: bool = False) -> Tensor:
        values = np.asarray(y, dtype=np.float64)
        if not known:
            self._middle, self._size = values.mean(), values.std() or 1.0
        return torch.from_numpy((values - self._middle) / self._size).float()

    def predict(self, X: Rows) -> np.ndarray:
        """Return the predicted target of each row."""
        return self._outputs_of(X)[:, 0].astype(np.float64) * self._size + self._middle


def _codes(name: str, labels: Rows, count: int) -> Tensor:
    """Return labels of any kind as whole numbers from 0."""
    values = np.asarray(labels)
    if values.shape != (count,):
        raise ValueError(f"{name} must have one label a row, shape ({count},), got {values.shape}")
    missing = [row for row, value in enumerate(values.tolist()) if value is None or value != value]
    if missing:
        raise ValueError(
            f"{name}[{missing[0]}] is missing ({len(missing)} are): give each row a label, or leave it out"
        )
    return torch.from_numpy(np.unique(values, return_inverse=True)[1].astype(np.int64))
