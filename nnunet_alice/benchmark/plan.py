"""The runs ("cells") of a benchmark, and the trainer's name that carries each one's settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnunet_alice.benchmark.settings import TARGET_TRAINERS, Arm, Settings
from nnunet_alice.benchmark.splits import Partition, labelled, tuning_split


@dataclass(frozen=True)
class Cell:
    """One training run with its validation.

    Attributes:
        stage: ``tuning`` (validated on validation cases, to choose a learning rate) or ``test``.
        arm: name of the arm.
        checkpoint: number of the arm's checkpoint; None from scratch.
        partition: name of the division of cases.
        labels: number of labelled cases, or ``all``.
        draw: number of the draw.
        seed: number of the run.
        learning_rate: of a tuning run; None in the test stage, where it is known only after tuning.
    """

    stage: str
    arm: str
    checkpoint: int | None
    partition: str
    labels: int | str
    draw: int
    seed: int
    learning_rate: float | None = None

    @property
    def split(self) -> str:
        """Name of the cell's training and validation cases; cells of all arms share it."""
        return f"{self.stage}.{self.partition}.n{self.labels}.draw{self.draw}"

    @property
    def name(self) -> str:
        """Unique name, usable as a file name."""
        start = "scratch" if self.checkpoint is None else f"checkpoint{self.checkpoint}"
        rate = "" if self.learning_rate is None else f".lr{self.learning_rate:g}"
        return f"{self.split}.{self.arm}.{start}.seed{self.seed}{rate}"


def tuning_cells(settings: Settings, divisions: Sequence[Partition]) -> list[Cell]:
    """Return runs that choose learning rates, for the arms that have several; with the first checkpoint only."""
    return [
        Cell("tuning", arm.name, 0 if arm.checkpoints else None, partition.name, settings.tuning.labels, draw, 0, rate)
        for partition in divisions
        for draw in range(settings.tuning.draws)
        for arm in settings.arms
        if len(arm.learning_rates) > 1
        for rate in arm.learning_rates
    ]


def test_cells(settings: Settings, divisions: Sequence[Partition]) -> list[Cell]:
    """Return runs that are reported, ordered so that after each draw all arms can be compared."""
    return [
        Cell("test", arm.name, checkpoint, partition.name, count, draw, seed)
        for draw in range(max(map(settings.draws_of, settings.labels)))
        for seed in range(settings.seeds)
        for count in settings.labels
        if draw < settings.draws_of(count)
        for partition in divisions
        for arm in settings.arms
        for checkpoint in (range(len(arm.checkpoints)) if arm.checkpoints else (None,))
    ]


test_cells.__test__ = False  # type: ignore[attr-defined]  # says to pytest that it is no test


def splits(settings: Settings, divisions: Sequence[Partition], cells: Sequence[Cell]) -> Iterator[tuple[str, dict]]:
    """Name and cases (``train``, ``val``) of every split that the cells use, each once."""
    by_name = {partition.name: partition for partition in divisions}
    seen = set()
    for cell in cells:
        if cell.split in seen:
            continue
        seen.add(cell.split)
        partition = by_name[cell.partition]
        if cell.stage == "tuning":
            train, validation = tuning_split(partition, settings, cell.draw)
        else:
            train, validation = labelled(partition, cell.labels, cell.draw, settings.seed), list(partition.test)
        yield cell.split, {"train": train, "val": validation}


def trainer_name(settings: Settings, arm: Arm, cell: Cell, learning_rate: float | str | None) -> str:
    """Return the trainer for ``nnUNetv2_train -tr`` that has the cell's settings.

    Args:
        settings: of the benchmark.
        arm: the cell's.
        cell: the run.
        learning_rate: a number, a placeholder text, or None for the trainer's own.
    """
    if not arm.fine_tunes:
        return arm.trainer
    predicts = arm.trainer.startswith(TARGET_TRAINERS)
    rate = f"{learning_rate:g}" if isinstance(learning_rate, float) else learning_rate
    endings = [
        f"{settings.epochs}epochs" if settings.epochs else "",
        f"{settings.iterations}iterations" if settings.iterations else "",
        f"lr{rate}" if rate else "",
        # tuning looks at the end of the run only
        f"keep{'-'.join(map(str, settings.keep_at))}" if settings.keep_at and cell.stage == "test" else "",
        "" if settings.mirroring or predicts else "noTTA",
        f"target{settings.target}" if settings.target and predicts else "",
        "0pictures" if predicts else "",
        # equal for all arms, so that they differ by their start alone
        f"seed{1000 * cell.draw + cell.seed}",
    ]
    return "_".join([arm.trainer, *filter(None, endings)])
