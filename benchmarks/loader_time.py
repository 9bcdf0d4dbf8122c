"""What a batch of DrasCLR costs a loader process: reading, and each step of the augmentation.

    python benchmarks/loader_time.py

Makes phantoms at 1.5 mm in memory and on disk as nnU-Net stores them, and times crops of 64 voxels: medians of one
process with one thread, in turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import blosc2
import numpy as np
import torch
from bytes_a_view import body_points, volume
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunet_alice.views.augmentation import augment
from nnunet_alice.views.landmark_crops import (
    AffineRange,
    apply_affine_to_crops,
    crop_with_border,
    draw_affine,
    noise_and_gamma,
)


def main() -> None:
    """Print milliseconds a crop of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=64, help="edge in voxels [%(default)s]")
    parser.add_argument("--crops", type=int, default=8, help="at once [%(default)s]")
    parser.add_argument("--repeats", type=int, default=7, help="[%(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, spacing = (args.crop,) * 3, (1.5,) * 3
    image = volume(0, spacing[0])
    block, chunk = comp_blosc2_params(image.shape, (128,) * 3, image.itemsize)
    rng, transform = np.random.default_rng(0), noise_and_gamma()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "image.b2nd")
        blosc2.asarray(image, chunks=chunk, blocks=block, urlpath=path, cparams={"codec": blosc2.Codec.LZ4HC})
        for _ in range(args.repeats):
            points = body_points(image[0], args.crops, int(rng.integers(1000)))
            start = time.perf_counter()
            array = blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, mmap_mode="r")
            crops = torch.stack([torch.from_numpy(crop_with_border(array, point, size)) for point in points])
            read = time.perf_counter()
            affines = np.stack([draw_affine(AffineRange(), size, spacing, rng) for _ in crops])
            moved = apply_affine_to_crops(crops, affines)
            affine = time.perf_counter()
            torch.stack([augment(crop.numpy(), transform, rng) for crop in moved])
            end = time.perf_counter()
            for name, seconds in (("read", read - start), ("affine", affine - read), ("intensities", end - affine)):
                times.setdefault(name, []).append(1e3 * seconds / args.crops)
    for name, found in times.items():
        print(f"{name},{statistics.median(found):.1f} ms a crop")


if __name__ == "__main__":
    main()
