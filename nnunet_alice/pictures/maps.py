"""Picture of dense predictions: a map a class over the image, in three planes."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.pictures.saving import save_figure

_PLANES = ("axial", "coronal", "sagittal")


def draw_maps(
    geometry: CaseGeometry, maps: np.ndarray, classes: Sequence[str], path: str | os.PathLike, title: str = ""
) -> None:
    """Draw each class' map over the coarse image, in the planes where the map of that class is strongest.

    Args:
        geometry: of the case.
        maps: (K, *grid_shape) on the geometry's coarse grid; 0 where nothing was predicted.
        classes: K names.
        path: PNG to write.
        title: above the picture.
    """
    figure = Figure(figsize=(9, 2.9 * len(classes)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    top = max(1.0, float(maps.max())) if len(classes) > 1 else float(maps.max())
    sizes_mm = np.asarray(geometry.grid_spacing_mm)
    for row, name, found in zip(figure.subplots(len(classes), 3, squeeze=False), classes, maps, strict=True):
        for axis, (axes, plane) in enumerate(zip(row, _PLANES, strict=True)):
            others = tuple({0, 1, 2} - {axis})
            where = int(found.sum(axis=others).argmax())
            aspect = sizes_mm[others[0]] / sizes_mm[others[1]]
            upwards = "upper" if axis == 0 else "lower"  # the head up
            axes.imshow(geometry.image.take(where, axis=axis), cmap="gray", aspect=aspect, origin=upwards)
            shown = found.take(where, axis=axis)
            overlay = np.ma.masked_less_equal(shown, 0)
            drawn = axes.imshow(overlay, cmap="inferno", vmin=0, vmax=top, alpha=0.55, aspect=aspect, origin=upwards)
            axes.set_title(f"{name}, {plane}", fontsize=8)
            axes.set_axis_off()
        figure.colorbar(drawn, ax=row, shrink=0.8)
    save_figure(figure, path, 90)
