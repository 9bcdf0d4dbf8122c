"""``report.md``: on top what was compared and how it was measured, then the tables."""

from collections.abc import Sequence
from datetime import date
from typing import Any

import pandas as pd

from nnunet_alice import __version__
from nnunet_alice.benchmark.measures import TITLES as TARGET_TITLES
from nnunet_alice.benchmark.measures import Predictions
from nnunet_alice.benchmark.results import MEAN
from nnunet_alice.benchmark.runner import Runner
from nnunet_alice.benchmark.segmentation_metrics import METRICS
from nnunet_alice.benchmark.settings import ALL

_TITLES = {"dice": "Dice", "surface_dice": "Surface Dice", "hd95_mm": "HD95 (mm, lower is better)"}


def page(runner: Runner, summary: pd.DataFrame, unusable: dict[str, str], runs: int, pictures: Sequence[str]) -> str:
    """Return the text of ``report.md``.

    Args:
        runner: prepared.
        summary: from ``summarise``.
        unusable: cells that were left out, with why.
        runs: finished test runs.
        pictures: files beside the page.
    """
    lines = [f"# Benchmark on {runner.workspace.dataset}", "", *_facts(runner, unusable, runs), ""]
    for picture in pictures:
        lines += [f"![{picture.partition('.')[0].replace('_', ' ')}]({picture})", ""]
    baseline, measure = runner.settings.baseline_arm.name, runner.workspace.measure
    predicted = measure.target if isinstance(measure, Predictions) else None
    titles = _TITLES if predicted is None else TARGET_TITLES
    shown = [metric for metric in titles if (summary["metric"] == metric).any()]
    lines += ["## Mean over classes" if predicted is None else f"## {predicted.name}", ""]
    lines += [f"Mean [95 %]; below it minus {baseline} [95 %], the draws in which it is better, p, Holm's p.", ""]
    for metric in shown:
        if (summary[summary["metric"] == metric]["class"] == MEAN).any():
            lines += [f"### {titles[metric]}", "", *mean_table(summary, metric, baseline), ""]
    if (summary["class"] != MEAN).any():
        each = "classes" if predicted is None else "columns of the target"
        names = ", ".join(titles[metric].partition(" (")[0] for metric in shown)
        lines += [f"## {each.capitalize()}, at the end of the run ({names})", "", *class_table(summary, shown), ""]
    lines += _tuning(runner)
    return "\n".join(lines).rstrip() + "\n"


def _facts(runner: Runner, unusable: dict[str, str], runs: int) -> list[str]:
    settings = runner.settings
    tests = {case for partition in runner.divisions for case in partition.test}
    if settings.test.folds:
        split = f"folds {', '.join(map(str, settings.test.folds))} of {settings.test.split or 'splits_final.json'}"
    else:
        split = f"fixed, {settings.test.file or f'drawn with seed {settings.seed}'}"
    pool = ", ".join(f"{partition.name}: {len(partition.pool)}" for partition in runner.divisions)
    if any(partition.unit == "patient" for partition in runner.divisions):
        pool += "; numbers of labels count patients, each with all of its cases"
    checkpoints = ", ".join(f"{arm.name} {len(arm.checkpoints)}" for arm in settings.arms if arm.checkpoints)
    planned = len(runner.test_cells())
    length = f"{settings.epochs or 'as many as the trainer has'} epochs, "
    length += f"{settings.iterations or 'as many as the trainer has'} iterations each"
    draws = f"{settings.draws} draws of the labelled cases"
    if ALL in settings.labels and settings.draws_of(ALL) != settings.draws:
        draws += f" ({settings.draws_of(ALL)} with all)"
    lines = [
        f"- **Split**: {split}; {len(tests)} test cases, and no run trains on those it is tested on; cases to label "
        f"from ({pool}).",
        f"- **Runs**: {draws} x {settings.seeds} fine-tuning seeds; "
        f"pretraining seeds: {checkpoints or 'none'}. {runs} of {planned} runs are finished"
        + (". **This report is not complete.**" if runs < planned else "."),
        f"- **Fine-tuning**: {length}, {settings.plans} {settings.configuration}; all of an arm's settings are in "
        "settings.json and in the trainers' names.",
        *_measured(runner),
    ]
    trainers = sorted({arm.trainer.replace("_scratch", "") for arm in settings.arms})
    if len(trainers) > 1:
        lines.append(f"- **Arms differ in more than their start**: their trainers are {', '.join(trainers)}.")
    leakage = runner.leakage()
    lines += [f"- **{arm.name}** ({arm.trainer}): {leakage[arm.name]['says']}." for arm in settings.arms]
    lines += [f"- **Left out**: {name}: {why}" for name, why in unusable.items()]
    lines.append(f"- nnunet_alice {__version__}, {date.today().isoformat()}.")
    return lines


