"""What a batch of DrasCLR costs a loader process: reading, and each step of the augmentation.

    python benchmarks/loader_time.py

Makes a phantom at 1.5 mm, stored as nnU-Net does, and times crops of 64 voxels around a landmark and two neighbours
that lie 26 mm away: medians of one thread's processor time. "naive" reads crop by crop and lets torch sample volumes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import torch
from bytes_a_view import body_points, volume
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from torch.nn import functional

from nnunet_alice.views.affine_crops import AffineRange, apply_affine_to_crops, draw_affine
from nnunet_alice.views.augmentation import augmented
from nnunet_alice.views.border_crops import crop_with_border, crops_with_border
from nnunet_alice.views.landmark_crops import noise_and_gamma

#: distance of landmarks, as they are laid by default
_STEP_MM = 26.0


def main() -> None:
    """Print milliseconds a crop of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=64, help="edge in voxels [%(default)s]")
    parser.add_argument("--repeats", type=int, default=15, help="[%(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, spacing = (args.crop,) * 3, (1.5,) * 3
    image = volume(0, spacing[0])
    block, chunk = comp_blosc2_params(image.shape, (128,) * 3, image.itemsize)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "image.b2nd")
        blosc2.asarray(image, chunks=chunk, blocks=block, urlpath=path, cparams={"codec": blosc2.Codec.LZ4HC})
        array = blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        for point in body_points(image[0], args.repeats, 0):
            around = [point, *(point + _STEP_MM / spacing[0] * np.roll((1, 0, 0), axis) for axis in (1, 2))]
            affines = np.stack([draw_affine(AffineRange(), size, spacing, rng) for _ in around])
            crops = torch.from_numpy(np.stack(crops_with_border(array, around, size)))
            ways: dict[str, tuple[Callable, list]] = {
                "read, naive": (one_by_one, [array, around, size]),
                "read": (crops_with_border, [array, around, size]),
                "affine, naive": (naive_affine, [crops, affines]),
                "affine": (apply_affine_to_crops, [crops, affines]),
                "intensities": (intensities, [crops, rng]),
            }
            for name, (way, arguments) in ways.items():
                start = time.process_time()
                way(*arguments)
                times.setdefault(name, []).append(1e3 * (time.process_time() - start) / len(around))
    print("part,ms a crop")
    for name, found in times.items():
        print(f'"{name}",{statistics.median(found):.1f}')


def one_by_one(image, points, size) -> list[np.ndarray]:
    """Read every crop for itself."""
    return [crop_with_border(image, point, size) for point in points]


def intensities(crops: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Augment noise and contrast, each in a quarter of the crops."""
    return augmented((crop.numpy() for crop in crops), noise_and_gamma(), rng)


def naive_affine(crops: torch.Tensor, affines: np.ndarray) -> torch.Tensor:
    """Return what ``apply_affine_to_crops`` gives, by torch's ``affine_grid`` and a volume."""
    size = np.asarray(crops.shape[2:], dtype=float)
    matrix, shift = affines[:, :, :3] * size / size[:, None], 2 * affines[:, :, 3] / size
    theta = np.concatenate([matrix[:, ::-1, ::-1], shift[:, ::-1, None]], axis=2).astype(np.float32)
    grid = functional.affine_grid(torch.from_numpy(theta), list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)


if __name__ == "__main__":
    main()
