"""The demo's last picture: one test case segmented by both runs, and how both learned."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from nnunet_alice.pictures.benchmark import Example, draw_row
from nnunet_alice.pictures.saving import save_figure


def draw_demo(example: Example, curves: Mapping[str, Sequence[float]], path: str | os.PathLike) -> None:
    """Draw image, truth and both segmentations in a row, and the learning curves beside them.

    Args:
        example: the case; the segmentations of all runs.
        curves: run -> Dice after every epoch.
        path: PNG to write.
    """
    panels = 1 + len(example.segmentations)
    figure = Figure(figsize=(2.9 * panels + 3.6, 3.4), layout="constrained")
    *row, axes = figure.subplots(1, panels + 1, width_ratios=[1.0] * panels + [1.2])
    draw_row(row, example)
    for run, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=run)
    axes.set_xlabel("epoch of training on labels")
    axes.set_ylabel("Dice of random training patches")
    axes.set_ylim(0, 1)
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    save_figure(figure, path, 110)
