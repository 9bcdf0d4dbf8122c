"""Indices on disk: what was written comes back, and nothing stale, damaged or foreign is ever used."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.refused import refused
from support.small_datasets import FourierField, ball, replace_image, write_preprocessed

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.errors import CheckpointError, InputError, NotPreparedError, StaleError
from nnunet_alice.matching import index as index_module
from nnunet_alice.matching.index import (
    MAX_BYTES,
    CaseIndex,
    Fingerprint,
    IndexStore,
    checkpoint_checksum,
    index_grid,
    max_points,
)

SPACING = (3.0, 1.0, 1.0)
COMMAND = "nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres --method embedding"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return write_preprocessed(tmp_path, {f"c{i}": ball((12, 30, 30), SPACING, 12, seed=i) for i in range(3)}, SPACING)


def make_index(dataset, case: str, dimension: int = 8) -> CaseIndex:
    geometry = load_geometry(dataset, case)
    grid = index_grid(geometry, dimension, finest_mm=4.0)
    points_mm = grid.points_vox * SPACING
    fine, coarse = (FourierField(dimension, length, 0)(points_mm).astype(np.float16) for length in (8.0, 30.0))
    return CaseIndex(geometry.shape, geometry.spacing, grid, fine, coarse)


@pytest.fixture
def store(dataset) -> IndexStore:
    store = IndexStore(dataset)
    fingerprint = Fingerprint.of(dataset, "a" * 64, 8)
    store.begin(fingerprint, "checkpoint_final.pth")
    for case in ("c0", "c1"):
        store.write(case, make_index(dataset, case), fingerprint)
    return store


def test_round_trip(dataset, store):
    written, fingerprint = make_index(dataset, "c1"), store.fingerprint()
    read = store.read("c1", fingerprint)
    for name in ("fine", "coarse"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == np.float16
    np.testing.assert_array_equal(read.grid.cells, written.grid.cells)
    np.testing.assert_array_equal(read.grid.points_vox, written.grid.points_vox)
    assert (read.shape, read.spacing, read.grid.shape) == (written.shape, written.spacing, written.grid.shape)
    assert store.cases() == ["c0", "c1"]


def test_going_on_with_the_same_checkpoint_keeps_what_is_there(dataset, store):
    store.begin(store.fingerprint(), "checkpoint_final.pth")
    assert store.cases() == ["c0", "c1"]


def test_another_checkpoint_never_mixes_with_the_old_indices(dataset, store):
    store.calibration_file.touch()
    store.begin(store.fingerprint(), "checkpoint_final.pth")
    assert store.cases() == ["c0", "c1"] and store.calibration_file.is_file()
    store.begin(Fingerprint.of(dataset, "b" * 64, 8), "other.pth")
    assert store.cases() == [] and not store.calibration_file.exists()
    assert store.fingerprint().checkpoint == "b" * 64


def test_the_same_weights_under_another_name_keep_the_indices_and_are_named(dataset, store, tmp_path):
    """What the message advises where a checkpoint was trained again: name a copy of the one that made the indices."""
    old, copy = tmp_path / "trained_again.pth", tmp_path / "copy.pth"
    copy.write_bytes(b"weights")
    fingerprint = Fingerprint.of(dataset, checkpoint_checksum(copy), 8)
    store.begin(fingerprint, old)
    store.write("c0", make_index(dataset, "c0"), fingerprint)
    old.write_bytes(b"other weights")
    with refused(StaleError, path=old):
        store.fingerprint()
    store.begin(fingerprint, copy)
    assert store.cases() == ["c0"]
    assert store.fingerprint() == fingerprint and store.checkpoint_file == copy.resolve()


@pytest.mark.parametrize("field", ["checkpoint", "dataset", "plans", "configuration", "version"])
def test_an_index_made_from_something_else_is_refused(dataset, store, field):
    fingerprint = store.fingerprint()
    foreign = replace(fingerprint, **{field: 99 if field == "version" else "other"})
    store.write("c0", make_index(dataset, "c0"), foreign)
    with refused(StaleError, path="c0.npz", command=COMMAND):
        store.read("c0", fingerprint)


def test_the_index_of_another_case_is_refused(store):
    store.file("c0").write_bytes(store.file("c1").read_bytes())
    with refused(StaleError, path="c0.npz", case=None):
        store.read("c0", store.fingerprint())


def test_indices_of_a_checkpoint_that_was_trained_again_are_refused(dataset, tmp_path):
    store, file = IndexStore(dataset), tmp_path / "checkpoint_final.pth"
    file.write_bytes(b"first training")
    store.begin(Fingerprint.of(dataset, checkpoint_checksum(file), 8), file)
    assert store.checkpoint_file == file and store.fingerprint().checkpoint == checkpoint_checksum(file)
    file.write_bytes(b"second training!")
    with refused(StaleError, path=file, command="--method embedding"):
        store.fingerprint()
    file.unlink()  # indices outlive their checkpoint
    store.fingerprint()


def test_an_older_version_is_refused(store, monkeypatch):
    content = json.loads(store.description_file.read_text())
    store.description_file.write_text(json.dumps({**content, "version": 0}))
    with refused(StaleError, path=store.folder, value="version"):
        store.fingerprint()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_missing_or_broken_description_names_the_command(store, content):
    store.description_file.unlink()
    if content is not None:
        store.description_file.write_text(content)
    with refused(NotPreparedError, path=store.folder, command=COMMAND):
        store.fingerprint()


def test_a_missing_index_names_the_command(store):
    with refused(NotPreparedError, case="c2", command=COMMAND):
        store.read("c2", store.fingerprint())


def test_truncated_indices_are_refused_wherever_they_end(store):
    whole, fingerprint = store.file("c0").read_bytes(), store.fingerprint()
    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
        store.file("c0").write_bytes(whole[: int(share * len(whole))])
        with refused(NotPreparedError, path="c0.npz", case=None, command=COMMAND):
            store.read("c0", fingerprint)


def test_flipped_bits_are_refused(store):
    whole, fingerprint = bytearray(store.file("c0").read_bytes()), store.fingerprint()
    refused = 0
    positions = np.linspace(200, len(whole) - 200, 25).astype(int)
    for at in positions:
        damaged = whole.copy()
        damaged[at] ^= 0xFF
        store.file("c0").write_bytes(damaged)
        try:
            found = store.read("c0", fingerprint)
        except NotPreparedError:
            refused += 1
        else:  # a byte of zip's own bookkeeping that changes no content
            np.testing.assert_array_equal(found.fine, store.read("c1", fingerprint).fine)
    assert refused >= 20


def test_an_index_of_a_case_that_was_preprocessed_again_is_refused(dataset, store, tmp_path):
    replace_image(dataset, "c0", ball((12, 30, 29), SPACING, 12))
    assert not store.is_usable("c0", store.fingerprint())
    with refused(StaleError, path="c0.npz", case="c0"):
        store.read("c0", store.fingerprint())


def test_an_index_of_another_image_of_the_same_shape_is_refused(dataset, store):
    fingerprint = store.fingerprint()
    store.write("c0", make_index(dataset, "c0"), fingerprint, dataset.image_checksum("c0"))
    assert store.is_usable("c0", fingerprint)
    store.read("c0", fingerprint)
    replace_image(dataset, "c0", dataset.image("c0")[...][:, ::-1])
    assert not store.is_usable("c0", fingerprint)
    with refused(StaleError, path="c0.npz", case="c0"):
        store.read("c0", fingerprint)


def test_a_damaged_image_makes_an_index_unusable_and_no_crash(dataset, store):
    (dataset.folder / "c0.b2nd").write_bytes(b"half an image")
    assert not store.is_usable("c0", store.fingerprint())


@pytest.mark.parametrize("bad", ["nan", "long", "few"])
def test_unusable_descriptors_are_not_written(dataset, store, bad):
    index = make_index(dataset, "c2")
    fine = index.fine.copy()
    if bad == "nan":
        fine[3, 2] = np.nan
    elif bad == "long":
        fine[3] *= 2
    else:
        fine = fine[1:]
    with refused(InputError, case="c2"):
        store.write("c2", replace(index, fine=fine), store.fingerprint())
    assert not store.file("c2").exists()


def test_a_full_index_keeps_its_budget(dataset, store, monkeypatch):
    """As many points as are allowed, in the largest form (int16 cells, 128 + 128 halves), take at most 10 MB."""
    count = max_points(128)
    assert count > 19_000
    cells = np.stack(np.unravel_index(np.arange(count), (30, 30, 30)), axis=1).astype(np.int16)
    unit = np.full((count, 128), 128**-0.5, dtype=np.float16)
    index = make_index(dataset, "c2")
    index = replace(index, grid=replace(index.grid, cells=cells, shape=(30, 30, 30)), fine=unit, coarse=unit)
    fingerprint = Fingerprint.of(dataset, "a" * 64, 128)
    store.write("c2", index, fingerprint)
    assert 0.99 * MAX_BYTES < store.file("c2").stat().st_size <= MAX_BYTES
    store.read("c2", fingerprint)
    monkeypatch.setattr(index_module, "MAX_BYTES", MAX_BYTES // 2)
    monkeypatch.setattr(index_module, "max_points", lambda dimension: max_points(dimension, MAX_BYTES // 2))
    with refused(InputError, case="c2", value=len(cells)):
        store.write("c2", index, fingerprint)


def test_unfinished_files_are_no_cases(store):
    (store.folder / ".c9.npz.x1.npz").write_bytes(b"half")
    assert store.cases() == ["c0", "c1"]


def test_checkpoint_fingerprint_follows_the_content(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights" * 300_000)
    (tmp_path / "b.pth").write_bytes(b"weights" * 300_000)
    assert checkpoint_checksum(tmp_path / "a.pth") == checkpoint_checksum(tmp_path / "b.pth")
    (tmp_path / "b.pth").write_bytes(b"weights" * 299_999 + b"weightz")
    assert checkpoint_checksum(tmp_path / "a.pth") != checkpoint_checksum(tmp_path / "b.pth")
    with refused(CheckpointError, path="missing.pth"):
        checkpoint_checksum(tmp_path / "missing.pth")
