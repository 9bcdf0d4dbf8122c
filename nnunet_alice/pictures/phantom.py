"""Contact sheet of phantoms: what the generator makes, at a glance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_alice.files import atomic_write
from nnunet_alice.phantoms import LABELS, Phantom

_SOFT_WINDOW_HU = (-200, 300)
_LUNG_WINDOW_HU = (-1000, 0)


def draw_phantoms(path: str | Path, phantoms: Mapping[str, Phantom], *, contours: bool = True) -> None:
    """Draw one row a phantom: coronal, sagittal and axial slices in a soft-tissue window, one in a lung window.

    Args:
        path: PNG to write.
        phantoms: rendered volumes by title.
        contours: whether to outline the organs.
    """
    columns = ("coronal", "sagittal", "axial, liver", "axial, kidneys", "axial, chest", "coronal, lung window")
    figure = Figure(figsize=(2.6 * len(columns), 2.7 * len(phantoms)), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(phantoms), len(columns), squeeze=False))
    for row, (title, phantom) in zip(axes, phantoms.items(), strict=True):
        for column, (axis_index, index, window) in enumerate(_slices(phantom)):
            ax = row[column]
            _draw_slice(ax, phantom, axis_index, index, window, contours and window is _SOFT_WINDOW_HU)
            if ax.get_subplotspec().is_first_row():
                ax.set_title(columns[column], fontsize=9)
        row[0].set_ylabel(title, fontsize=8)
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _slices(phantom: Phantom) -> list[tuple[int, int, tuple[int, int]]]:
    """Return axis, index and window of each column; organs that the field of view lacks fall back to its middle."""
    middle = [n // 2 for n in phantom.labels.shape]

    def through(organ: str, axis: int) -> int:
        where = np.nonzero(phantom.labels == LABELS[organ])[axis]
        return int(np.median(where)) if len(where) else middle[axis]

    return [
        (1, through("liver", 1), _SOFT_WINDOW_HU),
        (2, through("spine", 2), _SOFT_WINDOW_HU),
        (0, through("liver", 0), _SOFT_WINDOW_HU),
        (0, through("kidney_left", 0), _SOFT_WINDOW_HU),
        (0, through("heart", 0), _SOFT_WINDOW_HU),
        (1, through("lung_right", 1), _LUNG_WINDOW_HU),
    ]


def _draw_slice(ax: Axes, phantom: Phantom, axis: int, index: int, window: tuple[int, int], contours: bool) -> None:
    """Draw a slice with the head up (coronal, sagittal) or the belly up (axial), in true proportions."""
    image, labels = phantom.image.take(index, axis), phantom.labels.take(index, axis)
    rows, columns = [d for d in range(3) if d != axis]
    aspect = phantom.spacing_mm[rows] / phantom.spacing_mm[columns]
    origin: Literal["upper", "lower"] = "upper" if axis == 0 else "lower"
    ax.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], origin=origin, aspect=aspect)
    if contours:
        for value in np.unique(labels[labels > 0]):
            ax.contour(labels == value, levels=[0.5], colors=[f"C{value % 10}"], linewidths=0.6)
    ax.set_xticks([])
    ax.set_yticks([])
