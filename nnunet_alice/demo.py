"""The whole workflow on phantoms, in minutes and without a GPU, through the same commands that a user types.

Nothing here trains or predicts by itself: every step is a subprocess of ``nnunet_alice`` or ``nnUNetv2_...``, with its
output in a log file. What the table shows is read from what those commands wrote.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from nnunet_alice.discovery import package_folder
from nnunet_alice.errors import AliceError, InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.phantoms import label_table, make_population, write_subjects
from nnunet_alice.pictures.benchmark import Example, axial_example
from nnunet_alice.pictures.demo import draw_demo

UNLABELLED, LABELLED = 900, 801
UNLABELLED_NAME, LABELLED_NAME = f"Dataset{UNLABELLED}_Phantoms", f"Dataset{LABELLED}_PhantomOrgans"
#: organs of the labelled dataset: none of them paired, which nnU-Net's mirroring makes hard to learn in minutes
ORGANS = ("heart", "liver", "stomach", "spine", "pelvis")
TARGET_PLANS = "AliceSmallPlans"
MOVED_PLANS = f"{TARGET_PLANS}_from{LABELLED}"
#: trainer of the embedding, where the demo is asked for it
EMBEDDING = "AnatomicalEmbeddingTrainer_6epochs_50iterations"
_RUNS = ("pretrained", "from scratch")

#: exit statuses of commands after which the workflow goes on; with 3 some cases failed, and the log names them
_GOOD = (0, 3)


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does.

    Attributes:
        unlabelled, training, test: numbers of phantoms.
        spacing_mm: voxel size.
        pretraining: trainer of the pretraining.
        finetuning: trainer that starts from the pretrained weights.
        scratch: trainer that starts from random weights, with the same budget.
        embedding: trainer of the anatomical embedding, which then matches the views; None leaves that to the atlas.
        pairs: ordered pairs of unlabelled phantoms on which matching is measured.
    """

    unlabelled: int = 24
    training: int = 2
    test: int = 8
    spacing_mm: float = 8.0
    pretraining: str = "AliceTrainer_8epochs_100iterations_lr3e-3"
    finetuning: str = "FineTuneTrainer_5epochs_50iterations_AdamW_lr1e-2_seed1"
    scratch: str = "FineTuneTrainer_scratch_5epochs_50iterations_AdamW_lr1e-2_seed1"
    embedding: str | None = None
    pairs: int = 100

    def trainer(self, run: str) -> str:
        """Trainer of one of the two runs on labels."""
        return self.finetuning if run == _RUNS[0] else self.scratch


