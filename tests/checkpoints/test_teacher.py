"""The moving average of a pretraining as weights of the network."""

import copy

import pytest
import torch
from support.refused import refused
from support.tiny_networks import tiny_unet

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.checkpoints.teacher import teacher_weights
from nnunet_alice.errors import CheckpointError
from nnunet_alice.methods.alice.model import Alice
from nnunet_alice.methods.alice.settings import AliceSettings
from nnunet_alice.methods.drasclr.conditional import UnconditionedEncoder
from nnunet_alice.methods.drasclr.conversion import plain_state, to_conditional, to_plain
from nnunet_alice.methods.drasclr.model import DrasCLRModel, PatchEmbedder
from nnunet_alice.methods.drasclr.queue import KeyQueue

LOCATIONS = torch.tensor([[0.1, -0.5, 0.9], [-1.0, 0.2, 0.0]])


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module, every parameter elsewhere."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


def written(tmp_path, network, model, **more) -> dict:
    """A checkpoint as a pretraining trainer writes it, read again."""
    content = {"network_weights": network.state_dict(), "model_state": model.state_dict()} | more
    save_checkpoint(content, tmp_path / "in.pth")
    return load_checkpoint(tmp_path / "in.pth")


def test_alices_teacher_is_a_whole_network(tmp_path):
    network = tiny_unet()
    model = Alice(network, AliceSettings())
    teacher = moved(network)
    model.teacher.backbone.network.load_state_dict(teacher.state_dict())
    weights = teacher_weights(written(tmp_path, network, model), "in.pth")
    assert weights.keys() == network.state_dict().keys()
    for name, value in teacher.state_dict().items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("conditional", [True, False])
def test_drasclrs_key_encoder_is_made_plain_and_the_decoder_stays(tmp_path, conditional):
    network = tiny_unet("residual")
    channels = network.encoder.output_channels[-1]
    encoder = to_conditional(network.encoder, 3, location_gain=1.0) if conditional else None
    embedder = PatchEmbedder(encoder or UnconditionedEncoder(copy.deepcopy(network.encoder)), channels, dim=4)
    model = DrasCLRModel(embedder, KeyQueue(4, 4))
    model.key.encoder.load_state_dict(moved(model.key.encoder).state_dict())
    own = {"settings": {"conditional": conditional}, "training_locations": LOCATIONS}
    weights = teacher_weights(written(tmp_path, network, model, drasclr=own), "in.pth")
    key = model.key.encoder
    expected = (to_plain(key, LOCATIONS) if conditional else key.encoder).state_dict()
    for name, value in network.state_dict().items():
        part, _, rest = name.partition("encoder.")
        wanted = expected[rest] if part in ("", "decoder.") and rest else value
        torch.testing.assert_close(weights[name], wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_plain_state_is_the_state_of_the_plain_encoder():
    conditional = moved(to_conditional(tiny_unet().encoder, 4, location_gain=1.0))
    expected = to_plain(conditional, LOCATIONS).state_dict()
    found = plain_state(conditional.encoder.state_dict(), LOCATIONS)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_checkpoints_without_a_teacher_are_refused(tmp_path):
    network = tiny_unet()
    checkpoint = written(tmp_path, network, torch.nn.Linear(1, 1), pretraining={"trainer": "MIMTrainer"})
    with refused(CheckpointError, path="in.pth", value="MIMTrainer"):
        teacher_weights(checkpoint, "in.pth")
