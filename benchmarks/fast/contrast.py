"""DrasCLR as an arm of the search: contrast at landmarks over the body, carried on as a plain encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.fast.sets import Case
from benchmarks.fast.training import FEATURES, Length, at_the_end, autocast, encoder_weights, network
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.anatomy.landmarks import PATCH_MM, STEP_MM, lay_landmarks
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.methods.drasclr.conditional import ConditionalEncoder, UnconditionedEncoder
from nnunet_alice.methods.drasclr.conversion import to_conditional, to_plain
from nnunet_alice.methods.drasclr.model import DrasCLRModel, PatchEmbedder
from nnunet_alice.methods.drasclr.queue import KeyQueue
from nnunet_alice.methods.ema import momentum_for
from nnunet_alice.methods.schedules import cosine
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.pretraining.drasclr import DrasCLRPretrainingSettings
from nnunet_alice.views.landmark_crops import LandmarkCrops, noise_and_gamma

#: subjects a batch, and the highest rate of SGD
BATCH, RATE = 8, 0.03


@dataclass(frozen=True)
class Contrast:
    """What the ablations of DrasCLR leave out.

    Attributes:
        conditional: the encoder knows the location.
        neighbours: k of the regional loss; 0 leaves it out.
    """

    conditional: bool = True
    neighbours: int = 2


def pretrain_encoder(
    cases: Sequence[Case], atlas: CaseGeometry, contrast: Contrast, length: Length, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the plain encoder of a network after DrasCLR, and means of its metrics over the last tenth of the run.

    Crops are the smallest that DrasCLR takes, two voxels at the bottleneck. Landmarks stand for as much, and are as
    dense as the paper's: steps are 26/32 of a patch.
    """
    torch.manual_seed(2000 + seed)
    settings, net = DrasCLRPretrainingSettings(), network(1, length.stages)
    size = (2**length.stages,) * 3
    patch_mm = size[0] * min(atlas.spacing)
    region = atlas.body_crop(np.zeros(3, dtype=int), atlas.shape)
    landmarks = lay_landmarks(region, atlas.spacing, patch_mm, patch_mm * STEP_MM / PATCH_MM)
    places = LandmarkPlaces(
        landmarks,
        [case.name for case in cases],
        [case.affine for case in cases],
        [case.geometry.shape for case in cases],
        atlas.spacing,
    )
    images = {case.name: case.image[0].numpy() for case in cases}
    crops = LandmarkCrops(
        places, list(images), images.__getitem__, size, atlas.spacing, min(BATCH, len(cases)),
        neighbours=contrast.neighbours, seed=seed, transform=noise_and_gamma(),
    )  # fmt: skip
    plain = encoder_of(net)
    encoder = (
        to_conditional(
            plain,
            settings.num_experts,
            location_gain=settings.location_gain,
            generator=torch.Generator().manual_seed(seed),
        )
        if contrast.conditional
        else UnconditionedEncoder(plain)
    )
    width = FEATURES[length.stages - 1]
    embedder = PatchEmbedder(encoder, width, dim=settings.dim, cells=settings.cells)
    model = DrasCLRModel(embedder, KeyQueue(len(cases), settings.dim), temperature=settings.temperature)
    optimizer = torch.optim.SGD(model.query.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    history: dict[str, list[float]] = {"local": [], "regional": [], "local_accuracy": []}
    for step in range(length.steps):
        batch = crops(step, np.random.default_rng([seed, 17, step]))
        patches = batch.views.unflatten(0, (-1, len(batch.subjects)))
        optimizer.param_groups[0]["lr"] = cosine(step, length.steps, RATE, 0.0)
        around = (patches[2:], batch.neighbour_locations) if contrast.neighbours else (None, None)
        with autocast():
            losses = model(*patches[:2], batch.location, batch.landmark, batch.subjects, *around)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        model.update_key_encoder(momentum_for(length.steps, settings.key_momentum))
        for name, values in history.items():
            values.append(float(getattr(losses, name)))
    if isinstance(encoder, ConditionalEncoder):
        seen = torch.from_numpy(landmarks.locations[places.seen() > 1])
        plain.load_state_dict(to_plain(encoder, seen).state_dict())
    return encoder_weights(net.state_dict()), at_the_end(history, length)
