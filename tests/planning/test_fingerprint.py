"""The fingerprint: nnU-Net's own figures of clean data, of these very files, and not spoiled by one dirty scan."""

import os
from types import SimpleNamespace

import nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor as extractor
import numpy as np
import pytest
from support.planned_datasets import UNLABELLED, write_dataset, write_image
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.planning import fingerprint
from nnunet_alice.planning.fingerprint import LEFT_OUT, OUTLIERS, ensure_fingerprint

CASES = ("a", "b", "c", "d", "e")


@pytest.fixture
def raw(folder):
    """A CT dataset without a fingerprint."""
    path = write_dataset(folder, UNLABELLED, cases=CASES)
    fingerprint_file(folder).unlink()
    return path


def fingerprint_file(folder):
    return folder / "nnUNet_preprocessed" / UNLABELLED / "dataset_fingerprint.json"


def made(folder):
    """The fingerprint, made if it has to be."""
    ensure_fingerprint(UNLABELLED, 1)
    return read_json(fingerprint_file(folder))


def is_made_again(folder):
    before = fingerprint_file(folder).stat().st_mtime_ns
    ensure_fingerprint(UNLABELLED, 1)
    return fingerprint_file(folder).stat().st_mtime_ns != before


class OneProcess:
    """In place of nnU-Net's pool, whose processes would each import torch."""

    def __init__(self, *_):
        self._pool = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def starmap_async(self, function, arguments):
        result = [function(*one) for one in arguments]
        return SimpleNamespace(ready=lambda: True, get=lambda: result)


def test_of_clean_data_it_is_nnunets_own(folder, raw, monkeypatch):
    ours = made(folder)
    fingerprint_file(folder).unlink()
    monkeypatch.setattr(
        extractor, "multiprocessing", SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=OneProcess))
    )
    stock = extractor.DatasetFingerprintExtractor(UNLABELLED, 1)
    stock.num_foreground_voxels_for_intensitystats = 100_000 * len(CASES)
    stock.run()
    theirs = read_json(fingerprint_file(folder))
    assert {key: ours[key] for key in theirs} == theirs
    assert not ours[LEFT_OUT] and not ours[OUTLIERS]


def test_one_dirty_scan_does_not_spoil_the_statistics_of_all(folder, raw, caplog):
    clean = made(folder)["foreground_intensity_properties_per_channel"]["0"]
    shape = read_json(fingerprint_file(folder))["shapes_after_crop"][0]
    write_image(raw / "a_0000.nii.gz", np.random.default_rng(0).normal(4.29e9, 20, shape))
    dirty = made(folder)
    assert list(dirty[OUTLIERS]) == ["a"] and "Case a is left out of the intensity statistics" in caplog.text
    statistics = dirty["foreground_intensity_properties_per_channel"]["0"]
    for key in ("mean", "std", "percentile_00_5", "percentile_99_5"):
        assert statistics[key] == pytest.approx(clean[key], rel=0.02)
    assert len(dirty["spacings"]) == len(CASES), "shapes and spacings are those of all"


def test_a_few_spikes_do_not_spoil_them_either(folder, raw):
    clean = made(folder)["foreground_intensity_properties_per_channel"]["0"]
    shape = read_json(fingerprint_file(folder))["shapes_after_crop"][1]
    image = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    image[3, 3, 3:9] = 3e8
    write_image(raw / "b_0000.nii.gz", image)
    spiked = made(folder)["foreground_intensity_properties_per_channel"]["0"]
    assert spiked["max"] == 3e8
    assert spiked["std"] == pytest.approx(clean["std"], rel=0.05)
    assert spiked["mean"] == pytest.approx(clean["mean"], rel=0.05)


def test_mr_of_all_scales_gives_intensities_of_all(folder):
    raw = write_dataset(folder, UNLABELLED, channels=("MR",), cases=CASES)
    fingerprint_file(folder).unlink()
    shape = (25, 26, 27)
    write_image(raw / "a_0000.nii.gz", np.random.default_rng(0).normal(4e5, 2e4, shape))
    write_image(raw / "a.nii.gz", np.ones(shape, np.uint8))
    found = made(folder)
    assert not found[OUTLIERS] and found["foreground_intensity_properties_per_channel"]["0"]["max"] > 4e5


@pytest.mark.parametrize("change", ["image", "label", "reader", "channel", "other case"])
def test_it_is_made_again_when_what_it_depends_on_changed(folder, raw, change):
    made(folder)
    assert not is_made_again(folder)
    content = read_json(raw / "dataset.json")
    if change in ("image", "label"):  # even by an older file
        os.utime(raw / ("a_0000.nii.gz" if change == "image" else "a.nii.gz"), (1000, 1000))
    elif change == "reader":
        content["overwrite_image_reader_writer"] = "SimpleITKIOWithReorient"
    elif change == "channel":
        content["channel_names"] = {"0": "MR"}
    else:  # as many as before
        content["dataset"]["z"] = content["dataset"].pop("a")
    write_json(raw / "dataset.json", content)
    assert is_made_again(folder)


def test_nnunets_own_counts_unless_files_are_newer_or_outliers_spoiled_it(folder, raw):
    clean = {key: value for key, value in made(folder).items() if key not in ("made_from", LEFT_OUT, OUTLIERS)}
    write_json(fingerprint_file(folder), clean)
    assert not is_made_again(folder)
    newest = max(path.stat().st_mtime for path in raw.iterdir())
    os.utime(fingerprint_file(folder), (newest - 10, newest - 10))
    assert is_made_again(folder)
    clean["foreground_intensity_properties_per_channel"]["0"]["std"] = 1e9
    write_json(fingerprint_file(folder), clean)
    assert is_made_again(folder)


def test_a_case_that_can_be_read_later_comes_in(folder, raw, monkeypatch):
    analyse = fingerprint._analyse_case

    def without_memory(shared, case):
        if case == "b":
            raise MemoryError
        return analyse(shared, case)

    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "_analyse_case", without_memory)
        assert list(made(folder)[LEFT_OUT]) == ["b"]
        assert not is_made_again(folder)
        assert list(ensure_fingerprint(UNLABELLED, 1)) == ["b"]
    assert not made(folder)[LEFT_OUT] and len(made(folder)["spacings"]) == len(CASES)


def test_cases_that_cannot_be_read_are_named_with_the_telling_part(folder, raw):
    (raw / "b_0000.nii.gz").unlink()
    assert "b_0000.nii.gz does not exist" in made(folder)[LEFT_OUT]["b"]
    for case in "acd":
        (raw / f"{case}_0000.nii.gz").write_bytes(b"no image")
    with refused(InputError, value=UNLABELLED):
        ensure_fingerprint(UNLABELLED, 1)
