"""The command export: a model that stock nnU-Net predicts with alone."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.labelled_runs import labelled_volume, train_briefly, write_images

from nnunet_alice.checkpoints import exporting
from nnunet_alice.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Model folder of a short training, and the trained network."""
    return train_briefly(tmp_path_factory.mktemp("export"))


@pytest.mark.slow
def test_stock_nnunet_predicts_with_it_alone(trained, tmp_path):
    """In a process of its own, in which this package cannot be imported."""
    model, network = trained
    assert main(["export", "-i", str(model), "-o", str(tmp_path / "out")]) == 0
    exported = tmp_path / "out" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    write_images(tmp_path / "images", 1)
    (tmp_path / "predicted").mkdir()
    script = """
import sys
sys.modules["nnunet_alice"] = None  # importing it fails
import numpy as np, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
torch.set_num_threads(1)
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], None)
assert type(predictor.network).__module__.startswith("dynamic_network_architectures")
patch = torch.from_numpy(np.load(sys.argv[2]))
with torch.inference_mode():
    np.save(sys.argv[3], predictor.network.eval()(patch).numpy())
predictor.predict_from_files_sequential(sys.argv[4], sys.argv[5], save_probabilities=False)
"""
    patch = torch.from_numpy(labelled_volume(5)[0][None, :, :16, :16, :16].copy())
    np.save(tmp_path / "patch.npy", patch.numpy())
    names = [exported, tmp_path / "patch.npy", tmp_path / "logits.npy", tmp_path / "images", tmp_path / "predicted"]
    environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"}
    command = [sys.executable, "-c", script, *map(str, names)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "predicted" / "case00.nii.gz").is_file()
    with torch.inference_mode():
        expected = network(patch).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-5)


def test_an_output_that_cannot_be_written_is_one_sentence(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    assert main(["export", "-i", str(trained[0]), "-o", str(tmp_path / "file")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "file/nnUNetTrainer__nnUNetPlans__3d_fullres could not be written" in message

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "write_json", full)
    assert main(["export", "-i", str(trained[0]), "-o", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "could not be written (No space left on device)" in message
    assert not list((tmp_path / "out").iterdir())
