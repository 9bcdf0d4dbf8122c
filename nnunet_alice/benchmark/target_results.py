"""Predictions of a target by every finished test run, and what they are worth: means, intervals and tests.

A metric such as AUC or R2 belongs to all test cases together, so it is computed again for every sample of cases.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnunet_alice.benchmark.measures import TITLES, Predictions
from nnunet_alice.benchmark.results import KEYS, MEAN, keys_of, sorted_by_arms
from nnunet_alice.benchmark.runner import Runner
from nnunet_alice.benchmark.statistics import paired_wilcoxon
from nnunet_alice.features.folds import bootstrap_samples

logger = logging.getLogger(__name__)

#: one run over all divisions of the cases
_RUN = ["checkpoint", "draw", "seed"]
#: metrics that are better when lower
LOWER = ("mae", "brier")
_BOOTSTRAPS = 2000


def collect_predictions(runner: Runner, measure: Predictions) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return predictions of all finished test cells.

    Args:
        runner: prepared.
        measure: of its workspace.

    Returns:
        rows with the keys of a run, ``percent``, ``case``, ``error`` and the columns of ``predictions.csv``; and cells
        whose results cannot be used, with why.
    """
    tables = []
    cells, unusable = runner.usable()
    for cell in cells:
        for percent, path in runner.summaries(cell).items():
            table = measure.read(path)
            table = table.assign(error=measure.errors(table), percent=percent, **keys_of(runner, cell))
            tables.append(table.reset_index())
    if not tables:
        return pd.DataFrame(columns=[*KEYS, "percent", "case", "error"]), unusable
    return sorted_by_arms(pd.concat(tables, ignore_index=True), runner.settings), unusable


def summarise_predictions(cases: pd.DataFrame, measure: Predictions, baseline: str, seed: int) -> list[dict]:
    """Return rows of ``summary.csv`` but for Holm's correction, as ``report.summarise`` has them for segmentations.

    Seeds of the same draw and checkpoint are averaged, metric by metric. Intervals draw checkpoints, labelled draws
    and patients. Wilcoxon's test pairs the errors of test cases (:meth:`Predictions.errors`). A run counts once all
    divisions of the cases are done.

    Args:
        cases: from :func:`collect_predictions`.
        measure: of the benchmark.
        baseline: arm to compare with.
        seed: of the bootstrap.
    """
    arms = [baseline, *[arm for arm in cases["arm"].unique() if arm != baseline]]
    tests = sorted(cases["case"].unique())
    rows = []
    for (labels, percent), group in cases.groupby(["labels", "percent"], sort=True):
        rng = np.random.default_rng([seed, int(labels), int(percent)])
        samples = [np.arange(len(tests)), *bootstrap_samples(len(tests), _numbers(measure, tests), _BOOTSTRAPS, rng)]
        whole = {arm: _whole_runs(group[group["arm"] == arm], len(tests)) for arm in arms}
        whole = {arm: own for arm, own in whole.items() if own}
        scores = {arm: _scores(own, measure, tests, samples) for arm, own in whole.items()}
        for arm, own in whole.items():
            errors = _errors(own, tests)
            for name, values in scores[arm].items():
                metric, column = _split_name(name, measure.target.columns)
                interval = _interval(values, *_draws(values, rng))
                row = {"labels": labels, "percent": percent, "class": column, "metric": metric, "arm": arm}
                row |= dict(zip(("mean", "low", "high"), interval, strict=True))
                row |= {"draws": values.index.unique("draw").size, "runs": len(own), "cases": len(tests)}
                if arm != baseline and baseline in whole:
                    row |= _comparison(values, scores[baseline][name], metric, rng)
                    if column == MEAN:
                        row["p"] = paired_wilcoxon(_paired(errors, _errors(whole[baseline], tests)))
                rows.append(row)
    return rows


def _numbers(measure: Predictions, cases: Sequence[str]) -> np.ndarray:
    """(N,) number of the patient of each case."""
    return np.unique(measure.targets.groups(cases), return_inverse=True)[1]


def _whole_runs(runs: pd.DataFrame, tests: int) -> dict[tuple, pd.DataFrame]:
    """Return (checkpoint, draw, seed) -> predictions indexed by case, of the runs that predicted all test cases."""
    found = {key: own.set_index("case") for key, own in runs.groupby(_RUN)}
    return {key: own for key, own in found.items() if own.index.nunique() == tests == len(own)}


