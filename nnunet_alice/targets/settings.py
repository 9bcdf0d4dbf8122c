"""Settings of the trainers that predict something of a whole case."""

from dataclasses import dataclass, field

from nnunet_alice.errors import InputError
from nnunet_alice.finetuning.settings import FineTuneOptimisation, FineTuneRun, FineTuneSettings
from nnunet_alice.training.settings import unrecorded


@dataclass(frozen=True)
class TargetSettings:
    """How a case becomes a prediction.

    Attributes:
        target_name: name in ``targets.json``; None takes the only one that the trainer can learn.
        stages: number of last encoder stages that are pooled.
        dropout: share of pooled features that the head does not see in a training step.
        batch_factor: crops a step, in batches of the plans (an encoder needs about half the memory of a U-Net).
        mirror: mirror crops in training, on all axes that nnU-Net mirrors, and windows in validation.
        balance: weight classes by the inverse of their frequency.
        huber_delta: error, in standard deviations, from which the regression loss grows linearly.
        window_step: distance of validation windows in patches.
        probe_first: the head starts as the linear model of the training cases' features, and not by chance.
        pictures: validation cases whose occlusion picture is drawn.
    """

    target_name: str | None = None
    stages: int = 2
    dropout: float = 0.2
    batch_factor: int = 2
    mirror: bool = False
    balance: bool = True
    huber_delta: float = 1.0
    window_step: float = 0.5
    probe_first: bool = False
    pictures: int = unrecorded(2)

    def __post_init__(self) -> None:
        if self.stages < 1 or self.batch_factor < 1 or self.pictures < 0:
            raise InputError(f"{self}: stages and batch_factor are at least 1, pictures at least 0.")
        if not 0 <= self.dropout < 1 or not 0 < self.window_step <= 1 or self.huber_delta <= 0:
            raise InputError(f"{self}: dropout is in [0, 1), window_step in (0, 1], huber_delta above 0.")


@dataclass(frozen=True)
class TargetTrainerSettings(FineTuneSettings):
    """All settings of a trainer that predicts something of a whole case.

    Attributes:
        target: how a case becomes a prediction.
    """

    run: FineTuneRun = field(default_factory=lambda: FineTuneRun(epochs=100))
    optimisation: FineTuneOptimisation = field(
        default_factory=lambda: FineTuneOptimisation(learning_rate=3e-4, optimizer_name="AdamW")
    )
    target: TargetSettings = field(default_factory=TargetSettings)
