"""How old may DrasCLR's negatives be, and what of the reference's details matters? Trains on made-up subjects.

    python benchmarks/drasclr_negatives.py -o TABLE.csv [--seeds 0 1 2]

64 subjects share an anatomy and differ in texture, density and fine structure. 24 landmarks, batches of 8 subjects,
1,536 steps of a small location-conditioned encoder. The forms:

- ``kept, one batch a landmark``: every batch goes to another landmark, whose queue holds the keys of its last visits;
- ``kept, whole visits``: the reference's loop, which stays until all subjects were shown, with a queue a landmark;
- ``whole visits``: the same order, keys of this visit alone count (what DrasCLRTrainer does);
- ``the batch alone``: every batch goes to another landmark, only its own keys are negatives;
- ``whole visits, the reference's gamma``: (0.5, 4.5), which changes the mean and deviation of a crop;
- ``whole visits, the reference's experts``: they start an eighth as large.

For each: mean age of the negatives, the local loss in each eighth of the run, and retrieval. That is how often the
second view of a subject is found among all 64 at a landmark, by the final encoders' keys (chance: 0.016). All forms
are asked under the same augmentation. Rows are added to the table one by one; run again, it does only what is missing.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from scipy import ndimage
from torch import nn
from tqdm import tqdm

from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.methods.drasclr.conditional import ConditionalConv3d, LocationGroups
from nnunet_alice.methods.drasclr.conversion import to_conditional
from nnunet_alice.methods.drasclr.model import DrasCLRModel, PatchEmbedder
from nnunet_alice.methods.drasclr.queue import KeyQueue
from nnunet_alice.methods.ema import momentum_for
from nnunet_alice.methods.schedules import cosine
from nnunet_alice.views.landmark_crops import LandmarkCrops, noise_and_gamma

SHAPE, CROP, UNIT_MM = (36, 48, 60), (16, 16, 16), (1.0, 1.0, 1.0)
GRID = np.stack(np.meshgrid([11, 24], [11, 23, 36], [11, 23, 36, 48], indexing="ij"), axis=-1).reshape(-1, 3)
SUBJECTS, BATCH, STEPS, RATE = 64, 8, 1536, 0.03


class Form(NamedTuple):
    """What is tried.

    Attributes:
        slots: of the queue.
        max_stay: batches of a visit at most.
        gamma: intensities are changed as the reference does it.
        shrink: divisor of the experts' first weights.
    """

    slots: int = SUBJECTS
    max_stay: int | None = None
    gamma: bool = False
    shrink: float = 1.0


FORMS = {
    "kept, one batch a landmark": Form(len(GRID) * SUBJECTS, 1),
    "kept, whole visits": Form(len(GRID) * SUBJECTS),
    "whole visits": Form(),
    "the batch alone": Form(1, 1),
    "whole visits, the reference's gamma": Form(gamma=True),
    "whole visits, the reference's experts": Form(shrink=8.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, metavar="CSV", help="table that rows are added to")
    parser.add_argument("--seeds", type=int, nargs="*", default=(0, 1, 2))
    parser.add_argument("--forms", nargs="*", default=FORMS, choices=FORMS)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = {f"subject{number:02d}": make_image(number) for number in range(SUBJECTS)}
    for seed in args.seeds:
        for form in args.forms:
            if args.o.is_file() and (pd.read_csv(args.o)[["form", "seed"]] == [form, seed]).all(axis=1).any():
                continue
            row = pd.DataFrame([{"form": form, "seed": seed} | train(images, FORMS[form], seed, args.steps)])
            row.to_csv(args.o, mode="a", header=not args.o.is_file(), index=False)
            print(row.to_string(index=False), flush=True)


def smooth_noise(rng: np.random.Generator, width: float) -> np.ndarray:
    """Return noise smoothed by a Gaussian of ``width`` voxels, of unit deviation."""
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), width, mode="wrap")
    return field / field.std()


def make_image(number: int) -> np.ndarray:
    """Return the anatomy of all subjects, and what is a subject's own: (1, z, y, x) float32."""
    anatomy = smooth_noise(np.random.default_rng(0), 5) + 0.6 * smooth_noise(np.random.default_rng(1), 2.5)
    rng = np.random.default_rng([7, number])
    own = rng.normal(size=4)
    texture = 0.35 * np.exp(own[0] / 2) * smooth_noise(rng, 1.2) + 0.3 * np.exp(own[1] / 2) * smooth_noise(rng, 0.6)
    density = 0.25 * own[2] + 0.25 * own[3] * np.linspace(-1, 1, SHAPE[0])[:, None, None]
    structure = 0.35 * smooth_noise(rng, 3)
    return (anatomy + structure + texture + density + 0.15 * rng.normal(size=SHAPE))[None].astype(np.float32)


