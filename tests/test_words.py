"""Numbers that agree, commands that can be pasted, and what the errors of other libraries tell."""

import errno
import shlex

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_alice.errors import InputError
from nnunet_alice.words import counted, pasteable, telling


@pytest.fixture
def image():
    return sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32))


def reading(path) -> str:
    """What is told of the error that reading this file raises."""
    with pytest.raises(RuntimeError) as caught:
        sitk.ReadImage(str(path))
    return telling(caught.value)


@pytest.mark.parametrize(("number", "text"), [(0, "0 cases"), (1, "1 case"), (2, "2 cases")])
def test_numbers_agree_with_their_nouns(number, text):
    assert counted(number, "case") == text
    assert counted(number, "index", "indices") == text.replace("cases", "indices").replace("case", "index")


def test_commands_survive_the_shell():
    words = ["nnUNetv2_train", 4, "-pretrained_weights", "/my results/a's.pth"]
    assert shlex.split(pasteable(*words)) == list(map(str, words))


def test_a_missing_file_is_named(tmp_path):
    told = reading(tmp_path / "gone.nii.gz")
    assert told == f"{tmp_path / 'gone.nii.gz'} does not exist"


def test_a_singular_direction_is_called_that(tmp_path, image):
    path = tmp_path / "zero.mha"
    sitk.WriteImage(image, str(path))
    path.write_bytes(path.read_bytes().replace(b"Matrix = 1 0 0 0 1 0 0 0 1", b"Matrix = 0 0 0 0 0 0 0 0 0"))
    assert "direction matrix is singular" in reading(path)


def test_a_compressed_file_with_the_wrong_ending_is_to_be_renamed(tmp_path, image):
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
    assert reading(tmp_path / "a.nii").endswith("rename it to a.nii.gz")


def test_an_empty_file_and_junk_are_told_apart(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "junk.nii.gz").write_bytes(b"hello" * 100)
    assert "empty.nii.gz is empty" in reading(tmp_path / "empty.nii.gz")
    assert "junk.nii.gz is not what its name says" in reading(tmp_path / "junk.nii.gz")


def test_of_a_chain_of_calls_the_first_and_the_last_are_told(tmp_path, image):
    path = tmp_path / "cut.nrrd"
    sitk.WriteImage(image, str(path))
    path.write_bytes(path.read_bytes()[:-100])
    told = reading(path)
    assert str(path) in told and "fread got only" in told and "\n" not in told


@pytest.mark.parametrize(
    ("name", "share", "told"),
    [("cut.mha", 0.1, "ends early"), ("cut.mha", 0.5, "ends early"), ("cut.nrrd", 0.05, 'no "data file" given')],
)
def test_half_a_file_is_neither_missing_nor_a_place_in_their_source(tmp_path, image, name, share, told):
    path = tmp_path / name
    sitk.WriteImage(image, str(path))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    found = reading(path)
    assert told in found and str(path) in found and ".cxx" not in found and "No such file" not in found


def test_the_place_in_their_source_is_never_told(tmp_path, image):
    with pytest.raises(RuntimeError) as caught:
        sitk.WriteImage(image, str(tmp_path / "no" / "folder.nrrd"))
    told = telling(caught.value)
    assert ".cxx" not in told and "0x" not in told and str(tmp_path / "no" / "folder.nrrd") in told
    assert "no space left, or no permission" in told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/a.json"), "/d/a.json: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (KeyError("spacing"), "KeyError: 'spacing'"),
        (RuntimeError(), "RuntimeError"),
        (MemoryError(), "there is not enough memory; use fewer processes"),
        (InputError("Case a is bad; mend it."), "Case a is bad; mend it"),
    ],
)
def test_errors_of_python(error, told):
    assert telling(error) == told


def test_long_texts_end_between_words():
    told = telling(ValueError("word " * 200))
    assert len(told) < 320 and told.endswith("word ...")
