"""What a benchmark found: tables as Markdown and CSV, a label-efficiency plot, pictures of cases."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_alice.errors import NotPreparedError
from nnunet_alice.evaluation.benchmark.examples import example_cases
from nnunet_alice.evaluation.benchmark.page import page
from nnunet_alice.evaluation.benchmark.results import MEAN, collect
from nnunet_alice.evaluation.benchmark.runner import Runner
from nnunet_alice.evaluation.segmentation_metrics import METRICS
from nnunet_alice.evaluation.statistics import bootstrap_mean, holm, paired_wilcoxon
from nnunet_alice.files import atomic_write
from nnunet_alice.pictures.benchmark import draw_examples, draw_label_efficiency

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """Files that were written.

    Attributes:
        folder: holds all of them.
        done: finished test runs.
        planned: test runs of the benchmark.
        summary: the table of ``summary.csv``.
    """

    folder: Path
    done: int
    planned: int
    summary: pd.DataFrame


def write_report(runner: Runner, num_processes: int = 4, resamples: int = 2000, baseline: str | None = None) -> Report:
    """Write ``report/`` in the benchmark's folder: ``report.md``, ``cases.csv``, ``summary.csv`` and pictures.

    Args:
        runner: of the benchmark; nothing is trained.
        num_processes: processes that compare segmentations.
        resamples: bootstrap samples.
        baseline: arm to compare the others with, instead of the benchmark's own; the folder is then
            ``report_against_<baseline>/``.

    Raises:
        InputError: there is no arm of the baseline's name.
        NotPreparedError: no test run is finished.
    """
    runner.prepare()
    name = "report"
    if baseline is not None:
        runner.settings = runner.settings.against(baseline)
        name = f"report_against_{baseline}"
    cases, unusable = collect(runner, num_processes)
    if cases.empty:
        reason = f" ({next(iter(unusable.values()))})" if unusable else ""
        raise NotPreparedError(
            f"No test run in {runner.workspace.folder} is finished{reason}; run nnunet_alice benchmark."
        )
    folder = runner.workspace.folder / name
    summary = summarise(cases, runner.settings.baseline_arm.name, runner.settings.seed, resamples)
    _write_csv(cases, folder / "cases.csv")
    _write_csv(summary, folder / "summary.csv")
    draw_label_efficiency(summary, folder / "label_efficiency.png")
    examples = example_cases(runner, cases)
    if examples:
        draw_examples(examples, folder / "examples.png")
    runs = cases.groupby(["arm", "checkpoint", "partition", "labels", "draw", "seed"], sort=False).ngroups
    report = Report(folder, runs, len(runner.test_cells()), summary)
    with atomic_write(folder / "report.md") as temporary:
        text = page(
            runner,
            cases,
            summary,
            unusable,
            runs,
            pictures=["label_efficiency.png"] + ["examples.png"] * bool(examples),
        )
        temporary.write_text(text, encoding="utf-8")
    return report


def summarise(cases: pd.DataFrame, baseline: str, seed: int, resamples: int = 2000) -> pd.DataFrame:
    """Means, intervals and tests of every arm, number of labels, share of the run, class and metric.

    Runs of the same draw (checkpoints, seeds) are averaged first. Intervals draw labelled draws and test cases anew;
    the Wilcoxon test pairs test cases, each averaged over the draws that both arms have. Holm's correction counts all
    comparisons of the mean over classes of a metric.

    Args:
        cases: from ``collect``.
        baseline: arm to compare with.
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Returns:
        rows ``labels``, ``percent``, ``class``, ``metric``, ``arm``, ``mean``, ``low``, ``high``, ``draws``, ``runs``,
        ``cases``, and against the baseline: ``difference``, ``difference_low``, ``difference_high``, ``p``,
        ``p_holm``, ``draws_better`` (draws in which the arm is better, of ``draws_paired``).
    """
    arms = [baseline, *[arm for arm in cases["arm"].unique() if arm != baseline]]
    rows = []
    for (labels, percent, name), group in cases.groupby(["labels", "percent", "class"], sort=True):
        for metric in METRICS:
            reference = _matrix(group, baseline, metric)
            for arm in arms:
                values = _matrix(group, arm, metric)
                if values.empty:
                    continue
                rng = np.random.default_rng([seed, int(labels), int(percent)])
                interval = bootstrap_mean(values.to_numpy(), rng, resamples)
                own = group[group["arm"] == arm]
                row = {"labels": labels, "percent": percent, "class": name, "metric": metric, "arm": arm}
                row |= {"mean": interval.mean, "low": interval.low, "high": interval.high, "draws": len(values)}
                row |= {"runs": own.groupby(["checkpoint", "draw", "seed"]).ngroups, "cases": values.shape[1]}
                if arm != baseline and not reference.empty:
                    row |= _comparison(values, reference, metric, rng, resamples)
                rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=_COLUMNS)
    for metric in METRICS:
        tests = (table["metric"] == metric) & (table["class"] == MEAN) & table["p"].notna()
        table.loc[tests, "p_holm"] = holm(table.loc[tests, "p"].tolist())
    order = {name: rank for rank, name in enumerate([MEAN, *[c for c in cases["class"].unique() if c != MEAN]])}
    keys = table.assign(rank=table["class"].map(order), metric_rank=table["metric"].map(METRICS.index))
    keys = keys.sort_values(["metric_rank", "rank", "labels", "percent"], kind="stable")
    return keys.drop(columns=["rank", "metric_rank"]).reset_index(drop=True)


_COLUMNS = ["labels", "percent", "class", "metric", "arm", "mean", "low", "high", "draws", "runs", "cases"]
_COLUMNS += ["difference", "difference_low", "difference_high", "p", "p_holm", "draws_better", "draws_paired"]


def _matrix(group: pd.DataFrame, arm: str, metric: str) -> pd.DataFrame:
    """Draws as rows, cases as columns."""
    own = group[group["arm"] == arm]
    return own.pivot_table(index="draw", columns="case", values=metric, aggfunc="mean", dropna=False)


def _comparison(values: pd.DataFrame, reference: pd.DataFrame, metric: str, rng, resamples: int) -> dict:
    draws = values.index.intersection(reference.index)
    if draws.empty:
        return {}
    difference = (values.loc[draws] - reference.loc[draws]).dropna(axis=1, how="all")
    interval = bootstrap_mean(difference.to_numpy(), rng, resamples)
    sign = -1 if metric == "hd95_mm" else 1
    return {
        "difference": interval.mean,
        "difference_low": interval.low,
        "difference_high": interval.high,
        "p": paired_wilcoxon(difference.mean(axis=0).to_numpy()),
        "draws_better": int((sign * difference.mean(axis=1) > 0).sum()),
        "draws_paired": len(draws),
    }


def _write_csv(table: pd.DataFrame, path: str | os.PathLike) -> None:
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
