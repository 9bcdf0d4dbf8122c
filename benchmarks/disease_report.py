"""Metrics of predictions of planted disease: mean over seeds, intervals by bootstrap over patients, differences.

Lungs differ in density before anything is planted, by breath and by scanner. So extents are also compared among the
scans of a patient, whose lungs are the same but for the disease: as a follow-up would be.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from planted_lungs import KINDS

from nnunet_alice.features.folds import bootstrap_samples
from nnunet_alice.features.metrics import area_under_curve
from nnunet_alice.features.probe import rank_within
from nnunet_alice.files import write_csv

BOOTSTRAPS = 1000


class Question(NamedTuple):
    """What is probed.

    Attributes:
        name: of questions about cases, the column of their table.
        classes: None for a number.
    """

    name: str
    classes: tuple[str, ...] | None


class Measure(NamedTuple):
    """A column of the tables.

    Attributes:
        question: what it measures.
        title: with its metric.
        within: of a number, compare the scans of each patient; what patients differ by does not count.
    """

    question: Question
    title: str
    within: bool = False


QUESTIONS = (
    Question("emphysema", None),
    Question("consolidation", None),
    Question("presence", ("none", "ill")),
    Question("subtype", KINDS),
)
_EMPHYSEMA, _CONSOLIDATION, _PRESENCE, _KIND = QUESTIONS
MEASURES = (
    Measure(_EMPHYSEMA, "extent of emphysema, R²"),
    Measure(_EMPHYSEMA, "emphysema within patients, R²", within=True),
    Measure(_CONSOLIDATION, "extent of consolidation, R²"),
    Measure(_CONSOLIDATION, "consolidation within patients, R²", within=True),
    Measure(_PRESENCE, "emphysema in a patch, AUC"),
    Measure(_KIND, "its kind in a patch, AUC"),
)


def write_report(folder: Path, reference: str) -> None:
    """Write and print ``table.csv``, a row an arm, and ``differences.csv``, of one arm to each of the others.

    Arms are compared by the seeds and folds that both have.
    """
    table = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("predictions_seed*.csv"))])
    arms = dict(list(table.groupby("arm", sort=False)))
    rows, differences = [], []
    for arm, of_arm in arms.items():
        runs = len(of_arm[["seed", "fold"]].drop_duplicates())
        row = {"features": arm, "seeds": of_arm["seed"].nunique(), "folds": runs}
        rows.append(row | {one.title: with_interval(*measured(of_arm, one)) for one in MEASURES})
        if arm == reference or reference not in arms:
            continue
        runs_of = [pd.MultiIndex.from_frame(one[["seed", "fold"]]) for one in (arms[reference], of_arm)]
        pair = [arms[reference][runs_of[0].isin(runs_of[1])], of_arm[runs_of[1].isin(runs_of[0])]]
        row = {"against": arm}
        for measure in MEASURES:
            (one, ones), (two, twos) = (measured(part, measure) for part in pair)
            row[measure.title] = with_interval(one - two, ones - twos, "+.2f")
        differences.append(row)
    for name, made in (("table", rows), ("differences", differences)):
        write_csv(folder / f"{name}.csv", pd.DataFrame(made))
    print(pd.DataFrame(rows).to_string(index=False), flush=True)


def with_interval(value: float, spread: np.ndarray, form: str = ".2f") -> str:
    """Return a value and its 95 % interval."""
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def measured(rows: pd.DataFrame, measure: Measure) -> tuple[float, np.ndarray]:
    """Return the metric of one arm, mean over its seeds, and the same in bootstrap samples of patients.

    The samples are the same for all arms, so that arms can be compared.
    """
    values, spreads = [], []
    for _, of_seed in rows[rows["question"] == measure.question.name].groupby("seed"):
        of_seed = of_seed.sort_values(["patient", "case"], kind="stable")
        metric = metric_of(of_seed, measure)
        rng = np.random.default_rng(0)
        groups = of_seed["patient"].to_numpy()
        values.append(metric(np.arange(len(of_seed))))
        spreads.append([metric(at) for at in bootstrap_samples(len(of_seed), groups, BOOTSTRAPS, rng)])
    return float(np.mean(values)), np.mean(spreads, axis=0)


def metric_of(rows: pd.DataFrame, measure: Measure) -> Callable[[np.ndarray], float]:
    """Return a function of row numbers: R², or the AUC (of several classes the mean of each against the rest)."""
    classes = measure.question.classes
    scores = rows[[f"score{i}" for i in range(len(classes or "1"))]].to_numpy()
    if classes is None:
        truth = rows["truth"].to_numpy(float)
        if measure.within:
            patients = rows["patient"].to_numpy()
            truth, scores = (from_mean_of(patients, values) for values in (truth, scores))

        def explained(at: np.ndarray) -> float:
            total = ((truth[at] - truth[at].mean()) ** 2).sum()
            return float(1 - ((truth[at] - scores[at, 0]) ** 2).sum() / total) if total > 0 else np.nan

        return explained
    fold = rows["fold"].to_numpy()
    ranks = np.stack([rank_within(score, fold) for score in scores.T])
    wanted = classes[1:] if len(classes) == 2 else classes
    truths = [(classes.index(name), rows["truth"].to_numpy() == name) for name in wanted]
    return lambda at: float(np.mean([area_under_curve(truth[at], ranks[i, at]) for i, truth in truths]))


def from_mean_of(patients: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values (n,) or (n, k) less the mean of their patient's."""
    table = pd.DataFrame(values)
    return (table - table.groupby(patients).transform("mean")).to_numpy().reshape(values.shape)
