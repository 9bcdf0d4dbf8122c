"""Print the folder in which nnU-Net finds the trainers, or list them.

export nnUNet_extTrainer=$(nnunet_alice trainers)
"""

import argparse

from nnunet_alice.discovery import classes_in, package_folder, summary

EXAMPLE = "export nnUNet_extTrainer=$(nnunet_alice trainers)"
PACKAGE = "nnunet_alice.trainers"
#: What the pretraining trainers share; it cannot be trained itself.
BASE = "PretrainingTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--list", action="store_true", help="name every trainer with one line, instead of the folder")


def run(args: argparse.Namespace) -> int:
    """Print the folder alone, so that the shell can take it; or the table of trainers."""
    if not args.list:
        print(package_folder(PACKAGE))
        return 0
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_alice.training.variants import endings_table

    trainers = {name: trainer for name, trainer in classes_in(PACKAGE, nnUNetTrainer).items() if name != BASE}
    width = max((len(name) for name in trainers), default=0)
    for name, trainer in trainers.items():
        print(f"{name:<{width}}  {summary(trainer)}")
    print("\nNames take endings, in any order, e.g. AliceTrainer_100epochs_seed2:")
    for shown, meaning in endings_table():
        print(f"  {shown:<17} {meaning}")
    return 0
