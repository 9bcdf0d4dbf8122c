"""What nnssl's checkpoints say about themselves: read theirs, write ours so that upstream's tools can fine-tune them.

An nnssl checkpoint has ``network_weights`` and ``nnssl_adaptation_plan``. nnU-Net's development branch reads the
latter in ``nnUNetv2_preprocess_like_nnssl`` and ``nnUNetv2_train_pretrained`` (nnunetv2/experiment_planning/
like_nnssl.py, training/nnUNetTrainer/pretraining/pretrainedTrainer.py): ``architecture_plans`` becomes the
``architecture`` of the new plans; spacing and patch size come from the *first* entry of
``pretrain_plan["configurations"]``; the keys say which tensors are encoder, stem and input projection. nnssl itself
writes it in adaptation_planning/adaptation_plan.py.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch

from nnunet_alice.checkpoints.foreign import foreign_network
from nnunet_alice.checkpoints.loading import network_weights
from nnunet_alice.checkpoints.saving import plain
from nnunet_alice.errors import CheckpointError, InputError

PLAN_KEY = "nnssl_adaptation_plan"


def adaptation_plan(plans: Mapping[str, Any], configuration: str, num_input_channels: int) -> dict[str, Any]:
    """Return the ``nnssl_adaptation_plan`` of a network that is built from nnU-Net plans, in plain Python types.

    Args:
        plans: nnU-Net's plans as pretraining used them.
        configuration: the configuration that was pretrained, e.g. ``3d_fullres``.
        num_input_channels: of the pretrained network.

    Returns:
        a dict with ``architecture_plans``, ``pretrain_plan`` (of this one configuration, ``inherits_from`` resolved),
        ``pretrain_num_input_channels``, ``recommended_downstream_patchsize``, ``key_to_encoder``, ``key_to_stem``,
        ``keys_to_in_proj`` and ``key_to_lpe`` (None: no positional embedding).

    Raises:
        InputError: the plans' network class does not say where its encoder is.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dict(plans)).get_configuration(configuration)
    class_name = manager.network_arch_class_name
    with torch.device("meta"):  # only the names are wanted
        network = get_network_from_plans(
            class_name,
            manager.network_arch_init_kwargs,
            manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            output_channels=2,
            allow_init=False,
        )
    if not hasattr(network, "key_to_encoder"):
        raise InputError(
            f"{class_name} does not name its encoder's tensors (key_to_encoder): upstream cannot load it."
        ).about(value=class_name)
    patch_size = list(manager.patch_size)
    return plain(
        {
            "architecture_plans": {
                "arch_class_name": class_name,
                "arch_kwargs": dict(manager.network_arch_init_kwargs),
                "arch_kwargs_requiring_import": list(manager.network_arch_init_kwargs_req_import),
            },
            "pretrain_plan": {
                "dataset_name": plans["dataset_name"],
                "plans_name": plans["plans_name"],
                "configurations": {configuration: dict(manager.configuration)},
            },
            "pretrain_num_input_channels": num_input_channels,
            "recommended_downstream_patchsize": patch_size,
            "key_to_encoder": network.key_to_encoder,
            "key_to_stem": network.key_to_stem,
            "keys_to_in_proj": list(network.keys_to_in_proj),
            "key_to_lpe": network.key_to_lpe,
        }
    )


def unet_weights(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return tensors under the names of nnU-Net's U-Nets, ``encoder.*`` and ``decoder.*``, each once.

    The second names of the same tensor (``decoder.encoder.*``, ``*.all_modules.*``) are left out. An nnssl checkpoint
    whose encoder has a different name (``online_encoder.stages``) is renamed by its adaptation plan; what lies beside
    such an encoder is no U-Net decoder and is left out.

    Args:
        checkpoint: from ``load_checkpoint``: ours, nnU-Net's or nnssl's.
        path: its file, for the error message.

    Raises:
        CheckpointError: no weights, or they are not those of a U-Net.
    """
    weights = network_weights(checkpoint, path)
    prefix = _encoder_prefix(checkpoint)
    named = {}
    for name, tensor in weights.items():
        if ".all_modules." in name:
            continue
        if name.startswith(prefix):
            named["encoder." + name[len(prefix) :]] = tensor
        elif prefix == "encoder." and name.startswith("decoder.") and not name.startswith("decoder.encoder."):
            named[name] = tensor
    if not any(name.startswith("encoder.stages.") for name in named):
        if (kind := foreign_network(weights)) is not None:
            raise CheckpointError(f"{path} is {kind.name}, which no U-Net of nnU-Net can take: {kind.reason}.").about(
                path=path, value=kind.name
            )
        trainer = checkpoint.get("trainer_name")
        raise CheckpointError(
            f"{path} is not a U-Net of nnU-Net's kind{f' (trainer {trainer})' if isinstance(trainer, str) else ''}: "
            f"it has no tensors 'encoder.stages.*' but e.g. '{next(iter(weights))}'; give a U-Net checkpoint."
        ).about(path=path, value=next(iter(weights)))
    return named


def _encoder_prefix(checkpoint: Mapping[str, Any]) -> str:
    """Return what stands before ``stages.`` in the names of the encoder's tensors."""
    plan = checkpoint.get(PLAN_KEY)
    key = plan.get("key_to_encoder") if isinstance(plan, Mapping) else None
    if isinstance(key, str) and key.endswith(".stages"):
        return key[: -len("stages")]
    return "encoder."
