"""The steps of the demo, from volumes to the Dice of two networks: with pretraining, and from scratch."""

import ast
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from nnunet_alice.demo.budget import RUNS, WITHOUT_ANATOMY, Budget, length
from nnunet_alice.demo.commands import Commands
from nnunet_alice.demo.sources import Source
from nnunet_alice.errors import AliceError, OccupiedError
from nnunet_alice.files import read_json
from nnunet_alice.nnunet_folders import label_values
from nnunet_alice.pictures.benchmark import Example, axial_example
from nnunet_alice.pictures.demo import draw_demo

UNLABELLED, LABELLED = 900, 801
#: length of the runs by which the time is foretold
_TRIAL_EPOCHS, _TRIAL_ITERATIONS = 2, 20


@dataclass
class DemoReport:
    """What the demo found.

    Attributes:
        seconds: step -> seconds.
        dice: run (``pretrained``, ``from scratch``) -> class -> mean Dice over the test cases.
        cases: run -> test case -> mean Dice over the classes.
        labelled, pool: how many cases had labels, and how many images pretraining saw.
        matching: how far matches of unlabelled phantoms are off, a row a method, as ``summary.csv`` has it.
        pictures: what -> file.
        commands: every command that ran, as typed.
    """

    seconds: dict[str, float]
    commands: list[str]
    dice: dict[str, dict[str, float]] = field(default_factory=dict)
    cases: dict[str, dict[str, float]] = field(default_factory=dict)
    labelled: int = 0
    pool: int = 0
    matching: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: dict[str, Path] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """Mean Dice over the test cases: a row a class and one for their mean, a column a run."""
        table = pd.DataFrame(self.dice).rename_axis("class")
        table.loc["mean"] = table.mean()
        return table

    def mean(self, run: str) -> float:
        """Return mean Dice of a run over all classes."""
        return float(self.table.loc["mean", run])

    @property
    def gain(self) -> float:
        """Mean Dice of the pretrained run above the one from scratch."""
        return self.mean(RUNS[0]) - self.mean(RUNS[1])

    @property
    def won(self) -> int:
        """Test cases on which the pretrained run is better."""
        return sum(dice > self.cases[RUNS[1]][case] for case, dice in self.cases[RUNS[0]].items())


