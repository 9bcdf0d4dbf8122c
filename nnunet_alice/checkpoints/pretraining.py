"""What our pretraining checkpoints say about themselves, and what is checked before a run continues from one."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_alice import __version__
from nnunet_alice.checkpoints.loading import finite_weights, first_misfit, load_checkpoint
from nnunet_alice.checkpoints.nnssl import adaptation_plan
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError
from nnunet_alice.words import pasteable

#: entries that a checkpoint needs for continuing
_NEEDED = ("network_weights", "model_state", "optimizer_state", "logging", "history", "current_epoch", "pretraining")
_NEEDED_BY_NNUNET = ("network_weights", "optimizer_state", "logging", "_best_ema", "current_epoch", "init_args")


def describe_run(
    *,
    method: str,
    trainer_name: str,
    plans: dict,
    configuration: str,
    dataset_json: dict,
    num_input_channels: int,
    hyper_parameters: dict,
    epochs_done: int,
    trained: Mapping[str, bool],
    matching: str | None,
    fold: int | str,
    ranks: int = 1,
    views: Mapping[str, Any] | None = None,
    orientation: str = "",
) -> dict[str, Any]:
    """Return what tells the weights' origin: ``pretraining`` (ours), ``nnssl_adaptation_plan`` (nnssl's).

    Args:
        method: e.g. ``Alice``.
        trainer_name: class that trained.
        plans: the plans, whole.
        configuration: e.g. ``3d_fullres``.
        dataset_json: of the pretraining dataset.
        num_input_channels: of the network.
        hyper_parameters: settings of the run, plain types.
        epochs_done: finished epochs.
        trained: part of the network (``encoder``, ``decoder``) -> whether it was trained.
        matching: provider of matched views.
        fold: fold of the run; with ``all`` pretraining saw every image of its dataset.
        ranks: processes that trained together.
        orientation: letters of how the images lay, ``mixed``, or empty where nothing says it.
        views: what views depend on beside settings and seed (``pretraining.matched_cases.record_of_views``).
    """
    return {
        "pretraining": {
            "method": method,
            "trainer": trainer_name,
            "version": __version__,
            "plans": plans,
            "plans_name": plans["plans_name"],
            "configuration": configuration,
            "dataset_name": plans["dataset_name"],
            "dataset_json": dataset_json,
            "fold": fold,
            "num_input_channels": num_input_channels,
            "hyper_parameters": hyper_parameters,
            "epochs_done": epochs_done,
            "trained": dict(trained),
            "matching": matching,
            "ranks": ranks,
            "views": None if views is None else dict(views),
            "orientation": orientation,
        },
        "nnssl_adaptation_plan": adaptation_plan(plans, configuration, num_input_channels),
    }


def pretrained_orientation(checkpoint: Mapping[str, Any]) -> str:
    """Return how the images lay that a checkpoint was pretrained on: letters, ``mixed``, or empty if it does not say.

    Args:
        checkpoint: from ``load_checkpoint``; what ``transfer`` wrote says it, too.
    """
    run = checkpoint.get("pretraining")
    if run is None:
        return (checkpoint.get("transferred_from") or {}).get("orientation", "")
    return run.get("orientation") or (run.get("plans") or {}).get("orientation", "")


def pretrained_configuration(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that was pretrained, with what it inherits from others.

    Args:
        run: entry ``pretraining`` of a checkpoint.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(dict(run["plans"])).get_configuration(run["configuration"]).configuration


def read_for_resume(
    path: str | os.PathLike,
    method: str,
    hyper_parameters: Mapping[str, Any],
    own_weights: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    """Read a checkpoint that the same run wrote, and make sure that it did.

    Args:
        path: the checkpoint.
        method: of the trainer that continues.
        hyper_parameters: of the trainer that continues.
        own_weights: of the trainer that continues, for their names and shapes.

    Raises:
        CheckpointError: the file is damaged, or comes from a different method, network or other settings.
    """
    checkpoint = load_checkpoint(path)
    _check_entries(path, checkpoint, _NEEDED)
    run = checkpoint["pretraining"]
    if run["method"] != method:
        raise CheckpointError(f"{path} was trained with {run['method']}, not {method}; start without --c.").about(
            path=path, option="--c", value=run["method"]
        )
    _check_network(path, checkpoint, own_weights)
    changed = [
        f"{name} was {run['hyper_parameters'].get(name)!r} and is {value!r}"
        for name, value in hyper_parameters.items()
        if not _same(run["hyper_parameters"].get(name), value)
    ]
    if changed:
        fix = "start without --c"
        if any(words.startswith("epochs was") for words in changed):
            fix += f", or run: {pasteable('nnunet_alice', 'extend', '-i', Path(path).parent, '--epochs', 'N')}"
        raise CheckpointError(f"{path} comes from a run with other settings: {'; '.join(changed)}; {fix}.").about(
            path=path, option=changed[0].split()[0]
        )
    return checkpoint


def explain_failed_resume(path: str | os.PathLike, own_weights: Mapping[str, torch.Tensor]) -> None:
    """Say what is wrong with a checkpoint from which nnU-Net's trainer could not continue; nothing if it is sound.

    Args:
        path: the checkpoint.
        own_weights: of the trainer that continues, for their names and shapes.

    Raises:
        CheckpointError: the file is damaged, incomplete or of a different network.
    """
    try:
        checkpoint = load_checkpoint(path)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(
            f"{path} cannot be continued, as it cannot be read; delete it: --c then takes checkpoint_best.pth if there "
            "is one and begins again if not."
        ).about(path=path, option="--c") from error
    except CheckpointError:
        return  # missing, not readable now, or more than plain data: nnU-Net's own error says more
    _check_entries(path, checkpoint, _NEEDED_BY_NNUNET)
    _check_network(path, checkpoint, own_weights)


def _check_entries(path: str | os.PathLike, checkpoint: Mapping[str, Any], needed: Iterable[str]) -> None:
    missing = [name for name in needed if name not in checkpoint]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)} and cannot be continued; "
            "to start from its weights use -pretrained_weights instead of --c."
        ).about(path=path, option="--c", value=missing[0])


def _check_network(
    path: str | os.PathLike, checkpoint: Mapping[str, Any], own_weights: Mapping[str, torch.Tensor]
) -> None:
    saved = finite_weights(checkpoint, path)
    misfit = first_misfit(saved, own_weights, [*own_weights, *saved])
    if misfit is not None:
        raise CheckpointError(
            f"{path} holds a different network ('{misfit[0]}' does not fit); start without --c."
        ).about(path=path, option="--c", value=misfit[0])


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, not telling tuples from lists."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other
