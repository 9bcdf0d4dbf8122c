"""Landmarks of a dataset's atlas: region of interest, storage, where they lie in cases, and the command."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from support.atlas_phantoms import Phantoms
from support.refused import refused

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import PreparedAtlas, prepare_atlas
from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.cli.main import main
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, MissingFileError, NotPreparedError
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.atlas_landmarks import prepare_landmarks, region_of_interest
from nnunet_alice.matching.landmark_places import LandmarkPlaces


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Phantoms of mixed fields of view, registered once."""
    folder = tmp_path_factory.mktemp("preprocessed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(folder))
        phantoms = Phantoms({"p0": "torso", "p1": "torso", "p2": "abdomen_pelvis"})
        prepare_atlas(phantoms.write(folder), 1)
    return folder, phantoms


@pytest.fixture
def dataset(prepared, tmp_path, monkeypatch) -> PreprocessedDataset:
    """A copy to write to."""
    shutil.copytree(prepared[0], tmp_path / "preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return PreprocessedDataset("Dataset900_Small", "nnUNetPlans", "3d_fullres")


def test_landmarks_map_back_to_the_atlas_and_are_counted(dataset):
    report = prepare_landmarks(dataset, patch_mm=60, step_mm=50)
    matcher, landmarks = AtlasMatcher(dataset), PreparedAtlas.open(dataset).landmarks()
    np.testing.assert_array_equal(landmarks.points_mm, report.landmarks.points_mm)
    places = LandmarkPlaces.of_registered(landmarks, matcher)
    assert places.cases == matcher.cases and report.cases == len(matcher.cases)
    expected = np.zeros(len(landmarks), dtype=int)
    for number, case in enumerate(matcher.cases):
        one = landmarks.in_case(matcher.affine(case), dataset.shape(case), dataset.spacing)
        expected[one.landmarks] += 1
        for landmark, point in zip(one.landmarks, one.points_vox, strict=True):
            np.testing.assert_allclose(places.points_vox(landmark)[number], point, atol=1e-9)
            back = Affine(matcher.affine(case)).points(point * dataset.spacing)
            assert np.linalg.norm(back - landmarks.points_mm[landmark]) < 1e-6
    np.testing.assert_array_equal(places.seen(), expected)
    np.testing.assert_array_equal(report.seen, expected)
    # The abdomen lacks the chest's landmarks, and its own must not be lost.
    assert 0 < expected.min() < expected.max() == len(matcher.cases)


def test_locations_agree_with_those_of_the_atlas(dataset):
    landmarks = prepare_landmarks(dataset, patch_mm=60, step_mm=50).landmarks
    found = PreparedAtlas.open(dataset).locations(landmarks.points_mm)
    np.testing.assert_allclose(found, landmarks.locations, atol=1e-6)


def test_landmarks_stay_unless_others_are_asked_for(dataset):
    asked = prepare_landmarks(dataset, patch_mm=60, step_mm=50)
    again = prepare_landmarks(dataset)
    assert again.kept and not asked.kept
    np.testing.assert_array_equal(again.landmarks.points_mm, asked.landmarks.points_mm)
    other = prepare_landmarks(dataset, step_mm=70)
    assert not other.kept and len(other.landmarks) < len(asked.landmarks)
    assert prepare_landmarks(dataset, overwrite=True).landmarks.step_mm == 26


@pytest.mark.slow
def test_landmarks_of_another_atlas_do_not_count(dataset):
    prepare_landmarks(dataset, patch_mm=60, step_mm=50)
    other = next(case for case in ("p0", "p1") if case != PreparedAtlas.open(dataset).geometry.case)
    prepare_atlas(dataset, 1, atlas_case=other)
    with refused(NotPreparedError, command="nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres"):
        PreparedAtlas.open(dataset).landmarks()
    assert not prepare_landmarks(dataset).kept


def test_body_region_is_the_body(tmp_path, monkeypatch):
    """On fine anisotropic voxels, several to a cell of the coarse grid that does not divide the array."""
    from support.small_datasets import ball, write_preprocessed

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    shape, spacing = (61, 50, 33), (2.0, 3.0, 4.0)
    dataset = write_preprocessed(tmp_path, {"a": ball(shape, spacing, 50)}, spacing)
    mask = region_of_interest(dataset, "a", "body")
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    distance = np.sqrt(sum(g**2 for g in np.meshgrid(*axes, indexing="ij")))
    assert mask.shape == shape and mask[distance < 40].all() and not mask[distance > 60].any()


def test_a_mask_file_comes_through_crop_transposition_and_resampling(tmp_path, monkeypatch):
    """A ball in world mm, as a file of another geometry, lands where the ball is in the preprocessed array."""
    from support.small_datasets import write_preprocessed

    from nnunet_alice.anatomy.world import PreparedCases

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    direction = (0, 1, 0, -1, 0, 0, 0, 0, 1)
    properties = {
        "sitk_stuff": {"spacing": (2.0, 3.0, 4.0), "origin": (10.0, -20.0, 30.0), "direction": direction},
        "shape_after_cropping_and_before_resampling": (30, 24, 20),  # x, z, y of the file
        "bbox_used_for_cropping": [[3, 33], [2, 26], [1, 21]],
    }
    dataset = write_preprocessed(
        tmp_path,
        {"a": np.zeros((1, 20, 32, 20))},
        (3.0, 3.0, 3.0),
        properties={"a": properties},
        transpose_forward=(2, 0, 1),
    )
    affine = PreparedCases(dataset).world_affine("a")
    voxels = np.stack(np.meshgrid(*map(np.arange, (20, 32, 20)), indexing="ij"), axis=-1).reshape(-1, 3)
    centre = affine.points((8, 14, 11))
    distance = np.linalg.norm(affine.points(voxels) - centre, axis=1).reshape(20, 32, 20)

    lower = centre - 25
    points = lower + np.stack(np.meshgrid(*[np.arange(50)] * 3, indexing="ij"), axis=-1)  # 1 mm, x first
    ball = sitk.GetImageFromArray((np.linalg.norm(points - centre, axis=-1) < 20).astype(np.uint8).transpose(2, 1, 0))
    ball.SetOrigin(lower.tolist())
    sitk.WriteImage(ball, str(tmp_path / "ball.nii.gz"))
    mask = region_of_interest(dataset, "a", str(tmp_path / "ball.nii.gz"))
    assert mask[distance < 18.5].all() and not mask[distance > 21.5].any() and mask.any()

    ball.SetOrigin((5000.0, 0.0, 0.0))
    sitk.WriteImage(ball, str(tmp_path / "far.nii.gz"))
    with refused(InputError, case="a", path="far.nii.gz"):
        region_of_interest(dataset, "a", str(tmp_path / "far.nii.gz"))


def test_a_label_as_region(tmp_path, monkeypatch):
    from support.small_datasets import write_preprocessed

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    labels = np.zeros((1, 8, 8, 8))
    labels[0, 2:4] = 2
    dataset = write_preprocessed(tmp_path, {"a": np.zeros((1, 8, 8, 8))}, (3, 3, 3), {"a": labels})
    np.testing.assert_array_equal(region_of_interest(dataset, "a", "label:2"), labels[0] == 2)
    for region, kind, fields in (
        ("label:7", InputError, {"case": "a", "value": "7"}),
        ("label:x", InputError, {"value": "label:x"}),
        ("lung.nii.gz", MissingFileError, {"path": "lung.nii.gz", "option": "--roi"}),
    ):
        with refused(kind, **fields):
            region_of_interest(dataset, "a", region)


@pytest.mark.slow
def test_the_command_lays_landmarks_and_draws_them(dataset, capsys, real_figures):
    command = ["anatomy", "-d", "900", "-np", "1"]
    assert main([*command, "--landmark_patch_mm", "60", "--landmark_step_mm", "50"]) == 0
    printed = capsys.readouterr().out
    count = len(Landmarks.load(AtlasFiles(dataset).landmarks_file))
    assert f"{count} landmarks laid (region body, patches of 60 mm, 50 mm apart): of 3 cases" in printed
    assert (AtlasFiles(dataset).landmarks_file.parent / "landmarks.png").stat().st_size > 10_000
    assert main(command) == 0 and f"{count} landmarks kept" in capsys.readouterr().out
    assert main([*command, "--roi", "label:5"]) == 1
    assert "no voxel with label 5" in capsys.readouterr().err
