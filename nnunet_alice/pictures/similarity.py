"""What the anatomical embedding finds: a query point, and how similar every voxel of a different case is to it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from nnunet_alice.pictures.saving import save_figure


@dataclass(frozen=True)
class SimilarityExample:
    """One query and its answer.

    Attributes:
        query: (z, y, x) crop of case A, one channel.
        target: (z, y, x) crop of case B.
        point_vox: (3,) the query point in the crop of A.
        fine: (z, y, x) cosine of fine descriptors with every voxel of B's crop.
        coarse: the same of coarse descriptors.
        allowed: bool (z, y, x), voxels of B's crop that may be the match (its body).
        query_name: shown above the query.
        target_name: shown above the target.
    """

    query: np.ndarray
    target: np.ndarray
    point_vox: Sequence[float]
    fine: np.ndarray
    coarse: np.ndarray
    allowed: np.ndarray
    query_name: str
    target_name: str

    @property
    def mean(self) -> np.ndarray:
        """(z, y, x) mean of both similarities: what the match maximises."""
        return (self.fine + self.coarse) / 2

    @property
    def match_vox(self) -> tuple[int, ...]:
        """The most similar allowed voxel of B's crop."""
        mean = np.where(self.allowed, self.mean, -np.inf)
        return tuple(int(i) for i in np.unravel_index(int(mean.argmax()), mean.shape))


def draw_similarity(
    examples: Sequence[SimilarityExample], spacing_mm: Sequence[float], path: str | os.PathLike
) -> None:
    """Draw each example in two rows: axial and coronal (head up) slices through the query and through its match.

    Args:
        examples: what to draw.
        spacing_mm: (3,) voxel size, (z, y, x).
        path: PNG to write.
    """
    titles = ("query", "match", "fine", "coarse", "mean")
    figure = Figure(figsize=(2.5 * len(titles), 4.8 * len(examples) + 0.2), layout="constrained")
    grid = figure.subplots(2 * len(examples), len(titles), squeeze=False)
    for number, example in enumerate(examples):
        match = example.match_vox
        query = tuple(
            int(np.clip(round(p), 0, n - 1)) for p, n in zip(example.point_vox, example.query.shape, strict=True)
        )
        low, high = np.percentile(np.concatenate([example.query.ravel(), example.target.ravel()]), [0.5, 99.5])
        high = max(high, low + 1e-6)
        names = (example.query_name, f"{example.target_name}, score {example.mean[match]:.2f}", "", "", "")
        for axis in (0, 1):
            aspect = spacing_mm[1 - axis] / spacing_mm[2]
            row = grid[2 * number + axis]
            for axes, title, name in zip(row, titles, names, strict=True):
                place = query if title == "query" else match
                volume = example.query if title == "query" else example.target
                style = {"origin": "upper" if axis == 0 else "lower", "aspect": aspect}
                axes.imshow(volume.take(place[axis], axis), cmap="gray", vmin=low, vmax=high, **style)
                if title in ("fine", "coarse", "mean"):
                    values = getattr(example, title).take(place[axis], axis)
                    # One scale a map: raw cosines lie close together, and where they peak is what matters.
                    whole = getattr(example, title)[example.allowed]
                    limits = {"vmin": float(whole.min()), "vmax": float(whole.max())}
                    axes.imshow(values, cmap="inferno", alpha=0.65, **limits, **style)
                    if axis == 0:
                        name = f"{limits['vmin']:.2f} to {limits['vmax']:.2f}"
                across, up = place[2], place[1 - axis]
                axes.plot(across, up, "+", color="tab:red" if title == "query" else "tab:cyan", markersize=10)
                axes.set_axis_off()
                if axis == 0:
                    axes.set_title(f"{title}\n{name}", fontsize=7)
    save_figure(figure, path, 90)
