"""Picture of the landmarks on the atlas: where patches are cropped, and how many cases show each place."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.pictures.saving import save_figure

_PLANES = (("axial", 0, (1, 2)), ("coronal", 1, (0, 2)), ("sagittal", 2, (0, 1)))


def draw_landmarks(
    atlas: CaseGeometry,
    points_mm: np.ndarray,
    seen: Sequence[int] | np.ndarray,
    cases: int,
    patch_mm: float,
    path: str | os.PathLike,
    title: str = "",
) -> None:
    """Draw all landmarks over projections of the atlas along each axis, and the histogram of cases that show them.

    Behind the points lies the middle slice of the atlas; one patch is outlined for its size.

    Args:
        atlas: geometry of the atlas case.
        points_mm: (L, 3) landmarks in mm of the atlas, (z, y, x).
        seen: (L,) how many cases show each.
        cases: number of registered cases.
        patch_mm: edge of a patch.
        path: PNG to write.
        title: above the picture.
    """
    counts = np.asarray(seen)
    share = counts / max(cases, 1)
    extent_mm = np.asarray(atlas.grid_shape) * atlas.grid_spacing_mm
    first_mm = np.asarray(atlas.grid_origin_mm) - np.asarray(atlas.grid_spacing_mm) / 2
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    *panels, histogram = figure.subplots(1, 4)
    for axes, (name, axis, (row, column)) in zip(panels, _PLANES, strict=True):
        box = (
            first_mm[column],
            first_mm[column] + extent_mm[column],
            first_mm[row] + extent_mm[row],
            first_mm[row],
        )
        axes.imshow(atlas.image.take(atlas.grid_shape[axis] // 2, axis=axis), cmap="gray", extent=box)
        order = np.argsort(-share, kind="stable")  # rarely seen ones on top
        points = axes.scatter(
            points_mm[order, column], points_mm[order, row], c=share[order], s=9, cmap="RdYlGn", vmin=0, vmax=1
        )
        middle = points_mm[np.argmin(np.linalg.norm(points_mm - points_mm.mean(axis=0), axis=1))]
        corner = (middle[column] - patch_mm / 2, middle[row] - patch_mm / 2)
        axes.add_patch(Rectangle(corner, patch_mm, patch_mm, fill=False, edgecolor="white", linewidth=1.2))
        if axis != 0:
            axes.invert_yaxis()  # the head up
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    figure.colorbar(points, ax=panels, label="share of cases that show the landmark", shrink=0.8)
    histogram.hist(seen, bins=min(30, cases + 1), range=(-0.5, cases + 0.5), color="tab:blue")
    histogram.set(xlabel=f"cases that show a landmark (of {cases})", ylabel="landmarks")
    save_figure(figure, path, 90)
