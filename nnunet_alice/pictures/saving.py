"""Storing a figure."""

import os

from matplotlib.figure import Figure

from nnunet_alice.files import atomic_write


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 100) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