@dataclass
class DemoReport:
    """What the demo found.

    Attributes:
        seconds: step -> seconds.
        dice: run (``pretrained``, ``from scratch``) -> organ -> mean Dice over the test cases.
        matching: how far matches of unlabelled phantoms are off, a row a method, as ``summary.csv`` has it.
        pictures: what -> file.
        commands: every command that ran, as typed.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    dice: dict[str, dict[str, float]] = field(default_factory=dict)
    matching: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: dict[str, Path] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


class Demo:
    """Runs the steps in order below one folder.

    Args:
        folder: where everything goes; must not hold anything yet.
        size: how much to do.
        seed: of the phantoms.
        announce: called with every step's name before it starts.

    Raises:
        InputError: the folder is not empty.
    """

    def __init__(self, folder: str | os.PathLike, size: DemoSize, seed: int, announce: Callable[[str], None]) -> None:
        self.folder = Path(folder).resolve()
        if self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty; name another folder with -o, or delete it first.")
        self.size = size
        self.seed = seed
        self.announce = announce
        self.report = DemoReport()
        self.raw = self.folder / "nnUNet_raw"
        self.results = {run: self.folder / f"nnUNet_results_{run.replace(' ', '_')}" for run in _RUNS}
        for path in (self.raw, self.folder / "nnUNet_preprocessed", self.folder / "logs", *self.results.values()):
            path.mkdir(parents=True)

    def run(self) -> DemoReport:
        """Do all steps.

        Raises:
            AliceError: a command failed; the message names its log.
        """
        size = self.size
        self._time("make phantoms", self._make_phantoms)
        alice, plans = ["nnunet_alice"], ["-p", MOVED_PLANS, "-c", "3d_fullres"]
        processes = ["-np", "1"]  # phantoms are small: starting another process takes longer than the work
        self._step(
            "import the unlabelled volumes",
            [*alice, "import", "-i", str(self.folder / "unlabelled"), "-d", str(UNLABELLED)]
            + ["-n", UNLABELLED_NAME.partition("_")[2], "--channel", "CT", *processes],
        )
        self._step(
            "plan the labelled dataset", [*alice, "plan", "-d", str(LABELLED), "-pl", "AlicePlannerSmall", *processes]
        )
        target = ["--target", str(LABELLED), "--target_plans", TARGET_PLANS]
        self._step("plan the unlabelled dataset", [*alice, "plan", "-d", str(UNLABELLED), *target, *processes])
        self._step(
            "find the anatomy", [*alice, "anatomy", "-d", str(UNLABELLED), *plans, "-np", str(os.cpu_count() or 1)]
        )
        train = ["nnUNetv2_train", "-device", "cpu"]
        if size.embedding is not None:
            self._step(
                "train the embedding",
                [*train, str(UNLABELLED), "3d_fullres", "all", "-tr", size.embedding, "-p", MOVED_PLANS],
            )
            self._step(
                "index the cases",
                [*alice, "anatomy", "-d", str(UNLABELLED), *plans, "--method", "embedding", "-device", "cpu"],
            )
        self._measure_matching()
        self._step(
            "pretrain with Alice",
            [*train, str(UNLABELLED), "3d_fullres", "all", "-tr", size.pretraining, "-p", MOVED_PLANS],
        )
        trained = self.results["pretrained"] / UNLABELLED_NAME / f"{size.pretraining}__{MOVED_PLANS}__3d_fullres"
        checkpoint = trained / "fold_all" / "checkpoint_final.pth"
        for run, weights in zip(_RUNS, (["-pretrained_weights", str(checkpoint)], []), strict=True):
            self._finetune(run, [*train, str(LABELLED), "3d_fullres", "all", "-tr", size.trainer(run), *weights])
        picture = self.folder / "demo.png"
        draw_demo(self._median_case(), {run: self._curve(run) for run in _RUNS}, picture)
        preprocessed = self.folder / "nnUNet_preprocessed" / UNLABELLED_NAME
        self.report.pictures = {
            "the result": picture,
            "registered cases": next(preprocessed.rglob("atlas.png"), preprocessed),
            "matched views": checkpoint.parent / "views.png",
            "pretraining curves": checkpoint.parent / "progress.png",
            "errors of matching": self.folder / "matching" / "cumulative_error.png",
        }
        return self.report

    def _measure_matching(self) -> None:
        """Measure all matching methods that are prepared against the truth of the phantoms."""
        folder = self.folder / "matching"
        self._step(
            "measure matching",
            ["nnunet_alice", "evaluate_matching", "-d", str(UNLABELLED), "-p", MOVED_PLANS, "-c", "3d_fullres"]
            + ["--truth", str(self.folder / "unlabelled"), "--pairs", str(self.size.pairs), "-o", str(folder)],
        )
        table = pd.read_csv(folder / "summary.csv")
        self.report.matching = table[table["point"] == "all"].drop(columns="point")

    def _make_phantoms(self) -> None:
        size = self.size
        seeds = iter(range(self.seed, self.seed + size.unlabelled + size.training + size.test))
        unlabelled, training, test = (
            [next(seeds) for _ in range(count)] for count in (size.unlabelled, size.training, size.test)
        )
        dataset = self.raw / LABELLED_NAME
        options: dict[str, Any] = {"spacing_mm": size.spacing_mm, "num_processes": os.cpu_count() or 1}
        write_subjects(
            self.folder / "unlabelled",
            make_population(unlabelled, cut_share=0.1),
            images_folder=".",
            labels_folder=None,
            **options,
        )
        for population, kind in ((training, "Tr"), (test, "Ts")):
            write_subjects(
                dataset,
                make_population(population, cut_share=0),
                images_folder=f"images{kind}",
                labels_folder=f"labels{kind}",
                image_suffix="_0000",
                organs=ORGANS,
                **options,
            )
        write_json(
            dataset / "dataset.json",
            {
                "channel_names": {"0": "CT"},
                "labels": label_table(ORGANS),
                "numTraining": size.training,
                "file_ending": ".nii.gz",
            },
        )

    def _finetune(self, run: str, train: Sequence[str]) -> None:
        """Train on the labelled phantoms, predict and evaluate the test phantoms."""
        dataset, results, trainer = self.raw / LABELLED_NAME, self.results[run], self.size.trainer(run)
        predicted = self._predicted(run)
        model = ["-d", str(LABELLED), "-c", "3d_fullres", "-f", "all", "-p", TARGET_PLANS, "-tr", trainer]
        self._step(f"fine-tune, {run}", [*train, "-p", TARGET_PLANS], results)
        self._step(
            f"predict, {run}",
            ["nnUNetv2_predict", "-i", str(dataset / "imagesTs"), "-o", str(predicted), *model]
            + ["-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1"],
            results,
        )
        folder = results / LABELLED_NAME / f"{trainer}__{TARGET_PLANS}__3d_fullres"
        self._step(
            f"evaluate, {run}",
            ["nnUNetv2_evaluate_folder", str(dataset / "labelsTs"), str(predicted)]
            + ["-djfile", str(folder / "dataset.json"), "-pfile", str(folder / "plans.json")],
            results,
        )
        summary = self._summary(run)["mean"]
        organs = {str(value): name for name, value in label_table(ORGANS).items()}
        self.report.dice[run] = {organs[value]: metrics["Dice"] for value, metrics in summary.items()}

    def _predicted(self, run: str) -> Path:
        return self.folder / f"predictions_{run.replace(' ', '_')}"

    def _summary(self, run: str) -> dict:
        """What nnU-Net's evaluation of a run wrote."""
        return read_json(self._predicted(run) / "summary.json")

    def _median_case(self) -> Example:
        """The test case in the middle by what pretraining gained, with both runs' segmentations."""
        dice = {
            run: {
                Path(case["prediction_file"]).name: float(np.nanmean([one["Dice"] for one in case["metrics"].values()]))
                for case in self._summary(run)["metric_per_case"]
            }
            for run in _RUNS
        }
        gains = {file: dice[_RUNS[0]][file] - dice[_RUNS[1]][file] for file in dice[_RUNS[0]]}
        file = sorted(gains, key=gains.__getitem__)[len(gains) // 2]
        dataset, case = self.raw / LABELLED_NAME, file.removesuffix(".nii.gz")
        image = sitk.ReadImage(str(dataset / "imagesTs" / f"{case}_0000.nii.gz"))
        folders = {"truth": dataset / "labelsTs"}
        folders |= {f"{run}, Dice {dice[run][file]:.2f}": self._predicted(run) for run in reversed(_RUNS)}
        labels = {name: sitk.GetArrayFromImage(sitk.ReadImage(str(path / file))) for name, path in folders.items()}
        return axial_example(f"test case {case}", sitk.GetArrayFromImage(image), labels, image.GetSpacing()[::-1])

    def _curve(self, run: str) -> list[float]:
        """nnU-Net's pseudo Dice of random patches after every epoch of a run on labels."""
        folder = self.results[run] / LABELLED_NAME / f"{self.size.trainer(run)}__{TARGET_PLANS}__3d_fullres"
        logs = sorted((folder / "fold_all").glob("training_log_*.txt"))
        found = re.findall(r"Pseudo dice \[(.*)\]", logs[-1].read_text(encoding="utf-8"))
        return [float(np.nanmean([float(value) for value in re.findall(r"\d\.\d+|nan", row)])) for row in found]

    def _time(self, name: str, work: Callable[[], None]) -> None:
        self.announce(name)
        start = time.time()
        work()
        self.report.seconds[name] = time.time() - start

    def _step(self, name: str, command: Sequence[str], results: Path | None = None) -> None:
        """Run one command with its output in a log."""
        results = results or self.results["pretrained"]
        self.report.commands.append(shlex.join(command))
        log = self.folder / "logs" / f"{len(self.report.commands):02d}_{name.replace(',', '').replace(' ', '_')}.txt"
        self._time(name, lambda: _run(command, self._environment(results), log))

    def _environment(self, results: Path) -> Mapping[str, str]:
        own = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.folder / "nnUNet_preprocessed"),
            "nnUNet_results": str(results),
            "nnUNet_extTrainer": str(package_folder("nnunet_alice.trainers")),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "0",  # batches from the trainer's seed: the same demo every time
        }
        return {**os.environ, **own}


def _run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a command of this installation; its output goes to ``log``.

    Raises:
        AliceError: it is not installed, or failed.
    """
    program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if program is None:
        raise AliceError(f"The command {command[0]} was not found; install this package together with nnunetv2.")
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        status = subprocess.run(
            [program, *command[1:]], env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if status not in _GOOD:
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
        raise AliceError(f"'{shlex.join(command[:2])} ...' failed ({''.join(last).strip()}); see {log}.")
