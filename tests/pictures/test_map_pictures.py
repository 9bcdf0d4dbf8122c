"""Pictures of maps show what was predicted, whatever its sign, and claim no plane that the plans do not say."""

import numpy as np
import pytest
from support.small_datasets import geometry_of

from nnunet_alice.pictures import landmarks, maps


@pytest.fixture
def figures(monkeypatch):
    """Figures in place of files."""
    drawn = []
    for module in (maps, landmarks):
        monkeypatch.setattr(module, "save_figure", lambda figure, *_: drawn.append(figure))
    return drawn


@pytest.mark.parametrize(("low", "high", "limits"), [(-900, -700, (-900, -700)), (-2, 1, (-2, 1)), (20, 80, (0, 80))])
def test_values_of_a_regression_are_shown_where_there_are_any(figures, low, high, limits):
    found = np.full((1, 6, 7, 8), np.nan, dtype=np.float32)
    found[0, 2:4, 3:5, 4:6] = np.linspace(low, high, 8).reshape(2, 2, 2)
    maps.draw_maps(geometry_of(np.ones((6, 7, 8), bool)), found, ["value"], "map.png")
    for axes in figures[0].axes[:3]:
        overlay = axes.images[1]
        assert overlay.get_array().count() == 4 and overlay.get_clim() == pytest.approx(limits)


def test_planes_are_named_by_the_axis_that_is_cut(figures):
    geometry = geometry_of(np.ones((6, 7, 8), bool), factors=(2, 2, 2))
    found = np.zeros((1, 6, 7, 8), dtype=np.float32)
    found[0, 1, 2, 3] = 1
    maps.draw_maps(geometry, found, ["a"], "map.png")
    landmarks.draw_landmarks(geometry, np.full((2, 3), 5.0), [1, 2], 2, 4.0, "landmarks.png")
    assert [axes.get_title() for axes in figures[0].axes[:3]] == ["a, z = 3", "a, y = 5", "a, x = 7"]
    assert [axes.get_title() for axes in figures[1].axes[:3]] == ["along z", "along y", "along x"]


@pytest.mark.parametrize(("axial_axis", "turned"), [(0, [False, True, True]), (1, [True, False, False])])
def test_the_axis_along_the_body_goes_up_where_it_is_that_of_the_rows(figures, axial_axis, turned):
    geometry = geometry_of(np.ones((6, 7, 8), bool), axial_axis=axial_axis)
    maps.draw_maps(geometry, np.ones((1, 6, 7, 8), dtype=np.float32), ["a"], "map.png")
    landmarks.draw_landmarks(geometry, np.full((2, 3), 3.0), [1, 2], 2, 4.0, "landmarks.png")
    for figure in figures:
        upwards = [axes.get_ylim()[0] < axes.get_ylim()[1] for axes in figure.axes[:3]]
        assert upwards == turned
