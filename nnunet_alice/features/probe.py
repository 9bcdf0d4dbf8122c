"""Cross-validated linear probes: what a linear model reads off frozen features.

DrasCLR, Section 4.3: logistic or linear regression on case features, and a Cox model for survival. Every case is
predicted by a model that never saw it, nor anything of its group; standardisation and the strength of the penalty are
chosen inside each training fold. Confidence intervals are percentiles of a bootstrap over cases, or over groups, models
staying as they are.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from nnunet_alice.errors import InputError
from nnunet_alice.features.folds import INNER_FOLDS, Metric, count_groups, make_folds, with_intervals
from nnunet_alice.features.metrics import classification_metrics, regression_metrics
from nnunet_alice.features.probe_data import ProbeData
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: fewest folds of a probe
MIN_FOLDS = 2
#: fewest events from which a Cox model is worth cross-validating
MIN_EVENTS = 10
#: strengths of the penalty that are tried; features are standardised
RIDGE_ALPHAS = np.logspace(-2, 6, 17)
LOGISTIC_C = np.logspace(-5, 1, 7)
COX_ALPHAS = np.logspace(-1, 4, 6)


@dataclass(frozen=True)
class ProbeResult:
    """Outcome of a probe.

    Attributes:
        metrics: columns ``metric``, ``value``, ``low``, ``high`` (95 % interval).
        predictions: a row a case: ``case``, ``fold``, ``target`` (``event``, ``group``), and out-of-fold ``predicted``,
            with ``score_CLASS`` for each class; for survival ``risk``, the rank of the risk within the fold in (0, 1].
        penalties: (folds,) strength chosen in each fold (C of the logistic model, alpha of the others).
        models: the fitted model of each fold, in the order of ``fold``.
    """

    metrics: pd.DataFrame
    predictions: pd.DataFrame
    penalties: np.ndarray
    models: Sequence[Any] = ()


def probe(data: ProbeData, task: str, folds: int = 5, seed: int = 0) -> ProbeResult:
    """Cross-validate the linear model of a task.

    ``classification``: multinomial logistic regression; ``auc`` (mean over classes of one against the rest) and
    ``balanced_accuracy``; the predicted class is the one whose probability exceeds its share of the training fold
    most. ``regression``: ridge; ``r2``, ``mae`` and ``spearman``. ``survival``: Cox model with an L2 penalty;
    ``c_index``. ``auc``, ``spearman`` and ``c_index`` compare ranks within folds: models of different folds have
    different offsets, which alone would make useless features look worse than useless.

    Args:
        data: features and labels.
        task: ``classification``, ``regression`` or ``survival``.
        folds: outer folds.
        seed: of folds and bootstrap.

    Raises:
        InputError: too few cases of a class, cases or events for the folds; or scikit-survival is not installed.
    """
    if folds < MIN_FOLDS:
        raise InputError(f"A probe needs at least {MIN_FOLDS} folds, not {folds}.").about(option="folds", value=folds)
    there = count_groups(data.groups, np.ones(len(data.cases), dtype=bool))
    if there < INNER_FOLDS * folds:
        possible = there // INNER_FOLDS
        fewer = f"{possible} folds or fewer, or " if possible >= MIN_FOLDS else ""
        raise InputError(
            f"{counted(there, _kind(data))} {'is' if there == 1 else 'are'} too few for {folds} folds, which need "
            f"{INNER_FOLDS * folds}; use {fewer}more."
        ).about(option="folds", value=folds)
    # Matrices are small: more threads would only wait for each other.
    with threadpool_limits(1):
        predicted, fold, penalties, models, metrics = _TASKS[task](data, folds, seed)
        intervals = with_intervals(metrics, len(data.cases), data.groups, seed, progress=True)
    table = pd.DataFrame({"case": data.cases, "fold": fold, "target": data.target})
    if data.groups is not None:
        table["group"] = data.groups
    if data.event is not None:
        table["event"] = data.event.astype(int)
    return ProbeResult(intervals, table.assign(**predicted), penalties, models)


def rank_within(values: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the rank of each of (N,) values among those of its fold, divided by their number; in (0, 1]."""
    return pd.Series(values).groupby(fold).rank(pct=True).to_numpy()


#: predictions by name, fold and penalty of each case, models by fold, metrics
_Answers = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[Any], dict[str, Metric]]


