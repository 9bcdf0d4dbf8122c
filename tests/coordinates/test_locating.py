"""Coordinate channels of raw files: right places through every reader, resampling and crop, and images as before."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from support.located import OBLIQUE, SPACING, TO_ATLAS, bright_ball, make_atlas, write
from support.refused import refused
from support.small_datasets import set_folders

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.landmarks import to_locations
from nnunet_alice.anatomy.registration import Registration
from nnunet_alice.coordinates import locating
from nnunet_alice.coordinates.atlas_file import PortableAtlas, open_atlas
from nnunet_alice.coordinates.located_dataset import locate_folder, located_plans
from nnunet_alice.coordinates.locating import RawCase, case_to_locations, coordinate_channels, locate_cases
from nnunet_alice.errors import DamagedCheckpointError, InputError, MissingFileError
from nnunet_alice.methods.drasclr.located import HEAVY_WEIGHT, LIGHT_WEIGHT, WEIGHT, decode_locations, location_weights

TURNED = (0, -1, 0, 1, 0, 0, 0, 0, -1)


@pytest.fixture
def known_map(monkeypatch):
    """Registration that finds ``TO_ATLAS`` for every case."""
    monkeypatch.setattr(PortableAtlas, "register", lambda atlas, case: Registration(TO_ATLAS, 0.9, 0.9))


def preprocess(atlas: PortableAtlas, files, schemes) -> np.ndarray:
    plans = json.loads(json.dumps(atlas.plans))
    configuration = plans["configurations"]["3d_fullres"]
    configuration["normalization_schemes"] = schemes
    configuration["use_mask_for_norm"] = [scheme == "ZScoreNormalization" for scheme in schemes]
    plans["foreground_intensity_properties_per_channel"] = {str(c): {} for c in range(len(schemes))}
    manager = PlansManager(plans)
    settings = manager.get_configuration("3d_fullres")
    preprocessor = settings.preprocessor_class(verbose=False)
    return preprocessor.run_case([str(f) for f in files], None, manager, settings, atlas.dataset_json)[0]


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize(("direction", "transpose"), [(OBLIQUE, (0, 1, 2)), (TURNED, (2, 0, 1))])
def test_coordinates_survive_preprocessing_and_leave_the_image_as_it_is(
    tmp_path, known_map, reader, direction, transpose
):
    atlas = make_atlas(reader, transpose)
    image = write(tmp_path / "in" / "a_0000.nii.gz", bright_ball(), direction)
    report = locate_cases(atlas, [RawCase("a", (image,))], tmp_path, tmp_path / "locations.json", 1)
    files = [image, *report.coordinates("a")]
    assert [path.name for path in files] == [f"a_000{channel}.nii.gz" for channel in range(5)]
    with_coordinates = preprocess(atlas, files, ["ZScoreNormalization", *["NoNormalization"] * 4])
    without = preprocess(atlas, files[:1], ["ZScoreNormalization"])
    np.testing.assert_array_equal(with_coordinates[:1], without)
    shape = without.shape[1:]
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    expected = to_locations(Affine(TO_ATLAS).points(voxels * SPACING), atlas.geometry.shape, atlas.geometry.spacing)
    found, valid = (x[0].numpy() for x in decode_locations(torch.from_numpy(with_coordinates[None, 1:])))
    off = np.abs(found - np.clip(expected, -1, 1).T.reshape(3, *shape)).max(axis=0)
    assert valid.mean() > 0.9 and np.quantile(off[valid[0]], 0.99) < 0.02


def test_zero_background_of_the_image_stays_zero_and_a_full_image_has_no_zero(tmp_path, known_map):
    atlas = make_atlas()
    framed, full = bright_ball(), bright_ball() + 5000
    framed[12, 16, 20] = 0  # a hole inside is no background
    cases = [RawCase(n, (write(tmp_path / "in" / f"{n}.nii.gz", a),)) for n, a in (("framed", framed), ("full", full))]
    report = locate_cases(atlas, cases, tmp_path, tmp_path / "r.json", 1)
    for path in report.coordinates("framed"):
        channel = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        expected = np.zeros(framed.shape, dtype=bool)
        expected[2:-3, 4:-1, 3:-6] = True
        np.testing.assert_array_equal(channel != 0, expected)
    assert all(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).min() > 0 for path in report.coordinates("full"))


def test_channels_are_the_map_voxel_by_voxel():
    matrix = np.random.default_rng(0).normal(scale=0.1, size=(3, 4))
    channels = list(coordinate_channels(matrix, (3, 4, 5), None))
    for at in np.ndindex(3, 4, 5):
        expected = WEIGHT * (1 + np.clip(matrix @ [*at, 1], -1.5, 1.5) / 2)
        np.testing.assert_allclose([channel[at] for channel in channels[1:]], expected, atol=0.51)
    inside = np.ones((3, 4, 5), dtype=bool)
    inside[0] = False
    weights = location_weights(inside)
    assert all((channel == weights).all() for channel in coordinate_channels(None, (3, 4, 5), inside))


def test_a_poor_registration_gives_the_middle_and_unreadable_files_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(PortableAtlas, "register", lambda atlas, case: Registration(TO_ATLAS, 0.3, 0.5))
    atlas = make_atlas()
    good = write(tmp_path / "in" / "good_0000.nii.gz", bright_ball())
    broken = tmp_path / "in" / "broken_0000.nii.gz"
    broken.write_bytes(good.read_bytes()[:2000])
    report = locate_folder(tmp_path / "in", tmp_path / "out", atlas)
    assert report.named("poor") == {"good": "registration quality 0.15 is below 0.25"}
    assert list(report.named("failed")) == ["broken"] and "truncated" in report.named("failed")["broken"]
    values = {int(v) for p in report.coordinates("good") for v in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(p)))}
    assert values == {0, WEIGHT, HEAVY_WEIGHT, LIGHT_WEIGHT}
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [f"good_000{c}.nii.gz" for c in range(5)]
    assert case_to_locations(atlas, [good])[0] is None


def test_a_folder_is_done_again_only_where_something_changed(tmp_path, known_map, monkeypatch):
    done = []
    real = locating._locate_one
    monkeypatch.setattr(locating, "_locate_one", lambda job, case: done.append(case.name) or real(job, case))
    source, output, atlas = tmp_path / "in", tmp_path / "out", make_atlas()
    for name in "abc":
        write(source / f"{name}.nii.gz", bright_ball(seed=ord(name)))
    first = locate_folder(source, output, atlas)
    assert sorted(done) == ["a", "b", "c"] and first.located == ["a", "b", "c"]
    assert (output / "a_0000.nii.gz").is_symlink() and (output / "a_0000.nii.gz").resolve() == source / "a.nii.gz"
    done.clear()
    locate_folder(source, output, atlas)
    assert done == []
    write(source / "a.nii.gz", bright_ball(seed=5), TURNED)
    (output / "b_0002.nii.gz").unlink()
    (source / "c.nii.gz").unlink()
    locate_folder(source, output, atlas)
    assert sorted(done) == ["a", "b"]
    assert sorted({path.name[0] for path in output.glob("*.nii.gz")}) == ["a", "b"]
    done.clear()
    other = replace(atlas, geometry=compute_geometry("other", bright_ball(seed=1)[None], SPACING))
    locate_folder(source, output, other)
    assert sorted(done) == ["a", "b"]


@pytest.mark.slow
def test_workers_can_be_sent_what_they_need(tmp_path):
    atlas = make_atlas()
    job = pickle.loads(pickle.dumps(locating._Job(atlas, tmp_path, None)))
    case = RawCase("a", (write(tmp_path / "in" / "a_0000.nii.gz", bright_ball()),))
    record = locating._locate_one(job, pickle.loads(pickle.dumps(case)))
    assert job.atlas.checksum == atlas.checksum and record == locating._locate_one(
        locating._Job(atlas, tmp_path, None), case
    )


def test_bad_folders_get_one_sentence(tmp_path):
    atlas = make_atlas(channels=2)
    with refused(MissingFileError, path="nothing"):
        locate_folder(tmp_path / "nothing", tmp_path / "out", atlas)
    (tmp_path / "in").mkdir()
    with refused(InputError, path="in", option=None):
        locate_folder(tmp_path / "in", tmp_path / "out", atlas)
    with refused(InputError, path="in/out", option="-o"):
        locate_folder(tmp_path / "in", tmp_path / "in" / "out", atlas)
    write(tmp_path / "in" / "a_0000.nii.gz", bright_ball())
    with refused(InputError, case="a"):
        locate_folder(tmp_path / "in", tmp_path / "out", atlas)
    work = RawCase("a", (tmp_path / "in" / "a_0000.nii.gz",))
    with refused(InputError, case="a", path="r.json"):
        locate_cases(atlas, [work], tmp_path / "out", tmp_path / "r.json", 1)


def test_an_atlas_file_keeps_everything_and_damaged_ones_are_named(tmp_path):
    atlas = make_atlas()
    atlas.save(tmp_path / "atlas.npz")
    back = open_atlas(tmp_path / "atlas.npz")
    assert back.checksum == atlas.checksum and back.plans == atlas.plans and back.channels == ["MR"]
    np.testing.assert_array_equal(back.geometry.body, atlas.geometry.body)
    assert back.geometry.shape == atlas.geometry.shape and back.geometry.factors == atlas.geometry.factors
    other = compute_geometry("other", bright_ball(seed=1)[None], SPACING)
    assert replace(atlas, geometry=other).checksum != atlas.checksum
    (tmp_path / "cut.npz").write_bytes((tmp_path / "atlas.npz").read_bytes()[:300])
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "no.pth").write_text("nothing")
    for name, kind in (("cut.npz", InputError), ("no.json", InputError), ("missing.npz", MissingFileError)):
        with refused(kind, path=name):
            open_atlas(tmp_path / name)
    with refused(DamagedCheckpointError, path="no.pth"):
        open_atlas(tmp_path / "no.pth")


@pytest.mark.slow
def test_plans_are_the_targets_own_where_the_pretraining_used_them(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    atlas = make_atlas()
    source, located = "Dataset004_Target", "Dataset504_Target_located"
    raw = tmp_path / "raw" / source
    write(raw / "imagesTr" / "a_0000.nii.gz", bright_ball())
    (raw / "labelsTr").mkdir()
    shutil.copy(raw / "imagesTr" / "a_0000.nii.gz", raw / "labelsTr" / "a.nii.gz")
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content | {"numTraining": 1}))
    before = json.dumps(atlas.plans)
    moved = located_plans(source, located, content, atlas)
    assert json.dumps(atlas.plans) == before
    assert moved["plans_name"] == "nnUNetPlans_from900" and moved["dataset_name"] == located
    configuration = moved["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlans_from900_3d_fullres"
    assert configuration["normalization_schemes"] == ["ZScoreNormalization", *["NoNormalization"] * 4]
    assert configuration["use_mask_for_norm"] == [True, *[False] * 4]
    assert configuration["architecture"] == atlas.plans["configurations"]["3d_fullres"]["architecture"]
    # pretrained with the target's plans: those, with the target's batch size
    from_target = atlas.plans | {"moved_from": {"dataset": source, "plans_name": "nnUNetPlans"}}
    of_target = replace(atlas, plans=from_target)
    with refused(MissingFileError, path="nnUNetPlans.json"):
        located_plans(source, located, content, of_target)
    own = json.loads(before)
    own["configurations"]["3d_fullres"]["batch_size"] = 17
    (tmp_path / "preprocessed" / source).mkdir(parents=True)
    (tmp_path / "preprocessed" / source / "nnUNetPlans.json").write_text(json.dumps(own))
    kept = located_plans(source, located, content, of_target)
    assert kept["plans_name"] == "nnUNetPlans" and kept["configurations"]["3d_fullres"]["batch_size"] == 17
    assert len(kept["configurations"]["3d_fullres"]["normalization_schemes"]) == 5