def train(images: dict[str, np.ndarray], form: Form, seed: int, steps: int) -> dict:
    """Train once, and return figures of the run."""
    torch.manual_seed(seed)
    norm = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    plain = PlainConvEncoder(1, 3, (8, 16, 32), nn.Conv3d, 3, (2, 2, 1), (1, 1, 1), True, **norm, return_skips=True)
    encoder = to_conditional(plain, 8, location_gain=1, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for layer in encoder.modules():
            if isinstance(layer, ConditionalConv3d):
                layer.experts.div_(form.shrink)
    model = DrasCLRModel(PatchEmbedder(encoder, 32, dim=64), KeyQueue(form.slots, 64))
    optimizer = torch.optim.SGD(model.query.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    transform = noise_and_gamma(gamma=(0.5, 4.5), restored=False) if form.gamma else noise_and_gamma()
    crops = make_crops(images, BATCH, seed, form.max_stay, transform)
    losses, ages = [], []
    for step in tqdm(range(steps), disable=None):
        batch = crops(step, np.random.default_rng([seed, 0, step]))
        patches = batch.views.unflatten(0, (-1, BATCH))
        optimizer.param_groups[0]["lr"] = cosine(step, steps, RATE, 0.0)
        parts = model(
            *patches[:2], batch.location, batch.landmark, batch.subjects, patches[2:],
            batch.neighbour_locations,
        )  # fmt: skip
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        model.update_key_encoder(momentum_for(steps, 0.999))
        losses.append(float(parts.local))
        ages.append(float(parts.negative_age))
    eighths = [float(part.mean()) for part in np.array_split(losses, min(8, steps))]
    return {
        "steps": steps,
        "age of negatives": round(float(np.mean(ages)), 1),
        "loss by eighths of the run": " ".join(f"{loss:.2f}" for loss in eighths),
        "end above lowest": round(eighths[-1] - min(eighths), 2),
        "retrieval": round(retrieval(model, images, seed), 3),
    }


def make_crops(
    images: dict[str, np.ndarray], batch_size: int, seed: int, max_stay: int | None, transform: BasicTransform
) -> LandmarkCrops:
    landmarks = Landmarks(GRID.astype(float), SHAPE, UNIT_MM, CROP[0], 12.0)
    count = len(images)
    places = LandmarkPlaces(landmarks, list(images), [np.eye(4)] * count, [SHAPE] * count, UNIT_MM)
    return LandmarkCrops(
        places, list(images), images.__getitem__, CROP, UNIT_MM, batch_size,
        seed=seed, max_stay=max_stay, transform=transform,
    )  # fmt: skip


@torch.no_grad()
def retrieval(model: DrasCLRModel, images: dict[str, np.ndarray], seed: int) -> float:
    """Return the share of first views whose own second view is nearest among all subjects, over all landmarks."""
    model.eval()
    everybody, hits = make_crops(images, SUBJECTS, seed, 1, noise_and_gamma()), []
    for number in range(len(GRID)):
        batch = everybody(number, np.random.default_rng([seed, 1, number]))
        views = batch.views.unflatten(0, (-1, SUBJECTS))
        here = LocationGroups(batch.location[None], (SUBJECTS,))
        nearest = (model.query(views[0], here) @ model.key(views[1], here).T).argmax(dim=1)
        hits.append((nearest == torch.arange(SUBJECTS)).float().mean())
    return float(torch.stack(hits).mean())


if __name__ == "__main__":
    main()
