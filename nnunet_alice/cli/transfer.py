"""Make of a pretrained checkpoint one that nnUNetv2_train -pretrained_weights accepts for other plans.

Other numbers of input channels, stages and features, other kernel sizes and strides are adapted; every tensor is listed
as loaded, adapted (how) or fresh, and the list is saved beside the output. Checkpoints of this package, of nnU-Net and
of nnssl are read, without running code in them.
"""

import argparse

from nnunet_alice.nnunet_folders import dataset_number
from nnunet_alice.words import counted, pasteable

EXAMPLE = "nnunet_alice transfer -i checkpoint_final.pth -d 4 -p nnUNetPlans -c 3d_fullres -o adapted.pth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-i", "--input", required=True, metavar="CHECKPOINT", help="pretrained checkpoint")
    parser.add_argument("-d", "--dataset", required=True, help="target dataset, number or name")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="target plans (default: %(default)s)")
    parser.add_argument(
        "-c", "--configuration", default="3d_fullres", help="target configuration (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", required=True, help="checkpoint to write; the table goes beside it as .csv")
    parser.add_argument(
        "--parts", choices=("all", "encoder"), default="all", help="what to carry (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        default="student",
        help="teacher: the moving average that Alice and DrasCLR learn from (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="for what stays fresh (default: %(default)s)")
    parser.add_argument(
        "--trust", action="store_true", help="open a checkpoint that holds more than data; this may run any code in it"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from pathlib import Path

    from nnunet_alice.checkpoints.transfer import transfer_checkpoint
    from nnunet_alice.nnunet_folders import dataset_name

    result = transfer_checkpoint(
        args.input,
        args.dataset,
        args.plans,
        args.configuration,
        args.output,
        args.parts,
        args.trust,
        args.seed,
        args.weights,
    )
    table = result.table[["tensor", "source_shape", "target_shape", "status", "how"]]
    widths = [max(len(name), int(table[name].str.len().max())) for name in table]
    for row in (table.columns, *table.itertuples(index=False)):
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    print()
    counts = result.table["status"].value_counts()
    print(
        ", ".join(f"{counted(counts.get(status, 0), 'tensor')} {status}" for status in ("loaded", "adapted", "fresh"))
    )
    print(
        f"Carried: {result.share():.1%} of all parameters, {result.share('encoder'):.1%} of the encoder's, "
        f"{result.share('decoder'):.1%} of the decoder's."
    )
    _compare_orientation(args)
    print(f"Written: {args.output} and {Path(args.output).with_suffix('.csv')}")
    number = dataset_number(dataset_name(args.dataset))
    words = ["nnUNetv2_train", number, args.configuration, 0, "-p", args.plans, "-pretrained_weights", args.output]
    print(f"Fine-tune: {pasteable(*words)}")


def _compare_orientation(args: argparse.Namespace) -> None:
    """Say it where the target lies unlike what was pretrained on; stock trainers will not."""
    from nnunet_alice.checkpoints.loading import load_checkpoint
    from nnunet_alice.checkpoints.pretraining import pretrained_orientation
    from nnunet_alice.files import read_json
    from nnunet_alice.nnunet_folders import dataset_name, nnunet_folder
    from nnunet_alice.planning.orientations import unlike_pretraining

    trained, target = pretrained_orientation(load_checkpoint(args.output)), dataset_name(args.dataset)
    plans = read_json(nnunet_folder("nnUNet_preprocessed") / target / f"{args.plans}.json")
    if note := unlike_pretraining(trained, target, plans.get("image_reader_writer", "")):
        print(note)
