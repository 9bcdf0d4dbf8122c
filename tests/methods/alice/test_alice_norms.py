"""Batch normalisation over the batch only, against loops; several ranks: tests/methods/test_distributed_ranks.py."""

import math

import pytest
import torch

from nnunet_alice.methods.alice.norms import BatchNormBatchStatistics, TokenBatchNorm


def test_tokens_are_normalised_per_index_and_channel_as_in_loops():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 2, dtype=torch.float64) * 4 + 7
    y = TokenBatchNorm()(x)
    for t in range(3):
        for d in range(2):
            column = x[:, t, d].tolist()
            mean = sum(column) / 5
            variance = sum((v - mean) ** 2 for v in column) / 5
            want = [(v - mean) / math.sqrt(variance + 1e-5) for v in column]
            assert y[:, t, d].tolist() == pytest.approx(want, abs=1e-12)


def test_values_and_gradient_equal_torchs_batch_norm_in_training():
    torch.manual_seed(0)
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64)
    y = BatchNormBatchStatistics()(x)
    want = torch.nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y, want)
    grad, want_grad = (torch.autograd.grad((value * weight).sum(), x)[0] for value in (y, want))
    torch.testing.assert_close(grad, want_grad)
    assert grad.abs().max() > 0.01


def test_gradient_goes_through_the_statistics():
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TokenBatchNorm(), (x,))


def test_what_all_crops_share_at_an_index_is_removed():
    torch.manual_seed(0)
    content = torch.randn(6, 4, 3)
    position = 100 * torch.randn(1, 4, 3)
    norm = TokenBatchNorm()
    torch.testing.assert_close(norm(content + position), norm(content), rtol=1e-3, atol=1e-4)
    assert norm(content.expand(6, 4, 3) * 0 + position).abs().max() < 0.05


def test_a_small_spread_on_a_large_mean_survives_float32():
    torch.manual_seed(0)
    x = 30 + 0.03 * torch.randn(16, 8)
    y = BatchNormBatchStatistics()(x)
    torch.testing.assert_close(y.std(dim=0, correction=0), torch.ones(8), rtol=0.02, atol=0)


def test_train_and_eval_are_the_same_and_there_is_no_state():
    norm = TokenBatchNorm()
    x = torch.randn(4, 3, 2)
    trained = norm.train()(x)
    assert torch.equal(norm.eval()(x), trained)
    assert not norm.state_dict() and not list(norm.parameters())


def test_autocast_computes_in_float32_and_keeps_the_dtype():
    torch.manual_seed(0)
    x = torch.randn(8, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = BatchNormBatchStatistics()(x)
    assert y.dtype == torch.bfloat16
    want = BatchNormBatchStatistics()(x.double())
    torch.testing.assert_close(y.double(), want, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    "norm, shape, named",
    [
        (BatchNormBatchStatistics(), (3, 2, 2), r"\(3, 2, 2\)"),
        (TokenBatchNorm(), (3, 2), r"\(3, 2\)"),
        (TokenBatchNorm(), (1, 3, 2), "1"),
    ],
)
def test_bad_shapes_are_refused(norm, shape, named):
    with pytest.raises(ValueError, match=named):
        norm(torch.zeros(shape))
