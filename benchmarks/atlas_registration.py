"""How long the registration of one case to the atlas takes on one core: reading, body mask, affine.

    python benchmarks/atlas_registration.py                                  two adult torso phantoms at 1.5 mm
    python benchmarks/atlas_registration.py --spacing 2.5 0.8 0.8            as thick slices
    python benchmarks/atlas_registration.py --image torso_ct.nii.gz          a CT against itself, turned and stretched

Volumes are written as nnU-Net's preprocessing leaves them and read back from disk. The target is 10 s a case. CPU
seconds are given beside wall seconds, as other work on the machine stretches only the latter.
"""

import argparse
import os
import platform
import resource
import tempfile
import time

# Before numpy and ITK are loaded: one core.
os.environ["OMP_NUM_THREADS"] = os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import blosc2
import numpy as np
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from scipy import ndimage

from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry
from nnunet_alice.anatomy.registration import register
from nnunet_alice.phantoms import make_subject, render

#: the reference's affine registration of a CT (ANTs), in seconds
_REFERENCE_S = 7 * 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 1.5), help="of the phantoms, z y x in mm")
    parser.add_argument("--image", help="a CT to use in place of phantoms")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    volumes, spacing = from_file(args.image) if args.image else phantoms(tuple(args.spacing))
    with tempfile.TemporaryDirectory() as folder:
        files = [write(volume, os.path.join(folder, f"case{n}")) for n, volume in enumerate(volumes)]
        shapes = [volume.shape for volume in volumes]
        del volumes
        atlas = compute_geometry("atlas", nnunet_open(files[0]), spacing)
        print(f"{platform.processor() or platform.machine()}, one core; atlas {shapes[0]}, case {shapes[1]} voxels of")
        print(f"{spacing} mm, coarse grid {atlas.grid_shape} of {tuple(round(s, 2) for s in atlas.grid_spacing_mm)} mm")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = [], []
        for _ in range(args.repeats):
            started, started_cpu = time.perf_counter(), time.process_time()
            geometry: CaseGeometry = compute_geometry("case", nnunet_open(files[1]), spacing)
            read, read_cpu = time.perf_counter(), time.process_time()
            result = register(geometry, atlas)
            wall.append((read - started, time.perf_counter() - read))
            cpu.append((read_cpu - started_cpu, time.process_time() - read_cpu))
    for name, seconds in (("wall", wall), ("CPU", cpu)):
        reading, registering = np.median(seconds, axis=0)
        total = reading + registering
        print(
            f"{name}: {reading:.2f} s reading and body mask + {registering:.2f} s registration = {total:.2f} s a case"
        )
    ratio = _REFERENCE_S / np.median(np.sum(cpu, axis=1))
    print(f"quality {result.quality:.2f}; the reference takes {ratio:.0f} times as long")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {after / 1024:.0f} MiB ({before / 1024:.0f} MiB before the case was opened)")


def phantoms(spacing: tuple[float, ...]) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Render two adult torsos (z, y, x), HU, at 5 mm and bring them to the spacing: much faster."""
    rendered = [render(make_subject(seed, size_scale=1.5), 5.0, noise=False).image for seed in (1, 2)]
    volumes = [ndimage.zoom(image, [5.0 / s for s in spacing], order=1) for image in rendered]
    rng = np.random.default_rng(0)
    return [volume + 12 * rng.standard_normal(volume.shape, dtype=np.float32) for volume in volumes], spacing


def from_file(path: str) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Return a volume, and itself turned by 5 degrees and stretched by 8 %."""
    image = sitk.ReadImage(path)
    volume, spacing = sitk.GetArrayFromImage(image).astype(np.float32), image.GetSpacing()[::-1]
    stretched = ndimage.zoom(volume, 1.08, order=1)
    turned = ndimage.rotate(stretched, 5, axes=(1, 2), reshape=False, order=1, mode="nearest")
    return [volume, turned], tuple(spacing)


def write(volume: np.ndarray, name: str) -> str:
    """Write a volume as nnU-Net does after CT normalisation; returns the file."""
    data = (np.clip(volume, -1000, 1000) / 300)[None].astype(np.float32)
    blocks, chunks = comp_blosc2_params(data.shape, (128, 128, 128))
    segmentation = np.zeros(data.shape, np.int16)
    nnUNetDatasetBlosc2.save_case(data, segmentation, {}, name, chunks=chunks, blocks=blocks)
    return f"{name}.b2nd"


def nnunet_open(file: str) -> blosc2.NDArray:
    """Open a preprocessed image as nnU-Net does: lazily, one thread."""
    return blosc2.open(urlpath=file, mode="r", dparams={"nthreads": 1}, mmap_mode="r")


if __name__ == "__main__":
    main()
