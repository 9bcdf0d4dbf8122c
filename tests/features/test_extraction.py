"""Features: of DrasCLR and Alice, from prepared cases and raw files, as patches, cases and dense maps."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from support.plans import normalised_by, resampled
from support.pretraining_runs import DATASET, PLANS, make_trainer, phantom_images, with_settings, write_run
from support.refused import refused
from support.small_datasets import set_folders
from torch import nn
from torch.nn import functional

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import Atlas, PreparedAtlas, prepare_atlas
from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError, UnsafeCheckpointError
from nnunet_alice.features.encoders import TrainedEncoder, open_encoder
from nnunet_alice.features.extraction import dense_features, write_dense
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.atlas_landmarks import prepare_landmarks
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.publishing.card import CardText
from nnunet_alice.publishing.publish import publish
from nnunet_alice.trainers.alice import AliceTrainer
from nnunet_alice.trainers.drasclr import DrasCLRTrainer
from nnunet_alice.views.border_crops import crop_with_border


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three phantoms, raw and preprocessed (the same voxels), and a DrasCLR and an Alice trainer saved on them."""
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, folder)
        images = phantom_images(3)
        base = write_run(folder / "preprocessed", images)
        plans = json.loads((base / f"{PLANS}.json").read_text())
        plans["configurations"]["3d_fullres"] |= normalised_by("NoNormalization") | resampled()
        plans["foreground_intensity_properties_per_channel"] = {"0": {}}
        (base / f"{PLANS}.json").write_text(json.dumps(plans))
        dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
        prepare_atlas(dataset, 1)
        prepare_landmarks(dataset, patch_mm=100, step_mm=90)
        (folder / "images").mkdir()
        for case, image in images.items():
            raw = sitk.GetImageFromArray(image[0].astype(np.float32))
            raw.SetSpacing((16.0, 16.0, 16.0))
            sitk.WriteImage(raw, str(folder / "images" / f"{case}_0000.nii.gz"))
        for name, base_class in (("drasclr", DrasCLRTrainer), ("alice", AliceTrainer)):
            kind = with_settings(base_class, {"run.epochs": 1, "run.iterations": 1}, name)
            trainer = make_trainer(kind, folder / "preprocessed")
            trainer.initialize()
            trainer.save_checkpoint(str(folder / f"{name}.pth"))
    return folder


@pytest.fixture
def folders(trained, monkeypatch):
    set_folders(monkeypatch, trained)
    return trained


def features(capsys, *arguments):
    status = main(["features", *map(str, arguments)])
    return status, capsys.readouterr()


def test_patch_features_are_the_conditional_encoders_at_the_landmarks(folders, tmp_path, capsys):
    status, _ = features(
        capsys, "-d", 900, "--checkpoint", folders / "drasclr.pth", "-o", tmp_path / "f.npz", "--level", "patch"
    )
    assert status == 0
    found = np.load(tmp_path / "f.npz")
    encoder = open_encoder(folders / "drasclr.pth")
    assert encoder.conditional
    dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
    places = LandmarkPlaces.of_registered(encoder.landmarks, AtlasMatcher(dataset))
    assert len(found["features"]) == places.seen().sum()
    for row in range(0, len(found["features"]), 17):
        case, landmark = found["cases"][found["case"][row]], found["landmark"][row]
        point = places.points_vox(landmark)[places.cases.index(str(case))]
        np.testing.assert_allclose(found["point_vox"][row], point)
        location = torch.from_numpy(encoder.landmarks.locations[landmark])[None]
        np.testing.assert_array_equal(found["location"][row], location[0])
        patch = torch.from_numpy(crop_with_border(dataset.image(str(case)), point, encoder.size))[None]
        with torch.no_grad():
            expected = encoder.module(patch, location)[-1].mean(dim=(2, 3, 4))[0]  # statistics follow
        np.testing.assert_allclose(found["features"][row][: len(expected)], expected, atol=1e-5)
        assert len(found["features"][row]) > len(expected)


