"""Records, bad steps, optimisation and the watch for collapse."""

import csv
import math

import pytest
import torch
from torch import nn

from nnunet_alice.pretraining.collapse import signs_of_collapse
from nnunet_alice.pretraining.history import MetricsHistory, mean_metrics
from nnunet_alice.pretraining.nonfinite import BufferCopies, NonFiniteSteps
from nnunet_alice.pretraining.optimisation import clip_each_gradient, decay_groups, set_learning_rate, set_weight_decay

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
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"epoch": "0", "loss": "2", "new": ""}, {"epoch": "1", "loss": "0.5", "new": "7"}]
    assert math.isnan(history.column("new")[0]) and history.column("loss") == [2, 0.5]


def test_mean_metrics_counts_only_steps_that_have_them():
    assert mean_metrics([{"a": 1.0, "b": 4.0}, {"a": torch.tensor(3.0)}]) == {"a": 2.0, "b": 4.0}


def test_finite_losses_start_the_count_of_bad_steps_anew():
    steps = NonFiniteSteps(3)
    seen = [(steps.leaves_out(torch.tensor(loss)), steps.too_many()) for loss in (1, math.nan, math.inf, 2, math.nan)]
    assert seen == [(False, False), (True, False), (True, False), (False, False), (True, False)]
    assert [steps.leaves_out(torch.tensor(-math.inf)) and steps.too_many() for _ in range(2)] == [False, True]


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


def test_weight_decay_spares_biases_and_norms():
    module = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2, affine=True), nn.Linear(2, 2))
    module[2].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(decay_groups(module), lr=1.0)
    set_learning_rate(optimizer, 0.25)
    set_weight_decay(optimizer, 0.4)
    decayed, spared = optimizer.param_groups
    assert {id(p) for p in decayed["params"]} == {id(module[0].weight), id(module[2].weight)}
    assert {id(p) for p in spared["params"]} == {id(module[0].bias), id(module[1].weight), id(module[1].bias)}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.4, 0.0)
    assert decayed["lr"] == spared["lr"] == 0.25


def test_each_gradient_is_clipped_on_its_own():
    short, long, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    short.grad, long.grad = torch.tensor([0.6, 0.8]), torch.tensor([30.0, 40.0])
    clip_each_gradient([short, long, none], 3.0)
    torch.testing.assert_close(short.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(long.grad, torch.tensor([1.8, 2.4]))
    assert none.grad is None
