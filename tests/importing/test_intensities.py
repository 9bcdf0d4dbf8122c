"""Figures of an image's values, signs of a wrong unit, and images unlike all others."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from support.raw_volumes import run, volume, write

from nnunet_alice.anatomy.body import body_mask
from nnunet_alice.importing.intensities import (
    LOOKS_LIKE_HU,
    NARROW,
    NO_HU,
    WRAPPED,
    is_wrapped,
    measure,
    outliers,
)


def scan(seed=0):
    """A CT with air, fat, soft tissue and bone, its body as a mask."""
    rng = np.random.default_rng(seed)
    image = rng.normal(-1000, 15, (30, 40, 40))
    body = np.zeros(image.shape, dtype=bool)
    body[:, 5:-5, 5:-5] = True
    image[body] = rng.choice([-100, 40, 60, 700], body.sum(), p=[0.25, 0.4, 0.3, 0.05]) + rng.normal(0, 15, body.sum())
    return image, body


def hints(image, body=None, channel="CT"):
    return measure(image, scan()[1] if body is None else body, channel)[1]


def test_figures_are_those_of_the_body_and_of_the_air_around_it():
    image, body = scan()
    image[0, 0, 0], image[10, 20, 20] = -3000, 9000
    found, _ = measure(image, body, "CT")
    assert (found.lowest, found.highest) == (-3000, 9000)
    np.testing.assert_allclose((found.low, found.median, found.high), np.percentile(image[body], (0.5, 50, 99.5)))
    assert found.air == pytest.approx(-1000, abs=2)
    assert measure(image, np.ones_like(body), "CT")[0].air is None


def test_large_images_are_thinned_and_small_bodies_are_not_missed():
    image = np.zeros((160, 160, 160), dtype=np.float32)
    body = np.zeros(image.shape, dtype=bool)
    body[80, 80, 81] = True
    image[80, 80, 81] = 7
    assert measure(image, body, "T1")[0].median == 7


@pytest.mark.parametrize("channel", ["CT", "ct"])
def test_a_ct_in_hounsfield_units_has_no_hint(channel):
    assert hints(scan()[0], channel=channel) == []
    padded = scan()[0]
    padded[:, :3] = -3024
    assert hints(padded, channel=channel) == []


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda v: v + 1024, NO_HU),
        (lambda v: np.where(v < -500, 0, v), NO_HU),
        (lambda v: (np.clip(v, -160, 240) + 160) / 400 * 255, NO_HU),
        (lambda v: (v + 1024) / 4096, NARROW),
        (lambda v: v.astype(np.int64) % 2**16, WRAPPED),
        (lambda v: (v.astype(np.int64) % 2**32).astype(np.float32), WRAPPED),
        (lambda v: v.astype(np.int64) % 2**12, WRAPPED),
    ],
    ids=["offset missing", "background of 0", "window of 8 bit", "0 to 1", "16 bits", "32 bits as float", "12 bits"],
)
def test_ct_in_other_units_is_told(change, hint):
    assert hints(change(scan()[0])) == [hint]


def test_hounsfield_units_under_another_name_are_told():
    assert hints(scan()[0], channel="T1") == [LOOKS_LIKE_HU]
    assert hints(scan()[0] + 1024, channel="T1") == []


def test_too_large_values_stored_with_sign_are_told():
    bright = np.random.default_rng(0).gamma(4, 3500, (30, 40, 40))
    wrapped = ((bright.astype(np.int64) + 2**15) % 2**16 - 2**15).astype(np.int16)
    assert (wrapped < 0).mean() > 0.01 and hints(wrapped, channel="PET") == [WRAPPED]
    assert hints(np.minimum(bright, 32767).astype(np.int16), channel="PET") == []


@pytest.mark.parametrize(
    "values",
    [
        np.arange(0, 65536, 7),  # the whole range is used
        np.where(np.arange(10_000) % 50, np.arange(10_000) % 900, 65535),  # saturated
        np.random.default_rng(0).normal(300, 80, 10_000),
        np.where(np.arange(10_000) % 50, 40, 3071),  # metal in a CT
        np.where(np.arange(10_000) % 3, 40, 0),
        np.where(np.arange(10_000) % 3, np.arange(10_000) % 900, -32768),
        np.linspace(-32768, 32767, 10_000),
    ],
    ids=["whole range", "saturated", "MR", "metal", "two values", "padding", "whole range with sign"],
)
def test_unusual_values_are_not_taken_for_wrapped_ones(values):
    assert not is_wrapped(values.astype(np.float64), "CT")


def pool(count=20, seed=0):
    """Low, median and high value of CTs of chest and abdomen."""
    rng = np.random.default_rng(seed)
    kinds = ([-950, -30, 700], [-150, 40, 300])
    return {str(n): np.array(kinds[n % 2]) + rng.normal(0, [20, 15, 120]) for n in range(count)}


def test_chests_and_abdomens_are_alike():
    assert outliers(pool()) == {}
    mostly = {name: figures for name, figures in pool(40).items() if int(name) % 2 == 0 or name == "1"}
    assert outliers(mostly) == {}


@pytest.mark.parametrize("bad", [(74, 1060, 1700), (4.2e9, 4.29e9, 4.29e9), (0.0, 0.3, 0.4), (-300, 4000, 9000)])
def test_what_is_unlike_the_others_is_named(bad):
    chests = {name: figures for name, figures in pool().items() if int(name) % 2 == 0}
    assert list(outliers(chests | {"bad": bad})) == (["bad"] if bad[1] > 1 else [])


def test_two_images_cannot_tell_which_is_wrong():
    assert outliers({"a": (0, 1, 2), "b": (1000, 1001, 1002)}) == {}


def test_import_keeps_figures_and_names_what_is_suspicious(raw, tmp_path, caplog):
    for seed in range(4):
        write(tmp_path / "scans" / f"good{seed}.nii.gz", volume(seed))
    write(tmp_path / "scans" / "shifted.nii.gz", volume(5) + np.int16(1024))
    write(tmp_path / "scans" / "wrapped.nrrd", (volume(6).astype(np.int64) % 2**32).astype(np.uint32))
    report = run(tmp_path / "scans")
    assert len(report.imported) == 6
    assert report.hints == {NO_HU: ["shifted"], WRAPPED: ["wrapped"]}
    assert set(report.outliers) == {"shifted", "wrapped"}
    assert report.cases["good0"]["intensities"][0]["air"] == pytest.approx(-1000, abs=2)
    assert "1 of 6 cases (wrapped)" in caplog.text and "Case shifted" in caplog.text
    (tmp_path / "scans" / "shifted.nii.gz").unlink()
    assert list(run(tmp_path / "scans").outliers) == ["wrapped"]


def stripped_brain(seed):
    """A brain in zeros, whose surface is folded deeper than a body mask follows: (z, y, x) float32."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 72, 64)), indexing="ij")
    folded = 0.35 * np.sin(24 * z) * np.sin(27 * y) * np.sin(25 * x)
    inside = (z / 0.62) ** 2 + (y / 0.66) ** 2 + (x / 0.55) ** 2 + folded < 0.8
    return np.where(inside, np.random.default_rng(seed).normal(800, 150, inside.shape).clip(1), 0).astype(np.float32)


@pytest.mark.parametrize("channels", [("T1",), ("T1", "T2")])
def test_the_mask_of_a_stripped_brain_is_nnunets_own(raw, tmp_path, channels):
    """nnU-Net takes its z-score inside the label or the non-zero mask: beyond, zeros would shift it."""
    arrays = [stripped_brain(seed) for seed in range(len(channels))]
    for number, array in enumerate(arrays):
        write(tmp_path / "scans" / f"a_{number:04d}.nii.gz", array)
    report = run(tmp_path / "scans", channels=channels)
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(report.folder / "labelsTr" / "a.nii.gz"))) > 0
    own = create_nonzero_mask(np.stack(arrays))
    assert (body_mask(np.stack(arrays), (2.0, 1.5, 1.5)) & ~own).any()  # there is something to cut
    assert not (label & ~own).any() and label.sum() > 0.95 * own.sum()
