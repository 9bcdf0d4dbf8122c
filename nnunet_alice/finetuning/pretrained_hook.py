"""Lets a trainer load ``-pretrained_weights`` itself.

``nnUNetv2_train`` hands the trainer's network and the file to a function of its own. That copies equally named tensors
of ``network_weights`` and knows nothing else of the file; neither trainer nor network is asked. So the trainer takes
that function's place for its own network. Any other network still goes to nnU-Net's.
"""

import weakref
from typing import Protocol

from torch import nn


class LoadsItself(Protocol):
    """A trainer that loads pretrained weights itself."""

    network: nn.Module

    def load_pretrained_weights(self, filename: str) -> None:
        """Load the weights of a file."""
        ...


def load_pretrained_weights_by(trainer: LoadsItself) -> None:
    """Make ``-pretrained_weights`` for ``trainer.network`` call ``trainer.load_pretrained_weights(file)``.

    The trainer is not kept alive.
    """
    from nnunetv2.run import run_training

    current = run_training.load_pretrained_weights
    stock = getattr(current, "stock", current)
    owner = weakref.ref(trainer)

    def load(network: nn.Module, fname: str, verbose: bool = False) -> None:
        trainer = owner()
        if trainer is not None and network is trainer.network:
            trainer.load_pretrained_weights(fname)
        else:
            stock(network, fname, verbose)

    load.stock = stock  # type: ignore[attr-defined]  # marks the function, so that nobody hooks it twice
    run_training.load_pretrained_weights = load
