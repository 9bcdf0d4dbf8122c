"""CASA against loops in float64 and its invariances."""

import math

import pytest
import torch

from nnunet_alice.methods.alice.casa import CASA


def layer_norm(values, norm):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    weight, bias = norm.weight.tolist(), norm.bias.tolist()
    return [(v - mean) / math.sqrt(variance + 1e-6) * w + b for v, w, b in zip(values, weight, bias, strict=True)]


def matvec(weight, x):
    return [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight.tolist()]


def casa_in_loops(casa, heads, head_dim, query, key_value):
    """One sample: query (Tq, dim), key_value (Tk, dim), as nested lists."""
    queries = [matvec(casa.to_query.weight, token) for token in query]
    keys = [matvec(casa.to_key.weight, token) for token in key_value]
    values = [matvec(casa.to_value.weight, token) for token in key_value]
    result = []
    for token, q in zip(query, queries, strict=True):
        gathered = []
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = [sum(a * b for a, b in zip(q[part], k[part], strict=True)) / math.sqrt(head_dim) for k in keys]
            shares = [math.exp(score) for score in scores]
            shares = [share / sum(shares) for share in shares]
            gathered += [sum(s * v[part][d] for s, v in zip(shares, values, strict=True)) for d in range(head_dim)]
        projected = matvec(casa.to_out.weight, gathered)
        y = layer_norm([t + p for t, p in zip(token, projected, strict=True)], casa.norm_attention)
        hidden = [
            max(0.0, h + b) for h, b in zip(matvec(casa.expand.weight, y), casa.expand.bias.tolist(), strict=True)
        ]
        fed = [h + b for h, b in zip(matvec(casa.contract.weight, hidden), casa.contract.bias.tolist(), strict=True)]
        result.append(layer_norm([a + b for a, b in zip(y, fed, strict=True)], casa.norm_feedforward))
    return result


@pytest.fixture
def casa():
    torch.manual_seed(0)
    # heads * head_dim differs from dim, so that a mixed-up reshape cannot pass.
    casa = CASA(dim=6, heads=2, head_dim=4, feedforward_dim=10, dropout=0.3).double()
    for norm in (casa.norm_attention, casa.norm_feedforward):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return casa.eval()


def tokens(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_equals_its_formula_in_loops(casa):
    query, key_value = tokens(2, 3, 6), tokens(2, 5, 6)
    aligned = casa(query, key_value)
    assert aligned.shape == (2, 3, 6)
    for b in range(2):
        want = torch.tensor(casa_in_loops(casa, 2, 4, query[b].tolist(), key_value[b].tolist()), dtype=torch.float64)
        torch.testing.assert_close(aligned[b].detach(), want, rtol=1e-10, atol=1e-10)


def test_defaults_are_the_papers():
    casa = CASA()
    shapes = {name: tuple(parameter.shape) for name, parameter in casa.named_parameters()}
    assert shapes == {
        **{f"to_{name}.weight": (512, 512) for name in ("query", "key", "value", "out")},
        **{f"norm_{name}.{part}": (512,) for name in ("attention", "feedforward") for part in ("weight", "bias")},
        "expand.weight": (2048, 512),
        "expand.bias": (2048,),
        "contract.weight": (512, 2048),
        "contract.bias": (512,),
    }
    assert casa.dropout.p == 0.1
    assert casa.norm_attention.eps == casa.norm_feedforward.eps == 1e-6


def test_key_value_order_is_no_information_and_query_order_is_kept(casa):
    query, key_value = tokens(2, 3, 6), tokens(2, 5, 6)
    aligned = casa(query, key_value)
    torch.testing.assert_close(casa(query, key_value[:, torch.randperm(5)]), aligned)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(casa(query[:, order], key_value), aligned[:, order])


def test_samples_do_not_see_each_other(casa):
    query, key_value = tokens(2, 3, 6), tokens(2, 5, 6)
    other = torch.cat([key_value[:1], tokens(1, 5, 6)])
    torch.testing.assert_close(casa(query, other)[0], casa(query, key_value)[0])
    assert not torch.allclose(casa(query, other)[1], casa(query, key_value)[1])


def test_gradient_reaches_query_key_value_and_every_parameter(casa):
    query, key_value = tokens(2, 3, 6).requires_grad_(), tokens(2, 5, 6).requires_grad_()
    (casa(query, key_value) * tokens(2, 3, 6)).sum().backward()
    for tensor in (query, key_value, *casa.parameters()):
        assert tensor.grad.abs().max() > 0
    assert torch.autograd.gradcheck(casa, (query, key_value))


def test_dropout_acts_in_training_only_and_follows_the_seed(casa):
    query, key_value = tokens(2, 3, 6), tokens(2, 5, 6)
    assert torch.equal(casa(query, key_value), casa(query, key_value))
    casa.train()
    torch.manual_seed(1)
    first, second = casa(query, key_value), casa(query, key_value)
    torch.manual_seed(1)
    assert torch.equal(casa(query, key_value), first)
    assert not torch.equal(first, second)


def test_dropout_is_on_attention_projection_and_feedforward(casa):
    query, key_value = tokens(1, 3, 6), tokens(1, 5, 6)
    casa.train()
    dropped, projected = [], []
    casa.dropout.register_forward_pre_hook(lambda module, inputs: dropped.append(inputs[0]))
    for layer in (casa.to_out, casa.contract):
        layer.register_forward_hook(lambda module, inputs, output: projected.append(output))
    casa(query, key_value)
    assert len(dropped) == len(projected) == 2
    assert all(one is other for one, other in zip(dropped, projected, strict=True))
    # What is left without these two acts on the attention weights.
    casa.dropout.eval()
    assert not torch.equal(casa(query, key_value), casa(query, key_value))


def test_autocast_is_finite_and_close():
    torch.manual_seed(0)
    casa = CASA(dim=16, heads=2, head_dim=8, feedforward_dim=32, dropout=0.0)
    query, key_value = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        aligned = casa(query, key_value)
    aligned.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in casa.parameters())
    torch.testing.assert_close(aligned.float(), casa(query, key_value), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "query, key_value, named",
    [
        ((2, 3, 5), (2, 5, 6), r"^query .*\(2, 3, 5\)"),
        ((2, 3, 6), (5, 6), r"^key_value .*\(5, 6\)"),
        ((2, 3, 6), (1, 5, 6), "2 and 1"),
    ],
)
def test_bad_shapes_are_refused(casa, query, key_value, named):
    with pytest.raises(ValueError, match=named):
        casa(tokens(*query), tokens(*key_value))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="heads=0"):
        CASA(heads=0)
    with pytest.raises(ValueError, match=r"^dropout"):
        CASA(dropout=1.0)
