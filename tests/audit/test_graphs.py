"""``torch.compile``: as many graphs as recorded, and none broken (traced on the CPU, without generating code)."""

import copy
import functools

import pytest
import torch
from support.audited import begin, losses, rows, short_trainer

COMPILED = ("Alice", "Alice noContrast", "DrasCLR", "Embedding")


@pytest.fixture
def traced(monkeypatch):
    """``torch.compile`` traces and runs what it has traced."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(*COMPILED), ids=lambda row: row.name)
def test_graphs_and_breaks_are_as_recorded(row, folders, traced):
    eager = short_trainer(row, torch.device("cpu"))
    batches = begin(eager)
    expected = losses(eager, copy.deepcopy(batches))
    assert not traced["stats"]
    trainer = short_trainer(row, torch.device("cpu"))
    trainer._do_i_compile = lambda: True
    begin(trainer)
    found = losses(trainer, batches)
    made = (traced["stats"]["unique_graphs"], sum(traced["graph_break"].values()))
    assert made == (row.graphs, row.breaks), dict(traced["graph_break"])
    assert found == pytest.approx(expected, rel=1e-3)
