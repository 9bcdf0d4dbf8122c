"""Picture of dense predictions: a map a class over the image, cut across each axis."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.pictures.saving import save_figure


def draw_maps(
    geometry: CaseGeometry, maps: np.ndarray, classes: Sequence[str], path: str | os.PathLike, title: str = ""
) -> None:
    """Draw each class' map over the coarse image, in the slices where the map of that class is strongest.

    Args:
        geometry: of the case.
        maps: (K, *grid_shape) on the geometry's coarse grid, NaN where nothing was predicted.
        classes: K names.
        path: PNG to write.
        title: above the picture.
    """
    figure = Figure(figsize=(9, 2.9 * len(classes)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    known = maps[~np.isnan(maps)]
    low = known.min(initial=0)
    top = known.max(initial=1 if len(classes) > 1 else low)
    sizes_mm = np.asarray(geometry.grid_spacing_mm)
    for row, name, found in zip(figure.subplots(len(classes), 3, squeeze=False), classes, maps, strict=True):
        for axis, axes in enumerate(row):
            others = tuple({0, 1, 2} - {axis})
            where = int(np.nansum(np.abs(found), axis=others).argmax())
            aspect = sizes_mm[others[0]] / sizes_mm[others[1]]
            upwards = "lower" if others[0] == geometry.axial_axis else "upper"  # the head up
            axes.imshow(geometry.image.take(where, axis=axis), cmap="gray", aspect=aspect, origin=upwards)
            overlay = np.ma.masked_invalid(found.take(where, axis=axis))
            drawn = axes.imshow(overlay, cmap="inferno", vmin=low, vmax=top, alpha=0.55, aspect=aspect, origin=upwards)
            axes.set_title(f"{name}, {'zyx'[axis]} = {int((where + 0.5) * geometry.factors[axis])}", fontsize=8)
            axes.set_axis_off()
        figure.colorbar(drawn, ax=row, shrink=0.8)
    save_figure(figure, path, 90)
