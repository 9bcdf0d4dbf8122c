"""What a benchmark compares; :mod:`nnunet_alice.benchmark.parsing` reads and checks it."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from nnunet_alice.errors import InputError

#: trainers of this family take settings by endings of their names
FINE_TUNER = "FineTuneTrainer"
#: the same with DrasCLR's encoder; it trains on a dataset that ``nnunet_alice locate`` wrote
LOCATED_FINE_TUNER = "DrasCLRFineTuneTrainer"
#: families that predict a target of whole cases; they take settings by endings, too
TARGET_TRAINERS = ("ClassificationTrainer", "RegressionTrainer")
ALL = "all"
#: of ``nnUNetv2_train -device``
DEVICES = ("cuda", "cpu", "mps")


@dataclass(frozen=True)
class Arm:
    """One way of starting.

    Attributes:
        name: in file names and tables.
        trainer: class for ``nnUNetv2_train``; endings for length, learning rate and so on are added to those of the
            ``FineTuneTrainer`` and ``DrasCLRFineTuneTrainer`` families.
        checkpoints: pretrained weights, one a pretraining seed; none for training from scratch.
        learning_rates: one is used as it is; of several the best on the validation cases; none for the trainer's own.
        parts: what ``nnunet_alice transfer`` carries: ``all`` or ``encoder``.
        saw_test_images: whether pretraining saw images of the test cases, where the checkpoint cannot tell.
        dataset: where the arm trains, if not on the benchmark's dataset: the one that ``nnunet_alice locate`` made of
            it, with the same cases. Checkpoints are then loaded as they are.
        plans: of that dataset; None for the name of the benchmark's.
    """

    name: str
    trainer: str = FINE_TUNER
    checkpoints: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = ()
    parts: str = "all"
    saw_test_images: bool | None = None
    dataset: str | None = None
    plans: str | None = None

    @property
    def fine_tunes(self) -> bool:
        """Whether the trainer takes settings by endings of its name."""
        return self.trainer.startswith((FINE_TUNER, LOCATED_FINE_TUNER, *TARGET_TRAINERS))


@dataclass(frozen=True)
class TestCases:
    """Which cases are test cases: exactly one of ``cases``, ``file`` and ``folds``.

    Attributes:
        cases: this many, drawn once.
        file: JSON list of case names.
        folds: folds of the dataset's own ``splits_final.json`` (or ``split``): each is a test set in its turn.
        split: file of the folds, in the form of ``splits_final.json``.
    """

    __test__ = False  # not a test of pytest

    cases: int | None = None
    file: str | None = None
    folds: tuple[int, ...] = ()
    split: str | None = None


@dataclass(frozen=True)
class Tuning:
    """How learning rates are chosen, never looking at a test case.

    Attributes:
        labels: labelled cases of the tuning runs.
        cases: validation cases, taken from those that are not test cases.
        draws: draws of the labelled cases, whose Dice is averaged: where runs end far apart, one draw chooses by luck.
    """

    labels: int = 5
    cases: int = 20
    draws: int = 3


@dataclass(frozen=True)
class Settings:
    """A benchmark.

    Attributes:
        dataset: labelled dataset, full name or number.
        arms: what is compared.
        test: test cases.
        labels: numbers of labelled cases; ``all`` for every case that is not a test case.
        plans: plans identifier.
        configuration: e.g. ``3d_fullres``.
        draws: draws of the labelled cases for each number. Draw d of a smaller number is part of draw d of a larger
            one.
        draws_of_all: runs in place of draws with ``all``, which differ only by chance of training; None for as many.
        seeds: fine-tuning runs of each draw.
        epochs: length of fine-tuning; None for the trainer's own.
        iterations: iterations an epoch; None for the trainer's own.
        keep_at: per cent of the run at which Dice is reported beside the end.
        mirroring: whether test cases are predicted with mirroring, nnU-Net's default; without, 8 times as fast.
        tuning: how learning rates are chosen.
        baseline: arm that others are compared with; the first without checkpoints by default.
        tolerance_mm: of the surface Dice.
        device: for ``nnUNetv2_train``.
        target: of ``nnunet_alice targets``, where arms predict one; None for the only one that they can learn.
        seed: of test cases and draws.
    """

    dataset: str
    arms: tuple[Arm, ...]
    test: TestCases
    labels: tuple[int | str, ...] = (5, 10, 20, ALL)
    plans: str = "nnUNetPlans"
    configuration: str = "3d_fullres"
    draws: int = 5
    draws_of_all: int | None = None
    seeds: int = 1
    epochs: int | None = None
    iterations: int | None = None
    keep_at: tuple[int, ...] = (25, 50)
    mirroring: bool = True
    tuning: Tuning = Tuning()
    baseline: str | None = None
    tolerance_mm: float = 2.0
    device: str = "cuda"
    seed: int = 1
    target: str | None = None

    @property
    def predicts(self) -> bool:
        """Whether the arms predict a target of whole cases, and do not segment."""
        return any(arm.trainer.startswith(TARGET_TRAINERS) for arm in self.arms)

    @property
    def baseline_arm(self) -> Arm:
        """The arm that all others are compared with."""
        named = [arm for arm in self.arms if arm.name == self.baseline]
        return (named or [arm for arm in self.arms if not arm.checkpoints])[0]

    def against(self, baseline: str) -> "Settings":
        """Return the settings with a different baseline.

        Raises:
            InputError: no arm has this name.
        """
        changed = replace(self, baseline=baseline)
        check_baseline(changed)
        return changed

    def draws_of(self, count: int | str) -> int:
        """Return the number of draws of so many labelled cases, or of ``all``."""
        return self.draws_of_all if count == ALL and self.draws_of_all is not None else self.draws

    def arm(self, name: str) -> Arm:
        """Return the arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def plain(self) -> dict[str, Any]:
        """Return plain types, as ``parse_settings`` takes them."""
        content = asdict(self)
        content["arms"] = {arm.pop("name"): arm for arm in content["arms"]}
        return content


def check_baseline(settings: Settings) -> None:
    """Refuse a baseline that is no arm, and arms of which none is one.

    Raises:
        InputError: so it is.
    """
    names = [arm.name for arm in settings.arms]
    if settings.baseline is not None and settings.baseline not in names:
        raise wrong("baseline", f"The baseline '{settings.baseline}' is not among the arms: {', '.join(names)}.")
    if settings.baseline is None and all(arm.checkpoints for arm in settings.arms):
        raise wrong("baseline", "No arm trains from scratch: add one without checkpoints, or name a 'baseline'.")


def wrong(option: str, sentence: str, value: Any = None) -> InputError:
    """Return the error of a setting that is unknown, missing or senseless."""
    return InputError(sentence).about(option=option, value=value)
