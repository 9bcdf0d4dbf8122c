"""What a benchmark found: tables as Markdown and CSV, a label-efficiency plot, pictures of cases."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_alice.benchmark.examples import example_cases
from nnunet_alice.benchmark.measures import TITLES, Predictions
from nnunet_alice.benchmark.page import page
from nnunet_alice.benchmark.results import KEYS, MEAN, collect
from nnunet_alice.benchmark.runner import Runner
from nnunet_alice.benchmark.segmentation_metrics import METRICS
from nnunet_alice.benchmark.statistics import bootstrap_mean, holm, paired_wilcoxon
from nnunet_alice.benchmark.target_results import collect_predictions, summarise_predictions
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.files import atomic_write, write_csv
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
        metric: that is shown first.
        title: of this metric.
    """

    folder: Path
    done: int
    planned: int
    summary: pd.DataFrame
    metric: str
    title: str


def write_report(benchmark: str | os.PathLike, num_processes: int = 4, baseline: str | None = None) -> Report:
    """Write ``report/`` in the benchmark's folder: ``report.md``, ``cases.csv``, ``summary.csv`` and pictures.

    What it says is what the folder holds: the preprocessed dataset and the checkpoints may be gone. Of the images only
    the picture needs those in ``nnUNet_raw``.

    Args:
        benchmark: folder of the benchmark.
        num_processes: processes that compare segmentations.
        baseline: arm to compare the others with, instead of the benchmark's own; the folder is then
            ``report_against_<baseline>/``.

    Raises:
        InputError: the folder holds no benchmark, or there is no arm of the baseline's name.
        NotPreparedError: no test run is finished.
    """
    runner = Runner.of_folder(benchmark, baseline)
    measure = runner.workspace.measure
    predictions = measure if isinstance(measure, Predictions) else None
    collected = collect_predictions(runner, predictions) if predictions else collect(runner, num_processes)
    cases, unusable = collected
    if cases.empty:
        reason = f" ({next(iter(unusable.values()))})" if unusable else ""
        raise NotPreparedError(
            f"No test run in {runner.workspace.folder} is finished{reason}; run nnunet_alice benchmark."
        ).about(path=runner.workspace.folder, command="nnunet_alice benchmark")
    folder = runner.workspace.folder / ("report" if baseline is None else f"report_against_{baseline}")
    chosen = runner.settings.baseline_arm.name, runner.settings.seed
    if predictions:
        summary = _in_order(summarise_predictions(cases, predictions, *chosen), list(TITLES), [MEAN])
    else:
        summary = summarise(cases, *chosen)
    if summary.empty:
        raise NotPreparedError(f"No run in {runner.workspace.folder} has predicted all test cases yet.").about(
            path=runner.workspace.folder
        )
    write_csv(folder / "cases.csv", cases, "%.6g")
    write_csv(folder / "summary.csv", summary, "%.6g")
    metric = predictions.task.score if predictions else "dice"
    title = predictions.title if predictions else "Dice, mean over classes"
    draw_label_efficiency(summary, folder / "label_efficiency.png", metric, title)
    examples = [] if predictions else example_cases(runner, cases)
    if examples:
        draw_examples(examples, folder / "examples.png")
    runs = cases.groupby(list(KEYS), sort=False).ngroups
    report = Report(folder, runs, len(runner.test_cells()), summary, metric, title.partition(",")[0])
    with atomic_write(folder / "report.md") as temporary:
        text = page(
            runner, summary, unusable, runs, pictures=["label_efficiency.png"] + ["examples.png"] * bool(examples)
        )
        temporary.write_text(text, encoding="utf-8")
    return report