def _scores(
    runs: dict[tuple, pd.DataFrame], measure: Predictions, tests: Sequence[str], samples: Sequence[np.ndarray]
) -> dict[str, pd.DataFrame]:
    """Return metric -> (checkpoint, draw) x samples of cases, averaged over seeds; the first sample is all cases."""
    truth = measure.truth(tests)
    found: dict[str, dict[tuple, list[float]]] = {}
    for key, table in runs.items():
        for name, metric in measure.task.metrics(truth, table.loc[tests].reset_index()).items():
            if name.partition("_")[0] in TITLES or name in TITLES:
                found.setdefault(name, {})[key] = [metric(at) for at in samples]
    return {
        name: pd.DataFrame.from_dict(values, orient="index")
        .set_index(pd.MultiIndex.from_tuples(values, names=_RUN))
        .groupby(level=["checkpoint", "draw"])
        .mean()
        for name, values in found.items()
    }


def _errors(runs: dict[tuple, pd.DataFrame], tests: Sequence[str]) -> pd.DataFrame:
    """Return errors: draws x cases, averaged over checkpoints and seeds."""
    table = pd.DataFrame({key: own.loc[tests, "error"] for key, own in runs.items()}).T
    return table.groupby(table.index.get_level_values(1)).mean()


def _paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> np.ndarray:
    """Return the difference of the errors of each case over the draws that both have."""
    draws = ours.index.intersection(theirs.index)
    return (ours.loc[draws].mean() - theirs.loc[draws].mean()).to_numpy()


def _split_name(name: str, columns: Sequence[str]) -> tuple[str, str]:
    """Return metric and class of a name of ``Task.metrics``: ``r2_age`` is the R2 of the column ``age``."""
    for column in sorted(columns, key=len, reverse=True):  # a name may end like another one
        if name.endswith(f"_{column}"):
            return name.removesuffix(f"_{column}"), column
    return name, MEAN


def _draws(values: pd.DataFrame, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return checkpoints and draws (numbers of their values) of every sample but the first, drawn with replacement."""
    counts = [values.index.unique(level).size for level in ("checkpoint", "draw")]
    checkpoints, draws = (rng.integers(count, size=(values.shape[1] - 1, count)) for count in counts)
    return checkpoints, draws


def _cube(values: pd.DataFrame) -> np.ndarray:
    """Return (checkpoints, draws, samples); NaN where a run is missing."""
    index = pd.MultiIndex.from_product([values.index.unique(level).sort_values() for level in ("checkpoint", "draw")])
    return values.reindex(index).to_numpy().reshape(*index.levshape, -1)


def _resampled(values: pd.DataFrame, checkpoints: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return (samples,) means over the checkpoints and draws of every sample; the first has all of them."""
    cube = _cube(values)
    at = np.arange(1, cube.shape[2])[:, None, None]
    drawn = cube[checkpoints[:, :, None], draws[:, None, :], at]
    return np.array([np.nanmean(cube[..., 0]), *np.nanmean(drawn, axis=(1, 2))])


def _interval(values: pd.DataFrame, checkpoints: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    means = _resampled(values, checkpoints, draws)
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])
    return float(means[0]), float(low), float(high)


def _comparison(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str, rng: np.random.Generator) -> dict:
    """Return what an arm has more than the baseline, in the draws that both have, on the same samples of cases."""
    both = ours.index.unique("draw").intersection(theirs.index.unique("draw"))
    if both.empty:
        return {}
    ours, theirs = (values[values.index.get_level_values("draw").isin(both)] for values in (ours, theirs))
    checkpoints, draws = _draws(ours, rng)
    their_checkpoints, _ = _draws(theirs, rng)
    gain = _resampled(ours, checkpoints, draws) - _resampled(theirs, their_checkpoints, draws)
    by_draw = ours[0].groupby(level="draw").mean() - theirs[0].groupby(level="draw").mean()
    low, high = np.nanpercentile(gain[1:], [2.5, 97.5])
    better = by_draw < 0 if metric in LOWER else by_draw > 0
    found = {"difference": float(gain[0]), "difference_low": float(low), "difference_high": float(high)}
    return found | {"draws_better": int(better.sum()), "draws_paired": len(both)}
