"""Find one point of a case in other cases.

Prints a table, best score first: voxels (z, y, x) of the preprocessed arrays and world mm (x, y, z; LPS, as ITK and
DICOM give them). Rows whose score is below the method's threshold are marked as not trusted. The picture shows the
query slice beside the best matches.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_alice.cli.common import SOME_FAILED, name_some

if TYPE_CHECKING:
    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.matching.interface import Matcher
    from nnunet_alice.pictures.matching import PointSlices

EXAMPLE = "nnunet_alice match -d 900 -p nnUNetPlans -c 3d_fullres --from CASE_A --point 40 60 55 --to all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of the dataset")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans [%(default)s]")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="3D configuration [%(default)s]")
    parser.add_argument("--from", dest="source", required=True, metavar="CASE", help="case of the point")
    parser.add_argument(
        "--point", required=True, type=float, nargs=3, metavar=("Z", "Y", "X"), help="voxels of the preprocessed array"
    )
    parser.add_argument("--world", action="store_true", help="--point is X Y Z in world mm instead")
    parser.add_argument("--to", nargs="+", default=["all"], metavar="CASE", help="cases to search, or all [all]")
    parser.add_argument(
        "--method", choices=("embedding", "atlas", "relative"), help="how to match [the best that is prepared]"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the whole table there")
    parser.add_argument("-o", type=Path, metavar="PNG", help="picture [match_CASE.png]")
    parser.add_argument("--show", type=int, default=6, metavar="N", help="matches in the picture [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Match, print, draw."""
    from nnunet_alice.anatomy.world import PreparedCases
    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.errors import InputError
    from nnunet_alice.files import write_csv
    from nnunet_alice.matching.match_table import match_point
    from nnunet_alice.pictures.matching import draw_matches

    dataset = PreprocessedDataset.find(args.d, args.p, args.c)
    cases = PreparedCases(dataset)
    matcher = _open_matcher(dataset, args.method)
    targets = [case for case in matcher.cases if case != args.source] if args.to == ["all"] else args.to
    point, table, failed = match_point(matcher, cases, args.source, args.point, targets, world=args.world)
    name_some("failed", failed.items())
    if not len(table):
        raise InputError("No case could be matched; see the messages above.")
    voxel = " ".join(f"{value:.1f}" for value in point)
    trusted = "none is trusted" if math.isinf(matcher.threshold) else f"trusted from {matcher.threshold:g}"
    print(f"Counterparts of voxel ({voxel}) of {args.source}, by {matcher.name} ({trusted}):")
    print(table.to_string(index=False, max_rows=40, float_format=lambda value: f"{value:.2f}"))
    if args.csv:
        write_csv(args.csv, table)
        print(f"Table: {args.csv}")
    shown = table[table["z_vox"].notna()].head(args.show)
    slices = []
    for row in shown.itertuples():
        try:
            caption = f"{row.case}\nscore {row.score:.2f}"
            slices.append(_cut(dataset, row.case, [row.z_vox, row.y_vox, row.x_vox], caption))
        except InputError as error:
            failed[row.case] = str(error)
            print(f"  not drawn: {row.case}: {error}")
    picture = args.o or Path(f"match_{args.source}.png")
    draw_matches(_cut(dataset, args.source, point, f"{args.source}\nquery"), slices, dataset.spacing, picture)
    print(f"Picture: {picture}")
    return SOME_FAILED if failed else 0


def _open_matcher(dataset: "PreprocessedDataset", method: str | None) -> "Matcher":
    """Return the matcher that was asked for, or the best that was prepared, or the baseline."""
    from nnunet_alice.errors import NotPreparedError
    from nnunet_alice.matching.registry import open_matcher, open_matchers

    if method is None:
        try:
            return open_matcher(dataset)
        except NotPreparedError as error:
            print(f"{error}\nUntil then a point's place is guessed from where it lies in the array.")
    return open_matchers(dataset, [method or "relative"])[0]


def _cut(dataset: "PreprocessedDataset", case: str, point: Any, caption: str) -> "PointSlices":
    """Return slices of a case through a point.

    Raises:
        InputError: its image is damaged.
    """
    from nnunet_alice.errors import AliceError, InputError
    from nnunet_alice.pictures.matching import PointSlices
    from nnunet_alice.words import telling

    try:
        return PointSlices.cut(dataset.image(case), point, caption)
    except AliceError:
        raise
    except Exception as error:  # a damaged image ends in errors of every kind
        raise InputError(
            f"The preprocessed image of case {case} is damaged ({telling(error)}); preprocess it again."
        ).about(case=case) from error
