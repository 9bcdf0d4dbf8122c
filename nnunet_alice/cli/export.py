"""Write a fine-tuned model as one of stock nnU-Net, for machines without this package.

The folder nnUNetTrainer__PLANS__CONFIGURATION is written only if stock nnU-Net's network gives exactly the same logits
as the network that was trained, in every fold.
"""

import argparse

from nnunet_alice.words import counted, pasteable

EXAMPLE = "nnunet_alice export -i nnUNet_results/Dataset004_Hippocampus/FineTuneTrainer__nnUNetPlans__3d_fullres -o out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-i", "--input", required=True, metavar="MODEL", help="folder TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to write the model folder into")
    parser.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="folds (default: all that are finished)")
    parser.add_argument(
        "-chk",
        "--checkpoint",
        default="checkpoint_final.pth",
        metavar="FILE",
        help="checkpoint in each fold (default: %(default)s)",
    )
    parser.add_argument(
        "--trust", action="store_true", help="open a checkpoint that holds more than data; this may run any code in it"
    )


def run(args: argparse.Namespace) -> None:
    """Export and print how to predict."""
    from nnunet_alice.checkpoints.exporting import export_model

    export = export_model(args.input, args.output, args.folds, args.checkpoint, args.trust)
    print(f"Same logits as {export.trainer} in {counted(len(export.folds), 'fold')}. Written: {export.folder}")
    words = ["nnUNetv2_predict_from_modelfolder", "-i", "IMAGES", "-o", "PREDICTIONS", "-m", export.folder, "-f"]
    print(f"Predict with stock nnU-Net: {pasteable(*words, *export.folds)}")
