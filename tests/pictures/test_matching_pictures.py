"""Pictures of matching are written, hold what they should, and cope with empty and infinite input."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from nnunet_alice.pictures.matching import PointSlices, draw_cumulative_error, draw_matches


def volume(at) -> np.ndarray:
    grids = np.meshgrid(*map(np.arange, (20, 30, 40)), indexing="ij")
    return np.exp(-sum((g - a) ** 2 for g, a in zip(grids, at, strict=True)) / 60)[None].astype(np.float32)


def test_slices_pass_through_the_point():
    image = volume((7, 12, 25))
    slices = PointSlices.cut(image, np.array([7.3, 11.8, 25.0]), "case")
    assert np.unravel_index(slices.axial.argmax(), slices.axial.shape) == (12, 25)
    assert np.unravel_index(slices.coronal.argmax(), slices.coronal.shape) == (7, 25)
    beyond = PointSlices.cut(image, np.array([-3.0, 99.0, 5.0]), "case")
    np.testing.assert_array_equal(beyond.axial, image[0, 0])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_matches_are_drawn(tmp_path, count):
    query = PointSlices.cut(volume((7, 12, 25)), np.array([7, 12, 25]), "a\nquery")
    others = [PointSlices.cut(volume((9, 9, 9 + i)), np.array([9, 9, 9 + i]), f"b{i}\nscore 0.9") for i in range(count)]
    draw_matches(query, others, (3.0, 1.0, 1.0), tmp_path / "match.png")
    picture = imread(tmp_path / "match.png")
    assert picture.shape[1] == 250 * (count + 1)
    assert picture.std() > 0.05


def test_cumulative_error_is_drawn_also_with_unmatched_points(tmp_path):
    rng = np.random.default_rng(0)
    errors = pd.DataFrame(
        {
            "matcher": ["embedding"] * 200 + ["atlas"] * 200 + ["lost"] * 3,
            "error_mm": np.concatenate([rng.gamma(2, 3, 200), rng.gamma(3, 5, 190), [np.inf] * 13]),
        }
    )
    draw_cumulative_error(errors, tmp_path / "error.png", title="test")
    assert imread(tmp_path / "error.png").std() > 0.05