@pytest.mark.slow
def test_case_features_are_the_mean_and_raw_files_give_the_same(folders, tmp_path, capsys):
    checkpoint = ("--checkpoint", folders / "drasclr.pth")
    assert features(capsys, "-d", 900, *checkpoint, "-o", tmp_path / "p.npz", "--level", "patch")[0] == 0
    assert features(capsys, "-d", 900, *checkpoint, "-o", tmp_path / "c.npz")[0] == 0
    assert features(capsys, "-i", folders / "images", *checkpoint, "-o", tmp_path / "raw.npz")[0] == 0
    patches, cases, raw = (np.load(tmp_path / name) for name in ("p.npz", "c.npz", "raw.npz"))
    assert cases["cases"].tolist() == raw["cases"].tolist() == ["case0", "case1", "case2"]
    for number in range(3):
        own = patches["features"][patches["case"] == number]
        np.testing.assert_allclose(cases["features"][number], own.mean(axis=0), rtol=1e-5)
        assert cases["landmarks_seen"][number] == len(own)
    # The atlas itself is mapped exactly in its own dataset, and by a registration among raw files.
    atlas = PreparedAtlas.open(PreprocessedDataset(DATASET, PLANS, "3d_fullres")).geometry.case
    others = cases["cases"] != atlas
    np.testing.assert_allclose(raw["features"][others], cases["features"][others], rtol=1e-4, atol=1e-5)


def test_plain_untrained_and_alice(folders, tmp_path, capsys):
    trained = open_encoder(folders / "drasclr.pth")
    patch, where = torch.randn(2, 1, *trained.size), torch.tensor([[0.0, 0.0, 0.0], [0.9, -0.5, 0.5]])
    conditional = trained.features(patch, where)
    swapped = trained.features(patch, where.flip(0))
    assert not np.allclose(conditional, swapped)
    plain = open_encoder(folders / "drasclr.pth", plain=True)
    np.testing.assert_array_equal(plain.features(patch, where), plain.features(patch, where.flip(0)))
    fresh = [open_encoder(folders / "drasclr.pth", untrained=True).features(patch, where) for _ in range(2)]
    np.testing.assert_array_equal(*fresh)
    assert not np.allclose(fresh[0], plain.features(patch, where))
    status, printed = features(capsys, "-d", 900, "--checkpoint", folders / "alice.pth", "-o", tmp_path / "a.npz")
    assert status == 0 and "Alice" not in printed.err and "plain encoder" in printed.out
    weights = torch.load(folders / "alice.pth", weights_only=True)["network_weights"]
    alice = open_encoder(folders / "alice.pth").module.encoder.state_dict()
    assert all(torch.equal(value, weights[f"encoder.{name}"]) for name, value in alice.items())


@pytest.mark.slow
def test_a_drasclr_checkpoint_needs_nothing_of_its_dataset(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    status, printed = features(
        capsys, "-i", folders / "images", "--checkpoint", folders / "drasclr.pth", "-o", tmp_path / "f.npz"
    )
    assert status == 0, printed.err


def test_a_bad_case_stops_no_other(folders, tmp_path, capsys):
    for path in (folders / "images").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "case0_0000.nii.gz").write_bytes(b"nothing")
    arguments = ("-i", tmp_path, "--checkpoint", folders / "drasclr.pth", "-o", tmp_path / "f.npz")
    status, printed = features(capsys, *arguments)
    assert status == SOME_FAILED and "2 of 3 cases" in printed.out and "failed: case0" in printed.out
    assert np.load(tmp_path / "f.npz")["cases"].tolist() == ["case1", "case2"]


@pytest.fixture
def lying_lps(folders, tmp_path):
    """The checkpoint of images that lay LPS, as the raw files do."""
    content = torch.load(folders / "drasclr.pth", weights_only=True)
    content["pretraining"]["orientation"] = "LPS"
    torch.save(content, tmp_path / "lps.pth")
    return tmp_path / "lps.pth"


