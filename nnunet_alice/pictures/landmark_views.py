"""What DrasCLR sees: two views of a landmark's patch and the patches at its neighbours: ``views.png``."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nnunet_alice.pictures.saving import save_figure

_MAX_SUBJECTS = 4


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
