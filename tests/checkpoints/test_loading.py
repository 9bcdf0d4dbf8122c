"""Loading: stock and own checkpoints open, code in a pickle never runs, broken files are named."""

import errno
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from support.plans import architecture, configuration, minimal_plans
from support.refused import refused
from torch import nn

from nnunet_alice.checkpoints.loading import load_checkpoint, network_weights
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError

PLANS = minimal_plans(
    "Dataset900_X",
    {
        "3d_fullres": configuration(
            [1.0, 1.0, 1.0], [8, 8, 8], architecture=architecture("PlainConvUNet", [[1, 1, 1], [2, 2, 2]], [2, 4])
        )
    },
    continue_training=False,
)


def stock_checkpoint(folder: Path, monkeypatch) -> Path:
    """What ``nnUNetTrainer.save_checkpoint`` really writes after one epoch."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    class Folder(str):
        def is_set(self):
            return True

    monkeypatch.setattr(module, "nnUNet_results", Folder(folder / "results"))
    monkeypatch.setattr(module, "nnUNet_preprocessed", Folder(folder / "preprocessed"))
    (folder / "preprocessed/Dataset900_X/nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "preprocessed/Dataset900_X/nnUNetPlans_3d_fullres/case.b2nd").touch()
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    trainer = module.nnUNetTrainer(dict(PLANS), "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    values = {"train_losses": np.float32(1), "val_losses": np.float32(1), "lrs": 0.1, "mean_fg_dice": np.float64(0.5)}
    for key, value in values.items():
        trainer.logger.log(key, value, 0)
    trainer.logger.log("dice_per_class_or_region", [np.float32(0.5)], 0)
    trainer._best_ema = np.float64(0.5)
    trainer.save_checkpoint(str(folder / "stock.pth"))
    return folder / "stock.pth"


def test_a_checkpoint_that_stock_nnunet_wrote_opens_without_trust(tmp_path, monkeypatch):
    path = stock_checkpoint(tmp_path, monkeypatch)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path), "stock files no longer need an allow-list"
    checkpoint = load_checkpoint(path)
    expected = torch.load(path, weights_only=False)
    assert checkpoint["_best_ema"] == 0.5 and checkpoint["init_args"]["plans"] == expected["init_args"]["plans"]
    assert checkpoint["init_args"]["device"] == torch.device("cpu")
    weights = network_weights(checkpoint, path)
    assert weights.keys() == expected["network_weights"].keys()
    assert all(torch.equal(weights[key], value) for key, value in expected["network_weights"].items())


def test_the_allow_list_is_not_left_open(tmp_path):
    save_checkpoint({"network_weights": {"w": torch.ones(2)}}, tmp_path / "c.pth")
    before = set(torch.serialization.get_safe_globals())  # torch lists a set: in any order
    load_checkpoint(tmp_path / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_the_host_program_allows_stays_allowed(tmp_path):
    save_checkpoint({"network_weights": {"w": torch.ones(2)}}, tmp_path / "c.pth")
    with torch.serialization.safe_globals([np.dtype, Path]):
        load_checkpoint(tmp_path / "c.pth")
        assert set(torch.serialization.get_safe_globals()) >= {np.dtype, Path}


def test_a_torch_that_is_too_old_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    save_checkpoint({"network_weights": {"w": torch.ones(2)}}, tmp_path / "c.pth")
    monkeypatch.delattr(torch.serialization, "safe_globals")
    with pytest.raises(AttributeError, match="safe_globals"):
        load_checkpoint(tmp_path / "c.pth")


def test_the_required_torch_has_an_allow_list_with_names():
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    assert tuple(map(int, re.search(r'"torch>=([\d.]+)"', setup)[1].split("."))) >= (2, 6)


def test_scalars_of_numpy_1_open(tmp_path):
    torch.save({"a": np.float64(0.25), "b": np.int64(3), "c": np.float32(2)}, tmp_path / "c.pth", pickle_protocol=2)
    import zipfile

    old = tmp_path / "old.pth"
    with zipfile.ZipFile(tmp_path / "c.pth") as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.", b"numpy.core."))
    assert load_checkpoint(old) == {"a": 0.25, "b": 3, "c": 2}


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Executed(Malicious):
    """The same by a builtin, whose module torch does not name."""

    def __reduce__(self):
        return exec, (f"import os; os.mkdir({self.path!r})",)


@pytest.mark.parametrize(("kind", "named"), [(Malicious, "mkdir"), (Executed, "builtins.exec")])
@pytest.mark.parametrize("write", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path, write, kind, named):
    path, touched = tmp_path / "bad.pth", tmp_path / "touched"
    content = {"network_weights": {"w": torch.ones(2)}, "extra": kind(touched)}
    if write == "pickle":
        path.write_bytes(pickle.dumps({"extra": content["extra"]}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "zip")
    with refused(UnsafeCheckpointError, path=path, option="--trust") as caught:
        load_checkpoint(path)
    assert caught.value.value.endswith(named) and str(caught.value).isprintable() and not touched.exists()


def test_what_is_refused_for_another_reason_is_told_without_torchs_advice(tmp_path):
    """Protocol 4 has instructions that torch does not read."""
    torch.save({"extra": Malicious(tmp_path / "touched")}, tmp_path / "bad.pth", pickle_protocol=4)
    with refused(UnsafeCheckpointError, path="bad.pth", value=None) as caught:
        load_checkpoint(tmp_path / "bad.pth")
    assert str(caught.value).isprintable() and not (tmp_path / "touched").exists()


def test_trust_opens_it_and_then_the_code_runs(tmp_path):
    path, touched = tmp_path / "bad.pth", tmp_path / "touched"
    torch.save({"network_weights": {"w": torch.ones(2)}, "extra": Malicious(touched)}, path)
    assert torch.equal(load_checkpoint(path, trust=True)["network_weights"]["w"], torch.ones(2))
    assert touched.exists()


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    module = types.ModuleType("absent_package")
    module.Thing = type("Thing", (), {"__module__": "absent_package"})
    monkeypatch.setitem(sys.modules, "absent_package", module)
    torch.save({"extra": module.Thing()}, tmp_path / "c.pth")
    monkeypatch.delitem(sys.modules, "absent_package")
    with refused(CheckpointError, path="c.pth", value="absent_package"):
        load_checkpoint(tmp_path / "c.pth", trust=True)


def test_a_whole_module_is_refused(tmp_path):
    torch.save({"network_weights": nn.Linear(2, 2)}, tmp_path / "c.pth")
    with refused(UnsafeCheckpointError, path="c.pth", value="torch.nn.modules.linear.Linear"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("trust", [False, True])
def test_truncated_files_are_named(tmp_path, share, legacy, trust):
    path = tmp_path / "c.pth"
    torch.save({"network_weights": {"w": torch.ones(5000)}}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refused(DamagedCheckpointError, path=path) as caught:
        load_checkpoint(path, trust=trust)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ],
)
def test_a_sound_file_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    torch.save({"network_weights": {}}, tmp_path / "c.pth")

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with refused(CheckpointError, path="c.pth") as caught:
            load_checkpoint(tmp_path / "c.pth")
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert load_checkpoint(tmp_path / "c.pth") == {"network_weights": {}}


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"hello\n", b"{}", bytes(1000), b"PK\x03\x04 not a zip"]
)
def test_other_files_are_named(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    with refused(DamagedCheckpointError, path="c.pth") as caught:
        load_checkpoint(tmp_path / "c.pth")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with refused(CheckpointError, path="no.pth"):
        load_checkpoint(tmp_path / "no.pth")
    with refused(CheckpointError, path=tmp_path):
        load_checkpoint(tmp_path)


def test_no_dict(tmp_path):
    torch.save(torch.ones(2), tmp_path / "c.pth")
    with refused(CheckpointError, path="c.pth", value="Tensor"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("checkpoint", "value"),
    [
        ({"state_dict": {}, "epoch": 3}, None),
        ({}, None),
        ({"network_weights": {}}, None),
        ({"network_weights": [1]}, None),
        ({"network_weights": {"w": 3}}, "w"),
    ],
)
def test_missing_keys_are_named(checkpoint, value):
    with refused(CheckpointError, path="c.pth", option="network_weights", value=value):
        network_weights(checkpoint, "c.pth")


def test_prefixes_of_wrappers_are_taken_off():
    weights = {"module._orig_mod.encoder.w": torch.ones(1), "_orig_mod.b": torch.ones(2), "modules.c": torch.ones(3)}
    assert list(network_weights({"network_weights": weights}, "c.pth")) == ["encoder.w", "b", "modules.c"]


@pytest.mark.slow
def test_refusal_does_not_hang_on_what_was_imported_before(tmp_path):
    """The malicious file is opened by a fresh process, as the command line would."""
    torch.save({"extra": Malicious(tmp_path / "touched")}, tmp_path / "bad.pth")
    code = (
        "from nnunet_alice.checkpoints.loading import load_checkpoint\n"
        f"try:\n    load_checkpoint({str(tmp_path / 'bad.pth')!r})\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "UnsafeCheckpointError" and not (tmp_path / "touched").exists()
