"""Cross-validated linear probe: how well a linear model reads a label off frozen features.

Of case features (--features): logistic regression, ridge, or a Cox model. Of labelled patches (--checkpoint, with a
table that has a row a patch, or label images): the same, and with --maps what the model says about every place of every
image. Standardisation and the search of the penalty happen inside each training fold; --group keeps the rows of a group
together. The metrics' 95 % intervals come from a bootstrap. Survival needs pip install "nnunet_alice[survival]".
"""

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_alice.features.encoders import TrainedEncoder
    from nnunet_alice.features.images import DatasetImages, RawImages
    from nnunet_alice.features.patches import PatchProbe
    from nnunet_alice.features.probe import ProbeResult
    from nnunet_alice.features.probe_data import ProbeData

from nnunet_alice.cli.common import SOME_FAILED, name_some
from nnunet_alice.words import counted

EXAMPLE = "nnunet_alice probe --features features.npz --table labels.csv --target severity --task regression"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--features", metavar="NPZ", help="case features that nnunet_alice features wrote")
    source.add_argument("--checkpoint", metavar="FILE", help="a pretraining checkpoint: probe patches")
    parser.add_argument(
        "--table", metavar="CSV", help="one row a case; with --checkpoint one row a patch, and its point"
    )
    parser.add_argument(
        "--target", default="label", metavar="COLUMN", help="what to predict; for survival the time [%(default)s]"
    )
    parser.add_argument("--task", required=True, choices=["classification", "regression", "survival"])
    parser.add_argument("--event", metavar="COLUMN", help="for survival: 1 is an event, 0 censored")
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="folds keep rows with the same value together, e.g. scans of a patient (default for patches: the case)",
    )
    parser.add_argument("--id", metavar="COLUMN", help="column of case names (default: the first)")
    parser.add_argument("--folds", type=int, default=5, help="outer folds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default: %(default)s)")
    parser.add_argument(
        "-o", metavar="PREFIX", help="writes PREFIX_metrics.csv, _predictions.csv and .png (default: probe_COLUMN)"
    )
    patches = parser.add_argument_group("patches (--checkpoint)")
    patches.add_argument("-d", metavar="DATASET", help="preprocessed dataset, number or name")
    patches.add_argument("-i", metavar="FOLDER", help="or a folder of raw images, named as for nnUNetv2_predict")
    patches.add_argument("-p", metavar="PLANS", help="plans of the dataset (default: those of the checkpoint)")
    patches.add_argument(
        "--label_images", metavar="FOLDER", help="instead of --table: CASE.nii.gz with labels, 0 is none"
    )
    patches.add_argument(
        "--per_label", type=int, default=50, metavar="N", help="patches drawn a label and image (default: %(default)s)"
    )
    patches.add_argument("--maps", metavar="FOLDER", help="write a map a class and case, and a picture of each case")
    patches.add_argument("--step_mm", type=float, default=8.0, metavar="MM", help="step of the maps [%(default)s]")
    patches.add_argument(
        "--region", choices=["landmarks", "lungs", "body"], default="landmarks", help="of the maps [%(default)s]"
    )
    patches.add_argument("--plain", action="store_true", help="of DrasCLR, take the plain encoder that nnU-Net loads")
    patches.add_argument("--untrained", action="store_true", help="fresh weights instead: the baseline")
    patches.add_argument("-device", default="cpu", metavar="DEVICE", help="cpu, cuda or mps (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Probe, print the metrics, write tables, plot and maps."""
    return _probe_cases(args) if args.features is not None else _probe_patches(args)


def _probe_cases(args: argparse.Namespace) -> int:
    from nnunet_alice.errors import InputError
    from nnunet_alice.features.probe import probe
    from nnunet_alice.features.probe_data import load_features, load_table

    if args.table is None:
        raise InputError("Name the table of labels with --table.").about(option="--table")
    data = load_table(
        args.table, *load_features(args.features), args.target, args.task, args.event, args.id, args.group
    )
    _report(args, data, probe(data, args.task, args.folds, args.seed), "cases")
    return 0


def _probe_patches(args: argparse.Namespace) -> int:
    from nnunet_alice.anatomy.subjects import load_subjects
    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.errors import InputError
    from nnunet_alice.features.encoders import open_encoder
    from nnunet_alice.features.images import DatasetImages, RawImages
    from nnunet_alice.features.patch_labels import read_patch_table, sample_label_images
    from nnunet_alice.features.patches import probe_patches

    if (args.d is None) == (args.i is None) or (args.table is None) == (args.label_images is None):
        raise InputError("Patches need images, -d or -i, and labels, --table or --label_images: one of each.").about(
            option="--table"
        )
    if args.task == "survival":
        raise InputError("Survival is a matter of cases; probe their --features.").about(option="--features")
    encoder = open_encoder(args.checkpoint, plain=args.plain, untrained=args.untrained, device=args.device)
    subjects: dict[str, str] = {}
    images: DatasetImages | RawImages
    if args.d is not None:
        dataset = PreprocessedDataset.find(args.d, args.p or encoder.run["plans_name"], encoder.run["configuration"])
        images, subjects = DatasetImages(dataset, encoder.run), load_subjects(dataset)
    else:
        images = RawImages(args.i, encoder.run)
        if images.passed_over:
            print(f"Passed over: {images.passed_over}.")
    if args.table is not None:
        labels = read_patch_table(args.table, args.target, args.id, args.group, subjects)
    else:
        labels = sample_label_images(args.label_images, images.cases, args.per_label, args.seed, subjects)
    fitted = probe_patches(encoder, images, labels, args.task, args.folds, args.seed)
    _report(args, fitted.data, fitted.result, "patches")
    name_some("left out", fitted.failed.items())
    failed = len(fitted.failed) + (0 if args.maps is None else _write_maps(args, encoder, images, fitted))
    return SOME_FAILED if failed else 0


def _write_maps(
    args: argparse.Namespace, encoder: "TrainedEncoder", images: "DatasetImages | RawImages", fitted: "PatchProbe"
) -> int:
    """Write a map a class and case and a picture of each case; name cases that fail, and return their number."""
    import numpy as np

    from nnunet_alice.affine import Affine
    from nnunet_alice.features.maps import dense_map, write_maps
    from nnunet_alice.parallel import for_each_case
    from nnunet_alice.pictures.maps import draw_maps

    def draw(case: str) -> bool:
        opened = images.open(case)
        found = dense_map(encoder, opened, fitted, args.step_mm, args.region)
        write_maps(args.maps, opened, found, fitted.classes)
        geometry = opened.geometry
        to_voxels = Affine.scaling(geometry.factors, (np.asarray(geometry.factors) - 1) / 2)
        numbers = range(len(fitted.classes))
        coarse = [found.on(to_voxels, geometry.grid_shape, number, outside=np.nan) for number in numbers]
        draw_maps(geometry, np.stack(coarse), fitted.classes, f"{args.maps}/{case}.png", f"{case}: {args.target}")
        return True

    outcomes = for_each_case(draw, images.cases, doing="Maps")
    name_some("no map", outcomes.failed.items())
    print(f"{outcomes.sentence('mapped')}, every {args.step_mm:g} mm, {args.region}: {args.maps}")
    return len(outcomes.failed)


def _report(args: argparse.Namespace, data: "ProbeData", result: "ProbeResult", what: str) -> None:
    """Print the metrics, write tables and plot."""
    from nnunet_alice.files import write_csv
    from nnunet_alice.pictures.probe import draw_probe

    sizes = result.predictions["fold"].value_counts().sort_index().tolist()
    penalty = "C" if args.task == "classification" else "alpha"
    print(f"{args.task} of '{args.target}' from {data.features.shape[1]} features of {len(data.cases)} {what}")
    if data.groups is not None:
        by = f"by '{args.group}'" if args.group else "(cases, or their subjects)"
        print(f"{counted(len(set(data.groups)), 'group')} {by}, kept together in folds and intervals")
    print(
        f"{args.folds} folds of {sizes} {what}, seed {args.seed}; {penalty}: "
        + ", ".join(f"{p:g}" for p in result.penalties)
    )
    for row in result.metrics.itertuples():
        print(f"  {row.metric}: {row.value:.3f} (95 % interval {row.low:.3f} to {row.high:.3f})")
    prefix = args.o or "probe_" + re.sub(r"[^\w.-]+", "_", args.target)  # a column may be called anything
    write_csv(f"{prefix}_metrics.csv", result.metrics)
    write_csv(f"{prefix}_predictions.csv", result.predictions)
    title = ", ".join(f"{row.metric} {row.value:.2f}" for row in result.metrics.itertuples())
    draw_probe(result.predictions, args.task, f"{prefix}.png", f"{args.target}: {title}")
    print(f"Written: {prefix}_metrics.csv, {prefix}_predictions.csv, {prefix}.png")
