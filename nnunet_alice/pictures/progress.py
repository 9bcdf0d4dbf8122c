"""Curves of a pretraining run: ``progress.png``."""

import os
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from nnunet_alice.pictures.saving import save_figure
from nnunet_alice.training.history import MetricsHistory


@dataclass(frozen=True)
class _Panel:
    """One set of axes: the metrics whose names start with one of these prefixes."""

    title: str
    prefixes: tuple[str, ...]
    log_scale: bool = False


_PANELS = (
    _Panel("losses", ("loss", "val_loss"), log_scale=True),
    _Panel("entropies of the teacher's targets (nats)", ("conditional_entropy", "marginal_entropy", "token_index")),
    _Panel("collapse diagnostics", ("spread", "centre_norm")),
    _Panel("negatives of a sample, and their age in steps", ("negative",)),
    _Panel("retrieval and accuracies", ("retrieval", "chance", "accuracy")),
    _Panel("scores in validation", ("val_auc", "val_r2", "val_c_index")),
    _Panel("online probe: Dice, and share of dead channels", ("probe", "bottleneck_dead")),
    _Panel("effective rank of the bottleneck", ("bottleneck_rank",)),
    _Panel("matching", ("match_score", "accepted_at_first_draw", "unmatched_pairs")),
    _Panel("learning rate", ("lr",)),
    _Panel("seconds an epoch", ("seconds",)),
    _Panel("views a second", ("views_per_second",)),
)


def draw_progress(history: MetricsHistory, path: str | os.PathLike) -> None:
    """Draw all metrics over epochs, a panel for each group that the run has.

    Args:
        history: the run's rows.
        path: PNG to write.
    """
    names = [name for name in history.names() if name != "epoch"]
    panels = [(panel, [name for name in names if name.startswith(panel.prefixes)]) for panel in _PANELS]
    panels = [(panel, members) for panel, members in panels if members]
    columns = 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7.5 * columns, 3.2 * rows), layout="constrained")
    epochs = history.column("epoch")
    for axes, (panel, members) in zip(np.ravel(figure.subplots(rows, columns, squeeze=False)), panels, strict=False):
        for name in members:
            values = np.array(history.column(name))
            known = ~np.isnan(values)  # some are not measured in every epoch
            axes.plot(np.array(epochs)[known], values[known], label=name, marker="." if known.sum() < 30 else None)
        positive = [value for name in members for value in history.column(name) if value > 0]
        if panel.log_scale and positive:
            axes.set_yscale("log")
        axes.set_title(panel.title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    save_figure(figure, path, 80)
