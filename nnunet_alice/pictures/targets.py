"""Pictures of predictions of whole cases: calibration, truth against prediction, and what decided."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from nnunet_alice.pictures.probe import draw_scatter, draw_survival
from nnunet_alice.pictures.saving import save_figure

#: most classes, labels or columns that get a panel
_PANELS = 6


def draw_predictions(
    task: str, columns: Sequence[str], classes: Sequence[str], table: pd.DataFrame, path: str | os.PathLike
) -> None:
    """Draw predictions beside the truth.

    Classes and labels: receiver operating characteristic and calibration. Numbers: true against predicted. Survival:
    share without event, by thirds of the predicted risk.

    Args:
        task: of ``targets.definitions.TASKS``.
        columns: of the target.
        classes: of a classification.
        table: as ``predictions.csv`` holds it.
        path: PNG to write.
    """
    if task == "survival":
        figure, axes = _figure(1)
        named = {f"true_{columns[0]}": "target", f"true_{columns[1]}": "event"}
        draw_survival(axes[0], table.rename(columns=named))
    elif task == "regression":
        figure, axes = _figure(min(len(columns), _PANELS))
        for panel, name in zip(axes, columns, strict=False):
            draw_scatter(panel, table.rename(columns={f"true_{name}": "target", f"predicted_{name}": "predicted"}))
            panel.set_title(name, fontsize=9)
    else:
        figure, axes = _figure(2)
        truth = {name: table[f"true_{name}"].to_numpy() for name in columns}
        if task == "classification":
            shown = classes[1:] if len(classes) == 2 else classes
            truth = {name: (truth[columns[0]] == name).astype(float) for name in shown}
        for name in list(truth)[:_PANELS]:
            known = pd.notna(truth[name])
            _operating(axes, truth[name][known], table[f"probability_{name}"].to_numpy()[known], name)
    save_figure(figure, Path(path))


def draw_occlusion(
    image: np.ndarray, change: np.ndarray, block: Sequence[int], path: str | os.PathLike, title: str = ""
) -> None:
    """Draw three slices through the block that matters most, with the change over them.

    Args:
        image: (z, y, x).
        change: (blocks...), NaN where nothing was covered; red where the prediction falls when it is covered.
        block: (3,) voxels of a block, (z, y, x).
        path: PNG to write.
        title: above the picture.
    """
    figure, axes = _figure(3)
    known = np.nan_to_num(change)
    middle = (np.array(np.unravel_index(np.abs(known).argmax(), known.shape)) + 0.5) * block
    middle = np.minimum(middle.astype(int), np.array(image.shape) - 1)
    full = change
    for axis, size in enumerate(block):
        full = np.repeat(full, size, axis=axis)
    full = full[tuple(map(slice, image.shape))]
    low, high = np.percentile(image, [1, 99])
    most = max(float(np.abs(known).max()), float(np.finfo(np.float32).tiny))
    for axis, panel in enumerate(axes):
        panel.imshow(image.take(middle[axis], axis), cmap="gray", vmin=low, vmax=high)
        shown = panel.imshow(full.take(middle[axis], axis), cmap="seismic", vmin=-most, vmax=most, alpha=0.35)
        panel.set_title(f"{'zyx'[axis]} = {middle[axis]}", fontsize=8)
        panel.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=0.7, label="fall of the prediction")
    figure.suptitle(title, fontsize=9)
    save_figure(figure, Path(path))


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.6 * columns, 4.2), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0].tolist()


def _operating(axes: Sequence[Axes], truth: np.ndarray, probability: np.ndarray, name: str) -> None:
    curve, calibration = axes
    truth = truth.astype(int)
    if len(set(truth)) == 2:
        false, true, _ = roc_curve(truth, probability)
        curve.plot(false, true, label=name)
        bins = min(10, max(2, len(truth) // 10))
        shares, means = calibration_curve(truth, probability, n_bins=bins, strategy="quantile")
        calibration.plot(means, shares, marker="o", label=name)
    names = (("false positive rate", "true positive rate"), ("predicted", "observed"))
    for panel, (across, up) in zip(axes, names, strict=True):
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
        panel.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        panel.legend(fontsize=8)
