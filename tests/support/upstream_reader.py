"""What nnU-Net's development branch does with a checkpoint, step by step as its code does it (July 2026).

``nnUNetv2_preprocess_like_nnssl`` (experiment_planning/like_nnssl.py) reads the adaptation plan and writes
``pretrain_info`` into plans; ``PretrainedTrainer.load_pretrained_weights`` (training/nnUNetTrainer/pretraining) then
loads stem and encoder into the network, strictly.
"""

import copy
import json

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans


def pretrain_info(path) -> tuple[dict, dict]:
    """Entry ``pretrain_info`` of the plans that upstream writes, and the configuration that it writes beside it."""
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    plan = copy.deepcopy(loaded["nnssl_adaptation_plan"])
    citations = loaded.get("citations", [])
    assert all({"type", "name"} <= entry.keys() for entry in citations)
    name, first = next(iter(plan["pretrain_plan"]["configurations"].items()))
    architecture = plan["architecture_plans"]
    architecture["network_class_name"] = architecture.pop("arch_class_name")
    architecture["_kw_requires_import"] = architecture.pop("arch_kwargs_requiring_import")
    info = {
        "checkpoint_path": str(path),
        "pt_num_in_channels": plan["pretrain_num_input_channels"],
        "pt_used_patchsize": plan["pretrain_plan"]["configurations"][name]["patch_size"],
        "pt_recommended_downstream_patchsize": plan["recommended_downstream_patchsize"],
        "citations": citations,
    }
    info |= {key: plan[key] for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")}
    configuration = {"spacing": first["spacing"], "patch_size": plan["recommended_downstream_patchsize"]}
    configuration |= {"architecture": architecture}
    return json.loads(json.dumps(info)), json.loads(json.dumps(configuration))


def network_with_weights(path, channels: int, classes: int) -> torch.nn.Module:
    """The network that upstream's trainer builds and fills, for a dataset of so many channels and classes."""
    info, configuration = pretrain_info(path)
    architecture = configuration["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        channels,
        classes,
        deep_supervision=False,
    )
    weights = torch.load(path, weights_only=True)["network_weights"]
    parts = {
        key: {name: weight for name, weight in weights.items() if name.startswith(key)}
        for key in (info["key_to_encoder"], info["key_to_stem"])
    }
    if channels > info["pt_num_in_channels"]:
        stem = parts[info["key_to_stem"]]
        kernel = stem[info["keys_to_in_proj"][0] + ".weight"].repeat(1, channels, 1, 1, 1) / channels
        stem.update({f"{key}.weight": kernel for key in info["keys_to_in_proj"]})
    for key, own in ((info["key_to_encoder"], network.key_to_encoder), (info["key_to_stem"], network.key_to_stem)):
        named = {name.replace(key, "").removeprefix("."): weight for name, weight in parts[key].items()}
        network.get_submodule(own).load_state_dict(named)
    assert info["key_to_lpe"] is None
    return network
