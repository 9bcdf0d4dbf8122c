"""The iBOT head against a loop in float64, and what deep copies, checkpoints and autocast need."""

import copy
import math

import pytest
import torch

from nnunet_alice.methods.heads import PrototypeHead, UnitRowLinear


@pytest.fixture
def head():
    torch.manual_seed(0)
    return PrototypeHead(6, hidden_dim=16, bottleneck_dim=5, prototypes=9)


def matvec(weight, bias, x):
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def gelu(values):
    return [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in values]


def unit(values):
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


def test_head_equals_its_formula_in_loops(head):
    head.double()
    torch.nn.init.normal_(head.mlp[0].bias)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    z = head.embed(x)
    cls, tokens = head.cls_logits(z), head.token_logits(z)
    layers = [(layer.weight.tolist(), layer.bias.tolist()) for layer in (head.mlp[0], head.mlp[2], head.mlp[4])]
    for b in range(2):
        for t in range(3):
            hidden = gelu(matvec(*layers[0], x[b, t].tolist()))
            hidden = gelu(matvec(*layers[1], hidden))
            want = unit(matvec(*layers[2], hidden))
            assert z[b, t].tolist() == pytest.approx(want, abs=1e-12)
            for logits, layer in ((cls, head.last_layer_cls), (tokens, head.last_layer_tokens)):
                rows = [unit(row) for row in layer.weight.tolist()]
                assert logits[b, t].tolist() == pytest.approx(matvec(rows, [0.0] * 9, want), abs=1e-12)


def test_defaults_are_the_papers():
    head = PrototypeHead(32)
    assert [tuple(p.shape) for p in head.mlp.parameters()] == [
        (2048, 32),
        (2048,),
        (2048, 2048),
        (2048,),
        (256, 2048),
        (256,),
    ]
    assert head.last_layer_cls.weight.shape == head.last_layer_tokens.weight.shape == (512, 256)
    weights = torch.cat([p.detach().flatten() for p in head.parameters() if p.ndim == 2])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert all(p.detach().abs().max() == 0 for p in head.mlp.parameters() if p.ndim == 1)


def test_gain_is_one_whatever_the_length_of_the_weights(head):
    z = head.embed(torch.randn(4, 6))
    before = head.cls_logits(z)
    with torch.no_grad():
        head.last_layer_cls.weight.mul_(torch.rand(9, 1) * 10 + 0.1)
    torch.testing.assert_close(head.cls_logits(z), before)
    assert before.abs().max() <= 1 + 1e-6


def test_state_dict_is_plain_and_copies_are_independent(head):
    state = head.state_dict()
    assert {name for name in state if "last_layer" in name} == {"last_layer_cls.weight", "last_layer_tokens.weight"}
    assert all(type(value) is torch.Tensor for value in state.values())
    twin = copy.deepcopy(head)
    x = torch.randn(4, 6)
    before = twin.token_logits(twin.embed(x))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    assert torch.equal(twin.token_logits(twin.embed(x)), before)


def test_gradient_reaches_the_mlp_and_only_the_layer_that_was_used(head):
    (head.cls_logits(head.embed(torch.randn(4, 6))) * torch.randn(4, 9)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in head.mlp.parameters())
    assert head.last_layer_cls.weight.grad.abs().max() > 0
    assert head.last_layer_tokens.weight.grad is None
    # A row's length has no effect, so its gradient has no part along the row.
    along = (head.last_layer_cls.weight.grad * head.last_layer_cls.weight).sum(dim=1)
    assert along.abs().max() < 1e-5


def test_dropping_the_last_layers_gradients_freezes_them_against_weight_decay_too(head):
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.4)
    before = [p.detach().clone() for p in head.last_layer_parameters()]
    assert len(before) == 2
    z = head.embed(torch.randn(4, 6))
    (head.cls_logits(z) * head.token_logits(z)).sum().backward()
    for parameter in head.last_layer_parameters():
        parameter.grad = None
    moving = head.mlp[0].weight.detach().clone()
    optimiser.step()
    assert all(torch.equal(old, new) for old, new in zip(before, head.last_layer_parameters(), strict=True))
    assert not torch.equal(moving, head.mlp[0].weight)


def test_autocast_is_finite_and_keeps_cosines_in_float32(head):
    x = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.mlp(x).dtype == torch.bfloat16
        z = head.embed(x)
        logits = head.cls_logits(z)
    assert z.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4))
    # Only the MLP was rounded; from z on, float64 gives the same.
    rows = torch.nn.functional.normalize(head.last_layer_cls.weight.double(), dim=-1)
    torch.testing.assert_close(logits.double(), z.double() @ rows.T, rtol=0, atol=1e-6)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in head.mlp.parameters())


def test_a_zero_output_has_a_finite_gradient():
    head = PrototypeHead(3, hidden_dim=4, bottleneck_dim=2, prototypes=2)
    with torch.no_grad():
        head.mlp[4].weight.zero_()
    z = head.embed(torch.randn(2, 3))
    assert torch.equal(z, torch.zeros(2, 2))
    head.cls_logits(z).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.mlp.parameters())


def test_bad_widths_are_refused(head):
    with pytest.raises(ValueError, match="prototypes=0"):
        PrototypeHead(3, prototypes=0)
    with pytest.raises(RuntimeError):
        UnitRowLinear(3, 2)(torch.randn(2, 4))
