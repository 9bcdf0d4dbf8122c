"""Matches per second and error of the compact index, beside a search of every voxel as the embedding's reference does.

Two synthetic volumes hold the descriptors of one smooth random field, the second through a known deformation and with
noise. So the right answer is known. The naive search keeps dense maps (fine at stride 2, coarse at stride 16), and
takes a query's descriptor from those of its own volume. It compares each query with all fine and all coarse voxels,
brings both similarities to full resolution and takes the highest voxel. The index search sees nothing but
two indices of at most 10 MB. Processor time of one thread. Run: python benchmarks/matching_speed.py
"""

import argparse
import math
import platform
import resource
import time

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.matching.consensus import agreed_matches
from nnunet_alice.matching.index import CaseIndex, index_grid
from nnunet_alice.matching.search import IndexSearch
from nnunet_alice.methods.embedding.positions import feature_affine, map_positions_mm, sample_map

DIMENSION = 128
FINE_STRIDE, COARSE_STRIDE = (2, 2, 2), (16, 16, 16)


class Volume:
    """Dense descriptor maps of a volume whose anatomy is a deformed copy of a canonical one.

    Args:
        shape: voxels.
        spacing: mm.
        bend_mm: amplitude of the deformation; 0 is the canonical volume.
        noise: standard deviation of the noise on each descriptor, as a whole, relative to its length.
        lengths_mm: correlation lengths of the fine and the coarse field.
        seed: of the noise.
    """

    def __init__(self, shape, spacing, bend_mm: float, noise: float, lengths_mm, seed: int) -> None:
        self.shape, self.spacing, self.bend_mm = shape, torch.tensor(spacing), bend_mm
        generator = torch.Generator().manual_seed(seed)
        crop = torch.diag(torch.tensor([*spacing, 1.0]))[None]
        self.affines, self.maps = [], []
        for number, (stride, length_mm) in enumerate(zip((FINE_STRIDE, COARSE_STRIDE), lengths_mm, strict=True)):
            affine = feature_affine(crop, stride)
            size = [n // s for n, s in zip(shape, stride, strict=True)]
            values = field(self.canonical(map_positions_mm(affine, size)[0]), length_mm, seed=number)
            values += torch.randn(values.shape, generator=generator) * noise / math.sqrt(DIMENSION)
            values = F.normalize(values, dim=1)
            self.affines.append(affine)
            self.maps.append(values.T.reshape(1, DIMENSION, *size).contiguous())

    def canonical(self, points_mm: torch.Tensor) -> torch.Tensor:
        """Return the canonical place of points (N, 3) of this volume."""
        wave = torch.sin(points_mm.roll(1, dims=1) / 60)
        return points_mm + self.bend_mm * wave

    def from_canonical(self, points_mm: torch.Tensor) -> torch.Tensor:
        """Return the inverse of :meth:`canonical`, by fixed-point iteration."""
        found = points_mm.clone()
        for _ in range(100):
            found = points_mm - (self.canonical(found) - found)
        return found

    def describe(self, points_mm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return fine and coarse descriptors (N, D) at points, from the dense maps."""
        fine, coarse = (sample_map(m, a, points_mm[None])[0] for m, a in zip(self.maps, self.affines, strict=True))
        return fine, coarse

    def index(self) -> CaseIndex:
        """Return the compact index of the volume; all of it is body."""
        factors = (4, 4, 4)
        cells = tuple(-(-n // f) for n, f in zip(self.shape, factors, strict=True))
        body = np.ones(cells, dtype=bool)
        spacing = tuple(self.spacing.tolist())
        geometry = CaseGeometry("volume", self.shape, spacing, factors, cells, body.astype(np.uint8), np.packbits(body))
        grid = index_grid(geometry, DIMENSION, finest_mm=min(spacing) * min(FINE_STRIDE))
        fine, coarse = self.describe(torch.from_numpy(grid.points_vox).float() * self.spacing)
        return CaseIndex(self.shape, spacing, grid, fine.half().numpy(), coarse.half().numpy())

    def naive_match(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Return the best voxel for one query, (3,) mm: both similarity maps at full resolution, then the highest."""
        maps = [
            F.interpolate(
                torch.einsum("d,ndzyx->nzyx", query, dense)[None], self.shape, mode="trilinear", align_corners=False
            )
            for query, dense in zip((fine, coarse), self.maps, strict=True)
        ]
        best = int((maps[0] + maps[1]).argmax())
        return torch.tensor(np.unravel_index(best, self.shape)).float() * self.spacing


def field(points_mm: torch.Tensor, length_mm: float, seed: int) -> torch.Tensor:
    """Draw random Fourier features (N, D) of unit length; cosine about exp(-d^2 / (2 length^2)) at d mm."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.randn(3, DIMENSION, generator=generator) / length_mm
    phases = torch.rand(DIMENSION, generator=generator) * 2 * math.pi
    return F.normalize(torch.cos(points_mm @ frequencies + phases), dim=1)


def report(name: str, seconds: float, count: int, errors: torch.Tensor) -> None:
    """Print one line of results."""
    quantiles = ", ".join(f"{q:.0%} {errors.quantile(q):.2f}" for q in (0.5, 0.9))
    print(f"{name:18s} {count / seconds:10.1f} matches/s   error in mm: {quantiles}")


def main() -> None:
    """Build two volumes, match the same points both ways, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 112, 144), help="voxels of a volume")
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.5, 2.5, 2.5), help="mm")
    parser.add_argument("--lengths", type=float, nargs=2, default=(20.0, 80.0), help="fine and coarse correlation, mm")
    parser.add_argument("--noise", type=float, default=1.0, help="of descriptors, relative to their length")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--naive_queries", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape, spacing = tuple(args.shape), tuple(args.spacing)
    a = Volume(shape, spacing, 0.0, args.noise, args.lengths, seed=1)
    b = Volume(shape, spacing, 12.0, args.noise, args.lengths, seed=2)

    rng = np.random.default_rng(0)
    extent = np.array(shape) * spacing
    points = torch.from_numpy(rng.uniform(0.12 * extent, 0.88 * extent, (args.queries, 3))).float()
    truth = b.from_canonical(points)

    index_b = b.index()
    search_a, search_b = IndexSearch(a.index()), IndexSearch(index_b)
    grid = index_b.grid
    size = index_b.fine.nbytes + index_b.coarse.nbytes + grid.cells.nbytes
    dense = sum(m.numel() * 2 for m in b.maps)
    step = (np.array(grid.step_vox) * spacing).round(1)
    print(f"{platform.processor() or platform.machine()}, 1 thread, numpy {np.__version__}, torch {torch.__version__}")
    print(f"volume {shape} at {spacing} mm; index: {len(grid.cells)} points, step {step} mm, {size / 1e6:.1f} MB")
    print(f"dense maps in half precision: {dense / 1e6:.0f} MB fine and coarse, ", end="")
    print(f"{math.prod(shape) * 2 * DIMENSION * 2 / 1e6:.0f} MB if stored at every voxel")

    points_vox = points.numpy() / np.asarray(spacing)

    def match(points_vox):
        return search_b.match(*search_a.describe(points_vox))

    match(points_vox[:10])  # warm up
    start = time.process_time()
    single = match(points_vox)
    alone = time.process_time() - start
    found = torch.from_numpy(single.points_vox).float() * b.spacing
    report("without neighbours", alone, args.queries, (found - truth).norm(dim=1))
    start = time.process_time()
    matches = agreed_matches(match, points_vox, float(step.max()), np.asarray(spacing))
    fast = time.process_time() - start
    found = torch.from_numpy(matches.points_vox).float() * b.spacing
    report("compact index", fast, args.queries, (found - truth).norm(dim=1))

    start = time.process_time()
    descriptors = a.describe(points[: args.naive_queries])
    found = torch.stack([b.naive_match(fine, coarse) for fine, coarse in zip(*descriptors, strict=True)])
    slow = time.process_time() - start
    report("every voxel", slow, args.naive_queries, (found - truth[: args.naive_queries]).norm(dim=1))

    ratio = slow / args.naive_queries / (fast / args.queries)
    print(f"speed ratio {ratio:.0f}; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
