"""Two ranks hold equal tensors after training by every method, eager and compiled."""

import functools

import pytest
import torch
from support.audited import rows, short_trainer
from support.gloo_ranks import needs_distributed, on_ranks

from nnunet_alice.training.devices import place

pytestmark = [needs_distributed, pytest.mark.slow]

METHODS = ("Alice", "DrasCLR", "Embedding", "FineTune")


def run(row, compiled: bool) -> dict[str, torch.Tensor]:
    """Everything that a rank holds after a run."""
    trainer = short_trainer(row, torch.device("cpu"), steps=2)
    place(trainer, torch.device("cpu"))
    trainer._do_i_compile = lambda: compiled
    trainer.initialize()
    trainer.num_val_iterations_per_epoch = 2  # retrieval needs two pairs
    trainer.run_training()
    model = trainer.model if row.pretrains else trainer.bare_network
    return {name: value.clone() for name, value in model.state_dict().items()}


def run_all(rank, *_):
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    return {
        f"{row.name}, compiled {compiled}": run(row, compiled) for row in rows(*METHODS) for compiled in (False, True)
    }


def test_ranks_agree(folders, tmp_path):
    first, second = on_ranks(run_all, tmp_path)
    assert len(first) == 2 * len(METHODS)
    for name, state in first.items():
        for tensor, value in state.items():
            assert torch.equal(value, second[name][tensor]) and value.isfinite().all(), f"{name}: {tensor}"
