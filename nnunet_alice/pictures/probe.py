"""Plot of a linear probe's out-of-fold predictions."""

import os

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_alice.pictures.saving import save_figure


def draw_probe(predictions: pd.DataFrame, task: str, path: str | os.PathLike, title: str = "") -> None:
    """Draw a confusion matrix, predicted against true values, or the survival of thirds of predicted risk.

    Args:
        predictions: of `nnunet_alice.features.probe.ProbeResult`.
        task: ``classification``, ``regression`` or ``survival``.
        path: PNG to write.
        title: above the plot.
    """
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=9)
    {"classification": _confusion, "regression": draw_scatter, "survival": draw_survival}[task](axes, predictions)
    save_figure(figure, path, 110)


def _confusion(axes: Axes, predictions: pd.DataFrame) -> None:
    classes = sorted(set(predictions["target"]) | set(predictions["predicted"]))
    counts = pd.crosstab(predictions["target"], predictions["predicted"]).reindex(
        index=classes, columns=classes, fill_value=0
    )
    shares = counts.to_numpy() / np.maximum(counts.sum(axis=1).to_numpy()[:, None], 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{counts.iat[row, column]}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")


def draw_scatter(axes: Axes, predictions: pd.DataFrame) -> None:
    """Draw ``predicted`` against ``target``."""
    axes.scatter(predictions["target"], predictions["predicted"], s=14, alpha=0.6)
    ends = [predictions["target"].min(), predictions["target"].max()]
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.set(xlabel="true", ylabel="predicted")


def draw_survival(axes: Axes, predictions: pd.DataFrame) -> None:
    """Draw the Kaplan-Meier estimate of each third of the risk (columns ``target``, ``event``, ``risk``)."""
    thirds = np.ceil(predictions["risk"].rank(pct=True) * 3).astype(int) - 1
    for number, name in enumerate(("low risk", "middle", "high risk")):
        group = predictions[thirds == number]
        by_time = group.groupby("target")["event"].agg(["sum", "size"])
        at_risk = len(group) - by_time["size"].cumsum().shift(fill_value=0)
        share = (1 - by_time["sum"] / at_risk).cumprod()
        axes.step([0, *share.index], [1, *share], where="post", label=f"{name} ({len(group)})")
    axes.set(xlabel="time", ylabel="share without event", ylim=(0, 1.02))
    axes.legend(fontsize=8)
