"""The examples run as their pages say."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import run_training
from support.example_workplace import example_workplace
from support.pretraining_runs import DATASET, finished_rows, make_trainer, phantom_images, write_run
from support.refused import refused
from support.small_datasets import set_folders

import nnunet_alice
from nnunet_alice.errors import InputError
from nnunet_alice.phantoms import write_dataset

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
#: longest of the short examples, in lines
MAX_LINES = 50
HOW_TO = EXAMPLES.parent / "docs" / "how-to" / "add-your-own-method.md"


def example(name: str):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    with example_workplace(tmp_path_factory.mktemp("examples")) as folder:
        yield folder


def test_a_point_is_matched_into_all_other_cases(workplace):
    point = np.array([12.0, 7.0, 10.0])
    found = example("match_a_point").main("900", "case0", point.tolist())
    assert set(found) == {"case1", "case2"}
    matcher = nnunet_alice.open_matcher(nnunet_alice.open_dataset(900))
    for case, (voxel, score) in found.items():
        assert score > matcher.threshold
        back = matcher.match(case, "case0", voxel[None]).points_vox[0]
        np.testing.assert_allclose(back, point, atol=1e-6)  # affine maps of one atlas


def test_features_of_a_map_are_those_of_the_networks_encoder(workplace):
    """An image no larger than the crop: the map is what the encoder gives for it."""
    everywhere, at_points = example("extract_features").main("checkpoint_final.pth", "900", "case0")
    encoder = nnunet_alice.open_encoder("checkpoint_final.pth", needs_landmarks=False)
    image = nnunet_alice.open_dataset(900).image("case0")[:]
    assert everywhere.shape[1:] == tuple(-(-n // 4) for n in image.shape[1:])
    small = image[:, 4:20, :14, 2:18]
    small = np.pad(small, [(0, 0), (0, 0), (1, 1), (0, 0)], mode="edge")
    direct = encoder.module(torch.from_numpy(small)[None], None)[-1][0].detach().numpy()
    np.testing.assert_allclose(nnunet_alice.extract_features(encoder, small), direct, atol=1e-4)
    np.testing.assert_allclose(
        nnunet_alice.extract_features(encoder, small, points_vox=np.array([[8, 8, 8]]))[0, : len(direct)],
        direct.mean(axis=(1, 2, 3)),
        atol=1e-4,
    )
    assert len(at_points) == 3
    with refused(InputError, value=(3, *image.shape[1:])):
        nnunet_alice.extract_features(encoder, np.concatenate([image, image, image]))


def test_weights_go_into_a_deeper_network(workplace):
    network = example("transfer_weights").main("checkpoint_final.pth")
    saved = torch.load("checkpoint_final.pth", weights_only=True)["network_weights"]
    name = "encoder.stages.1.0.convs.0.conv.weight"
    old, new = saved[name], network.state_dict()[name]
    assert torch.equal(new[: old.shape[0], : old.shape[1]], old)


def test_checkpoints_are_described_and_strange_files_named(workplace, capsys):
    torch.save({"state_dict": {}}, "strange.pth")
    described = example("inspect_checkpoint").main("strange.pth", "checkpoint_final.pth")
    assert list(described) == ["checkpoint_final.pth"] and described["checkpoint_final.pth"]["orientation"]
    printed = capsys.readouterr().out
    assert "strange.pth was not written by" in printed and "nnUNetv2_train" in printed


@pytest.mark.slow
def test_python_pretrains_from_a_folder_of_scans(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", "")
    write_dataset(tmp_path, range(3), spacing_mm=24.0, images_folder="scans", labels_folder=None)
    checkpoint = example("pretrain").main(str(tmp_path / "scans"), 901, "AliceTrainer_smoke", "cpu", processes=1)
    assert nnunet_alice.describe_checkpoint(checkpoint)["epochs"].startswith("2 of 2")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    limit = MAX_LINES if path.stem not in ("alice_on_any_unet", "own_method") else 80
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.slow
def test_alice_learns_on_any_unet_without_nnunets_trainer():
    torch.manual_seed(0)
    losses = example("alice_on_any_unet").main(20)
    assert len(losses) == 20 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.slow
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
