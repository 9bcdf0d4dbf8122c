"""Continue a finished pretraining for more epochs than it was planned for.

Writes the folder of the longer run beside the old one, which stays, and prints the command that trains on. Weights,
teacher and optimiser are kept; the schedules of learning rate, weight decay and teacher begin again and run over the
added epochs. The result is not that of a run that was longer from the beginning: its rate sank and rises once more.
"""

import argparse

from nnunet_alice.cli.common import positive

EXAMPLE = "nnunet_alice extend -i AliceTrainer__nnUNetPlans_from004__3d_fullres/fold_all --epochs 2000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "-i", "--input", required=True, metavar="FOLDER", help="folder fold_X of a finished pretraining"
    )
    parser.add_argument("--epochs", required=True, type=int, metavar="N", help="epochs in all, those done included")
    parser.add_argument(
        "--learning_rate",
        type=positive(float),
        metavar="X",
        help="peak for the added epochs (default: that of the run)",
    )


def run(args: argparse.Namespace) -> None:
    """Extend, and print what to run next."""
    from nnunet_alice.checkpoints.extending import extend_run
    from nnunet_alice.nnunet_folders import dataset_number
    from nnunet_alice.words import pasteable

    extended = extend_run(args.input, args.epochs, args.learning_rate)
    print(f"Written: {extended.folder}")
    print(
        f"Epochs {extended.done} to {extended.epochs - 1}: the learning rate rises to {extended.learning_rate:g} and "
        "sinks again; weight decay and teacher begin again, too."
    )
    run_of = (dataset_number(extended.dataset), extended.configuration, extended.fold)
    print(f"Next: {pasteable('nnUNetv2_train', *run_of, '-tr', extended.trainer, '-p', extended.plans_name, '--c')}")