def summarise(cases: pd.DataFrame, baseline: str, seed: int) -> pd.DataFrame:
    """Return means, intervals and tests of every arm, number of labels, share of the run, class and metric.

    Fine-tuning seeds of the same draw and checkpoint are averaged first. Intervals draw checkpoints (pretraining
    seeds), labelled draws and test cases again, those of a difference the checkpoints of both arms; the Wilcoxon test
    pairs test cases, each averaged over the runs of the draws that both arms have. Holm's correction counts all
    comparisons of the mean over classes of a metric.

    Args:
        cases: from ``collect``.
        baseline: arm to compare with.
        seed: of the bootstrap.

    Returns:
        rows ``labels``, ``percent``, ``class``, ``metric``, ``arm``, ``mean``, ``low``, ``high``, ``draws``, ``runs``,
        ``cases``, and against the baseline: ``difference``, ``difference_low``, ``difference_high``, ``p``,
        ``p_holm``, ``draws_better`` (draws in which the arm is better, of ``draws_paired``).
    """
    arms = [baseline, *[arm for arm in cases["arm"].unique() if arm != baseline]]
    rows = []
    for (labels, percent, name), group in cases.groupby(["labels", "percent", "class"], sort=True):
        by_arm = {arm: own for arm in arms if not (own := group[group["arm"] == arm]).empty}
        for metric in METRICS:
            tables = {arm: _table(own, metric) for arm, own in by_arm.items()}
            for arm, own in by_arm.items():
                rng = np.random.default_rng([seed, int(labels), int(percent)])
                values = _array(tables[arm], *_draws_and_cases(tables[arm]))
                values = values[..., np.isfinite(values).any(axis=(0, 1))]  # cases that have the class
                interval = bootstrap_mean(values, rng)
                row = {"labels": labels, "percent": percent, "class": name, "metric": metric, "arm": arm}
                row |= {"mean": interval.mean, "low": interval.low, "high": interval.high, "draws": values.shape[1]}
                row |= {
                    "runs": own.groupby(["checkpoint", "partition", "draw", "seed"]).ngroups,
                    "cases": values.shape[2],
                }
                if arm != baseline and baseline in tables:
                    row |= _comparison(own, by_arm[baseline], metric, rng)
                rows.append(row)
    return _in_order(rows, list(METRICS), [MEAN, *[c for c in cases["class"].unique() if c != MEAN]])


def _in_order(rows: Sequence[dict], metrics: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """Return rows of a summary with Holm's correction: metric by metric, the mean before the classes."""
    table = pd.DataFrame(rows).reindex(columns=_COLUMNS)
    table = table[table["metric"].isin(metrics)].reset_index(drop=True)
    for metric in metrics:
        tests = (table["metric"] == metric) & (table["class"] == MEAN) & table["p"].notna()
        table.loc[tests, "p_holm"] = holm(table.loc[tests, "p"].tolist())
    order = {name: rank for rank, name in enumerate(dict.fromkeys([*classes, *table["class"]]))}
    keys = table.assign(rank=table["class"].map(order), metric_rank=table["metric"].map(metrics.index))
    keys = keys.sort_values(["metric_rank", "rank", "labels", "percent"], kind="stable")
    return keys.drop(columns=["rank", "metric_rank"]).reset_index(drop=True)


_COLUMNS = ["labels", "percent", "class", "metric", "arm", "mean", "low", "high", "draws", "runs", "cases"]
_COLUMNS += ["difference", "difference_low", "difference_high", "p", "p_holm", "draws_better", "draws_paired"]


def _table(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric of one arm's runs: (checkpoint, draw) x case, averaged over fine-tuning seeds."""
    return runs.pivot_table(index=["checkpoint", "draw"], columns="case", values=metric, aggfunc="mean", dropna=False)


def _draws_and_cases(table: pd.DataFrame) -> tuple[pd.Index, pd.Index]:
    return table.index.unique("draw").sort_values(), table.columns


def _array(table: pd.DataFrame, draws: Sequence[int], cases: Sequence[str]) -> np.ndarray:
    """Return (checkpoints, draws, cases) of a table; NaN where there is none."""
    index = pd.MultiIndex.from_product([table.index.unique("checkpoint").sort_values(), draws])
    return table.reindex(index=index, columns=cases).to_numpy().reshape(-1, len(draws), len(cases))


def _comparison(own: pd.DataFrame, reference: pd.DataFrame, metric: str, rng: np.random.Generator) -> dict:
    """Return an arm's runs against the baseline's, in the draws and cases that both have.

    Of a class that the truth lacks, a run that does not invent it has no value. Against one that does it counts as
    perfect; a case in which neither does is left out.
    """
    perfect = 0.0 if metric == "hd95_mm" else 1.0
    tables = [_table(runs, metric) for runs in (own, reference)]
    draws, cases = (ours.intersection(theirs) for ours, theirs in zip(*map(_draws_and_cases, tables), strict=True))
    if draws.empty or cases.empty:
        return {}
    ours, theirs = (_array(_table(runs.fillna({metric: perfect}), metric), draws, cases) for runs in (own, reference))
    silent = [np.isnan(_array(table, draws, cases)) for table in tables]
    difference = ours[:, None] - theirs[None]  # our checkpoints, theirs, draws, cases
    difference = np.ma.masked_invalid(np.where(silent[0][:, None] & silent[1][None], np.nan, difference))
    difference = difference[..., difference.count(axis=(0, 1, 2)) > 0]
    interval = bootstrap_mean(difference.filled(np.nan), rng)
    sign = -1 if metric == "hd95_mm" else 1
    return {
        "difference": interval.mean,
        "difference_low": interval.low,
        "difference_high": interval.high,
        "p": paired_wilcoxon(difference.mean(axis=(0, 1, 2)).filled(np.nan)),
        "draws_better": int((sign * difference.mean(axis=(0, 1, 3)) > 0).filled(False).sum()),
        "draws_paired": len(draws),
    }
