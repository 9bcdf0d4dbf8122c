"""Records, variants, optimisation and the watch for collapse."""

import csv
import math
from types import ModuleType

import pytest
import torch
from tiny_networks import tiny_unet
from torch import nn

from nnunet_alice.pretraining.collapse import signs_of_collapse
from nnunet_alice.pretraining.history import MetricsHistory, mean_metrics
from nnunet_alice.pretraining.nonfinite import BufferCopies, NonFiniteSteps
from nnunet_alice.pretraining.optimisation import clip_each_gradient, decay_groups, set_learning_rate, set_weight_decay
from nnunet_alice.trainers import alice
from nnunet_alice.training.cpu_convolutions import SMALL_IMAGE, channels_last_on_cpu, small_images_twice_on_cpu
from nnunet_alice.training.variants import epochs_variant, with_learning_rate

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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AliceTrainer", "AliceTrainer_lr0.0001"),
        ("AliceTrainer_lr3e-3_30epochs", "AliceTrainer_30epochs_lr0.0001"),
        ("AliceTrainer_noCASA", "AliceTrainer_noCASA_lr0.0001"),
    ],
)
def test_a_trainer_of_another_rate_is_found_by_the_name_that_is_advised(name, expected):
    assert with_learning_rate(name, 1e-4) == expected
    assert getattr(alice, with_learning_rate(name, 2.5e-6)).learning_rate == 2.5e-6


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


def variants_module():
    module = ModuleType("some_trainers")
    module.Trainer = type("Trainer", (), {"epochs": 1000, "__module__": "some_trainers"})
    module.Imported = type("Imported", (), {"epochs": 1000, "__module__": "elsewhere"})
    module.Other = type("Other", (), {"__module__": "some_trainers"})
    module.__getattr__ = lambda name: epochs_variant(name, vars(module))
    return module


def test_variants_are_found_as_nnunet_looks_for_them():
    module = variants_module()
    for name, epochs in (("Trainer_300epochs", 300), ("Trainer_1epoch", 1)):
        assert hasattr(module, name)
        variant = getattr(module, name)
        assert variant.__name__ == name and variant.epochs == epochs and issubclass(variant, module.Trainer)


@pytest.mark.parametrize(
    "name", ["Trainer_0epochs", "Missing_3epochs", "Imported_3epochs", "Other_3epochs", "Trainer_xepochs", "Nothing"]
)
def test_other_names_are_not_there(name):
    assert not hasattr(variants_module(), name)


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


def test_channels_last_changes_the_order_in_memory_and_nothing_else():
    torch.manual_seed(0)
    module = tiny_unet(features=(4, 8, 32))
    parameters, images = list(module.parameters()), torch.randn(2, 1, 8, 8, 8)
    state = {name: value.clone() for name, value in module.state_dict().items()}

    def gradients():
        module.zero_grad()
        output = module(images)
        output.square().mean().backward()
        return [output.detach(), *(parameter.grad for parameter in parameters)]

    def last():
        return [m.weight.is_contiguous(memory_format=torch.channels_last_3d) for m in narrow]

    # a convolution of one input channel, or of one voxel, is in both orders at once
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv3d) and m.in_channels > 1]
    narrow = [m for m in convolutions if m.out_channels <= 16 and m.kernel_size == (3, 3, 3)]
    wide = [m for m in convolutions if m.out_channels == 32]
    before = gradients()
    channels_last_on_cpu(module, torch.device("cuda"))
    assert narrow and wide and not any(last())
    channels_last_on_cpu(module, torch.device("cpu"))
    assert all(last()) and all(m.weight.is_contiguous() for m in wide)
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    for a, b in zip(before, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "batch", "size", "seen"),
    [
        ("cpu", 1, 8, 2),
        ("cpu", 2, 8, 2),
        ("cpu", 3, 8, 3),
        ("cuda", 1, 8, 1),
        ("cpu", 1, 80, 1),
    ],
)
def test_a_single_small_image_is_predicted_twice_and_answered_once(device, batch, size, seen):
    torch.manual_seed(0)
    module, images = tiny_unet(features=(4, 8, 12)), torch.randn(batch, 1, size, size, 4)
    assert (4 * size * size <= SMALL_IMAGE) == (size == 8)
    counts = []
    module.encoder.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    with torch.inference_mode():
        alone = module(images)
        with small_images_twice_on_cpu(module, torch.device(device)):
            within = module(images)
        after = module(images)
    assert counts == [batch, seen, batch]
    torch.testing.assert_close(within, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, alone)


def test_a_network_is_itself_again_after_an_error_within():
    module = tiny_unet()
    with pytest.raises(RuntimeError), small_images_twice_on_cpu(module, torch.device("cpu")):
        module(torch.zeros(1, 1, 6, 6, 6))  # strides do not fit
    assert not module._forward_hooks and not module._forward_pre_hooks
