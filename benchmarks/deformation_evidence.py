"""Do deformations lay organs on organs? Labelled sets, their labels looked at afterwards.

    python -m benchmarks.fast.search prepare abdomen_6mm --data ../shared/data --prepared DIR
    python -m benchmarks.deformation_evidence abdomen_6mm hippocampus --prepared DIR -o table.csv

Labels of the atlas are brought onto each case, by the affine map alone and by the deformation, too. Measured are Dice
and distance of centroids of the organs that both show. ``--contrast`` changes the intensities of every case but the
atlas, as if it had been scanned in a different way.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.chest_registration import summary
from benchmarks.fast.sets import SETS, Case, load
from benchmarks.registration_quality import organ_overlap
from nnunet_alice.affine import Affine
from nnunet_alice.anatomy import deformation
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.files import write_csv

AFFINE, DEFORMED = "affine", "deformed"
MEASURES = ["dice", "centroid_mm", "seconds"]
#: from intensities in [0, 255] to others
CONTRASTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as scanned": lambda values: values,
    "squared": lambda values: values**2 / 255,
    "inverted": lambda values: 255 - values,
}

#: how demons may see intensities: in one way, or in both, of which the better is kept
INTENSITIES = {**{way: {way: seen} for way, seen in deformation.WAYS.items()}, "both": dict(deformation.WAYS)}


def measure(cases: list[Case], atlas: CaseGeometry, contrast: str = "as scanned") -> pd.DataFrame:
    """Return a row for each case and way of registration."""
    labels = {case.name: case.label[0, 0].numpy() for case in cases}
    rows = []
    for case in cases:
        if case.name == atlas.case:
            continue
        image, body = case.geometry.image, case.geometry.body
        seen = np.where(body, CONTRASTS[contrast](image.astype(np.float32)).round().astype(np.uint8), image)
        started = time.process_time()
        found = deformation.deform(case.affine, replace(case.geometry, image=seen), atlas)
        seconds = {AFFINE: 0.0, DEFORMED: time.process_time() - started}
        kept = found is not deformation.NO_DEFORMATION
        spacing = np.asarray(case.geometry.spacing)
        own = labels[case.name]
        points_mm = np.moveaxis(np.indices(own.shape), 0, -1) * spacing
        for way, moved_mm in ((AFFINE, points_mm), (DEFORMED, found.at(points_mm))):
            voxels = Affine(case.affine).points(moved_mm) / atlas.spacing
            brought = ndimage.map_coordinates(labels[atlas.case], np.moveaxis(voxels, -1, 0), order=0)
            overlap = organ_overlap(own, brought, spacing, np.unique(labels[atlas.case]))
            rows.append({"case": case.name, "registered by": way, "seconds": seconds[way], "kept": kept} | overlap)
    return pd.DataFrame(rows)


def main() -> None:
    """Measure every set with every smoothing, write a table, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepared sets")
    parser.add_argument("--smoothing", type=float, nargs="+", default=[deformation.SMOOTHING_CELLS], help="cells [1]")
    parser.add_argument("--contrast", choices=CONTRASTS, nargs="+", default=["as scanned"], help="[as scanned]")
    parser.add_argument("--intensities", choices=INTENSITIES, nargs="+", default=["both"], help="[both]")
    parser.add_argument("--first", type=int, help="measure only the first so many cases of a set [all]")
    parser.add_argument("-o", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    tables = []
    for name in args.sets:
        cases, atlas = load(name, args.prepared)
        measured = cases[: args.first]
        measured += [case for case in cases[len(measured) :] if case.name == atlas.case]
        for smoothing, seen, contrast in itertools.product(args.smoothing, args.intensities, args.contrast):
            deformation.SMOOTHING_CELLS, deformation.WAYS = smoothing, INTENSITIES[seen]
            found = measure(measured, atlas, contrast)
            wide = found.pivot_table(index="case", columns="registered by", values="dice")
            table = summary(found, MEASURES, AFFINE, DEFORMED)
            settings = {"set": name, "intensities": seen, "contrast": contrast, "smoothing": smoothing}
            for place, (column, value) in enumerate(settings.items()):
                table.insert(place, column, value)
            table["worse in"] = ["", "", int((wide[DEFORMED] < wide[AFFINE]).sum())]
            table["kept"] = ["", int(found["kept"].sum()) // 2, ""]
            tables.append(table)
            print(table.to_string(index=False), flush=True)
            write_csv(args.o, pd.concat(tables))


if __name__ == "__main__":
    main()
