"""Are chests registered better by the body or by the lungs? Real CT, its labels looked at afterwards.

    python -m benchmarks.chest_registration --data ../shared/data -o registrations

Every case is registered to one of them in both ways. Measured are Dice and distance of centroids: of organs with
labels, and of the lungs as `nnunet_alice.anatomy.lungs` finds them. Writes ``cases.csv`` and ``table.csv``.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from benchmarks.fast.sets import SETS, read_case
from benchmarks.registration_quality import label_dice, on_grid
from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.lungs import lung_geometry, lung_mask
from nnunet_alice.anatomy.medoid import find_medoid
from nnunet_alice.anatomy.registration import BODY, LUNGS, register

MEASURES = ["organ_dice", "organ_mm", "lung_dice", "lung_mm"]


def measure(folder: Path) -> pd.DataFrame:
    """Return a row for each case and way of registration; cases without lungs are left out."""
    settings = SETS["chest"]
    spacing = (settings.spacing_mm,) * 3
    geometries, organs, lungs = {}, {}, {}
    for path in sorted((folder / settings.folder / "labelsTr").glob("*.nii.gz")):
        image, label = read_case(path, settings)
        case = path.name.removesuffix(".nii.gz")
        geometry = compute_geometry(case, image[None], spacing)
        try:
            lung_geometry(geometry)
            mask = lung_mask(image, spacing)
        except ValueError as error:
            print(f"{case}: {error}", flush=True)
            continue
        geometries[case] = geometry
        organs[case], lungs[case] = (on_grid(array, geometry) for array in (label, mask.astype(np.uint8)))
    reference = find_medoid(list(geometries), geometries.__getitem__)
    atlas, rows = geometries[reference], []
    for case, geometry in geometries.items():
        if case == reference:
            continue
        for way, turn in ((BODY, lambda whole: whole), (LUNGS, lung_geometry)):
            result = register(turn(geometry), turn(atlas))
            row = {"case": case, "registered by": way, "quality": result.quality, "stretch": result.stretch}
            for name, parts in (("organ", organs), ("lung", lungs)):
                found = label_dice(result, geometry, atlas, parts[case], parts[reference])
                row |= {f"{name}_dice": found["dice"], f"{name}_mm": found["centroid_mm"]}
            rows.append(row)
            print(row, flush=True)
    return pd.DataFrame(rows)


def summary(cases: pd.DataFrame, measures: list[str], first: str, second: str) -> pd.DataFrame:
    """Return means of two ways to register, and of the second minus the first with a 95 % interval over cases."""
    rows = [
        {"registered by": way, "cases": len(part)} | {name: f"{part[name].mean():.3f}" for name in measures}
        for way, part in cases.groupby("registered by")
    ]
    wide = cases.pivot_table(index="case", columns="registered by", values=measures)
    difference: dict = {"registered by": f"{second} minus {first}", "cases": len(wide)}
    for name in measures:
        values = wide[name][second] - wide[name][first]
        low, high = ttest_1samp(values, 0).confidence_interval()
        difference[name] = f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    return pd.DataFrame([*rows, difference])


def main() -> None:
    """Measure, write both tables, print the second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("-o", type=Path, required=True, help="folder of the two tables")
    args = parser.parse_args()
    args.o.mkdir(parents=True, exist_ok=True)
    cases = measure(args.data)
    cases.round(4).to_csv(args.o / "cases.csv", index=False)
    table = summary(cases, MEASURES, BODY, LUNGS)
    table.to_csv(args.o / "table.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
