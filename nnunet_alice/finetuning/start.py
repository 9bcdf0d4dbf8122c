"""What a fine-tuning run starts from, in lines of its log."""

from collections.abc import Iterator

from nnunet_alice.errors import InputError
from nnunet_alice.finetuning.settings import FineTuneSettings


def lines_on_start(trainer: str, settings: FineTuneSettings, loaded: int, tensors: int) -> Iterator[str]:
    """Yield what the log says of the weights that a run starts from, warnings included.

    Args:
        trainer: its name.
        settings: of the trainer.
        loaded: tensors that came from a checkpoint.
        tensors: of the whole network.

    Raises:
        InputError: a random encoder would be frozen.
    """
    if loaded:
        yield f"Starts from pretrained weights: {loaded} of {tensors} tensors."
    else:
        yield "Starts from random weights."
    family = trainer.partition("_")[0]
    if settings.optimisation.freeze_encoder and not loaded:
        raise InputError(f"{trainer} would freeze a random encoder: give -pretrained_weights.").about(
            option="-pretrained_weights", value=trainer
        )
    if loaded and not settings.expects_weights:
        yield (
            f"WARNING: {trainer} is meant for training from scratch but was given -pretrained_weights: its learning "
            f"rate is that of scratch. Use {family} to fine-tune."
        )
    if not loaded and settings.expects_weights:
        yield (
            f"WARNING: no pretrained weights were loaded, {trainer} trains FROM SCRATCH. Give -pretrained_weights, "
            f"or use {family}_scratch, which has scratch's learning rate."
        )


def line_on_orientations(checkpoint: str, dataset: str, there: str, here: str) -> str:
    """Return the warning that a pretraining saw images that lie differently.

    Args:
        checkpoint: file of the pretraining.
        dataset: that is fine-tuned on.
        there: orientation of the pretraining's images, as ``LPS``.
        here: that of the dataset's.
    """
    return (
        f"WARNING: the pretraining of {checkpoint} saw images that lie {there}, and those of {dataset} lie {here}: to "
        f"its network bodies are turned round or mirrored here. Import the pool with --orient {here} and pretrain "
        "again, or plan it with --target, which compares them."
    )
