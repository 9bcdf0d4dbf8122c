"""Saving: plain content, no wasted room, and never a half-written file."""

import itertools
import os
import random
import signal
import time
from collections import OrderedDict, namedtuple
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from support.refused import refused
from torch import nn

from nnunet_alice.checkpoints.saving import STALE_AFTER_SECONDS, plain, save_checkpoint
from nnunet_alice.errors import CheckpointError


def reload(content, folder: Path):
    save_checkpoint(content, folder / "c.pth")
    return torch.load(folder / "c.pth", weights_only=True)


class Colour(IntEnum):
    RED = 3


def test_everything_a_trainer_saves_comes_back_with_weights_only(tmp_path):
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True)
    network(torch.rand(1, 1, 4, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {"losses": [np.float32(0.5), np.float64(0.25), 1.5]},
        "init_args": {"device": torch.device("cpu"), "fold": np.int64(3), "flag": np.bool_(True), "name": np.str_("é")},
        "mirroring": (0, 1, 2),
        "rng": {"numpy": np.random.default_rng(3).bit_generator.state, "torch": torch.get_rng_state()},
        "old_rng": np.random.RandomState(3).get_state(),
        "nested": [{"a": (b"\x00\xff", 2**100, -1, float("inf"))}],
        "enum": Colour.RED,
        3: "int key",
    }
    loaded = reload(content, tmp_path)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded["network_weights"][key], value)
    network.load_state_dict(loaded["network_weights"])
    optimizer.load_state_dict(loaded["optimizer_state"])
    assert loaded["logging"] == {"losses": [0.5, 0.25, 1.5]}
    assert loaded["init_args"] == {"device": "cpu", "fold": 3, "flag": True, "name": "é"}
    assert loaded["mirroring"] == (0, 1, 2) and type(loaded["mirroring"]) is tuple
    assert loaded["nested"] == content["nested"] and loaded[3] == "int key" and loaded["grad_scaler_state"] is None
    assert type(loaded["enum"]) is int and loaded["enum"] == 3
    generator = np.random.default_rng(0)
    generator.bit_generator.state = loaded["rng"]["numpy"]
    assert generator.random() == np.random.default_rng(3).random()
    assert np.array_equal(loaded["old_rng"][1].numpy(), content["old_rng"][1])


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.arange(3, dtype=">i4"), np.array(2, np.uint8)])
def test_arrays_become_tensors_of_the_same_values(array):
    tensor = plain({"a": array})["a"]
    assert isinstance(tensor, torch.Tensor) and tensor.is_contiguous()
    assert np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype.newbyteorder("=")


def test_types_are_python_s_own():
    Point = namedtuple("Point", "x y")
    result = plain(OrderedDict(p=Point(1, np.float64(2)), size=torch.zeros(2, 3).shape, w=nn.Parameter(torch.ones(2))))
    assert type(result) is dict and type(result["p"]) is tuple and type(result["p"][1]) is float
    assert type(result["size"]) is tuple and type(result["w"]) is torch.Tensor and not result["w"].requires_grad


def test_the_copy_is_independent_of_the_network():
    weight = torch.ones(4)
    copy = plain({"w": weight})
    weight.zero_()
    assert copy["w"].tolist() == [1.0] * 4


def test_tensors_made_on_the_fly_are_not_mixed_up():
    class Lazy(dict):
        def items(self):
            # strided: the copies are small and do not fill the gaps that the originals leave
            return ((number, torch.full((200_000,), float(number))[::1000]) for number in range(20))

    assert all((tensor == number).all() for number, tensor in plain(Lazy()).items())


def test_same_memory_is_saved_once_and_views_take_only_their_room(tmp_path):
    weight = torch.rand(100_000)
    save_checkpoint({"encoder": weight, "decoder.encoder": weight}, tmp_path / "shared.pth")
    assert (tmp_path / "shared.pth").stat().st_size < 1.1 * weight.nbytes
    save_checkpoint({"view": weight[::1000], "row": weight[:100]}, tmp_path / "view.pth")
    assert (tmp_path / "view.pth").stat().st_size < 10_000
    loaded = torch.load(tmp_path / "view.pth", weights_only=True)
    assert torch.equal(loaded["view"], weight[::1000]) and torch.equal(loaded["row"], weight[:100])
    square = torch.arange(4.0).reshape(2, 2)  # same address and shape, other strides: not the same tensor
    result = plain([square, square.T, square.view(4), square[:0], square[:0].int()])
    assert result[0].tolist() == [[0, 1], [2, 3]] and result[1].tolist() == [[0, 2], [1, 3]]
    assert result[3].dtype == torch.float32 and result[4].dtype == torch.int32


@pytest.mark.parametrize(
    ("content", "option"),
    [
        ({"a": {"b": [1, Path("x")]}}, "['a']['b'][1]"),
        ({"f": len}, "['f']"),
        ({"s": {1, 2}}, "['s']"),
        ({"o": np.array([None])}, "['o']"),
        ({"t": np.array(["text"])}, "['t']"),
        ({"m": torch.empty(2, device="meta")}, "['m']"),
        ({"m": torch.eye(3).to_sparse()}, "['m']"),
        ({"k": {(1, len): 2}}, "['k'][(1, <built-in function len>)] (the key itself)[1]"),
        ([1], None),
    ],
)
def test_other_content_is_refused_by_name_and_nothing_is_written(content, option, tmp_path):
    with refused(CheckpointError, option=option):
        save_checkpoint(content, tmp_path / "c.pth")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    save_checkpoint({"n": 1}, tmp_path / "c.pth")

    def disk_full(content, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", disk_full)
    with refused(CheckpointError, path="c.pth"):
        save_checkpoint({"n": 2}, tmp_path / "c.pth")
    monkeypatch.undo()
    assert torch.load(tmp_path / "c.pth", weights_only=True) == {"n": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pth"]


def test_old_parts_of_killed_savers_are_removed_recent_and_foreign_ones_not(tmp_path):
    old, recent, foreign = (tmp_path / name for name in (".c.pth.aaaa.pth", ".c.pth.bbbb.pth", ".d.pth.aaaa.pth"))
    for part in (old, recent, foreign):
        part.write_bytes(b"half")
    for part in (old, foreign):
        os.utime(part, (time.time() - STALE_AFTER_SECONDS - 10,) * 2)
    save_checkpoint({"n": 1}, tmp_path / "c.pth")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["c.pth", recent.name, foreign.name])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_at_any_moment_leaves_a_readable_checkpoint(tmp_path):
    path = tmp_path / "latest.pth"
    draw = random.Random(0)
    step = 0
    for _ in range(60):
        saved, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:  # the child must never come back into pytest
                for number in itertools.count(step + 1):
                    tensors = [torch.full((5000,), float(number)) for _ in range(20)]
                    content = {"step": number, "tensors": tensors}
                    save_checkpoint(content, path)
                    os.write(tell, b".")
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(saved, 1), "the child failed before its first save"
        time.sleep(draw.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child failed before it was killed"
        os.close(saved)
        after = torch.load(path, weights_only=True)
        assert after["step"] > step
        step = after["step"]
        assert all(torch.equal(tensor, torch.full((5000,), float(step))) for tensor in after["tensors"])
    assert len(list(tmp_path.iterdir())) > 1, "no child was killed inside a save: the test proves nothing"
