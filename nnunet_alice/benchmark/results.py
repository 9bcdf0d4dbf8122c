"""Metrics of every finished test run, case by case, from its predictions and the truth."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from nnunet_alice.benchmark.plan import Cell
from nnunet_alice.benchmark.runner import Runner
from nnunet_alice.benchmark.segmentation_metrics import METRICS, agreement
from nnunet_alice.benchmark.settings import Settings
from nnunet_alice.benchmark.splits import labelled_number
from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.files import read_json, write_csv
from nnunet_alice.nnunet_folders import label_values
from nnunet_alice.parallel import for_each_case

#: the row of a case that holds the mean of its classes
MEAN = "mean"
#: columns that name a run
KEYS = ("arm", "checkpoint", "partition", "labels", "draw", "seed")


@dataclass(frozen=True)
class Job:
    """Predictions of one validation.

    Attributes:
        predictions: folder with a segmentation file a case.
        cases: names of the cases.
    """

    predictions: Path
    cases: tuple[str, ...]

    def __str__(self) -> str:
        return str(self.predictions)


@dataclass(frozen=True)
class Truth:
    """What predictions are compared with.

    Attributes:
        folder: true segmentations, named like the predictions.
        plans_file: for the reader of segmentations.
        dataset_file: ``dataset.json``: labels.
        tolerance_mm: of the surface Dice.
    """

    folder: Path
    plans_file: Path
    dataset_file: Path
    tolerance_mm: float


def collect(runner: Runner, num_processes: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return metrics of all finished test cells; what was computed before is read from the disk.

    Args:
        runner: prepared.
        num_processes: processes that compare segmentations.

    Returns:
        rows with ``arm``, ``checkpoint`` (-1 from scratch), ``partition``, ``labels`` (of :func:`labelled_number`),
        ``draw``, ``seed``, ``percent`` (of the run), ``case``, ``class`` (name, or ``mean``), and the metrics;
        and cells whose results cannot be used, with why.
    """
    truth = Truth(
        runner.workspace.dataset_folder / "gt_segmentations",
        runner.workspace.dataset_folder / f"{runner.settings.plans}.json",
        runner.workspace.dataset_folder / "dataset.json",
        runner.settings.tolerance_mm,
    )
    jobs, owners = [], {}
    cells, unusable = runner.usable()
    for cell in cells:
        for percent, summary in runner.summaries(cell).items():
            job = Job(summary.parent, tuple(runner.splits[cell.split]["val"]))
            jobs.append(job)
            owners[str(job)] = cell, percent
    outcomes = for_each_case(partial(evaluate, truth), jobs, doing="Comparing", num_processes=num_processes)
    unusable |= {owners[name][0].name: reason for name, reason in outcomes.failed.items()}
    tables = {}
    for name, found in outcomes.results.items():
        cell, percent = owners[name]
        tables[name] = found.assign(**keys_of(runner, cell), percent=percent)
    # of a run that cannot be used, what it had on the way is not used either
    usable = [table for name, table in tables.items() if owners[name][0].name not in unusable]
    if not usable:
        return pd.DataFrame(columns=[*KEYS, "percent", "case", "class", *METRICS]), unusable
    return sorted_by_arms(pd.concat(usable, ignore_index=True), runner.settings), unusable


def sorted_by_arms(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Return rows of runs in the order of the arms in the settings."""
    position = {arm.name: number for number, arm in enumerate(settings.arms)}
    table = table.sort_values(
        [*KEYS, "percent", "case"],
        kind="stable",
        key=lambda column: column.map(position) if column.name == "arm" else column,
    )
    return table.reset_index(drop=True)


def keys_of(runner: Runner, cell: Cell) -> dict:
    """Return columns that name a cell in the table of all cases."""
    return {
        "arm": cell.arm,
        "checkpoint": -1 if cell.checkpoint is None else cell.checkpoint,
        "partition": cell.partition,
        "labels": labelled_number(cell.labels, runner.divisions),
        "draw": cell.draw,
        "seed": cell.seed,
    }


def evaluate(truth: Truth, job: Job) -> pd.DataFrame:
    """Return metrics of one validation (``case``, ``class``, metrics), kept as CSV beside its predictions.

    Raises:
        InputError: a segmentation is missing, or is not as large as the truth.
    """
    kept = job.predictions / f"metrics_{truth.tolerance_mm:g}mm.csv"
    summary = job.predictions / "summary.json"
    if kept.is_file() and kept.stat().st_mtime_ns >= summary.stat().st_mtime_ns:
        text = {"case": str, "class": str}  # names may be NA or null
        table = pd.read_csv(kept, dtype=text, keep_default_na=False, na_values=[""])
        if sorted(table["case"].unique()) == sorted(job.cases):
            return table
    table = pd.concat([_evaluate_case(truth, job.predictions, case) for case in job.cases], ignore_index=True)
    write_csv(kept, table)
    return table


def _evaluate_case(truth: Truth, predictions: Path, case: str) -> pd.DataFrame:
    from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset = read_json(truth.dataset_file)
    manager = PlansManager(str(truth.plans_file))
    reader, labels = manager.image_reader_writer_class(), manager.get_label_manager(dataset)
    files = [folder / f"{case}{dataset['file_ending']}" for folder in (predictions, truth.folder)]
    remedies = (f"delete {predictions / 'summary.json'} and run", "link the truth again by running")
    for file, remedy in zip(files, remedies, strict=True):
        if not file.is_file():
            raise MissingFileError(f"{file} is missing; {remedy} the benchmark again.").about(path=file)
    (predicted, _), (true, properties) = (reader.read_seg(str(file)) for file in files)
    if predicted.shape != true.shape:
        raise InputError(f"{files[0]} has {predicted.shape} voxels and {files[1]} {true.shape}.").about(
            path=files[0], value=predicted.shape
        )
    keep = true[0] != labels.ignore_label if labels.ignore_label is not None else True
    rows = []
    names = {label_values(value): name for name, value in dataset["labels"].items()}
    for label in labels.foreground_regions if labels.has_regions else labels.foreground_labels:
        predicted_mask, true_mask = (region_or_label_to_mask(array[0], label) & keep for array in (predicted, true))
        found = agreement(predicted_mask, true_mask, properties["spacing"], truth.tolerance_mm)
        rows.append({"case": case, "class": names.get(label_values(label), str(label)), **vars(found)})
    table = pd.DataFrame(rows)
    mean = {metric: table[metric].mean() for metric in METRICS}  # over the classes that the case has
    return pd.concat([table, pd.DataFrame([{"case": case, "class": MEAN, **mean}])], ignore_index=True)
