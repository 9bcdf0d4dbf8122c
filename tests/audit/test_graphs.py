"""``torch.compile``: as many graphs as recorded, and none broken (traced on the CPU, without generating code)."""

import copy
import functools
from dataclasses import dataclass, replace

import pytest
import torch
from support.audited import begin, losses, rows, short_trainer
from torch._dynamo.backends.debugging import aot_eager

COMPILED = ("Alice", "Alice noContrast", "DrasCLR", "Embedding", "FineTune", "DrasCLRFineTune")


@dataclass
class Traced:
    """What ``torch.compile`` made so far.

    Attributes:
        graphs: number of them.
        symbolic: how many of these take a size as an argument, thus expect others.
    """

    graphs: int = 0
    symbolic: int = 0

    @property
    def breaks(self) -> dict[str, int]:
        """Places where a graph ends early, and how often."""
        return dict(torch._dynamo.utils.counters["graph_break"])

    def __call__(self, graph, inputs):
        self.graphs += 1
        self.symbolic += any(isinstance(x, torch.SymInt) for x in inputs)
        return aot_eager(graph, inputs)


@pytest.fixture
def traced(monkeypatch):
    """``torch.compile`` traces and runs what it has traced."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = Traced()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=made))
    yield made
    torch._dynamo.reset()


def compiled_trainer(row):
    trainer = short_trainer(row, torch.device("cpu"))
    trainer._do_i_compile = lambda: True
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(*COMPILED), ids=lambda row: row.name)
def test_graphs_and_breaks_are_as_recorded(row, folders, traced):
    eager = short_trainer(row, torch.device("cpu"))
    batches = begin(eager)
    expected = losses(eager, copy.deepcopy(batches))
    assert not traced.graphs
    trainer = compiled_trainer(row)
    begin(trainer)
    found = losses(trainer, batches)
    assert (traced.graphs, sum(traced.breaks.values())) == (row.graphs, row.breaks), traced.breaks
    # nnU-Net compiles its Dice, which deep supervision calls with several sizes
    assert traced.symbolic == ("FineTune" in row.name)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_every_size_of_a_batch_is_compiled_once(folders, traced):
    """Batches of DrasCLR are smaller where few cases show a landmark."""
    (row,) = rows("DrasCLR")
    trainer = compiled_trainer(row)
    batch = begin(trainer)[0]
    views = batch.views.unflatten(0, (-1, len(batch.subjects)))
    made = []
    for size in (4, 2, 4, 2):
        part = {"views": views[:, :size].flatten(0, 1), "subjects": batch.subjects[:size], "cases": batch.cases[:size]}
        losses(trainer, [replace(batch, **part)])
        made.append(traced.graphs / row.graphs)
    assert made == [1, 2, 2, 2] and traced.symbolic == 0


@pytest.mark.slow
def test_validation_adds_as_many_graphs_as_training_has_and_later_epochs_none(folders, traced):
    (row,) = rows("Alice")
    trainer = compiled_trainer(row)
    batches = begin(trainer)
    made = []
    for _ in range(2):
        losses(trainer, batches)
        made.append(traced.graphs / row.graphs)
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(next(trainer.dataloader_val))
        made.append(traced.graphs / row.graphs)
        trainer.on_train_epoch_start()
    assert made == [1, 2, 2, 2] and traced.symbolic == 0
