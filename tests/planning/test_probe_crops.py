"""`plan --probe`: crops of labelled cases as the pool's plans see them."""

import numpy as np
import pytest
import SimpleITK as sitk
from support.planned_datasets import TARGET, UNLABELLED, plan, write_dataset, write_image
from support.small_datasets import set_named_folders

from nnunet_alice.cropping import crop_centred
from nnunet_alice.dataset import PROBE_FILE, PROBE_IGNORED, PreprocessedDataset
from nnunet_alice.files import read_json, write_json


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A pool, and a labelled dataset of ten cases with a bright box of label 1 to 3 each."""
    set_named_folders(monkeypatch, tmp_path)
    write_dataset(tmp_path, UNLABELLED)
    cases = [f"t{number}" for number in range(10)]
    raw = write_dataset(tmp_path, TARGET, labels=("background", "liver", "spleen", "kidney"), cases=cases)
    rng = np.random.default_rng(0)
    for number, case in enumerate(cases):
        image, label = rng.normal(100, 20, (24, 24, 24)).astype(np.float32), np.zeros((24, 24, 24), np.uint8)
        label[4:10, 12:20, 3:9] = 1 + number % 3
        image[label > 0] += 80
        write_image(raw / f"{case}_0000.nii.gz", image)
        write_image(raw / f"{case}.nii.gz", label)
    (raw / "t3_0000.nii.gz").write_bytes(b"no image")
    return raw


def test_crops_lie_on_the_labels_and_are_normalised_by_the_pool(pool, capsys):
    assert plan("-pl", "AlicePlannerSmall", "--probe", "4") == 0
    dataset = PreprocessedDataset.find(900, "AliceSmallPlans", "3d_fullres")
    record = read_json(dataset.probe_folder / PROBE_FILE)
    used = record["fitted"] + record["tested"]
    assert len(record["tested"]) == 3 and len(set(used)) == 8 and "t3" not in used and record["dataset"] == TARGET
    assert record["tested"][0] in capsys.readouterr().out
    window = dataset.plans["foreground_intensity_properties_per_channel"]["0"]
    for case in used:
        with np.load(dataset.probe_folder / f"{case}.npz") as file:
            image, label = file["image"], file["label"]
        assert image.shape == (1, *dataset.patch_size) and label.shape == dataset.patch_size
        assert (label > 0).sum() == np.prod([min(6, label.shape[0]), min(8, label.shape[1]), min(6, label.shape[2])])
        raw = np.random.default_rng(0)
        values = [raw.normal(100, 20, (24, 24, 24)).astype(np.float32) for _ in range(int(case[1:]) + 1)][-1]
        values[4:10, 12:20, 3:9] += 80
        values = np.clip(values, window["percentile_00_5"], window["percentile_99_5"]) - window["mean"]
        expected = crop_centred(values[None] / window["std"], (6.5, 15.5, 5.5), dataset.patch_size)
        np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-4)


def test_a_dataset_of_other_channels_is_refused(pool, tmp_path, capsys):
    write_dataset(tmp_path, "Dataset005_Two", channels=("CT", "PET"))
    assert plan("-pl", "AlicePlannerSmall", "--no_preprocess", "--probe", "5") == 1
    assert "has 2 channels and the pool 1" in capsys.readouterr().err


def test_ignored_voxels_are_no_class_and_move_no_crop(pool):
    content = read_json(pool / "dataset.json")
    write_json(pool / "dataset.json", content | {"labels": content["labels"] | {"ignore": 4}})
    for path in pool.glob("t?.nii.gz"):
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        label[:2] = 4
        write_image(path, label)
    assert plan("-pl", "AlicePlannerSmall", "--probe", "4") == 0
    dataset = PreprocessedDataset.find(900, "AliceSmallPlans", "3d_fullres")
    record = read_json(dataset.probe_folder / PROBE_FILE)
    for case in record["fitted"] + record["tested"]:
        with np.load(dataset.probe_folder / f"{case}.npz") as file:
            label = file["label"]
        expected = np.zeros((1, 24, 24, 24))
        expected[:, 4:10, 12:20, 3:9] = 1 + int(case[1:]) % 3
        expected[:, :2] = PROBE_IGNORED
        np.testing.assert_array_equal(label, crop_centred(expected, (6.5, 15.5, 5.5), dataset.patch_size)[0])
        assert (label == PROBE_IGNORED).any()
