"""Train as nnUNetv2_train does, also in many processes on several machines.

Takes the arguments of nnUNetv2_train (nnUNetv2_train -h lists them) and does the same in one process. Started by
torchrun, as python -m nnunet_alice.train, all its processes train together, each on a GPU of its own machine.
After a failure they continue from the last checkpoint. See docs/how-to/several-gpus-and-machines.md.
"""

import argparse
import os

from nnunet_alice.discovery import trainer_folders

EXAMPLE = "torchrun --nnodes 2 --nproc-per-node 8 ... -m nnunet_alice.train 900 3d_fullres all -tr AliceTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="DATASET CONFIGURATION FOLD ...", help="as of nnUNetv2_train"
    )


def run(args: argparse.Namespace) -> None:
    """Train; this package's trainers are found whether ``nnUNet_extTrainer`` names their folder or not."""
    from nnunet_alice.training.launch import train

    os.environ["nnUNet_extTrainer"] = trainer_folders()
    train(args.arguments)
