"""Records, steps that are not finite, and the watch for collapse."""

import csv
import math

import pytest
import torch
from torch import nn

from nnunet_alice.pretraining.collapse import signs_of_collapse
from nnunet_alice.training.history import MetricsHistory, mean_metrics
from nnunet_alice.training.nonfinite import BufferCopies, SkippedSteps, all_finite, finite_on_all_ranks

ALIVE = {
    "spread": 0.5,
    "conditional_entropy_cls": 2.0,
    "marginal_entropy_cls": 5.0,
    "conditional_entropy_align": 2.0,
    "marginal_entropy_align": 5.0,
    "token_index_information": 0.1,
}


def test_history_writes_all_rows_and_late_columns(tmp_path):
    history = MetricsHistory([{"epoch": 0, "loss": 2}])
    history.append({"epoch": 1, "loss": torch.tensor(0.5), "new": 7})
    history.write_csv(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"epoch": "0", "loss": "2", "new": ""}, {"epoch": "1", "loss": "0.5", "new": "7"}]
    assert math.isnan(history.column("new")[0]) and history.column("loss") == [2, 0.5]


def test_mean_metrics_counts_only_steps_that_have_them():
    assert mean_metrics([{"a": 1.0, "b": 4.0}, {"a": torch.tensor(3.0)}]) == {"a": 2.0, "b": 4.0}


def test_a_step_that_measured_nothing_does_not_count_but_a_loss_that_is_no_number_does():
    nothing = {"loss": 1.0, "region_accuracy": torch.tensor(math.nan), "negative_age": math.nan}
    mean = mean_metrics([nothing, {"loss": 3.0, "region_accuracy": torch.tensor(0.5), "negative_age": math.nan}])
    assert (mean["loss"], mean["region_accuracy"]) == (2.0, 0.5) and math.isnan(mean["negative_age"])
    assert math.isnan(mean_metrics([{"loss": 1.0}, {"loss": math.nan}])["loss"])


def test_an_ordinary_step_ends_the_count_of_skipped_ones():
    steps, seen = SkippedSteps(3), []
    for skipped in (False, True, True, False, True, True, True):
        steps.count(skipped)
        seen.append((steps.in_a_row, steps.too_many()))
    assert seen == [(0, False), (1, False), (2, False), (0, False), (1, False), (2, False), (3, True)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_found(bad):
    assert finite_on_all_ranks(torch.tensor(1.0)) and not finite_on_all_ranks(torch.tensor(bad))
    tensors = [torch.ones(3), torch.ones(2, 2), torch.ones(())]
    assert all_finite([]) and all_finite(tensors)
    tensors[1][1, 0] = bad
    assert not all_finite(tensors)


def test_copies_give_buffers_their_values_back_in_place():
    norm = nn.BatchNorm1d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    mean, copies = norm.running_mean, BufferCopies(norm.buffers())
    norm(torch.full((3, 2), math.nan))
    assert norm.running_mean.isnan().all()
    copies.restore()
    assert norm.running_mean is mean and all(torch.equal(before[name], v) for name, v in norm.state_dict().items())


def test_a_living_run_raises_no_alarm():
    assert signs_of_collapse(ALIVE, prototypes=512, tokens=64) == []
    assert signs_of_collapse({"loss": 1.0}, prototypes=512, tokens=1) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spread": 0.001}, "look alike"),
        ({"conditional_entropy_cls": math.log(512)}, "targets say nothing"),
        ({"conditional_entropy_align": math.log(512)}, "targets say nothing"),
        ({"marginal_entropy_cls": 0.01}, "one prototype"),
        ({"token_index_information": 3.5}, "place, not content"),
    ],
)
def test_each_kind_of_collapse_is_seen(change, words):
    (sign,) = signs_of_collapse(ALIVE | change, prototypes=512, tokens=64)
    assert words in sign
