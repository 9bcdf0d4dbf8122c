"""What a view costs on disk: compressed bytes that are read for a crop, by the way that the image is stored.

    python benchmarks/bytes_a_view.py

Draws crops around points of the body of phantoms at 1.5 mm, and adds up the compressed blocks that each of them
touches. Files are written as nnU-Net writes them, and otherwise. Seconds are those of reading the crops from memory.
"""

import argparse
import tempfile
import time
from pathlib import Path

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunet_alice.cropping import crop_centred
from nnunet_alice.phantoms import make_subject, render
from nnunet_alice.planning.compact import half_blocks, rounded


def main() -> None:
    """Print a row of CSV for each way of storing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=128, help="edge in voxels [%(default)s]")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm [%(default)s]")
    parser.add_argument("--crops", type=int, default=40, help="of each volume [%(default)s]")
    parser.add_argument("--volumes", type=int, default=2, help="[%(default)s]")
    args = parser.parse_args()
    patch = (args.patch,) * 3
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(args.volumes):
        image = volume(seed, args.spacing)
        points = body_points(image[0], args.crops, seed)
        own, chunk = comp_blosc2_params(image.shape, patch, image.itemsize)
        small, half, short = half_blocks(own), image.astype(np.float16), rounded(image)
        ways = {
            "as nnU-Net writes it": (image, own),
            "blocks of half the edge": (image, small),
            "blocks of a quarter of the edge": (image, half_blocks(small)),
            "float16": (half, own),
            "11 significant bits": (short, own, blosc2.Filter.BITSHUFFLE),
            "11 significant bits, blocks of half the edge (plan --compact)": (short, small, blosc2.Filter.BITSHUFFLE),
            "11 significant bits, blocks of a quarter of the edge": (
                short,
                half_blocks(small),
                blosc2.Filter.BITSHUFFLE,
            ),
        }
        body = tuple(slice(int(n.min()), int(n.max()) + 1) for n in np.nonzero(image[0] > -1.5))
        shifted = points - [part.start for part in body]
        found = {name: measure(chunk, points, patch, *way) for name, way in ways.items()}
        cropped = np.ascontiguousarray(image[(slice(None), *body)])
        found["cropped to the body, as nnU-Net writes it"] = measure(chunk, shifted, patch, cropped, own)
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
    print("way,MB a view,share,file MB,ms a view")
    first = np.mean(rows["as nnU-Net writes it"], axis=0)[0]
    for name, values in rows.items():
        read, size, seconds = np.mean(values, axis=0)
        print(f'"{name}",{read:.2f},{read / first:.2f},{size:.1f},{1e3 * seconds:.0f}')


def volume(seed: int, spacing_mm: float) -> np.ndarray:
    """Return a phantom with the noise of a CT, normalised as nnU-Net does, (1, z, y, x) float32."""
    image = render(make_subject(seed), spacing_mm).image
    noisy = image + np.random.default_rng(seed).normal(0, 15, image.shape)
    return ((np.clip(noisy, -1000, 600) + 200) / 400)[None].astype(np.float32)


def body_points(image: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw points of the body, (count, 3) voxels."""
    inside = np.argwhere(image > -1.5)
    return np.random.default_rng(seed).choice(inside, count)


def measure(chunk, points, patch, image, block, kind=blosc2.Filter.SHUFFLE) -> tuple[float, float, float]:
    """Measure MB a crop touches, MB of the file, seconds a crop."""
    chunk = tuple(min(n, size) for n, size in zip(chunk, image.shape, strict=True))
    block = tuple(min(n, size) for n, size in zip(block, chunk, strict=True))
    cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [kind], "nthreads": 1}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "image.b2nd")
        array = blosc2.asarray(image, chunks=chunk, blocks=block, urlpath=path, cparams=cparams)
        sizes = block_sizes(array)
        read = np.mean([touched(sizes, chunk, block, image.shape[1:], point, patch) for point in points])
        array = blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        start = time.perf_counter()
        for point in points:
            crop_centred(array, point, patch)
        seconds = (time.perf_counter() - start) / len(points)
        return float(read) / 1e6, Path(path).stat().st_size / 1e6, seconds


def block_sizes(array) -> list[np.ndarray]:
    """Return compressed bytes of the blocks of every chunk, from the offsets in the chunks' headers."""
    found = []
    for number in range(array.schunk.nchunks):
        chunk = array.schunk.get_chunk(number)
        total, block, packed = (int.from_bytes(chunk[at : at + 4], "little") for at in (4, 8, 12))
        starts = np.frombuffer(chunk, np.int32, -(-total // block), 32)
        order = np.argsort(starts)
        ends = np.append(starts[order][1:], packed)
        sizes = np.empty(len(starts), dtype=np.int64)
        sizes[order] = ends - starts[order]
        found.append(sizes)
    return found


def touched(sizes, chunk, block, shape, point, patch) -> int:
    """Return compressed bytes of all blocks that a crop overlaps."""
    lower = np.maximum(np.round(point).astype(int) - np.array(patch) // 2, 0)
    upper = np.minimum(lower + patch, shape)
    chunk, block = np.array(chunk[1:]), np.array(block[1:])
    chunks, blocks = -(-np.array(shape) // chunk), -(-chunk // block)
    total = 0
    for index in np.ndindex(*chunks):
        first = np.array(index) * chunk
        low, high = np.maximum(lower - first, 0), np.minimum(upper - first, chunk)
        if np.any(high <= low):
            continue
        grid = sizes[np.ravel_multi_index(index, chunks)].reshape(blocks)
        total += int(grid[tuple(slice(a // b, -(-c // b)) for a, b, c in zip(low, block, high, strict=True))].sum())
    return total


if __name__ == "__main__":
    main()