@pytest.mark.slow
@pytest.mark.parametrize("letters", ["LAS", "RPS", "PIR"])
def test_images_that_lie_otherwise_give_the_same_features(folders, lying_lps, tmp_path, capsys, caplog, letters):
    """A mirrored image is known by its header; as it lies in the file, left would be taken for right."""
    caplog.set_level("INFO")
    (tmp_path / "turned").mkdir()
    for path in (folders / "images").iterdir():
        turned = sitk.DICOMOrient(sitk.ReadImage(str(path)), letters)
        sitk.WriteImage(turned, str(tmp_path / "turned" / path.name))
    for name, images in (("as_is", folders / "images"), ("turned", tmp_path / "turned")):
        assert features(capsys, "-i", images, "--checkpoint", lying_lps, "-o", tmp_path / f"{name}.npz")[0] == 0
    expected, found = (np.load(tmp_path / f"{name}.npz") for name in ("as_is", "turned"))
    np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["landmarks_seen"], expected["landmarks_seen"])
    assert f"turned from {letters} to LPS" in caplog.text


def test_prepared_cases_that_lie_otherwise_are_refused_by_name(folders, lying_lps, tmp_path, monkeypatch, capsys):
    from nnunet_alice.features import images

    turns = iter(("LPS", "LAS", "LPS"))
    monkeypatch.setattr(images, "array_orientation", lambda properties: next(turns))
    status, printed = features(capsys, "-d", 900, "--checkpoint", lying_lps, "-o", tmp_path / "f.npz")
    assert status == SOME_FAILED and "failed: case1: Case case1 lies LAS" in printed.out


