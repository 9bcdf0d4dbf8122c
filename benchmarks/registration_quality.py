"""Which figure tells a good registration? Labelled cases registered to an atlas case, figures beside Dice.

    python -m benchmarks.registration_quality hippocampus --data ../shared/data --out quality.csv --cases 40
    python -m benchmarks.registration_quality abdomen_6mm --data ../shared/data --out quality.csv

Labels are only looked at afterwards: those of the atlas, brought onto the case, against the case's own. Some cases are
registered again upside down: a map that looks plausible and is wrong. Run again, it does what is missing.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.stats import entropy

from benchmarks.fast.search import append
from benchmarks.fast.sets import SETS, read_case
from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry
from nnunet_alice.anatomy.medoid import find_medoid
from nnunet_alice.anatomy.registration import Registration, cell_map, edge_agreement, register, warp_atlas

_BINS = 32
#: grid cells of a window of the local correlation, on every axis
_WINDOW = 7


def figures(result: Registration, case: CaseGeometry, atlas: CaseGeometry) -> dict[str, float]:
    """Return candidates for the quality of a registration; all grow with it."""
    image, warped, warped_body = warp_atlas(result.affine, case, atlas)
    both, either = case.body & warped_body, case.body | warped_body
    return {
        "correlation_x_overlap": max(0.0, result.correlation) * result.overlap,
        "correlation": result.correlation,
        "overlap": result.overlap,
        "body_dice": 2 * both.sum() / (case.body.sum() + warped_body.sum()),
        "information": shared_information(image[both], warped[both]),
        "information_of_both_bodies": shared_information(
            np.where(case.body, image, -8)[either], np.where(warped_body, warped, -8)[either]
        ),
        "local_correlation": local_correlation(image, warped, both),
        "gradient_correlation": edge_agreement(result.affine, case, atlas) / result.overlap if result.overlap else 0.0,
    }


def shared_information(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mutual information of two images as a share of their mean entropy, in [0, 1]."""
    joint, *_ = np.histogram2d(a.astype(float), b.astype(float), _BINS)
    parts = entropy(joint.sum(0)) + entropy(joint.sum(1))
    return float(2 * (parts - entropy(joint.ravel())) / parts) if parts > 0 else 0.0


def local_correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Return the mean over cells of the squared correlation in a window around each: blind to the contrast."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b, aa, bb, ab = (ndimage.uniform_filter(image, _WINDOW) for image in (a, b, a * a, b * b, a * b))
    variances = (aa - mean_a**2) * (bb - mean_b**2)
    squared = np.divide((ab - mean_a * mean_b) ** 2, variances, out=np.zeros_like(a), where=variances > 1e-3)
    return float(squared[where].mean())


def label_dice(
    result: Registration, case: CaseGeometry, atlas: CaseGeometry, own: np.ndarray, other: np.ndarray
) -> dict:
    """Return mean Dice and distance of centroids of the organs that both show, on the grid of the case."""
    matrix, offset = cell_map(result.affine, case, atlas)
    brought = ndimage.affine_transform(other, matrix, offset, own.shape, order=0)
    return organ_overlap(own, brought, case.grid_spacing_mm, np.unique(other))


def organ_overlap(
    own: np.ndarray, brought: np.ndarray, spacing: Sequence[float] | np.ndarray, shown: np.ndarray
) -> dict[str, float]:
    """Return mean Dice and distance of centroids of the organs of a case against those brought onto it.

    Args:
        own: (z, y, x) labels of the case.
        brought: the same of the atlas, on the voxels of the case.
        spacing: of the voxels, mm.
        shown: labels that the atlas shows.
    """
    dice, distances = [], []
    for organ in sorted({*np.unique(own).tolist()} & {*shown.tolist()} - {0}):
        here, there = own == organ, brought == organ
        dice.append(2 * (here & there).sum() / (here.sum() + there.sum()))
        if there.any():
            centres = [np.argwhere(mask).mean(axis=0) * spacing for mask in (here, there)]
            distances.append(np.linalg.norm(centres[0] - centres[1]))
    return {"dice": float(np.mean(dice)), "centroid_mm": float(np.mean(distances)) if distances else np.nan}


def on_grid(label: np.ndarray, geometry: CaseGeometry) -> np.ndarray:
    """Return the labels (z, y, x) at the centres of a geometry's grid cells."""
    centres = [
        np.minimum(np.arange(n) * f + f // 2, s - 1)
        for n, f, s in zip(geometry.grid_shape, geometry.factors, geometry.shape, strict=True)
    ]
    return label[np.ix_(*centres)]


def main() -> None:
    """Register every case of a set, append a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    parser.add_argument("--cases", type=int, help="the first so many of the set [all]")
    parser.add_argument("--upside_down", type=int, default=10, help="so many cases again, wrong on purpose [10]")
    args = parser.parse_args()
    settings, volumes = SETS[args.set], {}
    paths = sorted((args.data / settings.folder / "labelsTr").glob("*.nii.gz"))[: args.cases]
    for path in paths:
        image, label = read_case(path, settings)
        volumes[path.name.removesuffix(".nii.gz")] = (image, label)
    spacing = (settings.spacing_mm,) * 3
    geometries = {case: compute_geometry(case, image[None], spacing) for case, (image, _) in volumes.items()}
    atlas = geometries[find_medoid(list(geometries), geometries.__getitem__)]
    atlas_label = on_grid(volumes[atlas.case][1], atlas)
    done = set()
    if args.out.exists():
        with open(args.out, newline="") as file:
            done = {(row["set"], row["case"], row["upside_down"]) for row in csv.DictReader(file)}
    others = [case for case in volumes if case != atlas.case]
    for turned, cases in ((False, others), (True, others[: args.upside_down])):
        for case in cases:
            if (args.set, case, str(int(turned))) in done:
                continue
            image, label = (array[::-1] if turned else array for array in volumes[case])
            geometry = compute_geometry(case, np.ascontiguousarray(image)[None], spacing)
            started = time.process_time()
            result = register(geometry, atlas)
            row: dict = {"set": args.set, "case": case, "upside_down": int(turned)}
            row["cpu_seconds"] = f"{time.process_time() - started:.2f}"
            append(args.out, row | measured(result, geometry, atlas, on_grid(label, geometry), atlas_label))


def measured(
    result: Registration, case: CaseGeometry, atlas: CaseGeometry, own: np.ndarray, other: np.ndarray
) -> dict[str, str]:
    """Measure a registration, as text; ``own`` and ``other`` are labels of case and atlas on grids."""
    values = {"stretch": result.stretch} | label_dice(result, case, atlas, own, other) | figures(result, case, atlas)
    return {name: f"{value:.4f}" for name, value in values.items()}


if __name__ == "__main__":
    main()
