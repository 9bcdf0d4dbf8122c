"""Alice's step against a slow recomputation, and who gets gradients."""

from dataclasses import replace

import pytest
import torch
from support.tiny_networks import tiny_unet
from torch.nn import functional

from nnunet_alice.methods.alice.head import AliceHead, pool_view
from nnunet_alice.methods.alice.model import Alice
from nnunet_alice.methods.alice.settings import AliceSettings

SETTINGS = AliceSettings(
    regions=False,
    sinkhorn=False,
    unmasked_anchors=False,
    cls_weight=1.0,
    alignment_weight=0.5,
    hidden_dim=16,
    bottleneck_dim=8,
    prototypes=16,
    attention_heads=2,
)
PARTS = {
    "all": SETTINGS,
    "noCASA": replace(SETTINGS, casa=False),
    "noContrast": replace(SETTINGS, contrast=False, alignment=False),
    "noReconstruction": replace(SETTINGS, reconstruction=False),
    "clsOnly": replace(SETTINGS, alignment=False),
    "encoderOnly": replace(SETTINGS, alignment=False, reconstruction=False),
    "tokensOnly": replace(SETTINGS, contrast=False, casa=False),
    "unmasked": replace(SETTINGS, unmasked_anchors=True),
    "paper": SETTINGS.paper(),
    "sinkhorn": replace(SETTINGS, sinkhorn=True),
}


def batch(pairs=3, channels=1, patch=(8, 8, 12)):
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2 * pairs, channels, *patch, generator=generator)
    return views, torch.rand(2 * pairs, *patch, generator=generator) < 0.75


def model_of(settings, **network):
    torch.manual_seed(0)
    model = Alice(tiny_unet(**network), settings).eval()  # eval: no dropout
    # A teacher that is not the student, as in any run.
    if model.teacher is not None:
        with torch.no_grad():
            for parameter in model.teacher.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def entropy_loss(teacher, student, centre, tau_t=0.04, tau_s=0.1):
    """Mean cross-entropy over rows, one at a time, in float64."""
    total = 0.0
    rows = list(zip(teacher.reshape(-1, 16).double(), student.reshape(-1, 16).double(), strict=True))
    for t, s in rows:
        target = torch.softmax((t - centre.double()) / tau_t, 0)
        total = total - (target * torch.log_softmax(s / tau_s, 0)).sum()
    return total / len(rows)


@pytest.mark.parametrize("shared_query", [True, False])
def test_the_step_is_what_the_paper_says(shared_query):
    model = model_of(replace(SETTINGS, shared_query=shared_query))
    model.centre_cls.value.copy_(0.1 * torch.randn(16))
    model.centre_alignment.value.copy_(0.1 * torch.randn(16))
    centre_cls, centre_align = model.centre_cls.value.clone(), model.centre_alignment.value.clone()
    views, mask = batch()
    step = model.compute(views, mask, 0.04)

    student, teacher = model.student, model.teacher
    masked = views.clone()
    masked[mask.unsqueeze(1)] = 0
    maps = student.backbone(masked)
    heads = student.head(maps.bottleneck, maps.decoder[0])
    clean = teacher.backbone(views, 1)
    target = teacher.head(clean.bottleneck, clean.decoder[0])
    swapped = torch.cat([target.cls[3:], target.cls[:3]])
    expected_cls = entropy_loss(swapped, heads.cls, centre_cls)
    aligned_student = student.casa(heads.encoder_tokens, heads.decoder_tokens)
    aligned_teacher = student.casa((heads if shared_query else target).encoder_tokens, target.decoder_tokens)
    expected_align = entropy_loss(aligned_teacher, aligned_student, centre_align)
    expected_rec = 0.5 * ((maps.output.double() - views.double()) ** 2).mean()
    torch.testing.assert_close(step.terms["loss_cls"].double(), expected_cls.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.terms["loss_align"].double(), expected_align.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.terms["loss_reconstruction"].double(), expected_rec.detach(), rtol=1e-4, atol=1e-6)
    expected = expected_cls + 0.5 * expected_align + 10 * expected_rec
    torch.testing.assert_close(step.loss.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.centre_cls.value, 0.9 * centre_cls + 0.1 * target.cls.mean(0))
    torch.testing.assert_close(
        model.centre_alignment.value, 0.9 * centre_align + 0.1 * aligned_teacher.flatten(0, 1).mean(0)
    )


@pytest.mark.parametrize("name", PARTS)
def test_gradients_reach_all_of_the_student_and_never_the_teacher(name):
    model = model_of(PARTS[name])
    views, mask = batch()
    model.compute(views, mask, 0.04).loss.backward()
    without = {n for n, p in model.student.named_parameters() if p.requires_grad != (p.grad is not None)}
    assert without == set()
    if model.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    if model.student.casa is not None:
        assert all(p.grad.abs().sum() > 0 for p in model.student.casa.parameters())


def test_sinkhorn_targets_replace_the_centred_ones():
    model = model_of(replace(SETTINGS, sinkhorn=True))
    views, mask = batch()
    step = model.compute(views, mask, 0.04)
    student, teacher = model.student, model.teacher
    maps = student.backbone(views.masked_fill(mask.unsqueeze(1), 0))
    logits = student.head(maps.bottleneck, maps.decoder[0]).cls
    clean = teacher.backbone(views, 1)
    plan = (teacher.head(clean.bottleneck, clean.decoder[0]).cls.double() / 0.04).exp()
    for _ in range(3):
        plan = plan / plan.sum(0, keepdim=True)
        plan = plan / plan.sum(1, keepdim=True)
    expected = -(torch.cat([plan[3:], plan[:3]]) * torch.log_softmax(logits.double() / 0.1, -1)).sum(-1).mean()
    torch.testing.assert_close(step.terms["loss_cls"].double(), expected.detach(), rtol=1e-4, atol=1e-5)


