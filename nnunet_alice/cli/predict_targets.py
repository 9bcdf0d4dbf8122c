"""Predict classes, numbers or risks of new raw images with what ClassificationTrainer or RegressionTrainer trained.

Images are named as for nnUNetv2_predict (CASE_0000), in any format that import reads. Several folds are averaged. An
image that is oriented unlike those of the training is turned first. A case that cannot be predicted is named with the
reason; the others go on.
"""

import argparse

EXAMPLE = (
    "nnunet_alice predict_targets -i images -o predictions.csv "
    "-m $nnUNet_results/Dataset900_NAME/ClassificationTrainer__nnUNetPlans__3d_fullres"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("-i", required=True, metavar="FOLDER", help="raw images")
    parser.add_argument("-o", required=True, metavar="CSV", help="table of predictions to write")
    parser.add_argument("-m", required=True, metavar="FOLDER", help="TRAINER__PLANS__CONFIGURATION in the results")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds to average [all that are trained]")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="of every fold [%(default)s]")
    parser.add_argument("-device", default="cpu", metavar="DEVICE", help="cpu, cuda or mps [%(default)s]")
    parser.add_argument("--explain", metavar="FOLDER", help="draw here which places of each case decided (slow)")


def run(args: argparse.Namespace) -> int:
    """Predict, write the table, and name what failed; status 1 where nothing could be predicted."""
    from pathlib import Path

    import pandas as pd

    from nnunet_alice.cli.common import say_outcomes
    from nnunet_alice.features.images import RawImages
    from nnunet_alice.files import write_csv
    from nnunet_alice.targets.prediction import TargetModel, predict_images
    from nnunet_alice.words import counted

    model = TargetModel.open(args.m, args.f, args.chk, args.device)
    images = RawImages(args.i, model.run)
    if images.passed_over:
        print(f"Passed over: {images.passed_over}.")
    outcomes = predict_images(model, images, None if args.explain is None else Path(args.explain))
    outcomes.check_some("predicted")
    table = pd.concat(outcomes.results.values(), ignore_index=True)
    table.insert(0, "case", list(outcomes.results))
    write_csv(args.o, table)
    return say_outcomes(f"Mean of {counted(len(model.folds), 'fold')}", outcomes, "predicted", args.o)
