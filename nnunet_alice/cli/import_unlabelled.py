"""Make an nnU-Net dataset of a folder of unlabelled volumes, without copying an image.

Reads NIfTI, NRRD, MetaImage, GIPL, MINC and FreeSurfer's .mgz, sub-folders included; the anatomical images of a BIDS
folder (--channel T1w); and DICOM series (pip install 'nnunet_alice[dicom]'). Series are converted under anonymous
names; a table beside the datasets says which is which. With one channel, a case is one file; with several, files are
named as nnU-Net names them: case_0000, case_0001, ... Volumes that cannot be used are left out and named with the
reason, on screen and in import_report.json; files of other endings are counted. Images that nnU-Net cannot read as
they are, or that are to be turned (--orient), are copied into the dataset. Run it again after adding or mending files:
only what is new is read.
"""

import argparse

from nnunet_alice.cli.common import positive, say_outcomes
from nnunet_alice.parts import add_part_argument

EXAMPLE = "nnunet_alice import -i /data/scans -d 900 -n Torso --channel CT -np 8"
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("-i", dest="folder", required=True, metavar="FOLDER", help="folder of unlabelled volumes")
    parser.add_argument(
        "-d", dest="dataset_id", required=True, type=int, metavar="ID", help="number of the new dataset"
    )
    parser.add_argument("-n", dest="name", required=True, metavar="NAME", help="name of the new dataset")
    parser.add_argument(
        "--channel",
        dest="channels",
        required=True,
        nargs="+",
        action="extend",
        metavar="NAME",
        help="what the volumes are: CT, MRI, ...; several names for several channels. nnU-Net normalises by this name",
    )
    parser.add_argument(
        "-np", dest="num_processes", type=positive(int), default=4, metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--orient",
        metavar="LETTERS",
        help="turn all images to this orientation, e.g. LPS, by copies of those that lie differently (plan --target "
        "says when it is needed)",
    )
    parser.add_argument(
        "--derived", action="store_true", help="take DICOM series that were computed from others, too (reformats, maps)"
    )
    add_part_argument(parser)
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if any volume was left out")


def run(args: argparse.Namespace) -> int:
    """Import and say what happened."""
    from nnunet_alice.importing.unlabelled import import_unlabelled

    report = import_unlabelled(
        args.folder,
        args.dataset_id,
        name=args.name,
        channels=args.channels,
        num_processes=args.num_processes,
        strict=args.strict,
        orient=args.orient,
        derived=args.derived,
        part=args.part,
    )
    status = say_outcomes(report.dataset, report.outcomes, "imported", report.file, args.part)
    if args.part is not None:
        return status
    print(f"Next: nnunet_alice plan -d {args.dataset_id} -np {args.num_processes}")
    print("(with --target ID to pretrain for a labelled dataset with that dataset's own plans)")
    return status
