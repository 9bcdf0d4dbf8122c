"""Pretrain without nnU-Net's trainer: a method and a network in, metrics out."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from nnunet_alice.errors import InputError, named
from nnunet_alice.pretraining.method import Method, Progress
from nnunet_alice.pretraining.optimisation import Optimisation
from nnunet_alice.pretraining.step import TrainingStep
from nnunet_alice.views.loader import NumberedBatches


def pretrain(
    method: Method[Any, Any],
    network: nn.Module,
    *,
    cases: Sequence[str],
    steps: int,
    optimisation: Optimisation | None = None,
    steps_per_epoch: int = 250,
) -> Iterator[dict[str, float]]:
    """Train a network in place, in this process, and yield the metrics of every step.

    For long runs take nnU-Net's trainer, which also validates, saves, continues and uses several GPUs.

    >>> import nnunet_alice, torch
    >>> from dynamic_network_architectures.architectures.unet import PlainConvUNet
    >>> network = PlainConvUNet(1, 2, (4, 8), torch.nn.Conv3d, 3, (1, 2), 1, 1, 1)
    >>> dataset = nnunet_alice.open_dataset(900)
    >>> context = nnunet_alice.RunContext(dataset, (16, 16, 16), dataset.spacing, batch_size=2)
    >>> settings = nnunet_alice.AlicePretrainingSettings(prototypes=16, hidden_dim=16, num_regions=8)
    >>> method = nnunet_alice.AliceMethod(settings, context)
    >>> losses = [step["loss"] for step in nnunet_alice.pretrain(method, network, cases=dataset.cases(), steps=2)]
    >>> len(losses), bool(np.isfinite(losses).all())
    (2, True)

    Args:
        method: one that was not built yet.
        network: one of nnU-Net's U-Nets with as many output channels as input channels.
        cases: names of the training cases.
        steps: optimiser steps of the run.
        optimisation: optimiser and schedules; AdamW by default.
        steps_per_epoch: what the schedules that count epochs take for one.

    Raises:
        InputError: the loss or the gradients of a step are not finite.
    """
    method.build(network)
    training, _ = method.prepare(list(cases), list(cases))
    method.before_training()
    optimisation = optimisation or Optimisation()
    take_step = TrainingStep(method, optimisation.optimizer(method.trained_module), optimisation)
    batches = NumberedBatches(method.batches(training, training=True), seed=method.context.seed)
    for step, batch in zip(range(steps), batches, strict=False):
        outcome = take_step(batch.to(method.context.device), Progress(step // steps_per_epoch, step, steps))
        if outcome.skipped:
            raise InputError(
                f"Step {step}: not finite ({outcome.skipped}); look at the intensities of {named(batch.cases)}, "
                "or lower the learning rate."
            ).about(case=batch.cases[0], value=outcome.skipped)
        yield {name: float(value) for name, value in outcome.metrics.items()}
    method.after_training()
