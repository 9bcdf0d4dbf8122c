"""Compact images: rounded as said, half the bytes, and read by nnU-Net as any of its own."""

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunet_alice.planning.compact import rounded, store_compactly


def test_rounding_is_that_of_half_precision_over_the_range_of_single_precision():
    rng = np.random.default_rng(0)
    image = rng.normal(size=5000).astype(np.float32)
    np.testing.assert_array_equal(rounded(image), image.astype(np.float16).astype(np.float32))
    wide = image * np.float32(2.0) ** rng.integers(-60, 60, 5000)
    assert np.abs(rounded(wide) / wide - 1).max() <= 2**-11
    for value in (0.0, -0.0, 1.0, -5.5):
        assert rounded(np.array([value], np.float32)).tobytes() == np.array([value], np.float32).tobytes()


def test_a_stored_image_is_smaller_and_nnunet_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    image = np.cumsum(rng.normal(size=(2, 48, 40, 44)), axis=1).astype(np.float32) / 10
    blocks, chunks = comp_blosc2_params(image.shape, (32, 32, 32), 4)
    labels = np.zeros((1, *image.shape[1:]), np.int16)
    nnUNetDatasetBlosc2.save_case(image, labels, {}, str(tmp_path / "case"), chunks, blocks, chunks, blocks)
    file = tmp_path / "case.b2nd"
    before = file.stat().st_size
    store_compactly(file)
    assert file.stat().st_size < 0.6 * before
    found, *_ = nnUNetDatasetBlosc2(str(tmp_path)).load_case("case")
    np.testing.assert_array_equal(found[...], rounded(image))
    stored = blosc2.open(str(file), mode="r")
    assert stored.chunks == chunks and stored.blocks == tuple(
        n if axis == 0 else n // 2 for axis, n in enumerate(blocks)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.b2nd", "case.pkl", "case_seg.b2nd"]
