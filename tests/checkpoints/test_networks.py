"""Plans from a stranger's file build networks and call nothing else."""

import subprocess
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from support.refused import refused

from nnunet_alice.checkpoints.networks import check_architecture, network_of_file
from nnunet_alice.errors import UnsafeCheckpointError

UNETS = "dynamic_network_architectures.architectures.unet"


def configuration_of(plans: dict, **changes):
    """The configuration with other entries in its architecture or, by their names, in the network's arguments."""
    architecture = plans["configurations"]["3d_base"]["architecture"]
    for name, value in changes.items():
        (architecture if name in architecture else architecture["arch_kwargs"])[name] = value
    return PlansManager(plans).get_configuration("3d_fullres")


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_ordinary_plans_give_the_network_of_nnunet(make_plans, make_network, kind):
    expected = make_network(make_plans(kind)).state_dict()
    network = network_of_file("c.pth", configuration_of(make_plans(kind)), 1, 3, deep_supervision=False)
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }


def test_a_network_that_nnunet_moved_is_found(make_plans):
    moved = configuration_of(make_plans(), network_class_name="dynamic_network_architectures.old.PlainConvUNet")
    with pytest.warns(UserWarning, match="not found"):
        network = network_of_file("c.pth", moved, 1, 3)
    assert type(network).__name__ == "PlainConvUNet"


@pytest.mark.parametrize(
    "changes",
    [
        {"nonlin": "subprocess.Popen"},
        {"nonlin": "torch.nn.modules.module.torch.load"},
        {"nonlin": "torch.nn.functional.relu"},
        {"nonlin": ["torch.nn.LeakyReLU"]},
        {"norm_op": "torch.hub.load"},
        {"network_class_name": "os.system"},
        {"network_class_name": f"{UNETS}.torch.load"},
        {"network_class_name": f"{UNETS}.nothing"},
        {"network_class_name": "torch.nn.Sequential"},
    ],
)
def test_whatever_else_they_name_is_refused(make_plans, changes):
    argument, name = next(iter(changes.items()))
    with refused(UnsafeCheckpointError, path="c.pth", option=argument, value=name) as caught:
        check_architecture("c.pth", configuration_of(make_plans(), **changes))
    assert repr(name) in str(caught.value)


def test_a_command_in_plain_text_is_not_run(make_plans, make_network, tmp_path):
    """nnU-Net itself runs it, which is why such files must not reach it."""
    touched = tmp_path / "touched"
    arguments = {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(touched)]}}
    with refused(UnsafeCheckpointError, option="nonlin", value="subprocess.Popen"):
        network_of_file("c.pth", configuration_of(make_plans(), **arguments), 1, 3)
    assert not touched.exists()
    with pytest.raises((TypeError, subprocess.SubprocessError)):
        make_network(make_plans(**arguments))
    wait_for(touched)


def wait_for(path: Path, attempts: int = 500) -> None:
    for _ in range(attempts):
        if path.exists():
            return
        torch.rand(10_000).sort()
    raise AssertionError("nnU-Net no longer calls what plans name: check_architecture may go")
