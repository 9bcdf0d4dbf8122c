"""Tables of the results pages, made from the CSV files beside them, so that no number is typed into a page."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from reference_tables import table_head, table_line
from scipy.stats import ttest_1samp

from nnunet_alice.benchmark.page import class_table, mean_table

#: of predictions of whole cases
_MEASURES = {"r2": "age, R2", "mae": "age, mean error in years", "rank": "age, rank correlation", "auc": "sex, AUC"}
#: of trainers' names, which the page says once
_ENDINGS = re.compile(r"_(\d+epochs|\d+iterations|seed\d+|lr[\d.e-]+)(?=_|$)")
_RUN = ["arm", "checkpoint", "partition", "labels", "draw", "seed"]


def report(folder: Path, file: str, metric: str = "dice", labels: str = "", percent: str = "") -> str:
    """Return the table of a ``summary.csv`` as ``nnunet_alice report`` prints it; the first arm is the baseline.

    Args:
        folder: of the page.
        file: the CSV.
        metric: ``dice``, ``surface_dice`` or ``hd95_mm``.
        labels: numbers of labelled cases to show, with commas; all where empty.
        percent: shares of the run to show, with commas; all where empty.
    """
    table = _selected(pd.read_csv(folder / file), labels, percent)
    return "\n".join(mean_table(table, metric, table["arm"].iloc[0]))


def classes(folder: Path, file: str, labels: str = "") -> str:
    """Return Dice, surface Dice and HD95 (mm) of every class at the end of the run.

    Args:
        folder: of the page.
        file: a summary.
        labels: as in :func:`report`.
    """
    return "\n".join(class_table(_selected(pd.read_csv(folder / file), labels)))


def means(folder: Path, *columns: str, labels: str = "", percent: str = "") -> str:
    """Return mean Dice over classes of chosen arms side by side.

    Args:
        folder: of the page.
        columns: ``HEADING: FILE:ARM FILE:ARM ...`` each. FILE is a summary, or a table of cases (``.csv.gz``).
            Several arms are averaged, weighted by their runs.
        labels: as in :func:`report`.
        percent: as in :func:`report`.
    """
    named = [column.partition(": ") for column in columns]
    table = pd.DataFrame({heading: _mean_dice(folder, sources) for heading, _, sources in named}).reset_index()
    lines = table_head(["labels", "% of run", *table.columns[2:]])
    lines += [table_line(_texts(row)) for row in _selected(table, labels, percent).itertuples(index=False)]
    return "\n".join(lines)


def overview(folder: Path, file: str) -> str:
    """Return one row a data set and number of labels: mean Dice of every start at each measured share of the run.

    Args:
        folder: of the page.
        file: CSV with ``data``, ``labels`` and a column a start, whose cells are sources as in :func:`means`.
    """
    rows = pd.read_csv(folder / file, dtype=str, keep_default_na=False)
    lines = table_head(rows.columns)
    for row in rows.to_dict("records"):
        for start in rows.columns[2:]:
            if ":" in row[start]:
                dice = _mean_dice((folder / file).parent, row[start])
                row[start] = " / ".join(_texts(dice[int(row["labels"])]))
        lines.append(table_line(row.values()))
    return "\n".join(lines)


def arms(
    folder: Path, file: str, baseline: str = "scratch", folds: str = "", only: str = "", by: str = "fold,seed,draw"
) -> str:
    """Return mean Dice of every arm by number of labels, and how it compares with the baseline on the same draws.

    Intervals (95 %) are Student's, over the differences of all draws.

    Args:
        folder: of the page.
        file: log of ``benchmarks/fast/search.py``: a row a run.
        baseline: the arm that the others are compared with.
        folds: to show, with commas; all where empty.
        only: arms beside the baseline to show, with commas; all where empty.
        by: columns that pair runs, with commas.
    """
    table = pd.read_csv(folder / file)
    if only:
        table = table[table["arm"].isin([baseline, *only.split(",")])]
    if folds:
        table = table[table["fold"].isin([int(fold) for fold in folds.split(",")])]
    lines = table_head(["labels", "arm", "Dice", "points above", "better in"])
    for labels, rows in table.groupby("labels"):
        dice = rows.pivot_table(index=by.split(","), columns="arm", values="dice")
        for arm in [baseline, *(name for name in rows["arm"].unique() if name != baseline)]:
            gain = (dice[arm] - dice[baseline]).dropna()
            compared = ["", ""]
            if arm != baseline:
                mean = f"{100 * gain.mean():+.1f}"
                if len(gain) > 1:
                    low, high = 100 * np.array(ttest_1samp(gain, 0).confidence_interval())
                    mean += f" ({low:.1f} to {high:.1f})"
                compared = [mean, f"{(gain > 0).sum()} of {len(gain)}"]
            lines.append(table_line([str(labels), arm, f"{dice[arm].mean():.3f}", *compared]))
    return "\n".join(lines)


def seeds(folder: Path, file: str) -> str:
    """Return the Dice of every seed of ``benchmarks/demo_seeds.py``, their mean, and whether that is what was wanted.

    Args:
        folder: of the page.
        file: the CSV.
    """
    table = pd.read_csv(folder / file)
    above, mean = int((table["gain"] > 0).sum()), table.mean()
    lines = table_head(["seed", "pretrained", "from scratch", "points above", "seconds"])
    for name, row in [*((f"{row['seed']:.0f}", row) for _, row in table.iterrows()), (f"mean of {len(table)}", mean)]:
        dice = [f"{row[column]:.3f}" for column in ("pretrained", "from_scratch")]
        lines.append(table_line([name, *dice, f"{100 * row['gain']:+.1f}", f"{row['seconds']:.0f}"]))
    verdict = "Reached" if above >= 9 and mean["gain"] >= 0.05 else "Missed"
    verdict = verdict if len(table) >= 10 else "Not decided yet"
    wanted = "above scratch in 9 of 10 seeds, and by 5 points on average"
    return "\n".join([*lines, "", f"Wanted: {wanted}. {verdict}: above in {above} of {len(table)}."])


def targets(folder: Path, file: str, baseline: str = "scratch", probes: str = "probe") -> str:
    """Return metrics of ``benchmarks/brain_age.py`` by number of labels, and whether that is what was wanted.

    Args:
        folder: of the page.
        file: its table.
        baseline: the arm that trainings are compared with.
        probes: arms whose names begin so are shown, and are no pretrained trainings.
    """
    table = pd.read_csv(folder / file)
    lines = table_head(["labels", "measure", "arm", "value", "better by"])
    apart, above = [], []
    for (labels, metric), rows in table.groupby(["labels", "metric"], sort=False):
        own = rows.set_index("arm")
        low, high = own.loc[baseline, "low"], own.loc[baseline, "high"]
        for arm, row in own.iterrows():
            gain = "" if arm == baseline else _interval(row, "gain", "gain_low", "gain_high", "+")
            shown = _ENDINGS.sub("", str(arm))
            lines.append(
                table_line([str(labels), _MEASURES[metric], shown, _interval(row, "value", "low", "high"), gain])
            )
            if arm != baseline and not arm.startswith(probes):
                apart.append(row["high"] < low if metric == "mae" else row["low"] > high)
                above.append(row["gain_low"] > 0)
    wanted = "pretrained above scratch in every row, with intervals apart"
    verdict = "Reached" if all(apart) else "Missed"
    counts = f"apart in {sum(apart)} of {len(apart)}; the difference's interval lies above zero in {sum(above)}"
    return "\n".join([*lines, "", f"Wanted: {wanted}. {verdict}: {counts}."])


def registrations(folder: Path, file: str, *thresholds: str) -> str:
    """Return how well figures of a registration tell its Dice, and what a threshold keeps.

    Args:
        folder: of the page.
        file: CSV of ``benchmarks/registration_quality.py``.
        thresholds: ``FIGURE: VALUE`` each; a product of figures is written ``FIGURE*FIGURE``. Of two that are joined
            by ``and`` both have to be reached; the rank correlation is the first one's.
    """
    table = pd.read_csv(folder / file)
    lines = table_head(
        ["figure", "kept from", "set", "rank correlation with Dice", "kept", "Dice of those", "Dice of the others"]
        + ["upside down: kept"]
    )
    for text in thresholds:
        bounds = dict(part.split(": ") for part in text.split(" and "))
        for name, rows in table.groupby("set", sort=False):
            figures = [rows[figure.split("*")].prod(axis=1) for figure in bounds]
            kept = pd.concat(figures, axis=1).ge([float(bound) for bound in bounds.values()]).all(axis=1)
            values, dice = figures[0], rows["dice"]
            right, wrong = rows["upside_down"] == 0, rows["upside_down"] == 1
            figure = ", ".join(bounds).replace("_", " ").replace("*", " x ")
            cells = [figure, ", ".join(bounds.values()), name]
            cells += [f"{values[right].corr(dice[right], method='spearman'):.2f}"]
            cells += [f"{(kept & right).sum()} of {right.sum()}"]
            cells += _texts([dice[kept & right].mean(), dice[~kept & right].mean()])
            lines.append(table_line([*cells, f"{(kept & wrong).sum()} of {wrong.sum()}"]))
    return "\n".join(lines)


def data(folder: Path, file: str, where: str = "", columns: str = "", last_of: str = "") -> str:
    """Return a CSV as it is.

    Args:
        folder: of the page.
        file: the CSV.
        where: ``COLUMN:VALUE``: only these rows, without the column and without those that these rows leave empty.
        columns: which, in this order, with commas; all where empty.
        last_of: a column: only the last row of each of its values.
    """
    table = pd.read_csv(folder / file, dtype=str, keep_default_na=False)
    if where:
        column, _, value = where.partition(":")
        table = table[table[column] == value].drop(columns=column)
    if last_of:
        table = table.groupby(last_of, sort=False).tail(1)
    table = table[columns.split(",")] if columns else table
    table = table.loc[:, (table != "").any()]
    return "\n".join([*table_head(table.columns), *(table_line(row) for row in table.itertuples(index=False))])


def _selected(table: pd.DataFrame, labels: str = "", percent: str = "") -> pd.DataFrame:
    """Return rows with these numbers of labels and shares of the run."""
    for column, wanted in (("labels", labels), ("percent", percent)):
        if wanted:
            table = table[table[column].isin([int(value) for value in wanted.split(",")])]
    return table


def _mean_dice(folder: Path, sources: str) -> pd.Series:
    """Return mean Dice by labels and share of the run, over all runs of the sources ``FILE:ARM FILE:ARM``."""
    parts = pd.concat([_runs(folder / file, arm) for file, arm in re.findall(r"(\S+):(\S+)", sources)])
    weighted = (parts["mean"] * parts["runs"]).groupby(["labels", "percent"]).sum()
    return weighted / parts["runs"].groupby(["labels", "percent"]).sum()


def _runs(file: Path, arm: str) -> pd.DataFrame:
    """Return ``mean`` and number of ``runs`` of an arm by labels and share of the run."""
    table = pd.read_csv(file)
    table = table[(table["arm"] == arm) & (table["class"] == "mean")]
    if "metric" in table:
        return table[table["metric"] == "dice"].set_index(["labels", "percent"])[["mean", "runs"]]
    of_runs = table.groupby([*_RUN, "percent"])["dice"].mean()
    return of_runs.groupby(["labels", "percent"]).agg(mean="mean", runs="size")


def _interval(row: pd.Series, value: str, low: str, high: str, sign: str = "") -> str:
    """Return a number of a row with its interval."""
    return f"{row[value]:{sign}.2f} ({row[low]:.2f} to {row[high]:.2f})"


def _texts(values) -> list[str]:
    """Return numbers of a row as text: counts as they are, Dice with three digits, nothing where there is none."""
    return ["" if pd.isna(value) else f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]
