"""Find out where in the body every preprocessed case lies, so that views of different cases can be matched.

Registers every case to one atlas case (affine, on a coarse grid) and stores the outcome beside the preprocessed data.
Cases whose registration fails or is poor are named and left out of matching. Run again, it does what is missing.
"""

import argparse

EXAMPLE = "nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres -np 8"
#: Failed and poor cases named on screen; the report has all.
_NAMED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-np", type=_positive, default=4, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--method", choices=["atlas"], default="atlas", help="default: %(default)s")
    parser.add_argument("--atlas", metavar="CASE", help="case that becomes the atlas (default: the most typical one)")
    parser.add_argument("--overwrite", action="store_true", help="do everything again, body masks too")


def run(args: argparse.Namespace) -> int:
    """Prepare the atlas, draw it, say how it went and what to run next."""
    from nnunet_alice.anatomy.atlas import prepare_atlas
    from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR, AtlasFiles
    from nnunet_alice.nnunet_folders import PreprocessedDataset
    from nnunet_alice.pictures.atlas import draw_atlas

    dataset = PreprocessedDataset.find(args.d, args.p, args.c)
    report = prepare_atlas(dataset, args.np, args.atlas, args.overwrite)
    picture = draw_atlas(dataset, report)
    counts = ", ".join(f"{len(report.named(status))} {status}" for status in (OK, POOR, FAILED))
    print(f"{dataset.name}: registered to the atlas {report.atlas_case}: {counts}.")
    for status in (POOR, FAILED):
        records = report.named(status)
        for record in records[:_NAMED]:
            print(f"  {status}: {record.case}: {record.reason}")
        if len(records) > _NAMED:
            print(f"  ... and {len(records) - _NAMED} more")
    print(f"Picture (look at it): {picture}\nReport: {AtlasFiles(dataset).report_file}")
    if len(report.named(OK)) < 2:
        print("Too few cases can be matched: name a better atlas with --atlas CASE.")
        return 1
    print(
        "Next:\n"
        "  export nnUNet_extTrainer=$(nnunet_alice trainers)\n"
        f"  nnUNetv2_train {dataset.number} {args.c} all -tr AliceTrainer -p {args.p}"
    )
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number of processes")
    return value