def _classify(data: ProbeData, folds: int, seed: int) -> _Answers:
    classes, target = np.unique(data.target, return_inverse=True)
    counts = np.array([count_groups(data.groups, target == number) for number in range(len(classes))])
    # Every inner training fold must hold the class, too.
    needed = max(folds, -(-INNER_FOLDS * folds // (folds - 1)))
    if counts.min() < needed:
        raise InputError(
            f"Class '{classes[counts.argmin()]}' has {counted(counts.min(), _kind(data))}, but {folds} folds need "
            f"{needed}; use fewer folds, or leave the class out of the table."
        ).about(option="folds", value=classes[counts.argmin()])
    scores = np.zeros((len(target), len(classes)))
    excess, fold, penalties, models = np.zeros_like(scores), np.zeros(len(target), dtype=int), [], []
    for number, (train, test) in enumerate(make_folds(len(target), data.groups, target, folds, seed)):
        model = fit_classifier(data.features[train], target[train], data.groups_of(train), seed)
        models.append(model)
        penalties.append(model.best_params_["model__C"])
        scores[test], fold[test] = model.predict_proba(data.features[test]), number
        excess[test] = scores[test] / np.bincount(target[train])
    choice = excess.argmax(axis=1)
    ranks = np.stack([rank_within(score, fold) for score in scores.T], axis=1)
    metrics = classification_metrics(target, ranks, choice)
    metrics = {name: metrics[name] for name in ("auc", "balanced_accuracy")}
    predicted = {"predicted": classes[choice]} | {f"score_{name}": scores[:, i] for i, name in enumerate(classes)}
    return predicted, fold, np.array(penalties), models, metrics


def fit_classifier(features: np.ndarray, target: np.ndarray, groups: np.ndarray | None, seed: int) -> GridSearchCV:
    """Return a logistic regression whose penalty is chosen by cross-validation.

    Args:
        features: (N, C).
        target: (N,) integers from 0 on.
        groups: (N,) or None, see `make_folds`.
        seed: of the folds.

    Returns:
        the fitted model; ``predict_proba`` gives (N, classes).

    Raises:
        InputError: see `make_folds`.
    """
    model = _rotated(LogisticRegression(max_iter=2000, tol=1e-3))
    inner = make_folds(len(target), groups, target, INNER_FOLDS, seed)
    return GridSearchCV(model, {"model__C": LOGISTIC_C}, scoring="neg_log_loss", cv=inner).fit(features, target)


def fit_ridge(features: np.ndarray, target: np.ndarray, groups: np.ndarray | None, seed: int) -> tuple[Pipeline, float]:
    """Return a ridge regression and its penalty, chosen by cross-validation; arguments as `fit_classifier`."""
    if groups is None:  # the inner search leaves out one case at a time, which ridge does in closed form
        model = make_pipeline(StandardScaler(), RidgeCV(RIDGE_ALPHAS)).fit(features, target)
        return model, model[-1].alpha_
    inner = make_folds(len(target), groups, None, INNER_FOLDS, seed)
    search = GridSearchCV(
        _rotated(Ridge()), {"model__alpha": RIDGE_ALPHAS}, scoring="neg_mean_squared_error", cv=inner
    ).fit(features, target)
    return search.best_estimator_, search.best_params_["model__alpha"]


def _regress(data: ProbeData, folds: int, seed: int) -> _Answers:
    target = data.target
    predicted, fold, penalties, models = np.zeros(len(target)), np.zeros(len(target), dtype=int), [], []
    for number, (train, test) in enumerate(make_folds(len(target), data.groups, None, folds, seed)):
        model, penalty = fit_ridge(data.features[train], target[train], data.groups_of(train), seed)
        models.append(model)
        penalties.append(penalty)
        predicted[test], fold[test] = model.predict(data.features[test]), number
    ranks, true_ranks = rank_within(predicted, fold), rank_within(target, fold)

    def correlation(at: np.ndarray) -> float:
        one, other = true_ranks[at], ranks[at]
        return float(np.corrcoef(one, other)[0, 1]) if np.ptp(one) > 0 and np.ptp(other) > 0 else np.nan

    pooled = regression_metrics(target, predicted)
    metrics = {"r2": pooled["r2"], "mae": pooled["mae"], "spearman": correlation}
    return {"predicted": predicted}, fold, np.array(penalties), models, metrics


def _survive(data: ProbeData, folds: int, seed: int) -> _Answers:
    try:
        from sksurv.linear_model import CoxPHSurvivalAnalysis
        from sksurv.metrics import concordance_index_censored
        from sksurv.util import Surv
    except ImportError:
        raise InputError('Survival needs scikit-survival; run: pip install "nnunet_alice[survival]"').about(
            command='pip install "nnunet_alice[survival]"'
        ) from None
    assert data.event is not None
    event = data.event
    needed = max(MIN_EVENTS, 3 * folds)
    if event.sum() < needed:
        raise InputError(
            f"A Cox model in {folds} folds needs {needed} events and has {event.sum()}; use regression on a different "
            "target, or more cases."
        ).about(option="folds", value=event.sum())
    outcome = Surv.from_arrays(event, data.target)
    model = _rotated(CoxPHSurvivalAnalysis(n_iter=100, tol=1e-6))
    risk, fold, penalties, models = np.zeros(len(event)), np.zeros(len(event), dtype=int), [], []
    for number, (train, test) in enumerate(make_folds(len(event), data.groups, event.astype(int), folds, seed)):
        inner = make_folds(len(train), data.groups_of(train), event[train].astype(int), INNER_FOLDS, seed)
        # A penalty too weak for the optimum to be found counts as chance.
        search = GridSearchCV(model, {"model__alpha": COX_ALPHAS}, cv=inner, error_score=0.5)
        with np.errstate(over="ignore"):
            search.fit(data.features[train], outcome[train])
        models.append(search)
        penalties.append(search.best_params_["model__alpha"])
        risk[test], fold[test] = search.predict(data.features[test]), number
    ranks = rank_within(risk, fold)

    def concordance(at: np.ndarray) -> float:
        try:
            return float(concordance_index_censored(event[at], data.target[at], ranks[at])[0])
        except ValueError:  # no pair to compare in a bootstrap sample
            return np.nan

    return {"risk": ranks}, fold, np.array(penalties), models, {"c_index": concordance}


def _kind(data: ProbeData) -> str:
    """Return what folds are made of, one of them, for messages."""
    return "case" if data.groups is None else "group"


_TASKS = {"classification": _classify, "regression": _regress, "survival": _survive}


def _rotated(model: BaseEstimator) -> Pipeline:
    """Return a pipeline: standardise, rotate to principal axes, then the model.

    All axes are kept, so that a model with an L2 penalty is the same; but it has no more numbers than cases to fit.
    """
    return Pipeline([("scale", StandardScaler()), ("rotate", PCA(svd_solver="full")), ("model", model)])
