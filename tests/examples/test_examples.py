"""The examples run as their pages say."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import run_training
from support.pretraining_runs import DATASET, finished_rows, make_trainer, phantom_images, write_run
from support.small_datasets import set_folders

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HOW_TO = EXAMPLES.parent / "docs" / "how-to" / "add-your-own-method.md"


def example(name: str):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_alice_learns_on_any_unet_without_nnunets_trainer():
    torch.manual_seed(0)
    losses = example("alice_on_any_unet").main(20)
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_method_of_ones_own_trains_by_nnunets_command(tmp_path, monkeypatch):
    """As the how-to says: copied into a folder, found by nnU-Net through nnUNet_extTrainer, endings and all."""
    set_folders(monkeypatch, tmp_path)
    folder = tmp_path / "trainers"
    folder.mkdir()
    shutil.copy(EXAMPLES / "own_method.py", folder)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    write_run(tmp_path / "preprocessed", phantom_images(2))
    trainer = "DenoisingTrainer_2epochs_3iterations_lr1e-2"
    run_training(DATASET, "3d_fullres", "all", trainer, device=torch.device("cpu"))
    written = tmp_path / "results" / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_all"
    rows = finished_rows(written)
    assert len(rows) == 2 and float(rows[1]["loss"]) < float(rows[0]["loss"])
    saved = torch.load(written / "checkpoint_final.pth", weights_only=True)
    assert saved["pretraining"]["method"] == "Denoising"
    assert saved["pretraining"]["hyper_parameters"]["noise"] == 0.5
    assert saved["pretraining"]["matching"] is None
    continued = make_trainer(example("own_method").DenoisingTrainer_2epochs_3iterations, tmp_path / "preprocessed")
    continued.initialize()
    continued.network.load_state_dict(saved["network_weights"])


@pytest.mark.parametrize("name", ["own_method"])
def test_the_how_to_shows_the_example_word_for_word(name):
    """Every block of Python on the page is in the file."""
    code = (EXAMPLES / f"{name}.py").read_text()
    blocks = HOW_TO.read_text().split("```python\n")[1:]
    assert blocks
    for block in blocks:
        assert block.partition("```")[0].strip() in code
