"""A checkpoint as a folder of plain files is the checkpoint, to the bit and to the type."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.refused import refused

from nnunet_alice.checkpoints.loading import load_checkpoint, network_weights
from nnunet_alice.checkpoints.weights_folder import content_file, write_sums, write_weights_folder
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError
from nnunet_alice.files import sha256_of


def write(content, folder):
    write_weights_folder(content, folder)
    write_sums(folder)
    return folder


def same(one, two) -> bool:
    """Equality of values, types, dtypes and bits."""
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def test_what_comes_back_is_what_was_written(tmp_path):
    generator = torch.Generator().manual_seed(0)
    content = {
        "network_weights": {
            "encoder.a": torch.randn(3, 2, generator=generator),
            "encoder.steps": torch.tensor(7),
            "half": torch.randn(5, generator=generator).half(),
            "empty": torch.zeros(0, 4),
        },
        "other": {"points": torch.arange(6).reshape(2, 3), "body": torch.tensor([True, False])},
        "nested": [{"size": (1, (2.5, "x"), []), "odd": {1: "a", (2, 3): None, "$tensor": "no"}}],
        "float": 0.1 + 0.2,
        "nothing": None,
        "text": 'Ümlaut "quoted" \\',
    }
    assert same(load_checkpoint(write(content, tmp_path / "f")), content)
    assert (tmp_path / "f" / "extras.safetensors").is_file()


def test_tensors_that_are_one_stay_one(tmp_path):
    weight = torch.randn(1000)
    content = {"network_weights": {"encoder.a": weight, "decoder.encoder.a": weight, "view": weight[:10]}}
    folder = write(content, tmp_path / "f")
    assert set(load_file(folder / "model.safetensors")) == {"encoder.a", "view"}
    assert not (folder / "extras.safetensors").exists()
    back = load_checkpoint(folder)["network_weights"]
    assert back["decoder.encoder.a"].data_ptr() == back["encoder.a"].data_ptr() and torch.equal(
        back["view"], weight[:10]
    )


def test_the_file_of_weights_stands_for_its_folder(tmp_path):
    content = {"network_weights": {"encoder.a": torch.ones(2)}, "pretraining": {"method": "Alice"}}
    folder = write(content, tmp_path / "f")
    assert same(load_checkpoint(folder / "model.safetensors"), content)
    assert content_file(folder) == folder / "SHA256SUMS" and content_file(tmp_path / "c.pth") == tmp_path / "c.pth"


def test_safetensors_alone_are_weights(tmp_path):
    save_file({"encoder.a": torch.ones(2)}, tmp_path / "lone.safetensors")
    loaded = load_checkpoint(tmp_path / "lone.safetensors")
    assert torch.equal(network_weights(loaded, "lone")["encoder.a"], torch.ones(2))


def test_a_file_that_is_not_listed_is_not_read(tmp_path):
    """Nothing may be put beside a published model afterwards."""
    folder = write({"network_weights": {"a": torch.ones(1)}}, tmp_path / "f")
    (folder / "extras.safetensors").write_bytes(b"nothing of ours")
    assert set(load_checkpoint(folder)) == {"network_weights"}


@pytest.mark.parametrize("content", [{"a": b"bytes"}, {"a": {1, 2}}, {"a": object()}])
def test_what_json_cannot_keep_is_refused(content, tmp_path):
    with refused(CheckpointError):
        write_weights_folder({"network_weights": {}, **content}, tmp_path / "f")


@pytest.mark.parametrize("text", ["{", "[1]", '{"network_weights": {"a": {"$tensor": "b"}}}'])
def test_a_description_that_does_not_fit_is_told(text, tmp_path):
    folder = write({"network_weights": {"a": torch.ones(1)}}, tmp_path / "f")
    (folder / "checkpoint.json").write_text(text)
    write_sums(folder)
    with refused(DamagedCheckpointError, path="checkpoint.json"):
        load_checkpoint(folder)


def test_truncated_tensors_are_told(tmp_path):
    folder = write({"network_weights": {"a": torch.ones(1000)}}, tmp_path / "f")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    write_sums(folder)
    with refused(DamagedCheckpointError, path="model.safetensors"):
        load_checkpoint(folder)


def test_checksums_change_with_the_content(tmp_path):
    checksums = {
        write_sums(write({"network_weights": {"a": torch.full((1,), value)}}, tmp_path / str(value)))
        for value in (1.0, 2.0)
    }
    assert len(checksums) == 2
    assert json.loads((tmp_path / "1.0" / "checkpoint.json").read_text()) == {
        "network_weights": {"a": {"$tensor": "a"}}
    }
    assert sha256_of(tmp_path / "1.0" / "SHA256SUMS") in checksums