def test_files_of_other_endings_are_read_or_named(folders, lying_lps, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    image = sitk.ReadImage(str(folders / "images" / "case1_0000.nii.gz"))
    for name in ("a_0000.nii.gz", "b.nrrd", "c_0000.mha"):
        sitk.WriteImage(image, str(tmp_path / "new" / name))
    (tmp_path / "new" / "a_0000.nii.gz").rename(tmp_path / "new" / "a_0000.NII.GZ")
    (tmp_path / "new" / "d.dcm").write_bytes(b"DICOM")
    arguments = ("-i", tmp_path / "new", "--checkpoint", lying_lps, "-o", tmp_path / "f.npz")
    status, printed = features(capsys, *arguments)
    assert status == 0 and "Passed over: 1 .dcm file (d.dcm): DICOM" in printed.out
    found = np.load(tmp_path / "f.npz")
    assert found["cases"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(found["features"][1:], found["features"][:-1])


def test_dense_maps_of_a_plain_encoder_need_no_landmarks(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))  # its dataset is not here
    arguments = ("-i", folders / "images", "--checkpoint", folders / "alice.pth", "-o")
    status, printed = features(capsys, *arguments, tmp_path / "maps", "--level", "dense")
    assert status == 0, printed.err
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [f"case{n}.nii.gz" for n in range(3)]
    status, printed = features(capsys, *arguments, tmp_path / "f.npz")
    assert status == 1


@pytest.mark.slow
def test_dense_maps_lie_where_the_image_lies(folders, tmp_path, capsys):
    arguments = ("-i", folders / "images", "--checkpoint", folders / "drasclr.pth", "--level", "dense")
    assert features(capsys, *arguments, "-o", tmp_path / "maps")[0] == 0
    image = sitk.ReadImage(str(folders / "images" / "case1_0000.nii.gz"))
    maps = sitk.ReadImage(str(tmp_path / "maps" / "case1.nii.gz"))
    assert maps.GetNumberOfComponentsPerPixel() == 8
    assert maps.GetSize() == tuple(-(-n // 4) for n in image.GetSize())
    # Cell (1, 2, 1) covers voxels 4..7, 8..11, 4..7.
    middle = image.TransformContinuousIndexToPhysicalPoint((5.5, 9.5, 5.5))
    np.testing.assert_allclose(maps.TransformIndexToPhysicalPoint((1, 2, 1)), middle, atol=1e-3)


class Pooling(nn.Module):
    """Stands for an encoder: means of 2 x 4 x 4 voxels, and the z of the location."""

    def __init__(self):
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))

    def forward(self, x, where):
        pooled = functional.avg_pool3d(x, (2, 4, 4))
        place = where.points[:, :1, None, None, None].expand(-1, 1, *pooled.shape[2:])
        return [x, torch.cat([pooled, place], dim=1)]


@pytest.mark.parametrize("shape", [(12, 24, 32), (4, 8, 8), (13, 21, 30), (3, 40, 9)])
def test_dense_features_of_pooling_are_the_pooled_volume(shape):
    volume = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    atlas = Atlas(SimpleNamespace(shape=shape, spacing=(2.0, 1.0, 1.0), case="atlas"))
    strides = [(1, 1, 1), (2, 4, 4)]
    encoder = TrainedEncoder(Pooling(), None, {}, None, atlas, (4, 8, 8), strides, True)
    geometry = SimpleNamespace(shape=shape, case="x")
    opened = SimpleNamespace(image=volume, geometry=geometry, known_affine=lambda _: np.eye(4))
    found = dense_features(encoder, opened)
    cells = [-(-n // s) for n, s in zip(shape, strides[-1], strict=True)]
    padding = [(0, c * s - n) for n, s, c in zip(shape, strides[-1], cells, strict=True)]
    padded = torch.from_numpy(np.pad(volume, [(0, 0), *padding], mode="edge"))
    np.testing.assert_allclose(found[0], functional.avg_pool3d(padded, (2, 4, 4))[0], atol=1e-5)
    along_z = found[1].mean(axis=(1, 2))
    assert np.abs(along_z).max() <= 1
    if shape[0] > encoder.size[0] // 2 * 2:  # more than one tile along z
        assert (np.diff(along_z) >= 0).all() and along_z[-1] > along_z[0]


def test_written_maps_keep_an_oblique_geometry(tmp_path):
    rotation = np.array([[0.0, -1, 0], [0.6, 0, -0.8], [0.8, 0, 0.6]])  # columns: steps along z, y, x of the array
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * (3.0, 2.0, 1.0), (5, -7, 11)
    maps = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    write_dense(tmp_path / "m.nii.gz", maps, (2, 4, 4), Affine(affine))
    read = sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    for cell in ((0, 0, 0), (2, 1, 3)):
        voxel = (np.asarray(cell) + 0.5) * (2, 4, 4) - 0.5
        world = affine[:3, :3] @ voxel + affine[:3, 3]
        np.testing.assert_allclose(read.TransformIndexToPhysicalPoint(cell[::-1]), world, atol=1e-3)
        np.testing.assert_array_equal(read[cell[::-1]], maps[(slice(None), *cell)])


def test_what_cannot_work_gets_one_sentence(folders, tmp_path, capsys):
    checkpoint = folders / "drasclr.pth"
    status, printed = features(capsys, "-i", tmp_path, "--checkpoint", checkpoint, "-o", tmp_path / "f.npz")
    assert status == 1 and "holds no image that can be read" in printed.err
    status, printed = features(capsys, "-d", 900, "--checkpoint", checkpoint, "-o", tmp_path / "f.csv")
    assert status == 1 and "must end in .npz" in printed.err
    torch.save({"network_weights": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with refused(CheckpointError, path="other.pth"):
        open_encoder(tmp_path / "other.pth")
    harmful = torch.load(checkpoint, weights_only=True)
    architecture = harmful["pretraining"]["plans"]["configurations"]["3d_fullres"]["architecture"]
    architecture["arch_kwargs"]["nonlin"] = "subprocess.Popen"
    torch.save(harmful, tmp_path / "harmful.pth")
    with refused(UnsafeCheckpointError, path="harmful.pth", value="subprocess.Popen"):
        open_encoder(tmp_path / "harmful.pth")
    from nnunet_alice.features.images import DatasetImages

    run = open_encoder(checkpoint).run
    run["plans"]["configurations"]["3d_fullres"]["spacing"] = [1, 1, 1]
    with refused(InputError, option="-i", command="nnUNetv2_move_plans_between_datasets"):
        DatasetImages(PreprocessedDataset(DATASET, PLANS, "3d_fullres"), run)


def test_plans_whose_configuration_inherits(folders, tmp_path):
    from nnunet_alice.features.images import DatasetImages

    checkpoint = torch.load(folders / "alice.pth", weights_only=True)
    configurations = checkpoint["pretraining"]["plans"]["configurations"]
    configurations["3d_base"] = configurations["3d_fullres"]
    configurations["3d_fullres"] = {"inherits_from": "3d_base"}
    torch.save(checkpoint, tmp_path / "c.pth")
    run = open_encoder(tmp_path / "c.pth").run
    assert len(DatasetImages(PreprocessedDataset(DATASET, PLANS, "3d_fullres"), run).cases) == 3


@pytest.mark.slow
def test_a_published_folder_gives_the_same_where_its_dataset_is_not(folders, tmp_path, monkeypatch, capsys):
    model = publish(folders / "drasclr.pth", tmp_path / "model", CardText("Phantoms", "mit"), atlas=True).folder
    images = folders / "images"
    features(capsys, "-i", images, "--checkpoint", folders / "drasclr.pth", "-o", tmp_path / "there.npz")
    (tmp_path / "elsewhere").mkdir()
    set_folders(monkeypatch, tmp_path / "elsewhere")
    assert features(capsys, "-i", images, "--checkpoint", model, "-o", tmp_path / "here.npz")[0] == 0
    there, here = np.load(tmp_path / "there.npz"), np.load(tmp_path / "here.npz")
    np.testing.assert_array_equal(here["features"], there["features"])


@pytest.mark.slow
def test_the_command_probes_patches_and_writes_maps(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    places = rng.uniform(40, 180, (36, 3))
    rows = [f"case{n % 3},{x},{y},{z},{'low' if z < 110 else 'high'},g{n}" for n, (x, y, z) in enumerate(places)]
    (tmp_path / "patches.csv").write_text("case,x_mm,y_mm,z_mm,height,own\n" + "\n".join(rows))
    command = ["probe", "--checkpoint", folders / "drasclr.pth", "-i", folders / "images", "--table", "patches.csv"]
    command += ["--target", "height", "--task", "classification", "--group", "own", "--folds", 2]
    assert main([*map(str, command), "--maps", "maps", "--step_mm", "48", "--region", "body"]) == 0
    printed = capsys.readouterr().out
    assert "of 36 patches" in printed and "36 groups by 'own'" in printed and "3 of 3 cases mapped" in printed
    assert len(pd.read_csv("probe_height_predictions.csv")) == 36
    names = {f"case{n}{end}" for n in range(3) for end in ("_low.nii.gz", "_high.nii.gz", ".png")}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == names
    image, one, other = (
        sitk.ReadImage(str(path))
        for path in (folders / "images" / "case0_0000.nii.gz", "maps/case0_low.nii.gz", "maps/case0_high.nii.gz")
    )
    assert one.GetSize() == image.GetSize() and one.GetSpacing() == image.GetSpacing()
    total = sitk.GetArrayFromImage(one) + sitk.GetArrayFromImage(other)
    assert set(np.unique(total.round(4))) == {0, 1}


@pytest.mark.parametrize(
    "words",
    [["-d", "900"], ["-d", "900", "-i", "x", "--table", "t"], ["-d", "900", "--table", "t", "--label_images", "x"]],
)
def test_patches_need_images_and_labels(words, capsys):
    assert main(["probe", "--checkpoint", "c.pth", "--task", "classification", *words]) == 1
    assert "one of each" in capsys.readouterr().err
