"""Run a benchmark's cells through the public commands; whatever is finished is never run again.

What is done is read from the results alone (:meth:`Runner.is_done`). So a kill at any moment loses at most one run's
work since its last checkpoint. Runs made elsewhere with the printed commands count, too.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_alice.benchmark import plan
from nnunet_alice.benchmark.commands import Command, run_command
from nnunet_alice.benchmark.leakage import leakage
from nnunet_alice.benchmark.parsing import parse_settings
from nnunet_alice.benchmark.plan import Cell
from nnunet_alice.benchmark.settings import Arm, Settings
from nnunet_alice.benchmark.splits import Partition
from nnunet_alice.benchmark.weights import Weights
from nnunet_alice.benchmark.workspace import Workspace
from nnunet_alice.checkpoints.exporting import find_trainer
from nnunet_alice.discovery import trainer_folders
from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.locks import held

logger = logging.getLogger(__name__)

#: whether pretraining saw test images, of each arm
_LEAKAGE = "exposure.json"


class RateUnknown(Exception):
    """The tuning runs that decide a cell's learning rate are not all done."""


@dataclass
class Outcome:
    """What came of the cells of this part.

    Attributes:
        done: names of finished cells.
        failed: name -> why.
        waiting: names of cells that a different process runs, or whose learning rate is not known yet.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)


class Runner:
    """Runs the cells of one benchmark.

    Args:
        settings: what to compare.
        folder: of the benchmark.
        execute: runs a command and returns its exit status.
    """

    def __init__(
        self, settings: Settings, folder: str | os.PathLike, execute: Callable[..., int] = run_command
    ) -> None:
        self.settings = settings
        self.workspace = Workspace(folder, settings)
        self.execute = execute
        self.divisions: list[Partition] = []
        self.folds: dict[str, int] = {}
        self.splits: dict[str, dict] = {}
        self.weights = Weights(self.workspace, settings)
        self._rates: dict[tuple[str, str], float] = {}  # chosen by tuning runs that are all done

    # ------------------------------------------------------------------------------------------------- cells

    def prepare(self, transfer: bool = False) -> None:
        """Link the data and write the splits; nothing is trained.

        The benchmark has begun when nothing was refused. Of parts that start together one does it first.

        Args:
            transfer: fit the checkpoints to the plans, too.
        """
        for arm in self.settings.arms:
            rate = arm.learning_rates[0] if arm.learning_rates else None
            find_trainer(plan.trainer_name(self.settings, arm, Cell("test", arm.name, None, "", 1, 0, 0), rate))
        with held(self.workspace.folder / "locks" / "start.lock", wait=True):
            self.divisions = self.workspace.prepare()
            self.weights.check()
            self.splits = self._wanted_splits()
            self.folds = self.workspace.write_splits(self.splits.items())
            self._record_leakage()
            if not self.workspace.begun:
                self.weights.forget()
            if transfer:
                self._transfer()
            self.workspace.remember(self.divisions)

    def _transfer(self) -> None:
        for arm, checkpoint in self.weights.missing():
            words, log = self.weights.transfer(arm, checkpoint)
            if self.execute(Command(words, self.environment(), log)) != 0:
                raise InputError(f"The checkpoint {checkpoint} of arm '{arm}' cannot be transferred; see {log}.").about(
                    option=arm, value=checkpoint
                )

    @classmethod
    def of_folder(cls, folder: str | os.PathLike, baseline: str | None = None) -> "Runner":
        """Open a benchmark as it is in its folder, to read what it found; nothing is written.

        Args:
            folder: of the benchmark.
            baseline: arm to compare the others with, instead of the benchmark's own.

        Raises:
            InputError: the folder holds no benchmark, or there is no arm of the baseline's name.
        """
        file = Path(folder) / "settings.json"
        if not file.is_file():
            raise InputError(
                f"{folder} holds no benchmark (no settings.json); run nnunet_alice benchmark first."
            ).about(path=folder, command="nnunet_alice benchmark")
        settings = parse_settings(read_json(file))
        runner = cls(settings if baseline is None else settings.against(baseline), folder)
        runner.divisions = runner.workspace.divisions()
        runner.splits = runner._wanted_splits()
        runner.folds = runner.workspace.folds()
        return runner

    def _wanted_splits(self) -> dict[str, dict]:
        cells = [*self.tuning_cells(), *self.test_cells()]
        return dict(plan.splits(self.settings, self.divisions, cells))

    def _record_leakage(self) -> None:
        """Write down of each arm whether its pretraining saw test images, which its checkpoints' files tell."""
        known = self.leakage()
        listed = read_json(self.workspace.dataset_folder / "dataset.json").get("dataset", {})
        tests = {case for partition in self.divisions for case in partition.test}
        images = {case: listed.get(case, {}).get("images", []) for case in sorted(tests)}
        for arm in self.settings.arms:
            checksums = [self.weights.checksum(arm.name, number) for number in range(len(arm.checkpoints))]
            made_from = [checksums, arm.saw_test_images, len(tests)]
            if known.get(arm.name, {}).get("made_from") != made_from:
                known[arm.name] = {"made_from": made_from, "says": leakage(arm, images)}
        write_json(self.workspace.folder / _LEAKAGE, known)

    def leakage(self) -> dict[str, dict[str, Any]]:
        """Return arm -> record of whether its pretraining saw test images; ``says`` has it in a sentence."""
        path = self.workspace.folder / _LEAKAGE
        return read_json(path) if path.is_file() else {}

    def tuning_cells(self) -> list[Cell]:
        """Return cells that choose learning rates."""
        return plan.tuning_cells(self.settings, self.divisions)

    def test_cells(self) -> list[Cell]:
        """Return cells that are reported."""
        return plan.test_cells(self.settings, self.divisions)

    def learning_rate(self, cell: Cell) -> float | None:
        """Return the learning rate of a cell; None for the trainer's own.

        Raises:
            RateUnknown: the tuning runs that decide it are not all done.
        """
        arm = self.settings.arm(cell.arm)
        if cell.stage == "tuning":
            return cell.learning_rate
        if len(arm.learning_rates) <= 1:
            return arm.learning_rates[0] if arm.learning_rates else None
        key = cell.arm, cell.partition
        if key not in self._rates:
            best = self._best_rate(arm, self.tuning_dice(*key))
            if best is None:
                raise RateUnknown(cell.arm)
            self._rates[key] = best
        return self._rates[key]

    @staticmethod
    def _best_rate(arm: Arm, dice: dict[float, float]) -> float | None:
        """Return the rate with the best validation Dice, of two equal ones the lower; None until all are known."""
        return max(dice, key=lambda rate: (dice[rate], -rate)) if len(dice) == len(arm.learning_rates) else None

    def tuning_dice(self, arm: str, partition: str) -> dict[float, float]:
        """Return learning rate -> mean validation Dice, of those whose tuning runs are all done."""
        found: dict[float, list[float | None]] = {}
        for cell in self.tuning_cells():
            if (cell.arm, cell.partition) == (arm, partition):
                dice = self.workspace.measure.score(self.summaries(cell)[100]) if self.is_done(cell) else None
                assert cell.learning_rate is not None  # rates are what is tuned
                found.setdefault(cell.learning_rate, []).append(dice)
        known = {rate: [dice for dice in values if dice is not None] for rate, values in found.items()}
        return {rate: _mean(known[rate]) for rate, values in found.items() if None not in values}

    def results_folder(self, cell: Cell) -> Path:
        """Return ``nnUNet_results`` of a cell: one for each start, so that equal trainers do not meet."""
        return self.workspace.folder / "results" / cell.arm / self.weights.start_of(cell) / f"seed{cell.seed}"

    def fold_folder(self, cell: Cell) -> Path:
        """Return nnU-Net's folder of the cell's run."""
        arm = self.settings.arm(cell.arm)
        trainer = plan.trainer_name(self.settings, arm, cell, self.learning_rate(cell))
        model = f"{trainer}__{arm.plans or self.settings.plans}__{self.settings.configuration}"
        return self.results_folder(cell) / self.workspace.dataset_of(arm) / model / f"fold_{self.folds[cell.split]}"

    def lock_file(self, cell: Cell) -> Path:
        """Return the lock of a cell that runs, named by its weights: settings may list those in any order."""
        rate = "" if cell.learning_rate is None else f".lr{cell.learning_rate:g}"
        name = f"{cell.split}.{cell.arm}.{self.weights.start_of(cell)}.seed{cell.seed}{rate}.lock"
        return self.workspace.folder / "locks" / name

    def summaries(self, cell: Cell) -> dict[int, Path]:
        """Return per cent of the run -> what its validation left: nnU-Net's ``summary.json``, or predictions."""
        folder = self.fold_folder(cell)
        kept = self.settings.keep_at if cell.stage == "test" else ()
        name = self.workspace.measure.file
        found = {percent: folder / f"at_{percent}" / "validation" / name for percent in kept}
        return {**found, 100: folder / "validation" / name}

    def is_done(self, cell: Cell) -> bool:
        """Return whether the cell's run ended and every validation of it has exactly its cases."""
        if not (self.fold_folder(cell) / "checkpoint_final.pth").is_file():
            return False
        expected = sorted(self.splits[cell.split]["val"])
        return all(self.workspace.measure.cases(path) == expected for path in self.summaries(cell).values())

    def is_begun(self, cell: Cell) -> bool:
        """Return whether the cell's run left a checkpoint to go on from."""
        folder = self.fold_folder(cell)
        return any((folder / f"checkpoint_{kind}.pth").is_file() for kind in ("final", "latest", "best"))

    def wrong_start(self, cell: Cell) -> str | None:
        """Return what is wrong with the weights or cases that a finished cell started from; None if nothing is."""
        record = self.fold_folder(cell) / "start.json"
        if not self.settings.arm(cell.arm).fine_tunes:
            return None
        start, wanted = read_json(record) if record.is_file() else {}, cell.checkpoint is not None
        remedy = f"delete {record.parent} and run the benchmark again"
        if start.get("pretrained") is not wanted:
            start_of = "from pretrained" if wanted else "without"
            return f"{record} does not say that it started {start_of} weights; {remedy}"
        cases = sorted(self.splits[cell.split]["train"])
        if start.get("training_cases", cases) != cases:  # runs of earlier versions do not say it
            return f"{record} names other training cases than this run has; {remedy}"
        return None

    def finished(self) -> Iterator[Cell]:
        """Test cells whose runs are done, whatever they started from."""
        for cell in self.test_cells():
            try:
                if self.is_done(cell):
                    yield cell
            except RateUnknown:
                continue

    def usable(self) -> tuple[list[Cell], dict[str, str]]:
        """Return the finished cells that started as they should, and what is wrong with the others, by name."""
        wrong = {cell: self.wrong_start(cell) for cell in self.finished()}
        return [cell for cell, why in wrong.items() if not why], {cell.name: why for cell, why in wrong.items() if why}

    # ------------------------------------------------------------------------------------------------ running

    def command(self, cell: Cell, learning_rate: float | str | None, resume: bool = False) -> Command:
        """Return the command that runs a cell.

        Args:
            cell: the run.
            learning_rate: as :func:`plan.trainer_name` takes it.
            resume: go on from the last checkpoint of the run.
        """
        arm = self.settings.arm(cell.arm)
        trainer, dataset = plan.trainer_name(self.settings, arm, cell, learning_rate), self.workspace.dataset_of(arm)
        words = ["nnUNetv2_train", dataset, self.settings.configuration, str(self.folds[cell.split])]
        words += ["-tr", trainer, "-p", arm.plans or self.settings.plans, "-device", self.settings.device]
        if resume:  # nnU-Net refuses both at once; the weights are in the checkpoint
            words += ["--c"]
        elif cell.checkpoint is not None:
            words += ["-pretrained_weights", str(self.weights.file(cell.arm, cell.checkpoint))]
        environment = self.environment() | {"nnUNet_results": str(self.results_folder(cell))}
        return Command(tuple(words), environment, self.workspace.folder / "logs" / f"{cell.name}.log")

    def environment(self) -> dict[str, str]:
        """Return nnU-Net's folders for all commands."""
        folders = {"nnUNet_preprocessed": str(self.workspace.preprocessed), "nnUNet_extTrainer": trainer_folders()}
        # the targets as they were copied, which trainers look for in the raw folder first
        return folders | ({"nnUNet_raw": folders["nnUNet_preprocessed"]} if self.settings.predicts else {})

    def dry_run(self, part: tuple[int, int] = (1, 1)) -> Iterator[str]:
        """Prepare data and splits, and yield shell lines of all that is not done, in their order."""
        _check_part(part)
        self.prepare()
        for arm, checkpoint in self.weights.missing():
            words, log = self.weights.transfer(arm, checkpoint)
            yield str(Command(words, self.environment(), log))
        tuning = [cell for cell in _share(self.tuning_cells(), part) if not self.is_done(cell)]
        for cell in tuning:
            yield str(self.command(cell, cell.learning_rate, self.is_begun(cell)))
        if tuning:
            yield "# <LR>: run this again after tuning, the best learning rate is then filled in"
        for cell in _share(self.test_cells(), part):
            try:
                if not self.is_done(cell):
                    yield str(self.command(cell, self.learning_rate(cell), self.is_begun(cell)))
            except RateUnknown:
                yield str(self.command(cell, "<LR>"))

    def run(self, part: tuple[int, int] = (1, 1)) -> Outcome:
        """Run what is not done: transfer the checkpoints, choose learning rates, then the test cells.

        Args:
            part: (i, n): take each n-th cell, beginning with the i-th.
        """
        _check_part(part)
        self.prepare(transfer=True)
        outcome = Outcome()
        for stage in (self.tuning_cells(), self.test_cells()):
            cells = _share(stage, part)
            for number, cell in enumerate(cells, start=1):
                self._run_cell(cell, outcome, f"{number}/{len(cells)}")
        write_json(self.workspace.folder / "learning_rates.json", self._chosen_rates())
        return outcome

    def _run_cell(self, cell: Cell, outcome: Outcome, progress: str) -> None:
        try:
            rate = self.learning_rate(cell)
        except RateUnknown:
            outcome.waiting.append(cell.name)
            return
        with held(self.lock_file(cell)) as lock:
            if lock is None:
                logger.info("[%s] %s is being run by a different process", progress, cell.name)
                outcome.waiting.append(cell.name)
                return
            if not self.is_done(cell):
                resume = self.is_begun(cell)
                command = self.command(cell, rate, resume)
                logger.info("[%s] %s%s", progress, cell.name, ", continued" if resume else "")
                status = self.execute(command, [lock] if lock >= 0 else [])
                if status != 0 or not self.is_done(cell):
                    what = f"ended with status {status}" if status else "left incomplete results"
                    outcome.failed[cell.name] = f"{command.words[0]} {what}; see {command.log}"
                    logger.warning("[%s] %s failed: %s", progress, cell.name, outcome.failed[cell.name])
                    return
        wrong = self.wrong_start(cell)
        if wrong:
            outcome.failed[cell.name] = wrong
            logger.warning("[%s] %s failed: %s", progress, cell.name, wrong)
        else:
            outcome.done.append(cell.name)

    def _chosen_rates(self) -> dict[str, dict]:
        """Return arm -> division -> learning rate and the validation Dice of each candidate."""
        chosen: dict[str, dict] = {}
        for arm in self.settings.arms:
            if len(arm.learning_rates) > 1:
                for partition in self.divisions:
                    dice = self.tuning_dice(arm.name, partition.name)
                    best = self._best_rate(arm, dice)
                    chosen.setdefault(arm.name, {})[partition.name] = {
                        "chosen": None if best is None else f"{best:g}",
                        "validation_dice": {f"{rate:g}": value for rate, value in dice.items()},
                    }
        return chosen


def _mean(scores: Sequence[float]) -> float:
    """Return the mean of scores of draws; a draw whose validation cases define none says nothing of any rate."""
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def _share(cells: Sequence[Cell], part: tuple[int, int]) -> list[Cell]:
    """Return the i-th of n shares."""
    number, of = part
    return list(cells[number - 1 :: of])


def _check_part(part: tuple[int, int]) -> None:
    number, of = part
    if not 1 <= number <= of:
        raise InputError(f"--part {number}/{of}: the first number lies between 1 and the second.").about(
            option="--part", value=f"{number}/{of}"
        )
