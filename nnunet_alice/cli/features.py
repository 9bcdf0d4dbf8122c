"""Turn images into features with the encoder of any pretraining checkpoint of this package.

Level "case" gives one vector a case (mean over the landmarks that it shows). "patch" one a landmark, with its location
in the atlas, and "dense" a feature map a case as NIfTI in the image's place. New images (-i) may be in any format that
import reads; one that lies otherwise than those of the pretraining, by its header, is turned.
"""

import argparse
from pathlib import Path

from nnunet_alice.cli.common import say_outcomes
from nnunet_alice.words import counted

EXAMPLE = "nnunet_alice features -d 900 --checkpoint checkpoint_final.pth -o features.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", metavar="DATASET", help="preprocessed dataset, number or name")
    source.add_argument("-i", metavar="FOLDER", help="folder of raw images (of several channels: _0000, ...)")
    parser.add_argument("-p", metavar="PLANS", help="plans of the dataset (default: those of the checkpoint)")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a pretraining checkpoint")
    parser.add_argument("-o", required=True, metavar="OUT", help="features.npz; for --level dense a folder")
    parser.add_argument("--level", choices=["patch", "case", "dense"], default="case", help="default: %(default)s")
    parser.add_argument("--plain", action="store_true", help="of DrasCLR, take the plain encoder that nnU-Net loads")
    parser.add_argument("--untrained", action="store_true", help="fresh weights instead: the baseline of a probe")
    parser.add_argument("-device", default="cpu", metavar="DEVICE", help="cpu, cuda or mps (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Take the features, say what failed and what to run next."""
    from nnunet_alice.anatomy.orientation import is_orientation
    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.errors import InputError
    from nnunet_alice.features.encoders import open_encoder
    from nnunet_alice.features.extraction import extract
    from nnunet_alice.features.images import DatasetImages, RawImages

    if args.level != "dense" and not args.o.endswith(".npz"):
        raise InputError(f"-o must end in .npz for --level {args.level}, got {args.o}.").about(
            path=args.o, option="-o", value=args.level
        )
    if args.level == "dense" and Path(args.o).is_file():
        raise InputError(f"-o {args.o} is a file; for --level dense name a folder.").about(path=args.o, option="-o")
    encoder = open_encoder(
        args.checkpoint,
        plain=args.plain,
        untrained=args.untrained,
        device=args.device,
        needs_landmarks=args.level != "dense",
    )
    if args.d is not None:
        plans = args.p or encoder.run["plans_name"]
        images: DatasetImages | RawImages = DatasetImages(
            PreprocessedDataset.find(args.d, plans, encoder.run["configuration"]), encoder.run
        )
    else:
        images = RawImages(args.i, encoder.run)
        if images.passed_over:
            print(f"Passed over: {images.passed_over}.")
        if not is_orientation(encoder.orientation):
            print(
                "The checkpoint does not say how its images lay: these are taken as they lie, so look at the results."
            )
    outcomes = extract(encoder, images, args.level, args.o)
    kind = "location-conditioned" if encoder.conditional else "plain"
    landmarks = "" if encoder.landmarks is None else f"{counted(len(encoder.landmarks), 'landmark')}, "
    print(f"{encoder.run['method']}, {kind} encoder, {landmarks}crops of {'x'.join(map(str, encoder.size))} voxels.")
    return say_outcomes(args.d or args.i, outcomes, "turned into features", args.o)
