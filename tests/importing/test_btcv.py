"""BTCV on a made folder of 30 tiny volumes: whole, with one missing, one of wrong shape, one of an unknown label."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support.btcv import SHAPE, label_of, write, write_raw_data
from support.refused import refused
from support.small_datasets import set_named_folders

from nnunet_alice.errors import InputError, OccupiedError
from nnunet_alice.importing.btcv import CASE_NUMBERS, ORGANS, SYNAPSE_ORGANS, case_name, convert, splits


@pytest.fixture
def raw_data(tmp_path, monkeypatch) -> Path:
    set_named_folders(monkeypatch, tmp_path)
    return write_raw_data(tmp_path / "RawData")


def test_the_published_facts():
    """Written out here a second time: two organs swapped in the module would pass every other test."""
    assert len(CASE_NUMBERS) == 30 and set(CASE_NUMBERS) == set(range(1, 11)) | set(range(21, 41))
    organs = """background spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava
        portal_and_splenic_veins pancreas right_adrenal_gland left_adrenal_gland"""
    assert list(ORGANS) == organs.split() and list(ORGANS.values()) == list(range(14))
    synapse = "aorta gallbladder left_kidney right_kidney liver pancreas spleen stomach"
    assert list(SYNAPSE_ORGANS) == synapse.split()


def test_splits_by_name():
    everything = {case_name(number) for number in CASE_NUMBERS}
    for name, folds, validation in (("nnunet", 5, 6), ("monai", 1, 6), ("synapse", 1, 12)):
        split = splits(name)
        assert len(split) == folds
        for fold in split:
            assert len(fold["val"]) == validation and not set(fold["val"]) & set(fold["train"])
            assert set(fold["val"]) | set(fold["train"]) == everything
    assert set().union(*(fold["val"] for fold in splits("nnunet"))) == everything
    assert splits("monai")[0]["val"] == [case_name(n) for n in (35, 36, 37, 38, 39, 40)]
    assert splits("synapse")[0]["val"] == [case_name(n) for n in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)]
    assert splits("monai", ["BTCV_0001", "BTCV_0035"]) == [{"train": ["BTCV_0001"], "val": ["BTCV_0035"]}]
    with refused(InputError, value="other"):
        splits("other")


@pytest.mark.slow
def test_stock_nnunet_reads_the_dataset(raw_data, tmp_path):
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    result = convert(raw_data, 17)
    assert result.folder == tmp_path / "nnUNet_raw/Dataset017_BTCV" and len(result.cases) == 30
    assert result.test_images == 2 and not result.left_out
    dataset = json.loads((result.folder / "dataset.json").read_text())
    assert dataset["labels"] == ORGANS and dataset["numTraining"] == 30 and dataset["channel_names"] == {"0": "CT"}
    found = get_filenames_of_train_images_and_targets(str(result.folder), dataset)
    assert sorted(found) == [case_name(n) for n in CASE_NUMBERS]
    assert found["BTCV_0007"]["images"] == [str(raw_data / "Training/img/img0007.nii.gz")]
    assert found["BTCV_0007"]["label"] == str(raw_data / "Training/label/label0007.nii.gz")
    assert "overwrite_image_reader_writer" not in dataset
    for name in ("nnunet", "monai", "synapse"):
        assert json.loads((result.folder / f"splits_{name}.json").read_text()) == splits(name)
    assert not (tmp_path / "nnUNet_preprocessed").exists()


def test_the_default_folds_are_nnunet_s_own(raw_data, tmp_path):
    """nnU-Net draws from the sorted case names with seed 12345; the same sklearn call, made here."""
    from sklearn.model_selection import KFold

    names = np.array(sorted(case_name(n) for n in CASE_NUMBERS))
    drawn = [list(names[val]) for _, val in KFold(5, shuffle=True, random_state=12345).split(names)]
    assert [fold["val"] for fold in splits("nnunet")] == drawn


@pytest.mark.slow
def test_eight_organs_are_renumbered_and_the_rest_is_background(raw_data):
    result = convert(raw_data / "..", 17, organs=8)  # the folder above RawData will do
    dataset = json.loads((result.folder / "dataset.json").read_text())
    assert list(dataset["labels"]) == ["background", *SYNAPSE_ORGANS] and list(dataset["labels"].values()) == list(
        range(9)
    )
    for number in (1, 40):
        label = sitk.ReadImage(dataset["dataset"][case_name(number)]["label"])
        old, new = label_of(number), sitk.GetArrayFromImage(label)
        for organ in SYNAPSE_ORGANS:
            assert np.array_equal(new == dataset["labels"][organ], old == ORGANS[organ])
        assert np.array_equal(new == 0, ~np.isin(old, [ORGANS[organ] for organ in SYNAPSE_ORGANS]))
        assert label.GetSpacing() == pytest.approx((0.7, 0.7, 3.0))
    assert len(list((result.folder / "labelsTr").iterdir())) == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("array", "spacing", "named"),
    [
        (label_of(5), (0.7, 0.7, 2.0), "2.0) mm"),
        (np.zeros(SHAPE, np.uint8), (0.7, 0.7, 3.0), ""),
        (label_of(5) + 0.5, (0.7, 0.7, 3.0), "0.5, 1.5"),
    ],
)
def test_other_faults(raw_data, array, spacing, named):
    write(raw_data / "Training/label/label0005.nii.gz", array, spacing)
    with refused(InputError, case="BTCV_0005", value=1) as caught:
        convert(raw_data, 17)
    assert named in str(caught.value)


@pytest.mark.slow
def test_damaged_files(raw_data):
    path = raw_data / "Training/img/img0005.nii.gz"
    path.write_bytes(path.read_bytes()[:40])
    (raw_data / "Training/label/label0006.nii.gz").write_bytes(b"no NIfTI")
    with refused(InputError, case="BTCV_0005", value=2) as caught:
        convert(raw_data, 17)
    assert "BTCV_0006" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "stem"), [("img", "img"), ("label", "label")])
def test_half_a_file_is_no_file(raw_data, folder, stem):
    """SimpleITK reads it and fills the rest with whatever was in memory."""
    shape, values = (16, 24, 20), np.random.default_rng(0).integers(0, 14, (16, 24, 20))
    for kind in ("img", "label"):
        write(raw_data / f"Training/{kind}/{kind}0005.nii.gz", values.astype(np.int16 if kind == "img" else np.uint8))
    path = raw_data / f"Training/{folder}/{stem}0005.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert sitk.ReadImage(str(path)).GetSize() == shape[::-1]
    with refused(InputError, case="BTCV_0005", value=1) as caught:
        convert(raw_data, 17)
    assert path.name in str(caught.value)


@pytest.mark.slow
def test_differing_orientations_make_nnunet_reorient(raw_data):
    flipped = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
    write(raw_data / "Training/img/img0005.nii.gz", np.zeros(SHAPE, np.int16), direction=flipped)
    write(raw_data / "Training/label/label0005.nii.gz", label_of(5), direction=flipped)
    dataset = json.loads((convert(raw_data, 17).folder / "dataset.json").read_text())
    assert dataset["overwrite_image_reader_writer"] == "SimpleITKIOWithReorient"


@pytest.mark.slow
@pytest.mark.parametrize(("angle_degrees", "flip", "lies"), [(0, -1, "RPS"), (2, 1, "LPS")])
def test_a_label_that_lies_another_way_than_its_image(raw_data, angle_degrees, flip, lies):
    """Shape and spacing are equal, so nothing else would find it."""
    sine, cosine = np.sin(np.radians(angle_degrees)), np.cos(np.radians(angle_degrees))
    turned = (flip * cosine, -sine, 0, flip * sine, cosine, 0, 0, 0, 1)
    write(raw_data / "Training/label/label0005.nii.gz", label_of(5), direction=turned)
    with refused(InputError, case="BTCV_0005", value=1) as caught:
        convert(raw_data, 17)
    assert lies in str(caught.value)


@pytest.mark.slow
def test_a_label_that_lies_beside_its_image_is_named_and_rounding_is_not(raw_data, caplog):
    write(raw_data / "Training/label/label0005.nii.gz", label_of(5), origin=(0, 0, 1.6))
    write(raw_data / "Training/label/label0006.nii.gz", label_of(6), origin=(0.3, 0, 1.4))
    rounded = (np.cos(1e-4), -np.sin(1e-4), 0, np.sin(1e-4), np.cos(1e-4), 0, 0, 0, 1)
    write(raw_data / "Training/label/label0007.nii.gz", label_of(7), direction=rounded)
    assert len(convert(raw_data, 17).cases) == 30
    assert [record.getMessage() for record in caplog.records if "beside the image in BTCV_0005:" in record.getMessage()]


@pytest.mark.slow
def test_a_split_becomes_nnunet_s_own_but_never_over_another(raw_data, tmp_path):
    convert(raw_data, 17, split="synapse")
    final = tmp_path / "nnUNet_preprocessed/Dataset017_BTCV/splits_final.json"
    assert json.loads(final.read_text()) == splits("synapse")
    convert(raw_data, 17, split="synapse")
    with refused(OccupiedError, path="splits_final.json"):
        convert(raw_data, 17, split="monai")
    assert json.loads(final.read_text()) == splits("synapse")


def test_wrong_folder_taken_number_and_foreign_dataset(raw_data, tmp_path):
    with refused(InputError, path="elsewhere"):
        convert(tmp_path / "elsewhere", 17)
    (tmp_path / "nnUNet_raw/Dataset018_Other").mkdir(parents=True)
    with refused(OccupiedError, option="-d", value=18):
        convert(raw_data, 18)
    (tmp_path / "nnUNet_raw/Dataset019_BTCV").mkdir()
    (tmp_path / "nnUNet_raw/Dataset019_BTCV/dataset.json").write_text("{}")
    with refused(OccupiedError, path="Dataset019_BTCV", option="-d"):
        convert(raw_data, 19)
    with refused(InputError, value=5):
        convert(raw_data, 17, organs=5)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(8, 13), (13, 8)])
def test_one_dataset_number_never_holds_13_organs_and_then_8(raw_data, first, second):
    """nnU-Net's preprocessing keeps true segmentations that are newer than the labels: they would be the old ones."""
    folder = convert(raw_data, 17, organs=first).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with refused(OccupiedError, path="Dataset017_BTCV/dataset.json", option="-d"):
        convert(raw_data, 17, organs=second)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    convert(raw_data, 17, organs=first)
    convert(raw_data, 18, "BTCV8", organs=second)


@pytest.mark.slow
def test_monai_s_folder_names_and_plain_nifti(raw_data, tmp_path):
    folder = tmp_path / "renamed"
    for number in CASE_NUMBERS:
        write(folder / f"imagesTr/img{number:04d}.nii", np.zeros(SHAPE, dtype=np.int16))
        write(folder / f"labelsTr/label{number:04d}.nii", label_of(number))
    dataset = json.loads((convert(folder, 17, organs=8).folder / "dataset.json").read_text())
    assert dataset["file_ending"] == ".nii" and dataset["dataset"]["BTCV_0001"]["label"].endswith("BTCV_0001.nii")
    write(folder / "imagesTr/img0001.nii.gz", np.zeros(SHAPE, dtype=np.int16))
    with refused(InputError, path="renamed"):
        convert(folder, 17, organs=8)
