"""Settings of the fine-tuning trainers; variants are copies (:func:`nnunet_alice.training.settings.changed`)."""

from dataclasses import dataclass, field

from nnunet_alice.errors import InputError
from nnunet_alice.training.settings import unrecorded


@dataclass(frozen=True)
class FineTuneRun:
    """Length and seed of a run.

    Attributes:
        epochs: number of epochs.
        iterations: training iterations an epoch; a fifth as many for validation, as in stock nnU-Net.
        seed: of weights and, with ``nnUNet_n_proc_DA=0``, of batches and augmentation; None leaves all to chance as
            stock nnU-Net does. (Augmentation in worker processes is always seeded by chance.)
        save_every: epochs between two writings of ``checkpoint_latest.pth``.
        max_skipped_steps: this many skipped steps in a row (or an epoch of them) end the run.
    """

    epochs: int = 1000
    iterations: int = 250
    seed: int | None = None
    save_every: int = unrecorded(10)
    max_skipped_steps: int = unrecorded(10)


@dataclass(frozen=True)
class FineTuneOptimisation:
    """What learns when, and how fast.

    Attributes:
        learning_rate: peak; the default is that of nnU-Net's own fine-tuning of pretrained networks (1e-3).
        optimizer_name: ``SGD``, or ``AdamW`` (torch's, with its own weight decay).
        warmup_share: share of the run over which the rate rises linearly (50 of 1000 epochs).
        decoder_first_share: share of the run at its start in which the encoder stands still.
        encoder_decay: every encoder stage towards the input learns slower by this factor.
        freeze_encoder: never train the encoder.
    """

    learning_rate: float = 1e-3
    optimizer_name: str = "SGD"
    warmup_share: float = 0.05
    decoder_first_share: float = 0.0
    encoder_decay: float = 1.0
    freeze_encoder: bool = False

    def decoder_epochs(self, epochs: int) -> int:
        """Return the epochs at the start of a run in which only the decoder learns; each phase gets one, of two."""
        if self.freeze_encoder or self.decoder_first_share == 0:
            return 0
        return min(epochs - 1, max(1, round(self.decoder_first_share * epochs)))


@dataclass(frozen=True)
class FineTuneTask:
    """What is asked of the network, beyond what nnU-Net asks.

    Attributes:
        mirrored: mirror images in training, and in prediction, as stock nnU-Net does. Pretraining sees every body the
            right way round; without mirroring fine-tuning does, too.
        weighted_classes: weight the cross-entropy of each class by its rarity
            (:func:`nnunet_alice.finetuning.class_weights.rarity`). Short runs find small organs only so.
    """

    mirrored: bool = True
    weighted_classes: bool = False


@dataclass(frozen=True)
class FineTuneValidation:
    """What is validated at the end.

    Attributes:
        keep_at: per cent of the run at which checkpoints are kept (``checkpoint_25.pth``) and validated, too
            (``at_25/validation``): how fast a start pays off.
        mirroring: validate with mirroring, as stock nnU-Net does; False is as ``--disable_tta`` of
            nnUNetv2_predict, and 8 times as fast.
    """

    keep_at: tuple[int, ...] = ()
    mirroring: bool = unrecorded(True)


@dataclass(frozen=True)
class FineTuneSettings:
    """All settings of a fine-tuning trainer.

    Attributes:
        run: length and seed.
        optimisation: what learns when, and how fast.
        task: what is asked of the network.
        validation: what is validated at the end.
        expects_weights: warn if none were loaded (True) or if some were (False).
    """

    run: FineTuneRun = field(default_factory=FineTuneRun)
    optimisation: FineTuneOptimisation = field(default_factory=FineTuneOptimisation)
    task: FineTuneTask = field(default_factory=FineTuneTask)
    validation: FineTuneValidation = field(default_factory=FineTuneValidation)
    expects_weights: bool = unrecorded(True)

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InputError: a share, a name or a percentage is out of range.
        """
        keep_at, optimisation = self.validation.keep_at, self.optimisation
        if not all(0 < percent < 100 for percent in keep_at):
            raise InputError(f"Checkpoints are kept between 1 and 99 per cent of the run, not at {keep_at}.").about(
                value=keep_at
            )
        if optimisation.optimizer_name not in ("SGD", "AdamW"):
            raise InputError(f"optimizer_name is {optimisation.optimizer_name}; it is SGD or AdamW.").about(
                option="optimizer_name", value=optimisation.optimizer_name
            )
        if not 0 <= optimisation.decoder_first_share < 1:
            raise InputError(
                f"decoder_first_share is {optimisation.decoder_first_share}; it lies between 0 and 1."
            ).about(option="decoder_first_share", value=optimisation.decoder_first_share)


@dataclass(frozen=True)
class ConditionalEncoderSettings:
    """The location-conditioned encoder.

    Attributes:
        num_experts: E of the pretraining.
    """

    num_experts: int = 8


@dataclass(frozen=True)
class DrasCLRFineTuneSettings(FineTuneSettings):
    """All settings of fine-tuning with DrasCLR's encoder.

    Attributes:
        method: the location-conditioned encoder.
    """

    method: ConditionalEncoderSettings = field(default_factory=ConditionalEncoderSettings)
