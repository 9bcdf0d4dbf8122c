"""Files beyond plain NIfTI, NRRD and MetaImage: read, copied straight, or counted and named."""

import gzip
import json
import os
import re
import signal
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from support.raw_volumes import cut, run, volume, write
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.importing.mending import straighten
from nnunet_alice.importing.scan import scan_folder
from nnunet_alice.importing.turning import read_turned

SPACING = np.array([1.5, 1.5, 2.0])


def affine(shear=0.0):
    """RAS affine of the volumes; the y axis leans by ``shear`` radians."""
    matrix = np.diag([*SPACING, 1.0])
    matrix[1, 2] = SPACING[2] * shear
    matrix[:3, 3] = (-10, 20, 30)
    return matrix


def save(path, kind=nibabel.Nifti1Image, shear=0.0, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(volume().T.astype(dtype), affine(shear)), path)


def read_by_nnunet(report, case):
    """Image and spacing as nnU-Net's reader gives them."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    entry = json.loads((report.folder / "dataset.json").read_text())["dataset"][case]
    data, properties = SimpleITKIO().read_images([str(report.folder / path) for path in entry["images"]])
    return data[0], properties


MENDED = {
    "skewed.nii.gz": lambda p: save(p, shear=1e-3),
    "skewed_more.nii.gz": lambda p: save(p, shear=0.015),
    "skewed.nii": lambda p: save(p, shear=2e-4),
    "nifti2.nii": lambda p: save(p, nibabel.Nifti2Image),
    "nifti2.nii.gz": lambda p: save(p, nibabel.Nifti2Image),
    "freesurfer.mgz": lambda p: save(p, nibabel.MGHImage),
    "capital.MHA": lambda p: (write(p.with_suffix(".mha")), p.with_suffix(".mha").rename(p)),
    "capital.GIPL": lambda p: (write(p.with_suffix(".gipl")), p.with_suffix(".gipl").rename(p)),
    "capital.MHD": lambda p: (write(p.with_suffix(".mhd")), p.with_suffix(".mhd").rename(p)),
    "capital.HDR": lambda p: (write(p.with_suffix(".hdr")), p.with_suffix(".hdr").rename(p)),
    "mixed.Nii.gz": lambda p: (write(p.with_name("a.nii.gz")), p.with_name("a.nii.gz").rename(p)),
    "mixed.nii.GZ": lambda p: (write(p.with_name("a.nii.gz")), p.with_name("a.nii.gz").rename(p)),
    "mixed.Hdr": lambda p: (write(p.with_suffix(".hdr")), p.with_suffix(".hdr").rename(p)),
    "mixed.hdr": lambda p: (write(p), p.with_suffix(".img").rename(p.with_suffix(".Img"))),
    "skewed.Nii.Gz": lambda p: (save(p.with_name("a.nii.gz"), shear=1e-3), p.with_name("a.nii.gz").rename(p)),
    "freesurfer.Mgz": lambda p: (save(p.with_suffix(".mgz"), nibabel.MGHImage), p.with_suffix(".mgz").rename(p)),
}


@pytest.mark.parametrize("name", MENDED)
def test_what_simpleitk_refuses_is_read_another_way_and_nnunet_gets_a_copy(raw, tmp_path, name):
    MENDED[name](tmp_path / "scans" / name)
    report = run(tmp_path / "scans")
    (case,) = report.imported
    assert report.cases[case]["copied"].startswith(name)
    image, properties = read_by_nnunet(report, case)
    np.testing.assert_array_equal(image, volume())
    np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=2e-4)
    label = sitk.ReadImage(str(report.folder / "labelsTr" / f"{case}.nii.gz"))
    np.testing.assert_allclose(label.GetOrigin(), properties["sitk_stuff"]["origin"], atol=1e-4)
    assert len(run(tmp_path / "scans").read) == 0


@pytest.mark.parametrize("name", ["a.NII.GZ", "a.NII", "a.Nrrd"])
def test_endings_in_other_letters_are_read_where_they_lie_if_they_can_be(raw, tmp_path, name):
    small = tmp_path / "scans" / name.lower()
    write(small)
    small.rename(small.with_name(name))
    report = run(tmp_path / "scans")
    assert not report.cases["a"]["copied"]
    np.testing.assert_array_equal(read_by_nnunet(report, "a")[0], volume())


def test_a_damaged_file_with_an_ending_in_other_letters_is_told_by_its_name(raw, scans, tmp_path):
    (scans / "bad.Nii.gz").write_bytes(gzip.compress(b"\x5c\1\0\0" + bytes(400)))
    reason = run(scans).left_out["bad"]
    assert reason.startswith("bad.Nii.gz: ") and "/tmp" not in reason and str(tmp_path) not in reason


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mhd", "a.dcm", "a", "sub-2/anat/sub-2_CT.nii.gz"])
def test_pipes_and_devices_are_passed_over(raw, scans, name):
    """They are never opened: a pipe would wait for a writer for ever, and a device has no end."""
    if "sub" in name:
        (scans / "good.nii.gz").unlink()
        write(scans / "sub-1" / "anat" / "sub-1_CT.nii.gz")
    (scans / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(scans / name)
    (scans / f"zero.{name.rpartition('.')[2]}").symlink_to("/dev/zero")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for a pipe"))
    signal.alarm(20)
    try:
        report = run(scans)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert len(report.imported) == 1 and not report.left_out and not report.other_files


def test_links_to_one_file_are_told(raw, scans, caplog):
    write(scans / "other.nii.gz", volume(1))
    (scans / "deep").mkdir()
    (scans / "deep" / "again.nii.gz").symlink_to(scans / "good.nii.gz")
    (scans / "third.nii.gz").hardlink_to(scans / "good.nii.gz")
    report = run(scans)
    assert report.links == {"good": "deep__again", "third": "deep__again"} and len(report.imported) == 4
    assert "2 of 4 cases are links to the files of others (good is deep__again" in caplog.text


def test_a_straightened_volume_stays_in_its_middle_and_moves_little_elsewhere(raw, tmp_path):
    save(tmp_path / "scans" / "a.nii.gz", shear=1e-3)
    _, properties = read_by_nnunet(run(tmp_path / "scans"), "a")
    found = properties["sitk_stuff"]
    linear = np.asarray(found["direction"]).reshape(3, 3) * found["spacing"]
    size = np.array(volume().shape[::-1])
    for share, tolerance_mm in ((0.5, 1e-3), (0.0, 0.03), (1.0, 0.03)):
        voxel = (size - 1) * share
        truth = np.array([-1, -1, 1]) * (affine(1e-3)[:3, :3] @ voxel + affine(1e-3)[:3, 3])
        np.testing.assert_allclose(linear @ voxel + found["origin"], truth, atol=tolerance_mm)


def test_rotated_axes_stay_as_they_are():
    angle = 0.4
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    image = sitk.GetImageFromArray(volume())
    image.SetDirection(rotation.ravel().tolist())
    assert straighten(image) == 0
    np.testing.assert_array_equal(np.reshape(image.GetDirection(), (3, 3)), rotation)


@pytest.mark.parametrize(("shear", "imported"), [(1e-3, True), (0.2, False)])
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_skewed_axes_of_other_formats_are_treated_alike(raw, scans, ending, shear, imported):
    """SimpleITK reads these without a word, but no NIfTI label would lie on their grid."""
    image = sitk.GetImageFromArray(volume())
    image.SetDirection([1, 0, 0, 0, 1, shear, 0, 0, 1])
    sitk.WriteImage(image, str(scans / f"a.{ending}"))
    report = run(scans)
    assert ("a" in report.imported) is imported
    assert ("skewed" in report.cases["a"]["copied"]) if imported else ("skewed" in report.left_out["a"])


def gzip_named_nii(path):
    path.write_bytes(gzip.compress(b"\0" * 400))


def mha_without_directions(path):
    write(path)
    ones, zeros = b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 0 0 0 0 0 0 0 0 0"
    path.write_bytes(path.read_bytes().replace(ones, zeros))


def cut_data(ending):
    def make(path):
        sitk.WriteImage(sitk.GetImageFromArray(volume()), str(path))
        cut(path.with_suffix(ending))

    return make


def missing_data(path):
    write(path)
    next(p for p in path.parent.glob("bad.*") if p != path and p.name != "good.nii.gz").unlink()


def nifti_voxels(*sizes):
    """A NIfTI whose header holds other voxel sizes."""

    def make(path):
        write(path)
        data = bytearray(path.read_bytes())
        struct.pack_into("<3f", data, 80, *sizes)
        path.write_bytes(bytes(data))

    return make


def nrrd_voxels(path):
    write(path)
    unknown = b"space directions: (nan,nan,nan)"
    path.write_bytes(re.sub(rb"space directions: \([^)]*\)", unknown, path.read_bytes()))


REFUSED = {
    "tilted gantry": ("bad.nii.gz", lambda p: save(p, shear=0.2), "skewed by 11"),
    "compressed without saying so": ("bad.nii", gzip_named_nii, "rename it to bad.nii.gz"),
    "no directions": ("bad.mha", mha_without_directions, "direction matrix"),
    "half a .gipl": ("bad.gipl", cut_data(".gipl"), "truncated"),
    "half a .gipl.gz": ("bad.gipl.gz", cut_data(".gz"), "truncated"),
    "half an .img": ("bad.hdr", cut_data(".img"), "truncated"),
    "half a .raw": ("bad.nhdr", cut_data(".raw"), "truncated"),
    "no .raw": ("bad.mhd", missing_data, "points to bad.z?raw, which is missing"),
    "no .img": ("bad.hdr", missing_data, "points to bad.img, which is missing"),
    "truncated .mgz": ("bad.mgz", lambda p: (save(p, nibabel.MGHImage), cut(p)), "truncated"),
    "NaN in .mgz": ("bad.mgz", lambda p: nan_mgz(p), "NaN"),
    "no voxel size": ("bad.nii", nifti_voxels(0, 0, 0), "no usable voxel size: 0 x 0 x 0 mm"),
    "unknown voxel size": ("bad.nii", nifti_voxels(1, np.nan, 1), "no usable voxel size: 1 x nan x 1 mm"),
    "unknown voxel size in .nrrd": ("bad.nrrd", nrrd_voxels, "no usable voxel size"),
    "4D .mgz": ("bad.mgz", lambda p: four(p), "not 3D"),
}


def nan_mgz(path):
    array = volume().T.astype(np.float32)
    array[3, 4, 5] = np.nan
    nibabel.save(nibabel.MGHImage(array, affine()), path)


def four(path):
    nibabel.save(nibabel.MGHImage(np.stack([volume().T.astype(np.float32)] * 2, -1), affine()), path)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_says_why(raw, scans, kind):
    name, make, reason = REFUSED[kind]
    make(scans / name)
    report = run(scans)
    assert report.imported == ["good"] and list(report.left_out) == ["bad"]
    assert re.search(reason, report.left_out["bad"])


@pytest.mark.parametrize("ending", ["mhd", "nhdr", "hdr", "gipl", "gipl.gz", "mnc"])
def test_formats_beside_the_common_ones_are_read_where_they_lie(raw, tmp_path, ending):
    write(tmp_path / "scans" / f"a.{ending}")
    report = run(tmp_path / "scans")
    assert report.imported == ["a"] and not report.other_files, "data files behind headers are no other files"
    image, properties = read_by_nnunet(report, "a")
    np.testing.assert_array_equal(image, volume())
    np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=1e-6)
    assert any("no orientation" in hint for hint in report.hints) is ending.startswith("gipl")


def test_analyze_keeps_no_orientation(raw, tmp_path):
    save(tmp_path / "scans" / "old.hdr", nibabel.AnalyzeImage)
    report = run(tmp_path / "scans")
    assert report.imported == ["old"] and "no orientation" in next(iter(report.hints))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("codes", "told"), [((0, 0), True), ((1, 0), False), ((0, 2), False)])
def test_nifti_without_an_affine_keeps_no_orientation(raw, scans, kind, codes, told):
    image = kind(volume().T, affine())
    image.set_qform(affine(), codes[0])
    image.set_sform(affine(), codes[1])
    nibabel.save(image, scans / "a.nii.gz")
    report = run(scans)
    assert any("no orientation" in hint and "a" in cases for hint, cases in report.hints.items()) is told
    assert report.cases["a"]["orientation"] == ("LPS" if told else "RAS")


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3)])
def test_units_of_nifti_count_whoever_reads_it(tmp_path, unit, factor):
    found = []
    for name, shear in (("straight", 0.0), ("skewed", 1e-3)):
        image = nibabel.Nifti1Image(volume().T, affine(shear))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
        found.append(read_turned([tmp_path / f"{name}.nii.gz"], "").images[0])
    for image in found:
        np.testing.assert_allclose(image.GetSpacing(), SPACING * factor, rtol=1e-4)
        np.testing.assert_allclose(image.GetOrigin(), np.array([10, -20, 30]) * factor, rtol=0.02)


@pytest.mark.parametrize(("shift_mm", "angle", "told"), [(0, 0, 0), (0.2, 0, 0), (9, 0, 1), (0, 0.2, 1)])
def test_channels_that_lie_beside_each_other_are_told(raw, tmp_path, shift_mm, angle, told):
    write(tmp_path / "scans" / "a_0000.nii.gz")
    second = sitk.ReadImage(str(tmp_path / "scans" / "a_0000.nii.gz"))
    second.SetOrigin([place + shift_mm for place in second.GetOrigin()])
    second.SetDirection([np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1])
    sitk.WriteImage(second, str(tmp_path / "scans" / "a_0001.nii.gz"))
    hints = run(tmp_path / "scans", channels=["T1", "T2"]).hints
    assert len([hint for hint in hints if "beside each other" in hint]) == told


def test_a_change_behind_a_header_is_a_change(raw, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(volume()), str(tmp_path / "scans.mhd"))
    (tmp_path / "scans").mkdir()
    for name in ("scans.mhd", "scans.raw"):
        (tmp_path / name).rename(tmp_path / "scans" / name)
    run(tmp_path / "scans")
    (tmp_path / "scans" / "scans.raw").write_bytes(volume(1).tobytes())
    assert len(run(tmp_path / "scans").read) == 1


def test_other_files_are_counted_named_and_recognised(raw, scans, caplog):
    dicom = b"\0" * 128 + b"DICM" + b"\0" * 100
    for name in ("series/IM0001", "series/IM0002", "series/1.2.840.113", "ct/a.dcm", "ct/b.DCM"):
        (scans / name).parent.mkdir(exist_ok=True)
        (scans / name).write_bytes(dicom)
    for name in ("notes.txt", "a.json", "b.json", "stack.tif", "half.img", ".hidden.txt"):
        (scans / name).write_text("x")
    (scans / "labelsTr").mkdir()
    (scans / "labelsTr" / "seg.txt").touch()
    others = run(scans).other_files
    counts = {ending: entry["count"] for ending, entry in others.items()}
    assert counts == {"no ending (DICOM)": 3, ".dcm": 2, ".txt": 1, ".json": 2, ".tif": 1, ".img": 1}
    assert "dcm2niix" in others[".dcm"]["what"] and "dcm2niix" in others["no ending (DICOM)"]["what"]
    assert "voxel size" in others[".tif"]["what"] and not others[".json"]["what"]
    assert "2 .dcm files (ct/a.dcm, ct/b.DCM): DICOM" in caplog.text and "2 .json" in caplog.text


def test_a_folder_without_volumes_says_what_it_holds_and_what_to_do(raw, tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("a.tif", "b.csv"):
        (tmp_path / "scans" / name).touch()
    with refused(InputError, path="scans") as caught:
        run(tmp_path / "scans")
    assert "1 .csv" in str(caught.value) and "1 .tif" in str(caught.value)


def test_lists_of_data_files_behind_one_header(tmp_path):
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = LIST\ns1.raw\ns2.raw\n")
    for name in ("s1.raw", "s2.raw", "loose.raw"):
        (tmp_path / name).touch()
    found = scan_folder(tmp_path, 1, (".mhd",))
    assert [path.name for path in found.cases[0].data_files] == ["s1.raw", "s2.raw"]
    assert found.others[".raw"].examples == ["loose.raw"]