def _measured(runner: Runner) -> list[str]:
    """Return how the metrics, their intervals and tests are made."""
    settings, measure = runner.settings, runner.workspace.measure
    chance = "an arm with one seed has no chance of seeds in it"
    holm = "Holm corrects for all comparisons of a metric. It says nothing about other draws: see how many are better."
    if isinstance(measure, Predictions):
        return [
            f"- **{measure.target.name}**: {measure.target.task} of {', '.join(measure.target.columns)}, predicted of "
            "whole cases by windows; a metric is of all test cases of a run together.",
            "- **Intervals**: 95 %, bootstrap over pretraining seeds, draws and patients of the test cases, the metric "
            f"computed again for each sample; {chance}. p: Wilcoxon's signed-rank test over the errors of test cases "
            f"against {settings.baseline_arm.name}, each averaged over the runs; {holm}",
        ]
    return [
        "- **Dice**: 2|A∩B|/(|A|+|B|) of a class in a case, on nnU-Net's predictions "
        f"({'with' if settings.mirroring else 'without'} mirroring) in the images' own voxels; left "
        "out where truth and prediction both lack the class, 0 where one does; against an arm that invents a class, "
        "one that does not counts as perfect.",
        f"- **Surface Dice**: share of the surface voxels of both masks within {settings.tolerance_mm:g} mm of the "
        "other's surface. **HD95**: larger of the two directed 95th percentiles; the image's diagonal where one mask "
        "is empty.",
        "- **Mean** of a case: over its classes. Intervals: 95 %, bootstrap over pretraining seeds, draws and test "
        f"cases; {chance}. p: Wilcoxon's signed-rank test over test cases against {settings.baseline_arm.name}, each "
        f"averaged over the runs; {holm}",
    ]


def mean_table(summary: pd.DataFrame, metric: str, baseline: str) -> list[str]:
    """Return a table with all arms side by side; differences whose interval leaves out zero are bold."""
    rows = summary[(summary["metric"] == metric) & (summary["class"] == MEAN)]
    arms = [baseline, *(arm for arm in rows["arm"].unique() if arm != baseline)]
    lines = [_line(("labels", "% of run", *arms)), _line(["---:"] * 2 + ["---"] * len(arms))]
    for (labels, percent), group in rows.groupby(["labels", "percent"], sort=False):
        cells = {row.arm: _mean_cell(row, metric) for row in group.itertuples()}
        lines.append(_line((labels, percent, *(cells.get(arm, "") for arm in arms))))
    return lines


def _mean_cell(row: Any, metric: str) -> str:
    """Return the mean of an arm and, below it, what it has more than the baseline."""
    mean = _interval(row.mean, row.low, row.high, metric)
    if pd.isna(row.difference):
        return mean
    difference = _interval(row.difference, row.difference_low, row.difference_high, metric, "+")
    bold = "**" if row.difference_low > 0 or row.difference_high < 0 else ""
    p = f"p {_p(row.p)}, {_p(row.p_holm)}" if pd.notna(row.p) else "no p"
    return f"{mean}<br>{bold}{difference}{bold}, {row.draws_better:.0f} of {row.draws_paired:.0f}, {p}"


def class_table(summary: pd.DataFrame, metrics: Sequence[str] = METRICS) -> list[str]:
    """Return metrics (Dice, surface Dice and HD95) of every class and arm at the end of the run."""
    rows = summary[(summary["percent"] == 100) & (summary["class"] != MEAN)]
    arms = list(rows["arm"].unique())
    lines = [_line(("class", "labels", *arms)), _line(["---", "---:", *["---:"] * len(arms)])]
    for (name, labels), group in rows.groupby(["class", "labels"], sort=False):
        means = group.pivot_table(index="arm", columns="metric", values="mean", dropna=False)
        texts = [
            ", ".join(_number(means.loc[arm, metric], metric) for metric in metrics if metric in means)
            if arm in means.index
            else ""
            for arm in arms
        ]
        lines.append(_line((name, labels, *texts)))
    return lines


def _tuning(runner: Runner) -> list[str]:
    """Return how learning rates were chosen."""
    settings = runner.settings
    lines = []
    for arm in settings.arms:
        for partition in runner.divisions if len(arm.learning_rates) > 1 else ():
            dice = runner.tuning_dice(arm.name, partition.name)
            tried = ", ".join(f"{rate:g}: {value:.4f}" for rate, value in sorted(dice.items()))
            lines.append(f"- {arm.name}, {partition.name}: {tried or 'not finished'}")
    if not lines:
        return []
    tuning = settings.tuning
    intro = (
        f"Validation {runner.workspace.measure.title} on {tuning.cases} cases that are not test cases, with "
        f"{tuning.labels} labelled cases and {tuning.draws} draws; the best rate is used at every number of labels. A "
        "best rate at the end of its list asks for a longer list."
    )
    return ["## Learning rates", "", intro, "", *lines]


def _line(cells: Sequence) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float, metric: str, sign: str = "") -> str:
    return "-" if pd.isna(value) else f"{value:{sign}.2f}" if metric == "hd95_mm" else f"{value:{sign}.4f}"


def _interval(value: float, low: float, high: float, metric: str, sign: str = "") -> str:
    return f"{_number(value, metric, sign)} [{_number(low, metric, sign)}, {_number(high, metric, sign)}]"


def _p(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1e}" if value < 0.001 else f"{value:.3f}"
