"""The teacher follows its formula exactly, and nothing is averaged with a stranger."""

import pytest
import torch
from torch import nn

from nnunet_alice.methods.ema import frozen_copy, momentum_for, update_ema


def small_network(width=3, dtype=torch.float64):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2)).to(dtype)


def test_update_follows_the_formula_over_several_steps():
    torch.manual_seed(0)
    student = small_network()
    teacher = frozen_copy(student)
    expected = {name: value.clone() for name, value in teacher.named_parameters()}
    for momentum in (0.9, 0.25, 0.996):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_ema(teacher, student, momentum)
        for name, value in student.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * value.detach()
    for name, value in teacher.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=1e-13)


def test_momentum_one_keeps_and_zero_copies_to_the_bit():
    torch.manual_seed(0)
    student, teacher = small_network(dtype=torch.float32), small_network(dtype=torch.float32)
    before = [parameter.clone() for parameter in teacher.parameters()]
    update_ema(teacher, student, 1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))
    update_ema(teacher, student, 0.0)
    assert all(torch.equal(s, t) for s, t in zip(student.parameters(), teacher.parameters(), strict=True))


def test_buffers_are_copied_not_averaged():
    torch.manual_seed(0)
    student = small_network()
    teacher = frozen_copy(student)
    student(torch.randn(8, 4, dtype=torch.float64))
    update_ema(teacher, student, 0.99)
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)
    assert teacher[1].num_batches_tracked == 1
    assert teacher[1].running_mean.data_ptr() != student[1].running_mean.data_ptr()


def test_update_is_in_place_keeps_the_dtype_and_leaves_the_student_alone():
    torch.manual_seed(0)
    student, teacher = small_network(dtype=torch.bfloat16), small_network(dtype=torch.float32)
    kept = [parameter.clone() for parameter in student.parameters()]
    storage = [parameter.data_ptr() for parameter in teacher.parameters()]
    expected = [0.5 * t.detach() + 0.5 * s.detach().float() for s, t in zip(kept, teacher.parameters(), strict=True)]
    update_ema(teacher, student, 0.5)
    assert [parameter.data_ptr() for parameter in teacher.parameters()] == storage
    for value, want in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(value.detach(), want)
    assert all(torch.equal(old, new) for old, new in zip(kept, student.parameters(), strict=True))


def test_frozen_copy_has_storage_of_its_own_and_no_gradient():
    student = small_network()
    student.eval()
    teacher = frozen_copy(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not teacher.training
    with torch.no_grad():
        student[0].weight.zero_()
    assert teacher[0].weight.abs().min() > 0


def test_teacher_gets_no_gradient_through_a_shared_loss():
    student = small_network()
    teacher = frozen_copy(student)
    x = torch.randn(8, 4, dtype=torch.float64)
    (student(x) - teacher(x)).square().sum().backward()
    update_ema(teacher, student, 0.9)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize(
    "student, named",
    [
        (small_network(width=5), r"0.weight: \(3, 4\) and \(5, 4\)"),
        (nn.Sequential(*small_network(), nn.Linear(2, 2)), r"parameters: 3.bias, 3.weight"),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double(), r"buffers: 1\."),
    ],
)
def test_strangers_are_refused_and_the_teacher_stays(student, named):
    teacher = small_network()
    before = [value.clone() for value in teacher.state_dict().values()]
    with pytest.raises(ValueError, match=named):
        update_ema(teacher, student, 0.9)
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.state_dict().values(), strict=True))


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_outside_its_range_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum"):
        update_ema(small_network(), small_network(), momentum)


@pytest.mark.parametrize(
    ("steps", "expected"), [(10, 0.0), (20, 0.0), (40, 0.5), (2000, 0.99), (5000, 0.996), (10**6, 0.996)]
)
def test_the_memory_of_a_short_run_is_a_twentieth_of_it(steps, expected):
    """1 / (1 - momentum) steps are remembered."""
    momentum = momentum_for(steps, 0.996)
    assert momentum == pytest.approx(expected)
    assert 1 / (1 - momentum) <= max(1.0, steps / 20) + 1e-9
