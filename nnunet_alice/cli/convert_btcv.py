"""Make an nnU-Net dataset of BTCV's Abdomen/RawData (30 labelled CTs, 13 organs), without copying an image.

All 30 cases are checked first: both files there and readable, equal shape, spacing and direction, only the 13 known
labels. The common splits are written beside dataset.json: splits_nnunet.json (5 folds), splits_monai.json (24/6) and
splits_synapse.json (18/12, usually reported with --organs 8, which needs a dataset number of its own).
"""

import argparse

from nnunet_alice.cli.common import SOME_FAILED, positive
from nnunet_alice.words import counted

EXAMPLE = "nnunet_alice convert_btcv -i RawData -d 17 --split monai"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("-i", dest="folder", required=True, metavar="FOLDER", help="BTCV's RawData folder")
    parser.add_argument(
        "-d", dest="dataset_id", required=True, type=int, metavar="ID", help="number of the new dataset"
    )
    parser.add_argument("-n", dest="name", default="BTCV", metavar="NAME", help="its name (default: %(default)s)")
    parser.add_argument(
        "--organs",
        type=int,
        choices=(13, 8),
        default=13,
        help="8: only those of the 18/12 split, e.g. with -d 18 -n BTCV8 (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=("nnunet", "monai", "synapse"),
        help="make this split the one that nnUNetv2_train uses (default: nnU-Net draws its own five folds)",
    )
    parser.add_argument("--skip_bad", action="store_true", help="leave bad cases out instead of stopping")
    parser.add_argument(
        "-np",
        dest="num_workers",
        type=positive(int),
        default=4,
        metavar="N",
        help="cases read at once (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert and say what happened."""
    from nnunet_alice.importing.btcv import convert

    result = convert(args.folder, args.dataset_id, args.name, args.organs, args.split, args.skip_bad, args.num_workers)
    left_out = f", {len(result.left_out)} left out: figures are not comparable" if result.left_out else ""
    print(f"{counted(len(result.cases), 'case')} in {result.folder}{left_out}")
    if result.test_images:
        print(f"{result.test_images} images have no labels: import them for pretraining with nnunet_alice import")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {args.dataset_id} --verify_dataset_integrity")
    return SOME_FAILED if result.left_out else 0
