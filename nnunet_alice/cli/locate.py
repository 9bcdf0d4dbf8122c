"""Give images their place in the atlas, as four more channels, for DrasCLRFineTuneTrainer.

With -d, a new dataset is written beside the given one: the same cases with coordinates, and plans that the pretrained
encoder fits; the given one is left as it is and no image is copied. With -i, a folder of new images becomes one that
nnUNetv2_predict takes. Cases that cannot be registered are named and get the middle of the atlas everywhere; unreadable
ones are left out. Run again, it does what is missing or changed.
"""

import argparse
from pathlib import Path

EXAMPLE = "nnunet_alice locate -d 4 --atlas checkpoint_final.pth -np 8"
RESUMES = True
#: Cases named on screen; the report has all.
_NAMED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", metavar="DATASET", help="labelled dataset, number or name")
    source.add_argument("-i", metavar="FOLDER", help="folder of new images, named as for nnUNetv2_predict")
    parser.add_argument(
        "-o", metavar="OUT", help="with -i a folder; with -d the number of the new dataset (default: the next free one)"
    )
    parser.add_argument(
        "--atlas",
        metavar="FILE",
        help="atlas of the pretraining: its checkpoint_final.pth, the atlas.json of anatomy, or the atlas.npz of a "
        "located dataset (default with -d: the dataset's own)",
    )
    parser.add_argument(
        "-p", metavar="PLANS", help="plans of the pretraining, where the atlas does not say (default: nnUNetPlans)"
    )
    parser.add_argument("-c", metavar="CONFIGURATION", help="its configuration, likewise (default: 3d_fullres)")
    parser.add_argument("-np", type=_positive, default=4, metavar="N", help="processes (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Locate, say how it went and what to run next."""
    return _locate_dataset(args) if args.d is not None else _locate_folder(args)


def _locate_dataset(args: argparse.Namespace) -> int:
    from nnunet_alice.coordinates.atlas_file import atlas_of_dataset, open_atlas
    from nnunet_alice.coordinates.located_dataset import ATLAS_FILE, locate_dataset
    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.errors import InputError, NotPreparedError
    from nnunet_alice.nnunet_folders import nnunet_folder

    if args.o is not None and not args.o.isdigit():
        raise InputError(f"With -d, -o is the number of the new dataset, not '{args.o}'.")
    if args.atlas is None:
        try:
            own = PreprocessedDataset.find(args.d, args.p or "nnUNetPlans", args.c or "3d_fullres")
        except NotPreparedError as error:
            raise NotPreparedError(f"Name the atlas of the pretraining with --atlas; of its own: {error}") from None
        atlas = atlas_of_dataset(own)
    else:
        atlas = open_atlas(args.atlas, args.p, args.c)
    made = locate_dataset(args.d, atlas, None if args.o is None else int(args.o), args.np)
    folder = nnunet_folder("nnUNet_raw") / made.name
    print(f"{made.name}: {_counts(made.report)}. Report: {folder / 'locations.json'}")
    _name_some(made.report)
    number, weights = int(made.name[7:10]), args.atlas if str(args.atlas).endswith(".pth") else "CHECKPOINT"
    train = f"nnUNetv2_train {number} {atlas.configuration} 0 -p {made.plans_name} -tr DrasCLRFineTuneTrainer"
    print("Next:")
    if not made.has_fingerprint:
        print(f"  nnUNetv2_extract_fingerprint -d {number}")
    print(
        f"  nnUNetv2_preprocess -d {number} -plans_name {made.plans_name} -c {atlas.configuration}\n"
        "  export nnUNet_extTrainer=$(nnunet_alice trainers)\n"
        f"  {train} -pretrained_weights {weights}\n"
        "  # new images\n"
        f"  nnunet_alice locate -i IMAGES -o LOCATED --atlas {folder / ATLAS_FILE}\n"
        f"  nnUNetv2_predict -i LOCATED -o PREDICTIONS -d {number} -c {atlas.configuration} -p {made.plans_name} "
        "-tr DrasCLRFineTuneTrainer -f 0"
    )
    return 0


def _locate_folder(args: argparse.Namespace) -> int:
    from nnunet_alice.coordinates.atlas_file import open_atlas
    from nnunet_alice.coordinates.located_dataset import locate_folder
    from nnunet_alice.errors import InputError

    if args.o is None or args.atlas is None:
        raise InputError("With -i, name the folder to write with -o and the atlas of the training with --atlas.")
    report = locate_folder(args.i, args.o, open_atlas(args.atlas, args.p, args.c), args.np)
    print(f"{args.o}: {_counts(report)}. Report: {Path(args.o) / 'locations.json'}")
    _name_some(report)
    print(f"Next:\n  nnUNetv2_predict -i {args.o} -o PREDICTIONS ... -tr DrasCLRFineTuneTrainer")
    return 0


def _counts(report) -> str:
    from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR

    return (
        f"{len(report.named(OK))} cases located, {len(report.named(POOR))} in the middle of the atlas because they "
        f"could not be registered, {len(report.named(FAILED))} left out"
    )


def _name_some(report) -> None:
    """Name the first cases that are not located, and why."""
    from nnunet_alice.anatomy.atlas_files import FAILED, POOR

    for status in (POOR, FAILED):
        reasons = list(report.named(status).items())
        for case, reason in reasons[:_NAMED]:
            print(f"  {status}: {case}: {reason}")
        if len(reasons) > _NAMED:
            print(f"  ... and {len(reasons) - _NAMED} more")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number of processes")
    return value
