"""A pretraining run as a checkpoint, and back: what stock nnU-Net loads, and what ``--c`` needs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nnunet_alice.checkpoints.pretraining import describe_run


def checkpoint_of(trainer: Any) -> dict[str, Any]:
    """Return the content of a run's checkpoint.

    Args:
        trainer: a ``PretrainingTrainer``.
    """
    method, scaler = trainer.method, trainer.grad_scaler
    run = describe_run(
        method=method.name,
        trainer_name=type(trainer).__name__,
        plans=trainer.plans_manager.plans,
        configuration=trainer.configuration_name,
        dataset_json=trainer.dataset_json,
        num_input_channels=trainer.num_input_channels,
        hyper_parameters=trainer.hyper_parameters(),
        epochs_done=trainer.current_epoch + 1,
        trained=method.trained_parts(),
        matching=None if method.matcher is None else method.matcher.name,
        fold=trainer.fold,
        ranks=len(trainer.rank_batch_sizes),
        views=trainer.views_record,
        orientation=trainer.orientation,
    )
    return {
        "network_weights": method.network_weights(),
        "model_state": model_state(trainer.model, trainer.network),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if scaler is None else scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        "history": trainer.history.rows,
        "_best_ema": None,
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": None,
        **run,
        **method.checkpoint_extras(),
    }


def restore(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Give a trainer the weights and states of a checkpoint that was checked.

    Args:
        trainer: a ``PretrainingTrainer`` that is initialised.
        checkpoint: from :func:`nnunet_alice.checkpoints.pretraining.read_for_resume`.
    """
    trainer.network.load_state_dict(checkpoint["network_weights"])
    trainer.model.load_state_dict({**trainer.model.state_dict(), **checkpoint["model_state"]})
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    trainer.logger.load_checkpoint(checkpoint["logging"])


def model_state(model: nn.Module, network: nn.Module) -> dict[str, torch.Tensor]:
    """Return everything of a method's model that is not the network itself, which is saved under its own name."""
    own = {id(parameter) for parameter in network.state_dict(keep_vars=True).values()}
    state = model.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in state.items() if id(value) not in own}
