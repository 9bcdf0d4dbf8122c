"""Import of unlabelled volumes: every bad input is named and left out, and nnU-Net takes what is left."""

import gzip
import json
import multiprocessing
import multiprocessing.pool
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support.raw_volumes import SHAPE, cut, run, volume, write
from support.refused import refused

from nnunet_alice.errors import InputError, MissingFileError, OccupiedError
from nnunet_alice.importing.checks import read_volume
from nnunet_alice.importing.scan import scan_folder
from nnunet_alice.importing.unlabelled import import_unlabelled


def truncated(ending):
    def make(folder):
        write(folder / f"bad.{ending}")
        cut(folder / f"bad.{ending}")

    return make


def damaged(folder):
    """One bit flipped in the compressed voxels."""
    write(folder / "bad.nii.gz")
    data = bytearray((folder / "bad.nii.gz").read_bytes())
    data[-2000] ^= 4
    (folder / "bad.nii.gz").write_bytes(bytes(data))


def holding(value, ending, dtype=np.float32):
    def make(folder):
        array = volume(dtype=dtype)
        array[-1, -1, -1] = value
        write(folder / f"bad.{ending}", array)

    return make


def zero_sized(folder):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 0 3 4\nencoding: raw\nendian: little\n\n"
    (folder / "bad.nrrd").write_text(header)


def zero_dimension_nifti(folder):
    write(folder / "bad.nii")
    data = bytearray((folder / "bad.nii").read_bytes())
    data[42:44] = b"\0\0"
    (folder / "bad.nii").write_bytes(bytes(data))


def two_formats(folder):
    write(folder / "bad.nii.gz")
    write(folder / "bad.mha")


def suffixed_and_plain(folder):
    write(folder / "bad.nii.gz")
    write(folder / "bad_0000.nii.gz")


