"""Region labels: logits at the right voxels, the loss against a loop, and Alice with nothing but regions."""

import math
from dataclasses import replace

import pytest
import torch
from support.tiny_networks import tiny_unet

from nnunet_alice.methods.alice.model import Alice, ViewRegions
from nnunet_alice.methods.alice.regions import GRID_STEP, RegionHead, grid_size, region_accuracy, region_loss
from nnunet_alice.methods.alice.settings import AliceSettings, along

REGIONS = 5
PATCH = (8, 8, 12)


def labels(batch=2, seed=0):
    return torch.randint(0, REGIONS + 1, (batch, *grid_size(PATCH)), generator=torch.Generator().manual_seed(seed))


def test_each_layer_reads_the_voxel_or_the_one_that_covers_it():
    shapes = ((3, (2, 2, 3)), (2, (4, 4, 6)), (4, PATCH))
    decoder = [torch.randn(2, width, *shape) for width, shape in shapes]
    first = torch.tensor([1, 0, 2])
    head = RegionHead([width for width, _ in shapes], REGIONS)
    for layer, features, logits in zip(head.layers, decoder, head(decoder, first), strict=True):
        assert logits.shape == (2, *grid_size(PATCH), REGIONS)
        for place in ((0, 0, 0), (1, 1, 3), (0, 1, 2)):
            voxel = [int(first[axis]) + GRID_STEP * place[axis] for axis in range(3)]
            covering = [voxel[axis] * features.shape[2 + axis] // PATCH[axis] for axis in range(3)]
            expected = layer(features[(slice(None), slice(None), *covering)])
            torch.testing.assert_close(logits[(slice(None), *place)], expected)


@pytest.mark.parametrize("length", [3, 4, 16, 40, 47])
def test_the_grid_never_leaves_the_view(length):
    (points,) = grid_size((length,))
    assert points >= 1 and (GRID_STEP - 1) + GRID_STEP * (points - 1) < length


def test_the_loss_is_the_mean_over_known_voxels_and_stages():
    stages = [torch.randn(2, *grid_size(PATCH), REGIONS, dtype=torch.float64) for _ in range(3)]
    known = labels()
    total, count = 0.0, int((known > 0).sum())
    for stage in stages:
        for row, label in zip(stage.reshape(-1, REGIONS), known.flatten().tolist(), strict=True):
            if label > 0:
                total -= math.log(torch.softmax(row, 0)[label - 1].item()) / count / len(stages)
    assert region_loss(stages, known).item() == pytest.approx(total, rel=1e-9)


def test_without_a_known_voxel_the_loss_is_zero_and_so_is_its_gradient():
    stage = torch.randn(1, *grid_size(PATCH), REGIONS, requires_grad=True)
    loss = region_loss([stage], torch.zeros(1, *grid_size(PATCH), dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and not stage.grad.any()
    assert region_accuracy([stage], torch.zeros(1, *grid_size(PATCH), dtype=torch.int64)).isnan()


def test_accuracy_counts_known_voxels_of_the_last_stage():
    known = labels()
    right = torch.nn.functional.one_hot((known - 1).clamp_min(0), REGIONS).float()
    assert region_accuracy([-right, right], known) == 1 and region_accuracy([right, -right], known) == 0


@pytest.mark.parametrize(
    "call",
    [lambda: RegionHead([4, 8], 1), lambda: region_loss([torch.zeros(1, 2, 2, 2, 3)], torch.zeros(1, 2, 2, 3).long())],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError):
        call()


def step_of(settings, with_labels=True, share=0.0):
    torch.manual_seed(0)
    model = Alice(tiny_unet(), settings).eval()
    views = torch.randn(4, 1, *PATCH)
    regions = ViewRegions(labels(4), torch.tensor([0, 1, 2])) if with_labels else None
    return model, model.compute(views, torch.rand(4, *PATCH) < 0.5, 0.04, regions=regions, share=share)


SMALL = AliceSettings(num_regions=REGIONS, hidden_dim=16, bottleneck_dim=8, prototypes=16, attention_heads=2)


@pytest.mark.parametrize("reconstruction", [True, False])
def test_regions_alone_train_every_decoder_stage_and_leave_nothing_waiting(reconstruction):
    settings = replace(SMALL, contrast=False, alignment=False, reconstruction=reconstruction)
    model, step = step_of(settings)
    step.loss.backward()
    decoder = model.student.backbone.network.decoder
    assert all(p.grad is not None and p.grad.any() for stage in decoder.stages for p in stage.parameters())
    waiting = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not waiting  # DistributedDataParallel would hang


def test_the_total_holds_the_weighted_term():
    without, with_regions = replace(SMALL, region_weight=0.0), replace(SMALL, region_weight=2.0)
    (_, one), (_, two) = step_of(without), step_of(with_regions)
    torch.testing.assert_close(two.loss - one.loss, 2 * two.terms["loss_regions"])
    assert 0 <= two.terms["region_accuracy"] <= 1


def test_courses_are_straight_lines_between_their_points():
    course = ((0.25, 1.0), (0.75, 0.0))
    assert [along(course, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    settings = replace(SMALL, cls_course=course, region_course=((0.0, 0.0), (1.0, 1.0)))
    cls, align, rec, region = settings.weights(0.5)
    assert cls == 0.5 * settings.cls_weight and region == 0.5 * settings.region_weight
    assert align == settings.alignment_weight and rec == settings.reconstruction_weight


@pytest.mark.parametrize("course", [(), ((0.5, 1.0), (0.2, 0.0)), ((0.0, 1.0), (1.5, 0.0))])
def test_courses_that_run_backwards_are_refused(course):
    with pytest.raises(ValueError):
        replace(SMALL, cls_course=course)


def test_the_weights_of_a_step_follow_the_course():
    settings = replace(SMALL, contrast=False, alignment=False, region_course=((0.0, 0.0), (1.0, 1.0)))
    (_, begin), (_, end) = step_of(settings, share=0.0), step_of(settings, share=1.0)
    torch.testing.assert_close(end.loss - begin.loss, settings.region_weight * end.terms["loss_regions"])
