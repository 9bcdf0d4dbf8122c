"""Small nnU-Net plans of both encoders, any depth, kernels, strides and widths."""

import contextlib
import io
import json

import pytest
import torch

from nnunet_alice.checkpoints.nnssl import unet_weights
from nnunet_alice.checkpoints.saving import save_checkpoint
from support.plans import architecture, configuration, minimal_plans


def make_plans(
    kind: str = "plain", stages: int = 4, anisotropic: bool = False, width: int = 2, dim: int = 3, **changes
) -> dict:
    """Plans with one configuration ``3d_fullres`` of a U-Net with ``width`` features in its first stage.

    ``anisotropic``: the first two stages have kernels (1, 3, 3), the first downsampling has stride (1, 2, 2).
    """
    kernels, strides = [[3] * dim for _ in range(stages)], [[1] * dim] + [[2] * dim for _ in range(stages - 1)]
    if anisotropic:
        kernels[0][0] = kernels[1][0] = strides[1][0] = 1
    family = "PlainConvUNet" if kind == "plain" else "ResidualEncoderUNet"
    network = architecture(family, strides, [min(width * 2**s, width * 8) for s in range(stages)], 2, kernels)
    network["arch_kwargs"].update(changes)
    base = configuration([3.0, 1.0, 1.0] if anisotropic else [1.0, 1.0, 1.0], architecture=network)
    full = {"inherits_from": "3d_base", "patch_size": [64] * dim}
    return minimal_plans("Dataset900_Test", {"3d_base": base, "3d_fullres": full})


def make_network(plans: dict, channels: int = 1, classes: int = 3):
    """The network of ``make_plans``, freshly initialised by nnU-Net."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans).get_configuration("3d_fullres")
    return get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        channels,
        classes,
        deep_supervision=False,
    )


@pytest.fixture(name="make_plans")
def make_plans_fixture():
    return make_plans


@pytest.fixture(name="make_network")
def make_network_fixture():
    return make_network


def source_of(network) -> dict:
    """Weights of a network whose every parameter was moved away from its initialisation."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet_weights({"network_weights": network.state_dict()}, "source.pth")


def load_with_stock(network, content, folder):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    save_checkpoint(content, folder / "adapted.pth")
    with contextlib.redirect_stdout(io.StringIO()):
        load_pretrained_weights(network, str(folder / "adapted.pth"))


@pytest.fixture
def target_dataset(tmp_path, monkeypatch, make_plans):
    """A planned dataset with three channels, in the folder that nnUNet_preprocessed names."""
    folder = tmp_path / "preprocessed" / "Dataset900_Test"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(make_plans("plain", 5, anisotropic=True)))
    labels = {"background": 0, "a": 1, "b": 2}
    channels = {"0": "T1", "1": "T2", "2": "FLAIR"}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": channels, "labels": labels}))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    return folder
