"""Pictures of matching: how errors are distributed, and a query slice beside its matched slices."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunet_alice.dataset import LazyImage
from nnunet_alice.pictures.saving import save_figure

#: errors beyond it are not drawn, but count
_MAX_ERROR_MM = 60.0


def draw_cumulative_error(errors: pd.DataFrame, path: str | os.PathLike, title: str = "") -> None:
    """Draw for each matcher the share of points matched within any distance.

    Args:
        errors: with columns ``matcher`` and ``error_mm`` (infinite where unmatched).
        path: PNG to write.
        title: above the plot.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    finite = errors["error_mm"][np.isfinite(errors["error_mm"])]
    longest = min(_MAX_ERROR_MM, float(finite.quantile(0.99)) if len(finite) else _MAX_ERROR_MM)
    for name, group in errors.groupby("matcher", sort=False):
        ordered = np.sort(group["error_mm"].to_numpy())
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        shown = ordered <= longest
        median = ordered[(len(ordered) - 1) // 2]
        # From the first point's own share: a curve that starts higher has points without any error.
        axes.step(
            np.append(np.insert(ordered[shown], 0, 0), longest),
            np.append(np.insert(share[shown], 0, 0), share[shown][-1] if shown.any() else 0),
            where="post",
            label=f"{name} (median {median:.1f} mm)",
        )
    for limit in (5, 10, 20):
        if limit < longest:
            axes.axvline(limit, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlabel="error of the match (mm)", ylabel="share of points", xlim=(0, longest), ylim=(0, 1), title=title)
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(axis="y", color="0.92")
    save_figure(figure, path, 110)


@dataclass(frozen=True)
class PointSlices:
    """Slices of a volume through a point.

    Attributes:
        caption: shown above.
        axial: (y, x) slice at the point.
        coronal: (z, x) slice at the point.
        point_vox: (3,) the point, (z, y, x).
    """

    caption: str
    axial: np.ndarray
    coronal: np.ndarray
    point_vox: np.ndarray

    @classmethod
    def cut(cls, image: LazyImage, point_vox: np.ndarray, caption: str) -> "PointSlices":
        """Read the two slices of the first channel of a lazily opened image (C, z, y, x)."""
        point = np.asarray(point_vox, dtype=float)
        z, y, _ = np.clip(np.rint(point), 0, np.asarray(image.shape[1:]) - 1).astype(int).tolist()
        axial, coronal = np.asarray(image[0, z : z + 1])[0], np.asarray(image[0, :, y : y + 1])[:, 0]
        return cls(caption, axial, coronal, point)


def draw_matches(
    query: PointSlices, matches: Sequence[PointSlices], spacing_mm: Sequence[float], path: str | os.PathLike
) -> None:
    """Draw the query beside its matches: axial slices in the upper row, coronal ones (head up) in the lower row.

    Args:
        query: the query point in its volume.
        matches: the matched points; as many columns as there are.
        spacing_mm: (3,) voxel size, (z, y, x), of all volumes.
        path: PNG to write.
    """
    columns = [query, *matches]
    figure = Figure(figsize=(2.5 * len(columns), 5.4), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False)
    for number, (panel, (upper, lower)) in enumerate(zip(columns, grid.T, strict=True)):
        z, y, x = panel.point_vox
        colour = "tab:red" if number == 0 else "tab:cyan"
        views = (
            (upper, panel.axial, (x, y), spacing_mm[1] / spacing_mm[2], "upper"),
            (lower, panel.coronal, (x, z), spacing_mm[0] / spacing_mm[2], "lower"),
        )
        # One window for both slices, so that the same tissue has the same grey.
        low, high = np.percentile(np.concatenate([panel.axial.ravel(), panel.coronal.ravel()]), [0.5, 99.5])
        for axes, picture, at, aspect, origin in views:
            axes.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin=origin, aspect=aspect)
            axes.axvline(at[0], color=colour, linewidth=0.5, alpha=0.6)
            axes.axhline(at[1], color=colour, linewidth=0.5, alpha=0.6)
            axes.plot(*at, "o", color=colour, markersize=7, markerfacecolor="none")
            axes.set_axis_off()
        upper.set_title(panel.caption, fontsize=8)
    save_figure(figure, path)
