"""A benchmark on a small labelled dataset whose training is pretended: results appear in an instant."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_alice.benchmark.commands import Command
from nnunet_alice.benchmark.parsing import parse_settings
from nnunet_alice.benchmark.runner import Runner
from support.labelled_runs import DATASET, write_labelled

CASES = 8
CELLS = 8  # of `settings`: 2 arms, 2 numbers of labels, 2 draws


def settings(checkpoint: Path, **changes) -> dict:
    """Scratch against one pretrained arm, as a user would write it."""
    arms = {
        "scratch": {"learning_rates": ["1e-2"]},
        "alice": {"checkpoints": str(checkpoint), "learning_rates": [1e-3]},
    }
    content = {
        "dataset": DATASET,
        "arms": arms,
        "test": 3,
        "labels": [2, "all"],
        "draws": 2,
        "epochs": 4,
        "iterations": 2,
        "keep_at": [50],
        "tuning": {"labels": 2, "cases": 2, "draws": 1},
        "device": "cpu",
    }
    return content | changes


def content(base: Path, **changes) -> dict:
    """The same of the checkpoint in a test's folder."""
    return settings(base / "pretrained.pth", **changes)


def write_dataset(base: Path) -> Path:
    """nnU-Net's folders below ``base`` with the dataset, and a file that stands for a checkpoint."""
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir()
    write_labelled(base / "preprocessed", CASES)
    torch.save({"network_weights": {}}, base / "pretrained.pth")
    return base / "pretrained.pth"


def set_up_dataset(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`write_dataset` below ``base``, which is returned, for a shell that names no other trainers."""
    write_dataset(base)
    monkeypatch.setenv("nnUNet_preprocessed", str(base / "preprocessed"))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    return base


class Pretender:
    """Does what the commands would do to the files; may be told to die in the n-th training.

    Args:
        folder: of the benchmark.
        skill: (trainer's name, fold) -> share of the voxels that are right, for the predictions.
        die_at: number of the training in which the process is killed.
        how: what the kill leaves: ``nothing``, ``checkpoint``, ``trained``, ``half_summary``.
    """

    def __init__(self, folder: Path, skill=lambda trainer, fold: 0.9, die_at: int | None = None, how: str = "nothing"):
        self.folder, self.skill, self.die_at, self.how = folder, skill, die_at, how
        self.calls: list[tuple[str, ...]] = []
        self.finished: list[Path] = []
        self.fail: set[str] = set()

    @property
    def trainings(self) -> list[tuple[str, ...]]:
        return [words for words in self.calls if words[0] == "nnUNetv2_train"]

    def __call__(self, command: Command, keep_open=()) -> int:
        words = command.words
        self.calls.append(words)
        if words[0] == "nnunet_alice":
            Path(words[words.index("-o") + 1]).parent.mkdir(parents=True, exist_ok=True)
            Path(words[words.index("-o") + 1]).write_bytes(b"weights")
            return 0
        trainer, fold = words[words.index("-tr") + 1], int(words[3])
        if trainer in self.fail:
            return 1
        model = f"{trainer}__nnUNetPlans__3d_fullres"
        target = Path(command.environment["nnUNet_results"]) / words[1] / model / f"fold_{fold}"
        target.mkdir(parents=True, exist_ok=True)
        dies = self.die_at is not None and len(self.trainings) == self.die_at
        if dies and self.how == "nothing":
            raise KeyboardInterrupt
        resumed = "--c" in words
        assert resumed == any(target.glob("checkpoint_*.pth"))
        if not resumed:
            start = {"pretrained": "-pretrained_weights" in words, "training_cases": sorted(self._split(fold)["train"])}
            (target / "start.json").write_text(json.dumps(start))
        (target / "checkpoint_latest.pth").write_bytes(b"")
        if dies and self.how == "checkpoint":
            raise KeyboardInterrupt
        (target / "checkpoint_latest.pth").rename(target / "checkpoint_final.pth")
        if dies and self.how == "trained":
            raise KeyboardInterrupt
        for percent in [50] if "_keep50" in trainer else []:
            self._validate(target / f"at_{percent}" / "validation", fold, self.skill(trainer, fold) - 0.1)
        if dies:
            (target / "validation").mkdir(exist_ok=True)
            (target / "validation" / "summary.json").write_text('{"metric_per')
            raise KeyboardInterrupt
        self._validate(target / "validation", fold, self.skill(trainer, fold))
        self.finished.append(target)
        return 0

    def _split(self, fold: int) -> dict[str, list[str]]:
        return json.loads((self.folder / "preprocessed" / DATASET / "splits_final.json").read_text())[fold]

    def _validate(self, target: Path, fold: int, skill: float) -> None:
        dataset = self.folder / "preprocessed" / DATASET
        cases = self._split(fold)["val"]
        target.mkdir(parents=True, exist_ok=True)
        entries = []
        for case in cases:
            truth = sitk.ReadImage(str(dataset / "gt_segmentations" / f"{case}.nii.gz"))
            labels = sitk.GetArrayFromImage(truth)
            rng = np.random.default_rng([fold, int(case[4:])])
            wrong = rng.random(labels.shape) > skill
            predicted = sitk.GetImageFromArray(np.where(wrong, 0, labels).astype(np.uint8))
            predicted.CopyInformation(truth)
            sitk.WriteImage(predicted, str(target / f"{case}.nii.gz"))
            metrics = {str(label): {"n_ref": int((labels == label).sum()), "Dice": skill} for label in (1, 2)}
            entries.append({"prediction_file": str(target / f"{case}.nii.gz"), "metrics": metrics})
        content = {"metric_per_case": entries, "mean": {label: {"Dice": skill} for label in ("1", "2")}}
        (target / "summary.json").write_text(json.dumps(content))


def make_runner(base: Path, content: dict, **pretender) -> tuple[Runner, Pretender]:
    """A runner on ``base/bench`` and the pretender that executes its commands."""
    execute = Pretender(base / "bench", **pretender)
    return Runner(parse_settings(content), base / "bench", execute), execute


def skill(trainer: str, fold: int) -> float:
    """Return how good a pretended training is: pretraining is better by 0.1 in every fold."""
    return (0.7 if "scratch" in trainer else 0.8) + 0.02 * fold


def finished_benchmark(base: Path) -> Iterator[Path]:
    """Yield the folder of a benchmark whose cells are all done, with nnU-Net's folders set to it."""
    write_dataset(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(base / "preprocessed"))
        patch.delenv("nnUNet_raw", raising=False)
        make_runner(base, settings(base / "pretrained.pth"), skill=skill)[0].run()
        yield base
