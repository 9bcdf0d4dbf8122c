"""Pictures of a benchmark: Dice over the number of labels, and cases with their segmentations."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_alice.pictures.saving import save_figure

#: one colour an arm or a class, in their order
_COLOURS = [colormaps["tab10"](number)[:3] for number in range(10)]


def draw_label_efficiency(
    summary: pd.DataFrame, path: str | os.PathLike, metric: str = "dice", title: str = "Dice, mean over classes"
) -> None:
    """Draw a metric of every arm over the number of labelled cases, a panel for each share of the run.

    Args:
        summary: of ``nnunet_alice.benchmark.report.summarise``.
        path: PNG to write.
        metric: of the summary.
        title: how to call it.
    """
    rows = summary[(summary["metric"] == metric) & (summary["class"] == "mean")]
    shares, arms = sorted(rows["percent"].unique()), list(rows["arm"].unique())
    labels = sorted(rows["labels"].unique())
    figure = Figure(figsize=(4.2 * len(shares) + 0.6, 4.0), layout="constrained")
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        for number, arm in enumerate(arms):
            own = rows[(rows["percent"] == share) & (rows["arm"] == arm)].sort_values("labels")
            # intervals of arms beside each other, by a shift that looks equal on the logarithmic axis
            at = own["labels"] * 1.03 ** (number - (len(arms) - 1) / 2)
            errors = [own["mean"] - own["low"], own["high"] - own["mean"]]
            colour = _COLOURS[number % len(_COLOURS)]
            axes.errorbar(at, own["mean"], yerr=errors, marker="o", markersize=4, capsize=2, color=colour, label=arm)
        axes.set_xscale("log")
        axes.set_xticks(labels, [str(count) for count in labels])
        axes.minorticks_off()
        axes.set_title("at the end of fine-tuning" if share == 100 else f"at {share} % of fine-tuning", fontsize=10)
        axes.set_xlabel("labelled cases")
        axes.grid(color="0.92")
    panels[0].set_ylabel(f"{title} (95 % interval)")
    panels[-1].legend(loc="lower right", fontsize=8)
    save_figure(figure, path, 110)


@dataclass(frozen=True)
class Example:
    """A slice of a case with its segmentations.

    Attributes:
        title: of the row.
        image: (y, x) intensities.
        segmentations: caption -> (y, x) labels.
        aspect: height of a pixel over its width.
    """

    title: str
    image: np.ndarray
    segmentations: Mapping[str, np.ndarray]
    aspect: float


def axial_example(
    title: str,
    image: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
    ignore_label: int | None = None,
) -> Example:
    """Cut the axial slice in which the truth is largest.

    Args:
        title: of the row.
        image: (z, y, x).
        segmentations: caption -> (z, y, x) labels; the one called ``truth`` chooses the slice.
        spacing_mm: (3,) voxel size, (z, y, x).
        ignore_label: value of the truth that is not scored: nothing is shown there.
    """
    truth = segmentations["truth"]
    ignored = truth == ignore_label
    z = int(np.argmax(((truth > 0) & ~ignored).sum(axis=(1, 2))))
    slices = {name: np.where(ignored[z], 0, array[z]) for name, array in segmentations.items()}
    return Example(title, image[z], slices, spacing_mm[1] / spacing_mm[2])


def draw_examples(examples: Sequence[Example], path: str | os.PathLike) -> None:
    """Draw each case in a row: the image, then the image with each segmentation.

    Args:
        examples: as many segmentations in each.
        path: PNG to write.
    """
    columns = 1 + len(examples[0].segmentations)
    figure = Figure(figsize=(2.9 * columns, 3.1 * len(examples)), layout="constrained")
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        draw_row(row, example)
    save_figure(figure, path)


def draw_row(row: Sequence[Axes], example: Example) -> None:
    """Draw a case: the image, then the image with each segmentation.

    Args:
        row: one more axes than there are segmentations.
        example: the case.
    """
    low, high = np.percentile(example.image, [1, 99])
    panels = {example.title: np.zeros_like(next(iter(example.segmentations.values()))), **example.segmentations}
    for axes, (caption, labels) in zip(row, panels.items(), strict=True):
        axes.imshow(example.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=example.aspect)
        overlay = np.zeros((*labels.shape, 4))
        for label in np.unique(labels[labels > 0]).astype(int):
            overlay[labels == label] = (*_COLOURS[(label - 1) % len(_COLOURS)], 0.45)
        axes.imshow(overlay, aspect=example.aspect, interpolation="nearest")
        axes.set_title(caption, fontsize=8)
        axes.set_axis_off()
