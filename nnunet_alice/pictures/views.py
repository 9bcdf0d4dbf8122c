"""What Alice sees: query view, matched anchor view, masked input and reconstruction, side by side: ``views.png``."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nnunet_alice.pictures.saving import save_figure
from nnunet_alice.views.pairs import PointPair

_MAX_PAIRS = 4


def draw_views(
    queries: np.ndarray,
    anchors: np.ndarray,
    masks: np.ndarray,
    reconstructions: np.ndarray | None,
    pairs: Sequence[PointPair],
    path: str | os.PathLike,
) -> None:
    """Draw the middle slices of a few pairs, two rows a pair: axial (first axis cut) and coronal (second axis cut).

    A cross marks the matched point, which is the middle of both views.

    Args:
        queries: (B, C, *patch); the first channel is drawn.
        anchors: (B, C, *patch).
        masks: (B, *patch) bool, the queries' masks.
        reconstructions: (B, C, *patch) of the masked queries, or None.
        pairs: the B point pairs.
        path: PNG to write.
    """
    count = min(_MAX_PAIRS, len(pairs))
    titles = ["query", "anchor", "masked query"] + ([] if reconstructions is None else ["reconstruction"])
    figure = Figure(figsize=(2.6 * len(titles), 2.6 * 2 * count + 0.3), layout="constrained")
    grid = figure.subplots(2 * count, len(titles), squeeze=False)
    for index, pair in enumerate(pairs[:count]):
        query, anchor = queries[index, 0], anchors[index, 0]
        volumes = [query, anchor, np.where(masks[index], 0, query)]
        if reconstructions is not None:
            volumes.append(reconstructions[index, 0])
        low, high = np.percentile(np.concatenate([query.ravel(), anchor.ravel()]), [0.5, 99.5])
        for axis in (0, 1):
            middle = query.shape[axis] // 2
            centre = [size // 2 for other, size in enumerate(query.shape) if other != axis]
            for column, (title, volume) in enumerate(zip(titles, volumes, strict=True)):
                axes = grid[2 * index + axis, column]
                # z points to the head in nnU-Net's arrays of SimpleITK images: draw coronal slices head up
                origin = "upper" if axis == 0 else "lower"
                axes.imshow(volume.take(middle, axis), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin=origin)
                axes.set_axis_off()
                if column < 2:
                    axes.plot(centre[1], centre[0], "+", color="tab:red", markersize=9)
                if axis == 0:
                    score = f", score {pair.score:.2f}" if pair.accepted else ""
                    note = {0: pair.case_a, 1: f"{pair.case_b}{score}"}.get(column, "")
                    axes.set_title(f"{title}\n{note}" if note else title, fontsize=7)
    save_figure(figure, path, 90)
