"""From a DrasCLR checkpoint to a prediction: locate, preprocess, fine-tune, predict, all by stock nnU-Net's code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from support.labelled_runs import stay_in_process, write_splits
from support.pretraining_runs import DATASET, PLANS, make_trainer, phantom_images, with_settings, write_run
from support.refused import refused
from support.small_datasets import set_folders

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import PreparedAtlas, prepare_atlas
from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.checkpoints.conditional import query_encoder_state
from nnunet_alice.checkpoints.exporting import export_model
from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.cli.main import main
from nnunet_alice.coordinates.atlas_file import open_atlas
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.discovery import package_folder
from nnunet_alice.errors import CheckpointError, InputError
from nnunet_alice.matching.atlas_landmarks import prepare_landmarks
from nnunet_alice.methods.drasclr.located import HEAVY_WEIGHT, decode_locations
from nnunet_alice.planning.preprocessing import preprocess_cases
from nnunet_alice.trainers import drasclr_finetuning
from nnunet_alice.trainers.alice import AliceTrainer
from nnunet_alice.trainers.drasclr import DrasCLRTrainer, DrasCLRTrainer_2experts, DrasCLRTrainer_noLocation

SOURCE, LOCATED = "Dataset004_Labelled", "Dataset005_Labelled_located"
LOCATED_PLANS = f"{PLANS}_from900"
TRAINER = "DrasCLRFineTuneTrainer_2epochs_1iterations_seed3"
CASES = ["case0", "case1", "case2"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Pretraining checkpoints on three phantoms, the same phantoms with labels, located and preprocessed."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, folder)
        images = phantom_images(3)
        base = write_run(folder / "preprocessed", images)
        plans = json.loads((base / f"{PLANS}.json").read_text())
        resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
        for kind in ("data", "seg", "probabilities"):
            plans["configurations"]["3d_fullres"][f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
            plans["configurations"]["3d_fullres"][f"resampling_fn_{kind}_kwargs"] = resampling | {
                "is_seg": kind == "seg",
                "order": 1,
            }
        plans["foreground_intensity_properties_per_channel"] = {"0": {}}
        (base / f"{PLANS}.json").write_text(json.dumps(plans))
        dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
        prepare_atlas(dataset, 1)
        prepare_landmarks(dataset, patch_mm=100, step_mm=90)
        for trained in (DrasCLRTrainer, DrasCLRTrainer_2experts, DrasCLRTrainer_noLocation, AliceTrainer):
            kind = with_settings(trained, {"run.epochs": 1, "run.iterations": 1, "run.seed": 7})
            trainer = make_trainer(kind, base.parent)
            trainer.initialize()
            trainer.save_checkpoint(str(folder / f"{trained.__name__}.pth"))
        raw = folder / "raw" / SOURCE
        for case, image in images.items():
            write(raw / "imagesTr" / f"{case}_0000.nii.gz", image[0].astype(np.float32))
            write(raw / "labelsTr" / f"{case}.nii.gz", (image[0] > 0.4).astype(np.uint8))
        described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "bright": 1}, "numTraining": 3}
        (raw / "dataset.json").write_text(json.dumps(described | {"file_ending": ".nii.gz"}))
        (folder / "preprocessed" / SOURCE).mkdir()
        write_splits(folder / "preprocessed" / SOURCE, (CASES[:2], CASES[2:]))
        (folder / "preprocessed" / SOURCE / "dataset_fingerprint.json").write_text("{}")
        raw_before = snapshot(raw)
        assert main(["locate", "-d", "4", "--atlas", str(folder / "DrasCLRTrainer.pth"), "-np", "1"]) == 0
        assert snapshot(raw) == raw_before
        preprocess_cases(LOCATED, LOCATED_PLANS, "3d_fullres", 1)
    return folder


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((16.0, 16.0, 16.0))
    sitk.WriteImage(image, str(path))


def snapshot(folder: Path) -> dict:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def set_environment(patch, folder: Path) -> None:
    set_folders(patch, folder)
    patch.setenv("nnUNet_extTrainer", str(package_folder("nnunet_alice.trainers")))
    stay_in_process(patch)


@pytest.fixture
def folders(chain, monkeypatch):
    set_environment(monkeypatch, chain)
    return chain


def start(weights: Path | None, name: str = TRAINER):
    """What nnUNetv2_train does before training."""
    trainer = get_trainer_from_args("5", "3d_fullres", 0, name, LOCATED_PLANS, device=torch.device("cpu"))
    if weights is None:
        trainer.initialize()
    else:
        maybe_load_checkpoint(trainer, False, False, str(weights))
    return trainer


def own_trainer(cls: type, folders: Path, configuration="3d_fullres", dataset_json: dict | None = None):
    """A trainer of the class as it is imported here (nnU-Net imports a class of its own by name)."""
    base = folders / "preprocessed" / LOCATED
    plans = json.loads((base / f"{LOCATED_PLANS}.json").read_text()) | {"continue_training": False}
    dataset_json = dataset_json or json.loads((base / "dataset.json").read_text())
    return cls(plans, configuration, 0, dataset_json, torch.device("cpu"))


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


def test_the_located_dataset_names_originals_and_holds_atlas_coordinates(folders):
    content = json.loads((folders / "raw" / LOCATED / "dataset.json").read_text())
    assert list(content["channel_names"].values()) == ["CT", *["noNorm"] * 4]
    images = content["dataset"]["case1"]["images"]
    assert images[0] == str(folders / "raw" / SOURCE / "imagesTr" / "case1_0000.nii.gz")
    assert images[1:] == [f"imagesTr/case1_000{channel}.nii.gz" for channel in (1, 2, 3, 4)]
    for name in ("splits_final.json", "dataset_fingerprint.json"):
        there, here = (folders / "preprocessed" / dataset / name for dataset in (SOURCE, LOCATED))
        assert json.loads(there.read_text()) == json.loads(here.read_text())
    # The very phantoms of the pretraining: their places are those that its atlas gives.
    atlas = PreparedAtlas.open(PreprocessedDataset(DATASET, PLANS, "3d_fullres"))
    located = PreprocessedDataset(LOCATED, LOCATED_PLANS, "3d_fullres")
    for case in CASES:
        image = located.image(case)[...]
        points = np.random.default_rng(0).integers(0, image.shape[1:], (200, 3))
        channels = torch.from_numpy(image[(slice(1, None), *points.T)])
        found = decode_locations(channels[None, :, :, None, None])[0].squeeze().T
        points_mm = Affine(atlas.affine(case)).points(points * located.spacing)
        np.testing.assert_allclose(found, np.clip(atlas.locations(points_mm), -1, 1), atol=2e-3)


@pytest.mark.slow
def test_the_whole_way_to_a_prediction_by_stock_nnunet(folders, tmp_path):
    trainer = start(folders / "DrasCLRTrainer.pth")
    loaded = query_encoder_state(load_checkpoint(folders / "DrasCLRTrainer.pth"))
    for name, value in trainer.network.encoder.state_dict().items():
        assert torch.equal(value, loaded[name]), name
    assert "Loaded the location-conditioned encoder" in log_of(trainer) and "Fresh: the decoder" in log_of(trainer)
    assert "WARNING" not in log_of(trainer)
    before = {name: value.clone() for name, value in trainer.network.named_parameters()}
    trainer.run_training()
    changed = {name for name, value in trainer.network.named_parameters() if not torch.equal(value, before[name])}
    assert {"encoder.encoder.stages.0.0.convs.0.conv.routing_weight", "decoder.seg_layers.1.weight"} <= changed
    trainer.perform_actual_validation()
    # A new image: a copy of the validation case in another folder, located on its own.
    for name in ("new", "predicted"):
        (tmp_path / name).mkdir()
    shutil.copy(folders / "raw" / SOURCE / "imagesTr" / "case2_0000.nii.gz", tmp_path / "new" / "person_0000.nii.gz")
    atlas = folders / "raw" / LOCATED / "atlas.npz"
    arguments = ["locate", "-i", tmp_path / "new", "-o", tmp_path / "located", "--atlas", atlas, "-np", "1"]
    assert main(list(map(str, arguments))) == 0
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    assert predictor.trainer_name == TRAINER and predictor.allowed_mirroring_axes == (0, 1, 2)
    predictor.predict_from_files_sequential(str(tmp_path / "located"), str(tmp_path / "predicted"))
    own, stock = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (
            Path(trainer.output_folder) / "validation" / "case2.nii.gz",
            tmp_path / "predicted" / "person.nii.gz",
        )
    )
    assert 0 < own.mean() < 1
    np.testing.assert_array_equal(own, stock)
    with refused(CheckpointError, value="nnUNetTrainer"):
        export_model(trainer.output_folder_base, tmp_path / "export")
    again = start(Path(trainer.output_folder) / "checkpoint_final.pth")
    assert torch.equal(
        again.network.encoder.encoder.stages[0][0].convs[0].conv.experts,
        trainer.network.encoder.encoder.stages[0][0].convs[0].conv.experts,
    )
    assert torch.equal(again.network.decoder.transpconvs[0].weight, trainer.network.decoder.transpconvs[0].weight)


def test_augmented_batches_keep_coordinates_codes(folders):
    trainer = start(None)
    train, _ = trainer.get_dataloaders()
    images, seen = [], []
    for _ in range(4):
        data = next(train)["data"]
        images.append(data[:, 0])
        seen.append(data[:, 1:])
    codes = torch.stack(seen)
    # Interpolation with the zeros of padding lowers codes, nothing raises them beyond the atlas.
    assert codes.max() <= 1.75 * HEAVY_WEIGHT + 1 and codes.min() >= 0
    assert torch.stack(images).abs().max() < 100
    assert "FROM SCRATCH" in _starting(trainer)


def _starting(trainer) -> str:
    trainer._describe_start()
    return log_of(trainer)


@pytest.mark.slow
def test_checkpoints_that_do_not_fit_get_one_sentence(folders, tmp_path):
    for name, fields in (
        ("AliceTrainer", {"value": "Alice"}),
        ("DrasCLRTrainer_noLocation", {}),
        ("DrasCLRTrainer_2experts", {"value": 2}),
    ):
        with refused(CheckpointError, path=f"{name}.pth", **fields):
            start(folders / f"{name}.pth")
    trainer = start(folders / "DrasCLRTrainer_2experts.pth", "DrasCLRFineTuneTrainer_2experts_1epochs")
    assert trainer.network.encoder.encoder.stages[0][0].convs[0].conv.num_experts == 2
    checkpoint = load_checkpoint(folders / "DrasCLRTrainer.pth")
    state = checkpoint["model_state"]
    first = next(name for name in state if name.startswith("query.encoder.") and name.endswith("experts"))
    state[first] = state[first][:, :2]
    torch.save(checkpoint, tmp_path / "other.pth")
    with refused(CheckpointError, path="other.pth"):
        start(tmp_path / "other.pth")


def test_inspect_says_how_to_keep_the_conditional_encoder(folders):
    for name, said in (("DrasCLRTrainer", True), ("DrasCLRTrainer_noLocation", False), ("AliceTrainer", False)):
        lines = describe_checkpoint(folders / f"{name}.pth")["fine-tune"]
        command = f"nnunet_alice locate -d TARGET --atlas {folders / f'{name}.pth'}"
        assert (lines[-1] == command) == said


def test_another_atlas_is_said(folders, tmp_path):
    checkpoint = load_checkpoint(folders / "DrasCLRTrainer.pth")
    checkpoint["drasclr"]["atlas"]["image"][0] += 1
    torch.save(checkpoint, tmp_path / "other.pth")
    assert "are of a different atlas than that of" in log_of(start(tmp_path / "other.pth"))


def test_datasets_and_configurations_without_coordinates_get_one_sentence(folders):
    dataset = json.loads((folders / "preprocessed" / LOCATED / "dataset.json").read_text())
    plain = {key: value for key, value in dataset.items() if key != "located"}

    def make(configuration, dataset_json):
        return own_trainer(drasclr_finetuning.DrasCLRFineTuneTrainer, folders, configuration, dataset_json)

    with refused(InputError, command="nnunet_alice locate -d 5"):
        make("3d_fullres", plain).initialize()
    with refused(InputError, value="DrasCLRFineTuneTrainer"):
        make("2d", dataset).initialize()
    with refused(InputError, value=1, command="nnunet_alice locate"):
        make("3d_fullres", dataset | {"channel_names": {"0": "CT"}}).initialize()


def test_rates_and_freezing_find_the_stages_of_the_encoder(folders):
    kind = with_settings(drasclr_finetuning.DrasCLRFineTuneTrainer, {"optimisation.encoder_decay": 0.75})
    trainer = own_trainer(kind, folders)
    trainer.initialize()
    scales = {group["scale"] for group in trainer.optimizer.param_groups}
    assert sorted(scales) == pytest.approx([0.75**3, 0.75**2, 0.75, 1])
    frozen = own_trainer(with_settings(kind, {"optimisation.freeze_encoder": True}), folders)
    maybe_load_checkpoint(frozen, False, False, str(folders / "DrasCLRTrainer.pth"))
    assert not any(parameter.requires_grad for parameter in frozen.network.encoder.parameters())


def test_every_kind_of_atlas_file_is_the_same_atlas(folders, capsys):
    dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
    kinds = folders / "DrasCLRTrainer.pth", AtlasFiles(dataset).atlas_file, folders / "raw" / LOCATED / "atlas.npz"
    atlases = [open_atlas(path) for path in kinds]
    assert len({atlas.checksum for atlas in atlases}) == 1
    assert all(atlas.plans["configurations"] == atlases[0].plans["configurations"] for atlas in atlases)
    with refused(CheckpointError, path="AliceTrainer.pth"):
        open_atlas(folders / "AliceTrainer.pth")
    copied = dataset.base / "OtherPlans.json"
    shutil.copy(dataset.base / f"{PLANS}.json", copied)
    try:
        with refused(InputError, path=kinds[1], value=None):
            open_atlas(kinds[1])
        assert open_atlas(kinds[1], PLANS).checksum == atlases[0].checksum
        with refused(InputError, path=kinds[1], value="Unknown"):
            open_atlas(kinds[1], "Unknown")
    finally:
        copied.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "5", "--atlas", "ATLAS"], "holds coordinate channels already; locate Dataset004_Labelled"),
        (["-d", "4"], "Name the atlas of the pretraining with --atlas"),
        (["-d", "4", "-o", "900", "--atlas", "ATLAS"], "Dataset number 900 is taken by Dataset900_Small"),
        (["-d", "4", "-o", "x", "--atlas", "ATLAS"], "-o is the number of the new dataset"),
        (["-d", "4", "-o", "0", "--atlas", "ATLAS"], "not between 1 and 999"),
        (["-d", "77", "--atlas", "ATLAS"], "No dataset with number 77"),
    ],
)
def test_the_command_says_what_is_wrong(folders, capsys, arguments, message):
    atlas = str(folders / "raw" / LOCATED / "atlas.npz")
    assert main(["locate", *(atlas if argument == "ATLAS" else argument for argument in arguments)]) == 1
    assert message in capsys.readouterr().err