class Demo:
    """Runs the steps in order below one folder.

    Args:
        folder: where everything goes; must not hold anything yet.
        source: whose volumes.
        budget: how much to do.
        announce: called with every step's name before it starts.
        foretell: measure and announce how long training takes before it starts.

    Raises:
        InputError: the folder is not empty.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        source: Source,
        budget: Budget,
        announce: Callable[[str], None],
        foretell: bool = False,
    ) -> None:
        self.folder = Path(folder).resolve()
        if self.folder.exists() and any(self.folder.iterdir()):
            raise OccupiedError(
                f"{self.folder} is not empty; name a different folder with -o, or delete it first."
            ).about(path=self.folder, option="-o")
        self.source = source
        self.budget = budget
        self.foretell = foretell
        # batches from the trainers' seeds: the same demo every time; a GPU would wait for them
        repeatable = {"nnUNet_n_proc_DA": "0"} if budget.device == "cpu" else {}
        self.commands = Commands(self.folder, announce, {"nnUNet_def_n_proc": str(budget.processes), **repeatable})
        self.report = DemoReport(self.commands.seconds, self.commands.typed)
        raw = self.folder / "nnUNet_raw"
        self.labelled = raw / f"Dataset{LABELLED}_{source.name}"
        self.unlabelled = raw / f"Dataset{UNLABELLED}_Unlabelled"
        self.moved_plans = f"{budget.plans}_from{LABELLED}"
        self.results = {run: self.folder / f"nnUNet_results_{run.replace(' ', '_')}" for run in RUNS}
        for path in (raw, self.folder / "nnUNet_preprocessed", self.folder / "logs", *self.results.values()):
            path.mkdir(parents=True)

    def run(self) -> DemoReport:
        """Do all steps.

        Raises:
            AliceError: a command failed; the message names its log.
        """
        self.commands.timed(self.source.prepare, lambda: self.source.write(self.folder / "unlabelled", self.labelled))
        self._prepare()
        if self.source.has_true_points:
            self._measure_matching()
        if self.foretell:
            self._foretell()
        checkpoint = self._pretrain()
        for run, weights in zip(RUNS, (["-pretrained_weights", str(checkpoint)], []), strict=True):
            self._finetune(run, weights)
        self.report.labelled = len(list((self.labelled / "labelsTr").iterdir()))
        self.report.pool = read_json(self.unlabelled / "dataset.json")["numTraining"]
        self._draw(checkpoint.parent)
        return self.report

    # --------------------------------------------------------------------------------------------- before training

    def _prepare(self) -> None:
        """Import, plan, and find the anatomy where pretraining uses it."""
        alice, processes = ["nnunet_alice"], ["-np", str(self.budget.processes)]
        self._step(
            "import the unlabelled volumes",
            [*alice, "import", "-i", str(self.folder / "unlabelled"), "-d", str(UNLABELLED)]
            + ["-n", self.unlabelled.name.partition("_")[2], "--channel", *self.source.channels, *processes],
        )
        plan = [*alice, "plan", "-d", str(LABELLED), "-pl", self.budget.planner, *processes]
        if self.budget.device != "cpu":
            plan = ["nnUNetv2_plan_and_preprocess", "-c", "3d_fullres", "--verify_dataset_integrity"]
            plan += ["-d", str(LABELLED)]
        self._step("plan the labelled dataset", plan, whole=True)
        target = ["--target", str(LABELLED), "--target_plans", self.budget.plans]
        self._step("plan the unlabelled dataset", [*alice, "plan", "-d", str(UNLABELLED), *target, *processes])
        if self.budget.needs_anatomy:
            self._find_anatomy()

    def _find_anatomy(self) -> None:
        """Register the cases, and train the embedding if it is to match them.

        Raises:
            AliceError: it failed; the message says how to pretrain without.
        """
        anatomy = ["nnunet_alice", "anatomy", "-d", str(UNLABELLED), "-p", self.moved_plans, "-c", "3d_fullres"]
        try:
            self._step("find the anatomy", [*anatomy, "-np", str(os.cpu_count() or 1)])
        except AliceError as error:
            if self.source.has_true_points or error.path is None:  # phantoms are alike; or it was not found at all
                raise
            raise AliceError(
                f"The anatomy of these images could not be found (see {error.path}); start again in a different folder "
                f"with -tr {WITHOUT_ANATOMY}, which needs none."
            ).about(path=error.path, option="-tr", value=WITHOUT_ANATOMY) from error
        if self.budget.embedding is not None:
            self._train("train the embedding", UNLABELLED, self.budget.embedding)
            self._step("index the cases", [*anatomy, "--method", "embedding", "-device", self.budget.device])

    def _measure_matching(self) -> None:
        """Measure all matching methods that are prepared against the truth of the phantoms."""
        folder = self.folder / "matching"
        self._step(
            "measure matching",
            ["nnunet_alice", "evaluate_matching", "-d", str(UNLABELLED), "-p", self.moved_plans, "-c", "3d_fullres"]
            + ["--truth", str(self.folder / "unlabelled"), "--pairs", str(self.budget.pairs), "-o", str(folder)],
        )
        table = pd.read_csv(folder / "summary.csv")
        self.report.matching = table[table["point"] == "all"].drop(columns="point")
        self.report.pictures["errors of matching"] = folder / "cumulative_error.png"

    def _foretell(self) -> None:
        """Train for a few steps elsewhere, and announce how long everything takes from here."""
        pretraining = sum(self._tried(UNLABELLED, self.budget.pretraining))
        around, epochs = self._tried(LABELLED, self.budget.scratch)
        # a run on labels ends with predictions of its own cases
        labelled, tested = (len(list((self.labelled / part).iterdir())) for part in ("labelsTr", "labelsTs"))
        labels, predictions = around + epochs, around * tested / labelled
        minutes = [
            seconds / 60 for seconds in (pretraining + 2 * (labels + predictions), pretraining, labels, predictions)
        ]
        self.commands.announce(
            "from here about {:.0f} minutes: {:.0f} of pretraining, twice {:.0f} of training on labels and {:.0f} of "
            "predictions (Ctrl-C ends it; --epochs and --finetuning_epochs change it)".format(*minutes)
        )

    def _tried(self, dataset: int, trainer: str) -> tuple[float, float]:
        """Return seconds that a run takes around its epochs, and for them, by a short run elsewhere."""
        elsewhere, (epochs, iterations) = self.folder / "nnUNet_results_trial", length(trainer)
        trial = (
            re.sub(r"_\d+(epochs|iterations)", "", trainer) + f"_{_TRIAL_EPOCHS}epochs_{_TRIAL_ITERATIONS}iterations"
        )
        start = time.time()
        self._train(f"try {trainer.partition('_')[0]} for the time it takes", dataset, trial, results=elsewhere)
        taken, epoch = time.time() - start, _epoch_seconds(self._fold(elsewhere, dataset, trial))
        # validation has its share of an epoch
        return taken - _TRIAL_EPOCHS * epoch, epochs * epoch * iterations / _TRIAL_ITERATIONS

    # --------------------------------------------------------------------------------------------- training

    def _pretrain(self) -> Path:
        self._train("pretrain, no labels", UNLABELLED, self.budget.pretraining)
        return self._fold(self.results[RUNS[0]], UNLABELLED, self.budget.pretraining) / "checkpoint_final.pth"

    def _finetune(self, run: str, weights: Sequence[str]) -> None:
        """Train on the labelled cases, predict and evaluate the test cases."""
        results, trainer, predicted = self.results[run], self.budget.trainer(run), self._predicted(run)
        workers = str(min(1, self.budget.processes - 1))  # none for small volumes: they import nnU-Net again
        self._train(f"fine-tune, {run}", LABELLED, trainer, weights, results)
        self._step(
            f"predict, {run}",
            ["nnUNetv2_predict", "-i", str(self.labelled / "imagesTs"), "-o", str(predicted), "-d", str(LABELLED)]
            + ["-c", "3d_fullres", "-f", "all", "-p", self.budget.plans, "-tr", trainer, "-device", self.budget.device]
            + ["--disable_tta", "-npp", workers, "-nps", workers],
            results,
        )
        model = self._fold(results, LABELLED, trainer).parent
        self._step(
            f"evaluate, {run}",
            ["nnUNetv2_evaluate_folder", str(self.labelled / "labelsTs"), str(predicted)]
            + ["-djfile", str(model / "dataset.json"), "-pfile", str(model / "plans.json")],
            results,
        )
        summary = self._summary(run)
        self.report.dice[run] = dice_by_class(summary, read_json(self.labelled / "dataset.json")["labels"])
        self.report.cases[run] = {
            Path(case["prediction_file"]).name: float(np.nanmean([one["Dice"] for one in case["metrics"].values()]))
            for case in summary["metric_per_case"]
        }

    def _train(
        self, name: str, dataset: int, trainer: str, weights: Sequence[str] = (), results: Path | None = None
    ) -> None:
        plans = self.moved_plans if dataset == UNLABELLED else self.budget.plans
        command = ["nnUNetv2_train", "-device", self.budget.device, str(dataset), "3d_fullres", "all"]
        self._step(name, [*command, "-tr", trainer, "-p", plans, *weights], results, whole=True)

    def _step(self, name: str, command: Sequence[str], results: Path | None = None, whole: bool = False) -> None:
        self.commands.run(name, command, results or self.results[RUNS[0]], whole)

    def _fold(self, results: Path, dataset: int, trainer: str) -> Path:
        """Return the folder of a run."""
        unlabelled = dataset == UNLABELLED
        name, plans = (
            (self.unlabelled.name, self.moved_plans) if unlabelled else (self.labelled.name, self.budget.plans)
        )
        return results / name / f"{trainer}__{plans}__3d_fullres" / "fold_all"

    # --------------------------------------------------------------------------------------------- what came out

    def _predicted(self, run: str) -> Path:
        return self.folder / f"predictions_{run.replace(' ', '_')}"

    def _summary(self, run: str) -> dict[str, Any]:
        """Return what nnU-Net's evaluation of a run wrote."""
        return read_json(self._predicted(run) / "summary.json")

    def _draw(self, pretrained: Path) -> None:
        """Write the table, draw the result, and name all pictures."""
        picture = self.folder / "demo.png"
        self.report.table.round(4).to_csv(self.folder / "dice.csv")
        draw_demo(self._median_case(), {run: self._curve(run) for run in RUNS}, picture)
        preprocessed = self.folder / "nnUNet_preprocessed" / self.unlabelled.name
        registered = {}
        if self.budget.needs_anatomy:
            registered["registered cases"] = next(preprocessed.rglob("atlas.png"), preprocessed)
        self.report.pictures = {
            "the result": picture,
            **registered,
            f"{'matched ' if registered else ''}views": pretrained / "views.png",
            "pretraining curves": pretrained / "progress.png",
            **self.report.pictures,
        }

    def _median_case(self) -> Example:
        """Return the test case in the middle by what pretraining gained, with both runs' segmentations."""
        dice = self.report.cases
        gains = {file: dice[RUNS[0]][file] - dice[RUNS[1]][file] for file in dice[RUNS[0]]}
        file = sorted(gains, key=gains.__getitem__)[len(gains) // 2]
        content = read_json(self.labelled / "dataset.json")
        ending, ignored = content["file_ending"], content["labels"].get("ignore")
        case = file.removesuffix(ending)
        image = sitk.ReadImage(str(self.labelled / "imagesTs" / f"{case}_0000{ending}"))
        folders = {"truth": self.labelled / "labelsTs"}
        folders |= {f"{run}, Dice {dice[run][file]:.2f}": self._predicted(run) for run in reversed(RUNS)}
        labels = {name: sitk.GetArrayFromImage(sitk.ReadImage(str(path / file))) for name, path in folders.items()}
        voxels, spacing_mm = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
        return axial_example(f"test case {case}", voxels, labels, spacing_mm, ignored)

    def _curve(self, run: str) -> list[float]:
        return pseudo_dice(_log(self._fold(self.results[run], LABELLED, self.budget.trainer(run))))


def dice_by_class(summary: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean Dice by the names of classes: the evaluation names them by number, or by a region's numbers."""
    names = {label_values(value): name for name, value in labels.items()}
    return {names[label_values(ast.literal_eval(key))]: metrics["Dice"] for key, metrics in summary["mean"].items()}


def pseudo_dice(log: str) -> list[float]:
    """Return nnU-Net's Dice of random patches after every epoch of a log, the mean of the classes that were there."""
    rows = re.findall(r"Pseudo dice \[(.*)\]", log.replace("np.float32", ""))
    return [float(np.nanmean([float(value) for value in re.findall(r"[^\s,()]+", row)])) for row in rows]


def _log(fold: Path) -> str:
    """Return the last log of a run."""
    return sorted(fold.glob("training_log_*.txt"))[-1].read_text(encoding="utf-8")


def _epoch_seconds(fold: Path) -> float:
    """Return the seconds of a run's last epoch as logged; the first one compiles and warms up."""
    return float(re.findall(r"(?:Epoch time:|seconds) ([\d.]+)", _log(fold))[-1])
