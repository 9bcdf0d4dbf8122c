"""Parts of an import: together, and after a last run, the same as one import."""

import pytest
from support.raw_volumes import run, write
from support.refused import refused

from nnunet_alice.errors import OccupiedError
from nnunet_alice.files import read_json
from nnunet_alice.importing.report import PART_FILES
from nnunet_alice.parts import Part


@pytest.fixture
def source(tmp_path):
    """Four volumes and a file that is none."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in "abcd":
        write(folder / f"{name}.nii.gz")
    (folder / "bad.nii.gz").write_text("no image at all")
    return folder


def stored(report) -> dict:
    """What is kept on disk, without what files' times make of it."""
    return {name: read_json(report.folder / name) for name in ("import_report.json", "dataset.json")}


def test_parts_and_a_last_run_make_the_same_dataset(source, raw):
    read = 0
    for number in (2, 1):
        part = run(source, part=Part(number, 2))
        read += len(part.read)
        assert part.file.is_file() and not (part.folder / "dataset.json").exists()
    assert read == 5
    whole = run(source)
    assert len(whole.read) == 0 and whole.imported == list("abcd") and list(whole.left_out) == ["bad"]
    assert not list(whole.folder.glob(PART_FILES))
    in_parts = stored(whole)
    for path in whole.folder.rglob("*.json"):
        path.unlink()
    (whole.folder / "labelsTr").rename(whole.folder.parent / "labels_of_parts")
    assert stored(run(source)) == in_parts


def test_a_part_that_died_is_run_again_and_the_others_stay(source, raw):
    first = run(source, part=Part(1, 2))
    second = run(source, part=Part(2, 2))
    second.file.unlink()
    assert len(run(source, part=Part(1, 2)).read) == 0
    assert len(run(source, part=Part(2, 2)).read) == len(second.read)
    assert set(first.cases).isdisjoint(second.cases) and len({**first.cases, **second.cases}) == 5


def test_parts_of_another_folder_are_refused(source, raw, tmp_path):
    run(source, part=Part(1, 2))
    other = tmp_path / "other"
    other.mkdir()
    write(other / "e.nii.gz")
    with refused(OccupiedError, option="-d", value=str(source)):
        run(other, part=Part(2, 2))
