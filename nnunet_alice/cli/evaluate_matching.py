"""Measure how far matches are off, in mm, for every matching method that is prepared, side by side.

On phantoms (a truth.json in the raw dataset, or --truth) random body points are matched and compared with their true
counterparts. On a labelled dataset the centroid of each label is matched. Its distance to the centroid of the same
label in the other case is the error. Labels are used for measuring only. Writes errors.csv (every match), summary.csv
and cumulative_error.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.matching.error import CentroidQuestions, PhantomQuestions
    from nnunet_alice.matching.interface import Matcher

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.words import counted

EXAMPLE = "nnunet_alice evaluate_matching -d 4 -p nnUNetPlans -c 3d_fullres --pairs 2000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of the dataset")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans [%(default)s]")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="3D configuration [%(default)s]")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=("embedding", "atlas", "relative"),
        help="what to compare [all that are prepared]",
    )
    parser.add_argument("--pairs", type=int, metavar="N", help="ordered pairs drawn at random [all]")
    parser.add_argument("--seed", type=int, default=0, help="of pairs and points [%(default)s]")
    parser.add_argument("--truth", type=Path, metavar="FILE", help="truth.json of phantoms [that of the raw dataset]")
    parser.add_argument("--points", type=int, default=50, metavar="N", help="phantoms: points a pair [%(default)s]")
    parser.add_argument("--labels", type=int, nargs="+", metavar="LABEL", help="labels to measure [all]")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="output [matching/ beside the anatomy of the dataset]")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write, draw."""
    import pandas as pd

    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.files import write_csv
    from nnunet_alice.matching.error import SKIPPED, matching_errors, ordered_pairs, summarise
    from nnunet_alice.matching.interface import shared_cases
    from nnunet_alice.matching.registry import open_matchers
    from nnunet_alice.pictures.matching import draw_cumulative_error

    dataset = PreprocessedDataset.find(args.d, args.p, args.c)
    matchers = open_matchers(dataset, args.methods)
    ask, cases = _questions(args, dataset, matchers, shared_cases(matchers))
    pairs = ordered_pairs(cases, args.pairs, args.seed)
    errors = matching_errors(matchers, pairs, ask, dataset.spacing)
    folder = args.o or dataset.anatomy_folder / "matching"
    overall, detailed = summarise(errors), summarise(errors, ("point", "matcher"))
    print(
        f"Errors of {counted(len(errors) // len(matchers), 'point')} of {counted(len(pairs), 'ordered pair')} of "
        f"{counted(len(cases), 'case')}:"
    )
    print(overall.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    if errors["point"].nunique() > 1:
        print(detailed.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    overall.insert(0, "point", "all")
    write_csv(folder / "errors.csv", errors)
    write_csv(folder / "summary.csv", pd.concat([overall, detailed], ignore_index=True))
    draw_cumulative_error(errors, folder / "cumulative_error.png", title=dataset.name)
    print(f"Tables and plot: {folder}")
    return SOME_FAILED if errors.attrs[SKIPPED] else 0


def _questions(
    args: argparse.Namespace, dataset: "PreprocessedDataset", matchers: "Sequence[Matcher]", cases: list[str]
) -> "tuple[CentroidQuestions | PhantomQuestions, list[str]]":
    """Return what to ask of which cases: the truth of phantoms if there is one, else label centroids."""
    from nnunet_alice.anatomy.world import PreparedCases
    from nnunet_alice.errors import InputError
    from nnunet_alice.files import read_json
    from nnunet_alice.matching.error import CentroidQuestions, PhantomQuestions
    from nnunet_alice.phantoms import load_subjects

    prepared = PreparedCases(dataset)
    truth = args.truth or _raw_truth(dataset.name)
    if truth is not None and args.labels is None:
        subjects = load_subjects(truth)
        known = [case for case in cases if case in subjects]
        if len(known) < 2:
            raise InputError(
                f"{truth} knows {len(known)} of the {counted(len(cases), 'case')} of {dataset.name}; two are needed."
            ).about(path=truth, value=len(known))
        if len(known) < len(cases):
            print(f"{truth} knows {len(known)} of {counted(len(cases), 'case')}: the others are left out.")
        return PhantomQuestions(prepared, subjects, matchers[0].body_points, args.points, args.seed), known
    labels = read_json(dataset.base / "dataset.json")["labels"]
    if set(labels) <= {"background", "body"}:
        raise InputError(
            f"{dataset.name} has no labels but a body mask, whose centroid is no anatomy; measure on a labelled "
            "dataset with the same plans, or give --truth of phantoms."
        ).about(option="--truth", value=dataset.name)
    return CentroidQuestions(prepared, args.labels), cases


def _raw_truth(dataset_name: str) -> Path | None:
    """Return truth file in the raw dataset, if there is one."""
    from nnunet_alice.errors import InputError
    from nnunet_alice.nnunet_folders import nnunet_folder
    from nnunet_alice.phantoms import TRUTH_FILE

    try:
        path = nnunet_folder("nnUNet_raw") / dataset_name / TRUTH_FILE
    except InputError:  # the variable is not set, and nothing else here needs it
        return None
    return path if path.is_file() else None
