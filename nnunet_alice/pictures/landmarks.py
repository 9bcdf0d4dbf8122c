"""Landmarks on the atlas and how many cases show each place; and the views of one that DrasCLR sees."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.pictures.saving import save_figure

_MAX_SUBJECTS = 4


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
    for axis, axes in enumerate(panels):
        row, column = sorted({0, 1, 2} - {axis})
        box = (first_mm[column], first_mm[column] + extent_mm[column], first_mm[row] + extent_mm[row], first_mm[row])
        axes.imshow(atlas.image.take(atlas.grid_shape[axis] // 2, axis=axis), cmap="gray", extent=box)
        order = np.argsort(-share, kind="stable")  # rarely seen ones on top
        points = axes.scatter(
            points_mm[order, column], points_mm[order, row], c=share[order], s=9, cmap="RdYlGn", vmin=0, vmax=1
        )
        middle = points_mm[np.argmin(np.linalg.norm(points_mm - points_mm.mean(axis=0), axis=1))]
        corner = (middle[column] - patch_mm / 2, middle[row] - patch_mm / 2)
        axes.add_patch(Rectangle(corner, patch_mm, patch_mm, fill=False, edgecolor="white", linewidth=1.2))
        if row == atlas.axial_axis:
            axes.invert_yaxis()  # the head up
        axes.set_title(f"along {'zyx'[axis]}", fontsize=9)
        axes.set_axis_off()
    figure.colorbar(points, ax=panels, label="share of cases that show the landmark", shrink=0.8)
    histogram.hist(seen, bins=min(30, cases + 1), range=(-0.5, cases + 0.5), color="tab:blue")
    histogram.set(xlabel=f"cases that show a landmark (of {cases})", ylabel="landmarks")
    save_figure(figure, path, 90)


def draw_landmark_views(patches: np.ndarray, cases: Sequence[str], landmark: int, path: str | os.PathLike) -> None:
    """Draw the middle slices of a few subjects, two rows a subject: axial (first axis cut) and coronal (second one).

    Args:
        patches: (2 + k, B, z, y, x): first views, second views, patches at the k neighbours.
        cases: names of the B cases.
        landmark: number of the landmark.
        path: PNG to write.
    """
    count = min(_MAX_SUBJECTS, len(cases))
    titles = ["view", "second view", *(f"neighbour {number + 1}" for number in range(len(patches) - 2))]
    figure = Figure(figsize=(2.4 * len(titles), 2.4 * 2 * count + 0.5), layout="constrained")
    figure.suptitle(f"landmark {landmark}", fontsize=9)
    grid = figure.subplots(2 * count, len(titles), squeeze=False)
    for index, case in enumerate(cases[:count]):
        low, high = np.percentile(patches[:, index], [0.5, 99.5])
        for axis in (0, 1):
            for column, title in enumerate(titles):
                axes = grid[2 * index + axis, column]
                volume = patches[column, index]
                # z points to the head in nnU-Net's arrays of SimpleITK images: draw coronal slices head up
                origin = "upper" if axis == 0 else "lower"
                slice_ = volume.take(volume.shape[axis] // 2, axis)
                axes.imshow(slice_, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin=origin)
                axes.set_axis_off()
                if axis == 0:
                    axes.set_title(f"{title}\n{case}" if column == 0 else title, fontsize=7)
    save_figure(figure, path, 90)
