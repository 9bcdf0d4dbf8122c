"""Give images their place in the atlas, as four more channels, for DrasCLRFineTuneTrainer.

With -d, a new dataset is written beside the given one: the same cases with coordinates, and plans that the pretrained
encoder fits; the given one is left as it is. With -i, a folder of new images becomes one that nnUNetv2_predict takes.
No image is copied but those that lie otherwise than the pretraining's, by their headers, and those that nnU-Net cannot
read. Cases that cannot be registered are named and get the middle of the atlas everywhere; unreadable ones are left
out. Run again, it does what is missing or changed.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_alice.cli.common import name_some, positive, say_outcomes
from nnunet_alice.nnunet_folders import dataset_number
from nnunet_alice.words import counted, pasteable

if TYPE_CHECKING:
    from nnunet_alice.coordinates.atlas_file import PortableAtlas
    from nnunet_alice.coordinates.locating import LocationReport

EXAMPLE = "nnunet_alice locate -d 4 --atlas checkpoint_final.pth -np 8"
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", metavar="DATASET", help="labelled dataset, number or name")
    source.add_argument("-i", metavar="FOLDER", help="folder of new images (of several channels: _0000, ...)")
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
    parser.add_argument("-np", type=positive(int), default=4, metavar="N", help="processes (default: %(default)s)")


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
        raise InputError(f"With -d, -o is the number of the new dataset, not '{args.o}'.").about(
            option="-o", value=args.o
        )
    if args.atlas is None:
        try:
            own = PreprocessedDataset.find(args.d, args.p or "nnUNetPlans", args.c or "3d_fullres")
        except NotPreparedError as error:
            raise NotPreparedError(f"Name the atlas of the pretraining with --atlas; of its own: {error}").about(
                option="--atlas"
            ) from None
        atlas = atlas_of_dataset(own)
    else:
        atlas = open_atlas(args.atlas, args.p, args.c)
    made = locate_dataset(args.d, atlas, None if args.o is None else int(args.o), args.np)
    folder = nnunet_folder("nnUNet_raw") / made.name
    status = _say(made.name, made.report, folder / "locations.json", atlas)
    if status == 1:
        return status
    number, weights = dataset_number(made.name), args.atlas if str(args.atlas).endswith(".pth") else "CHECKPOINT"
    plans, configuration = made.plans_name, atlas.configuration
    print("Next:")
    if not made.has_fingerprint:
        print(f"  nnUNetv2_extract_fingerprint -d {number}")
    print(f"  {pasteable('nnUNetv2_preprocess', '-d', number, '-plans_name', plans, '-c', configuration)}")
    print("  export nnUNet_extTrainer=$(nnunet_alice trainers)")
    train = ["nnUNetv2_train", number, configuration, 0, "-p", plans, "-tr", "DrasCLRFineTuneTrainer"]
    print(f"  {pasteable(*train, '-pretrained_weights', weights)}")
    print("  # new images")
    print(f"  {pasteable('nnunet_alice', 'locate', '-i', 'IMAGES', '-o', 'LOCATED', '--atlas', folder / ATLAS_FILE)}")
    model = ["-d", number, "-c", configuration, "-p", plans, "-tr", "DrasCLRFineTuneTrainer", "-f", 0]
    print(f"  {pasteable('nnUNetv2_predict', '-i', 'LOCATED', '-o', 'PREDICTIONS', *model)}")
    return status


def _locate_folder(args: argparse.Namespace) -> int:
    from nnunet_alice.coordinates.atlas_file import open_atlas
    from nnunet_alice.coordinates.located_dataset import locate_folder
    from nnunet_alice.errors import InputError

    if args.o is None or args.atlas is None:
        raise InputError("With -i, name the folder to write with -o and the atlas of the training with --atlas.").about(
            option="--atlas"
        )
    atlas = open_atlas(args.atlas, args.p, args.c)
    report = locate_folder(args.i, args.o, atlas, args.np)
    status = _say(args.o, report, Path(args.o) / "locations.json", atlas)
    if status != 1:
        predict = pasteable("nnUNetv2_predict", "-i", args.o, "-o", "PREDICTIONS")
        print(f"Next:\n  {predict} ... -tr DrasCLRFineTuneTrainer")
    return status


def _say(name: str, report: "LocationReport", file: Path, atlas: "PortableAtlas") -> int:
    """Say how it went; returns the exit status."""
    from nnunet_alice.anatomy.atlas_files import OK, POOR

    status, poor = say_outcomes(name, report.outcomes, "with coordinates", file), report.named(POOR)
    located = counted(len(report.named(OK)), "case")
    print(f"{located} located, {len(poor)} could not be registered: in the middle of the atlas everywhere.")
    if not atlas.orientation:
        print("The atlas does not say how its images lay: these are taken as they lie, so look at the report.")
    if report.turned:
        print(f"Of {counted(len(report.turned), 'case')} nnU-Net reads copies:")
        name_some("copied", report.turned.items())
    name_some("look at it", report.assumed.items())
    name_some(POOR, poor.items())
    if not report.named(OK):
        lies = f", whose images lie {atlas.orientation}" if atlas.orientation else ""
        print(
            f"No case was located: see that these images show what the atlas {atlas.geometry.case} shows{lies}, and "
            "that their headers say how they lie."
        )
        return 1
    return status
