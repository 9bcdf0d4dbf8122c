"""Write a pretrained checkpoint as a folder that others can use: weights, plans, model card, checksums.

No file of it is a pickle. Names of cases, paths of this machine and images of patients stay here unless asked for;
what was left out is printed. Put the folder on the Hugging Face hub, on a web server or on a disk, as it is.
"""

import argparse

EXAMPLE = (
    "nnunet_alice publish -i fold_all/checkpoint_final.pth -o alice-chest-ct --licence cc-by-4.0 --name 'Chest CT'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-i", "--input", required=True, metavar="CHECKPOINT", help="checkpoint of a pretraining")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--licence", required=True, metavar="ID", help="licence: apache-2.0, cc-by-4.0, ... or other")
    parser.add_argument("--licence_file", metavar="FILE", help="text of the licence; needed for --licence other")
    parser.add_argument("--name", help="title of the model card (default: the folder's name)")
    parser.add_argument(
        "--data", action="append", default=[], metavar="TEXT", help="a source of training data; may be repeated"
    )
    parser.add_argument("--use", metavar="TEXT", help="intended use, in place of the standard sentence")
    parser.add_argument("--limits", metavar="TEXT", help="known limits, in place of the standard sentences")
    parser.add_argument("--citation", metavar="TEXT", help="how to cite these weights, beside the methods' papers")
    parser.add_argument("--report", metavar="FOLDER", help="report of nnunet_alice report, for the evaluation table")
    parser.add_argument("--case_names", action="store_true", help="publish the names of the training cases, too")
    parser.add_argument(
        "--atlas", action="store_true", help="publish DrasCLR's atlas, too: a coarse image of one training case"
    )


def run(args: argparse.Namespace) -> None:
    """Publish, and say what is in the folder and what is not."""
    from pathlib import Path

    from nnunet_alice.publishing.card import CardText
    from nnunet_alice.publishing.publish import publish

    said = {name: getattr(args, name) for name in ("use", "limits", "citation") if getattr(args, name) is not None}
    text = CardText(args.name or Path(args.output).resolve().name, args.licence, tuple(args.data), **said)
    published = publish(
        args.input,
        args.output,
        text,
        licence_file=args.licence_file,
        report=args.report,
        atlas=args.atlas,
        case_names=args.case_names,
    )
    print(f"Written: {published.folder} ({', '.join(published.files)})")
    for line in published.left_out:
        print(f"Left out: {line}.")
    print(f"It names the dataset {published.dataset} and the version of this package.")
    print("Read README.md in it, add what only you know, then upload the folder.")
    print(f"From a web server others fetch it with --sha256 {published.checksum}")
