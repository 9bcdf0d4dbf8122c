"""Alice as an arm of the search: the package's student, teacher and losses, on views of two people."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.fast.sets import Case
from benchmarks.fast.training import Length, asked_voxels, at_the_end, autocast, network, optimise, set_rate
from benchmarks.fast.views import points_of, random_intensities, random_map, sample
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.anatomy.regions import lay_regions
from nnunet_alice.matching.atlas import through_atlas
from nnunet_alice.methods.alice.model import Alice, ViewRegions
from nnunet_alice.methods.ema import momentum_for
from nnunet_alice.methods.schedules import cosine
from nnunet_alice.pretraining.alice import AlicePretrainingSettings
from nnunet_alice.views.masking import block_mask

#: share of the run in which prototypes stay where they are: an epoch of twenty
_FROZEN = 0.05


def pretrain_alice(
    cases: Sequence[Case], atlas: CaseGeometry, settings: AlicePretrainingSettings, length: Length, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the student's weights, and means of all terms over the last tenth of the run.

    Half of the views of a step are queries. The anchor view of each shows the matched place of a different person.
    """
    torch.manual_seed(1000 + seed)
    rng = np.random.default_rng([3, seed])
    net, regions = network(1, length.stages), lay_regions(atlas, settings.num_regions)
    alice = Alice(net, settings)
    optimizer = torch.optim.AdamW(alice.student.parameters(), length.rate, weight_decay=0.02)
    ratios = (settings.mask_ratio, 0.0 if settings.unmasked_anchors else settings.mask_ratio)
    start = momentum_for(length.steps, settings.teacher_momentum)
    history: dict[str, list[float]] = {}
    for step in range(length.steps):
        set_rate(optimizer, step, length)
        first, asked = asked_voxels(length, rng)
        pairs = [matched_places(cases, rng) for _ in range(length.views // 2)]
        views, masks, bodies, labels = [], [], [], []
        for ratio, side in zip(ratios, zip(*pairs, strict=True), strict=True):  # all queries, then their anchors
            for case, place in side:
                points = points_of(place, random_map(rng, 0.8), length.size)
                views.append(random_intensities(sample(case.image, points), rng))
                masks.append(torch.from_numpy(block_mask(length.size, length.block, ratio, rng)))
                inside = case.geometry.in_body(points.reshape(-1, 3).numpy(), 0)
                bodies.append(torch.from_numpy(inside).reshape(length.size))
                places_mm = points[asked].double().numpy() * case.geometry.spacing
                found = regions.at(places_mm, case.affine, case.deformation, case.geometry)
                labels.append(torch.from_numpy(found))
        with autocast():
            result = alice.compute(
                torch.stack(views).contiguous(memory_format=torch.channels_last_3d),
                torch.stack(masks),
                settings.teacher_temperature[1],
                regions=ViewRegions(torch.stack(labels), torch.from_numpy(first)) if settings.regions else None,
                share=step / length.steps,
                body=torch.stack(bodies),
            )
        frozen = alice.student.head if step < _FROZEN * length.steps else None
        optimise(optimizer, alice.student, result.loss, [] if frozen is None else frozen.mlp.last_layer_parameters())
        if alice.teacher is not None:
            alice.teacher.follow(alice.student, cosine(step, length.steps, start, 1.0))
        for name, value in result.terms.items():
            history.setdefault(name, []).append(float(value))
    return net.state_dict(), at_the_end(history, length)


def matched_places(cases: Sequence[Case], rng: np.random.Generator) -> tuple[tuple[Case, np.ndarray], ...]:
    """Draw two people and a point (3,) voxels of each at the same place of the atlas, in the body of both."""
    while True:
        one, other = (cases[int(number)] for number in rng.choice(len(cases), 2, replace=False))
        place = one.geometry.body_points(1, rng)
        there_mm = through_atlas(
            place * one.geometry.spacing, (one.affine, one.deformation), (other.affine, other.deformation)
        )
        there = there_mm / other.geometry.spacing
        if other.geometry.in_body(there)[0]:
            return (one, place[0]), (other, there[0])