def test_balanced_token_targets_cannot_tell_the_index():
    """Tokens that are nothing but their index get codes that say nothing about it."""
    model = model_of(replace(SETTINGS, sinkhorn=True))
    logits = 0.5 * torch.eye(16)[:8].expand(6, 8, 16) + 0.01 * torch.randn(6, 8, 16)
    targets = model._targets(logits, model.centre_alignment, 0.01)
    assert logits.argmax(-1).eq(torch.arange(8)).all()
    assert not targets.argmax(-1).eq(torch.arange(8)).float().mean() > 0.3
    torch.testing.assert_close(targets.sum(-1), torch.ones(6, 8))


def test_with_whole_anchors_only_query_views_are_reconstructed():
    model = model_of(replace(SETTINGS, unmasked_anchors=True))
    views, mask = batch()
    mask[3:] = False
    step = model.compute(views, mask, 0.04)
    rebuilt = model.student.backbone(views[:3].masked_fill(mask[:3].unsqueeze(1), 0)).output
    expected = 0.5 * ((rebuilt - views[:3]) ** 2).mean()
    torch.testing.assert_close(step.terms["loss_reconstruction"], expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("air", [True, False])
@pytest.mark.parametrize("visible", [True, False])
def test_air_and_visible_voxels_are_reconstructed_only_where_asked(air, visible):
    settings = replace(SETTINGS, unmasked_anchors=True, reconstruct_air=air, reconstruct_visible=visible)
    model = model_of(settings)
    views, mask = batch()
    body = torch.rand(mask.shape) < 0.7
    step = model.compute(views, mask, 0.04, body=body)
    rebuilt = model.student.backbone(views.masked_fill(mask.unsqueeze(1), 0)).output
    errors = [
        (rebuilt[view, 0, z, y, x] - views[view, 0, z, y, x]).item() ** 2
        for view, z, y, x in torch.ones_like(mask[:3]).nonzero().tolist()
        if (air or body[view, z, y, x]) and (visible or mask[view, z, y, x])
    ]
    assert step.terms["loss_reconstruction"].item() == pytest.approx(0.5 * sum(errors) / len(errors), rel=1e-4)


def test_the_paper_reconstructs_every_voxel():
    model = model_of(AliceSettings(hidden_dim=16, bottleneck_dim=8, prototypes=16, attention_heads=2).paper())
    views, mask = batch()
    with_body, without = (
        model.compute(views, mask, 0.04, body=body).terms["loss_reconstruction"] for body in (mask, None)
    )
    assert torch.equal(with_body, without)


def test_validation_leaves_the_centres_alone():
    model = model_of(SETTINGS)
    before = model.centre_cls.value.clone(), model.centre_alignment.value.clone()
    model.compute(*batch(), 0.04, update_centres=False)
    assert torch.equal(before[0], model.centre_cls.value) and torch.equal(before[1], model.centre_alignment.value)


def test_the_teacher_follows_the_formula_and_restarts():
    model = model_of(SETTINGS)
    named = dict(model.student.backbone.named_parameters()), dict(model.teacher.backbone.named_parameters())
    before = {name: parameter.clone() for name, parameter in named[1].items()}
    model.teacher.follow(model.student, 0.75)
    for name, parameter in named[1].items():
        torch.testing.assert_close(parameter, 0.75 * before[name] + 0.25 * named[0][name].detach())
    model.restart_teacher()
    assert all(torch.equal(parameter, named[0][name]) for name, parameter in named[1].items())


@pytest.mark.parametrize("family", ["plain", "residual"])
@pytest.mark.parametrize(
    ("channels", "strides", "patch"), [(1, (1, 2, 2), (8, 8, 8)), (3, (1, (1, 2, 2), (1, 2, 2)), (2, 16, 12))]
)
def test_any_plans(family, channels, strides, patch):
    model = model_of(SETTINGS, family=family, channels=channels, strides=strides)
    views, mask = batch(2, channels, patch)
    step = model.compute(views, mask, 0.04)
    assert torch.isfinite(step.loss) and step.reconstruction.shape == views.shape
    assert step.descriptors.shape == (4, 8 * 12)
    torch.testing.assert_close(step.descriptors, model.describe(views))


def test_masked_voxels_do_not_reach_the_student():
    model = model_of(SETTINGS)
    views, mask = batch()
    other = torch.where(mask.unsqueeze(1), torch.randn_like(views), views)
    first, second = (model.compute(v, mask, 0.04).reconstruction for v in (views, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_grid_pooling_keeps_what_a_global_average_after_instance_norm_loses():
    features = functional.instance_norm(torch.randn(6, 4, 4, 4, 4))
    assert pool_view(features, 1).std(0).max() < 1e-5
    assert pool_view(features, 2).std(0).min() > 0.05
    halves = pool_view(torch.arange(16.0).view(1, 1, 4, 2, 2), 2)
    torch.testing.assert_close(halves.flatten(), torch.tensor([2.0, 3, 4, 5, 10, 11, 12, 13]))


def test_tokens_are_capped():
    head = AliceHead(12, 8, replace(SETTINGS, max_tokens=2))
    outputs = head(torch.randn(2, 12, 3, 4, 1), torch.randn(2, 8, 6, 8, 2))
    assert outputs.encoder_tokens.shape == (2, 2 * 2 * 1, 16)
    assert outputs.decoder_tokens.shape == (2, 8, 16)


def test_settings_that_teach_nothing_are_refused():
    with pytest.raises(ValueError):
        replace(SETTINGS, contrast=False, alignment=False, reconstruction=False)
    with pytest.raises(ValueError, match="mask_ratio"):
        replace(SETTINGS, mask_ratio=1.0)
