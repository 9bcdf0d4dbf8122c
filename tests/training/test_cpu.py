"""Training on the CPU: faster convolutions give the same values, and OMP_NUM_THREADS limits the threads."""

import pytest
import torch
from support.tiny_networks import tiny_unet
from torch import nn

from nnunet_alice.training.cpu import channels_last_on_cpu, keep_thread_limit


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
    ("limit", "device", "threads"),
    [
        ("1", "cpu", 1),
        ("1,1", "cpu", 1),
        ("2", "cpu", 2),
        ("8", "cpu", 2),
        ("0", "cpu", 2),
        ("many", "cpu", 2),
        (None, "cpu", 2),
        ("1", "cuda", 2),
    ],
)
def test_threads_are_limited_on_the_cpu_only(limit, device, threads, two_threads, monkeypatch):
    if limit is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    keep_thread_limit(torch.device(device))
    assert torch.get_num_threads() == threads