BAD = {
    "text": (lambda f: (f / "bad.nii.gz").write_text("no image at all"), "unreadable"),
    "text in gzip": (lambda f: (f / "bad.nii.gz").write_bytes(gzip.compress(b"no image")), "unreadable"),
    "empty file": (lambda f: (f / "bad.nii.gz").write_bytes(b""), "is empty"),
    "truncated .nii.gz": (truncated("nii.gz"), "truncated"),
    "truncated .nii": (truncated("nii"), "truncated"),
    "truncated .nrrd": (truncated("nrrd"), "truncated"),
    "truncated .mha": (truncated("mha"), "truncated"),
    "damaged": (damaged, "damaged"),
    "2D": (lambda f: write(f / "bad.nii.gz", volume()[5]), "not 3D: it has 2 dim"),
    "one slice": (lambda f: write(f / "bad.nii.gz", volume()[5:6]), "single slice"),
    "4D": (lambda f: write(f / "bad.nii.gz", np.stack([volume()] * 3), isVector=False), "not 3D: it has 4 dim"),
    "vectors": (lambda f: write(f / "bad.nrrd", np.stack([volume()] * 3, -1), isVector=True), "3 numbers per voxel"),
    "NaN": (holding(np.nan, "nii.gz"), "NaN or Inf"),
    "NaN in .nii": (holding(np.nan, "nii", np.float64), "NaN or Inf"),
    "NaN in .nrrd": (holding(np.nan, "nrrd"), "NaN or Inf"),
    "Inf": (holding(np.inf, "nii.gz", np.float64), "NaN or Inf"),
    "-Inf in .mha": (holding(-np.inf, "mha"), "NaN or Inf"),
    "too large": (lambda f: write(f / "bad.mha", volume(dtype=np.float64) * 1e37), "single precision"),
    "constant": (lambda f: write(f / "bad.nii.gz", np.full(SHAPE, 7, np.int16)), "constant"),
    "zero-sized": (zero_sized, "unreadable|zero-sized"),
    "zero-sized NIfTI": (zero_dimension_nifti, "unreadable|zero-sized"),
    "duplicate": (two_formats, "duplicate case: bad.mha and bad.nii.gz"),
    "duplicate suffix": (suffixed_and_plain, "duplicate case"),
    "dangling link": (lambda f: (f / "bad.nii.gz").symlink_to(f / "nowhere.nii.gz"), "No such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_volume_is_left_out_and_named(kind, raw, scans):
    make, reason = BAD[kind]
    make(scans)
    report = run(scans)
    assert report.imported == ["good"]
    assert list(report.left_out) == ["bad"]
    assert re.search(reason, report.left_out["bad"]), report.left_out["bad"]
    stored = json.loads((raw / "Dataset900_Test" / "import_report.json").read_text())
    assert stored["cases"]["bad"]["status"] == "left out" and stored["cases"]["bad"]["reason"] == report.left_out["bad"]
    assert [p.name for p in (raw / "Dataset900_Test" / "labelsTr").iterdir()] == ["good.nii.gz"]
    assert "bad" not in json.loads((raw / "Dataset900_Test" / "dataset.json").read_text())["dataset"]


BAD_CHANNELS = {
    "missing": (lambda f: write(f / "bad_0001.nii.gz"), r"missing channel: no file bad_0000"),
    "too many": (
        lambda f: [write(f / f"bad_000{i}.nii.gz") for i in range(3)],
        "_0002 besides the 2 channels wanted; name every channel with --channel",
    ),
    "plain": (lambda f: write(f / "bad.nii.gz"), "no channel suffix"),
    "shape": (
        lambda f: [write(f / "bad_0000.nii.gz"), write(f / "bad_0001.nii.gz", volume(shape=(20, 24, 27)))],
        "shape 27 x 24 x 20 and not 28 x 24 x 20",
    ),
    "spacing": (
        lambda f: [write(f / "bad_0000.nii.gz"), write(f / "bad_0001.nii.gz", spacing=(1.5, 1.5, 3.0))],
        "voxel size 1.5 x 1.5 x 3 mm",
    ),
    "orientation": (
        lambda f: [write(f / "bad_0000.nii.gz"), write(f / "bad_0001.nii.gz", turn="RPS")],
        "oriented RPS and not LPS",
    ),
    "NaN in the second": (
        lambda f: [
            write(f / "bad_0000.nii.gz"),
            write(f / "bad_0001.nii.gz", np.where(volume() > 60, np.nan, volume()).astype(np.float32)),
        ],
        "bad_0001.nii.gz: holds NaN",
    ),
}


@pytest.mark.parametrize("kind", BAD_CHANNELS)
def test_bad_channels_are_left_out_and_named(kind, raw, tmp_path):
    make, reason = BAD_CHANNELS[kind]
    for channel in range(2):
        write(tmp_path / "scans" / f"good_000{channel}.mha", volume(channel))
    make(tmp_path / "scans")
    report = run(tmp_path / "scans", ("T1", "T2"))
    assert report.imported == ["good"]
    assert re.search(reason, report.left_out["bad"]), report.left_out["bad"]
    written = json.loads((raw / "Dataset900_Test" / "dataset.json").read_text())
    assert written["channel_names"] == {"0": "T1", "1": "T2"}
    assert [Path(p).name for p in written["dataset"]["good"]["images"]] == ["good_0000.mha", "good_0001.mha"]


def test_labels_lie_on_the_images_grid_and_hold_the_body(raw, scans):
    write(scans / "deep" / "turned.nrrd", turn="PIR")
    report = run(scans)
    assert report.imported == ["deep__turned", "good"]
    for case, record in report.cases.items():
        image = sitk.ReadImage(record["files"][0]["path"])
        label = sitk.ReadImage(str(report.folder / "labelsTr" / f"{case}.nii.gz"))
        assert label.GetSize() == image.GetSize()
        for what in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(label, what)(), getattr(image, what)(), atol=1e-5)
        body, bright = sitk.GetArrayFromImage(label) > 0, sitk.GetArrayFromImage(image) > -500
        assert 2 * (body & bright).sum() / (body.sum() + bright.sum()) > 0.95
    assert {r["orientation"] for r in report.cases.values()} == {"LPS", "PIR"}


def reader_name(raw):
    return json.loads((raw / "Dataset900_Test" / "dataset.json").read_text())["overwrite_image_reader_writer"]


def test_reader_turns_only_mixed_orientations(raw, scans):
    write(scans / "second.nii.gz", volume(1))
    run(scans)
    assert reader_name(raw) == "SimpleITKIO"
    write(scans / "third.nii.gz", volume(2), turn="RAS")
    run(scans)
    assert reader_name(raw) == "SimpleITKIOWithReorient"


def test_running_again_reads_only_what_is_new_or_changed(raw, scans):
    write(scans / "other.nii.gz", volume(1))
    (scans / "bad.nii.gz").write_text("no image")
    assert len(run(scans).read) == 3
    label = raw / "Dataset900_Test" / "labelsTr" / "good.nii.gz"
    before = label.stat().st_mtime_ns
    assert len(run(scans).read) == 0, "neither good nor bad files are read again"
    assert label.stat().st_mtime_ns == before
    write(scans / "bad.nii.gz", volume(2))
    label.unlink()
    report = run(scans)
    assert len(report.read) == 2 and report.imported == ["bad", "good", "other"]
    # What is gone, or has gone bad, goes out of the dataset.
    (scans / "other.nii.gz").unlink()
    cut(scans / "good.nii.gz")
    report = run(scans)
    assert report.imported == ["bad"] and list(report.left_out) == ["good"]
    assert [p.name for p in label.parent.iterdir()] == ["bad.nii.gz"]


def test_a_failure_that_is_not_the_files_is_tried_again(raw, scans, monkeypatch):
    import nnunet_alice.importing.cases as module

    write(scans / "other.nii.gz", volume(1))
    true_mask = module.body_mask
    monkeypatch.setattr(module, "body_mask", lambda *a, **k: (_ for _ in ()).throw(MemoryError("no memory")))
    with refused(InputError, value=2):
        run(scans)
    monkeypatch.setattr(module, "body_mask", true_mask)
    assert run(scans).imported == ["good", "other"]


def test_a_file_that_is_still_being_copied_is_read_again(raw, scans, monkeypatch):
    """The copy ends between the reading and the record of it."""
    import nnunet_alice.importing.turning as module

    whole = (scans / "good.nii.gz").read_bytes()
    write(scans / "other.nii.gz", volume(1))
    cut(scans / "good.nii.gz")
    real = module.read_case

    def read(files, *fallback):
        try:
            return real(files, *fallback)
        finally:
            (scans / "good.nii.gz").write_bytes(whole)

    monkeypatch.setattr(module, "read_case", read)
    assert list(run(scans).left_out) == ["good"]
    monkeypatch.setattr(module, "read_case", real)
    assert run(scans).imported == ["good", "other"]


def test_interrupted_import_keeps_what_is_done(raw, scans, monkeypatch):
    import nnunet_alice.importing.cases as module

    write(scans / "other.nii.gz", volume(1))
    true_write = module._write_label

    def interrupt(label, path, unchanged):
        if path.name.startswith("other"):
            raise KeyboardInterrupt
        true_write(label, path, unchanged)

    monkeypatch.setattr(module, "_write_label", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(scans)
    monkeypatch.setattr(module, "_write_label", true_write)
    report = run(scans)
    assert len(report.read) == 1 and report.imported == ["good", "other"]


@pytest.mark.slow
def test_processes_give_the_same_as_one(raw, scans):
    for seed in range(3):
        write(scans / f"more{seed}.mha", volume(seed))
    (scans / "bad.nii.gz").write_text("no image")
    parallel = run(scans, processes=2)
    labels = {p.name: p.read_bytes() for p in (parallel.folder / "labelsTr").iterdir()}
    shutil.rmtree(parallel.folder)
    serial = run(scans)
    assert parallel.cases == serial.cases and len(labels) == 4
    assert labels == {p.name: p.read_bytes() for p in (serial.folder / "labelsTr").iterdir()}


def test_nothing_good_or_strict_raises_after_the_report_is_written(raw, scans):
    (scans / "bad.nii.gz").write_text("no image")
    with refused(InputError, option="--strict", value=1):
        run(scans, strict=True)
    assert json.loads((raw / "Dataset900_Test" / "dataset.json").read_text())["numTraining"] == 1
    (scans / "good.nii.gz").unlink()
    with refused(InputError, option=None, value=1):
        run(scans)
    assert json.loads((raw / "Dataset900_Test" / "dataset.json").read_text())["numTraining"] == 1
    assert (raw / "Dataset900_Test" / "labelsTr" / "good.nii.gz").is_file()


def test_unusable_arguments(raw, scans, tmp_path):
    with refused(MissingFileError, path="nowhere"):
        run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with refused(InputError, path="empty"):
        run(tmp_path / "empty")
    with refused(InputError, value=1000):
        import_unlabelled(scans, 1000, name="Test", channels=["CT"])
    with refused(InputError, value="Te/st"):
        import_unlabelled(scans, 900, name="Te/st", channels=["CT"])
    with refused(InputError, option="--channel"):
        run(scans, [])


def test_other_datasets_are_never_touched(raw, scans, tmp_path):
    (tmp_path / "nnUNet_preprocessed" / "Dataset900_Other").mkdir()
    with refused(OccupiedError, option="-d", value=900):
        run(scans)
    (tmp_path / "nnUNet_preprocessed" / "Dataset900_Other").rmdir()
    (raw / "Dataset900_Test").mkdir()
    (raw / "Dataset900_Test" / "dataset.json").write_text("{}")
    with refused(OccupiedError, path="Dataset900_Test", value=None):
        run(scans)
    (raw / "Dataset900_Test" / "dataset.json").unlink()
    run(scans)
    write(tmp_path / "elsewhere" / "a.nii.gz")
    with refused(OccupiedError, path="Dataset900_Test", value=str(scans)):
        run(tmp_path / "elsewhere")


def names(folder, channels, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return {c.name: c.problem for c in scan_folder(folder, channels).cases}


def test_names_of_cases(tmp_path):
    found = names(tmp_path, 1, "a_0000.nii.gz", "sub-1/anat/b.nrrd", "c.D.NII.GZ", "c_0012.mha", ".hidden.nii.gz")
    assert found == {"a": None, "c.D": None, "c_0012": None, "sub-1__anat__b": None}
    found = names(tmp_path, 1, "labelsTr/a.nii.gz", "notes.txt", "x_seg.nii.gz")
    assert "nnU-Net takes names that end in _seg" in found["x_seg"] and len(found) == 5


def test_names_that_cannot_be_printed_are_refused(tmp_path):
    found = names(tmp_path, 1, "two\nlines.nii.gz", "bell\a.nii.gz", "äöü 1.nii.gz")
    assert found.pop("äöü 1") is None and all("cannot be printed" in problem for problem in found.values())


def test_numbered_series_are_not_channels(tmp_path):
    assert set(names(tmp_path, 1, *[f"s_{i:04d}.nii.gz" for i in range(12)]).values()) == {None}
    found = names(tmp_path / "two", 1, "s_0000.nii.gz", "s_0001.nii.gz")
    assert list(found) == ["s"] and "besides the 1 channel wanted" in found["s"]


def test_a_channel_without_its_first_is_no_case_where_others_have_suffixes(tmp_path):
    found = names(tmp_path / "a", 1, "x_0000.nii.gz", "y_0001.nii.gz", "z_2024.nii.gz", "elsewhere/t_0001.nii.gz")
    assert "no file y_0000" in found.pop("y")
    assert found == {"x": None, "z_2024": None, "elsewhere__t_0001": None}
    series = [f"s_{number:04d}.nii.gz" for number in range(1, 40)]
    assert set(names(tmp_path / "b", 1, "x_0000.nii.gz", *series).values()) == {None}


def test_links_in_circles_end(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert list(names(tmp_path, 1, "sub/a.nii.gz")) == ["sub__a"]


def test_whole_files_of_many_kinds_are_read(tmp_path):
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64):
        for ending in ("nii.gz", "nii", "nrrd", "mha"):
            array = volume().clip(0).astype(dtype)
            # A name each: where a.nii and a.nii.gz lie side by side, ITK reads one for the other.
            path = tmp_path / f"{np.dtype(dtype)}_{ending[:3]}{len(ending)}.{ending}"
            write(path, array)
            assert (sitk.GetArrayFromImage(read_volume(path)) == array).all()


def test_real_scans(raw, real_data):
    report = run(real_data / "ct")
    assert report.imported == ["torso_ct", "torso_ct_slab"]
    assert list(report.left_out) == ["torso_ct_slab_seg"]
    assert all(0.6 < report.cases[case]["body_share"] < 0.7 for case in report.imported)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nnunet_preprocesses_a_dataset_of_mixed_formats_and_orientations(raw, tmp_path, monkeypatch):
    # nnU-Net's own functions, whose worker processes are threads here: each process would import torch anew.
    threads = types.SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    get_context = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind=None: threads if kind == "spawn" else get_context())
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    from nnunet_alice.dataset import PreprocessedDataset

    scans = tmp_path / "scans"
    for seed, (name, turn) in enumerate({"a.nii.gz": None, "b.nrrd": "RAS", "c.mha": "PIR", "d.nii": "LAI"}.items()):
        write(scans / name, volume(seed), turn=turn)
    run(scans)
    extract_fingerprints([900], num_processes=2, check_dataset_integrity=True)
    plan_experiments([900])
    preprocess([900], configurations=["3d_fullres"], num_processes=[2])
    dataset = PreprocessedDataset.find(900, "nnUNetPlans", "3d_fullres")
    assert dataset.cases() == ["a", "b", "c", "d"]
    for case in dataset.cases():
        image, label, *_ = dataset._dataset.load_case(case)
        image, label = np.asarray(image[...])[0], np.asarray(label[...])[0] > 0
        # All turned alike, and body where the image is bright: the label was read as the image was.
        assert image.shape == SHAPE
        bright = image > image.min() + 0.1 * (image.max() - image.min())
        assert 2 * (label & bright).sum() / (label.sum() + bright.sum()) > 0.95
