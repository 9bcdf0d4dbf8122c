"""From unlabelled volumes to a picture: pretraining, then the same training on labels with and without it.

Without --data it makes phantoms, and needs no GPU and no data: some ten minutes on two idle CPU cores.
With --data it takes a labelled dataset of yours in nnU-Net's format, of which it only reads. A few cases keep their
labels, a third is tested on, and pretraining sees the images of all others. How long it will take is said before
training starts. Every step runs the command that you would type; their output is in the folder's logs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_alice.cli.common import positive
from nnunet_alice.demo.budget import EMBEDDING, RUNS, TRAINERS, Budget, own_budget
from nnunet_alice.errors import InputError
from nnunet_alice.words import counted

if TYPE_CHECKING:
    from nnunet_alice.demo.workflow import Demo, DemoReport

EXAMPLE = "nnunet_alice demo -o nnunet_alice_demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "-o", default="nnunet_alice_demo", metavar="DIR", help="new folder for everything [%(default)s]"
    )
    parser.add_argument(
        "--embedding",
        action="store_true",
        help="also train the anatomical embedding for a few minutes, and let it match the views instead of the atlas",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the phantoms; with --data of parts and training [%(default)s]"
    )
    parser.add_argument("--data", metavar="FOLDER", help="your DatasetXXX_NAME: dataset.json, imagesTr, labelsTr")
    own = parser.add_argument_group("with --data")
    own.add_argument("--labelled", type=positive(int), default=2, metavar="N", help="cases with labels [%(default)s]")
    own.add_argument(
        "--test", type=positive(int), metavar="N", help="test cases [a third of those with labels, at most 20]"
    )
    own.add_argument(
        "--epochs", type=positive(int), default=20, metavar="N", help="of pretraining, 250 steps each [%(default)s]"
    )
    own.add_argument(
        "--finetuning_epochs", type=positive(int), default=6, metavar="N", help="of training on labels [%(default)s]"
    )
    own.add_argument(
        "-tr",
        choices=TRAINERS,
        help="trainer of the pretraining [AliceTrainer_regionsOnly on a CPU, else AliceTrainer]",
    )
    own.add_argument("--device", metavar="DEVICE", help="cpu, cuda or mps [a GPU if there is one]")


def run(args: argparse.Namespace) -> None:
    """Run the demo and print its table."""
    from nnunet_alice.demo.sources import Phantoms
    from nnunet_alice.demo.workflow import Demo

    embedding = EMBEDDING if args.embedding else None

    def announce(step: str) -> None:
        print(f"... {step}", flush=True)

    if args.data is None:
        demo = Demo(args.o, Phantoms(seed=args.seed), Budget(embedding=embedding), announce)
    else:
        from nnunet_alice.demo.own_data import read_own_data

        data = read_own_data(args.data, args.labelled, args.test, args.seed)
        if Path(args.data).resolve() in (Path(args.o).resolve(), *Path(args.o).resolve().parents):
            raise InputError(
                f"{args.o} lies in {args.data}, which stays as it is; name a folder elsewhere with -o."
            ).about(path=args.o, option="-o")
        device = args.device or _device()
        budget = own_budget(
            args.epochs, args.finetuning_epochs, args.seed, device, embedding, data.has_regions, args.tr
        )
        demo = Demo(args.o, data, budget, announce, foretell=True)
        print(
            f"{len(data.cases)} cases: {', '.join(data.labelled)} with labels, {len(data.test)} to test on (their "
            f"images are never pretrained on), {len(data.pool)} to pretrain on, without labels."
        )
        if data.without_label:
            print(f"Without a label in your data, so only pretrained on: {', '.join(data.without_label)}.")
        print(
            f"Then {counted(args.epochs, 'epoch')} of pretraining and twice {args.finetuning_epochs} on labels, on "
            f"{budget.device}. The time that takes is measured and said before it starts."
        )
    report = demo.run()
    _print_report(demo, report)
    print(f"\n{_conclusion(report, args.data is not None)}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _print_report(demo: "Demo", report: "DemoReport") -> None:
    """Print what ran, how long it took, the table of Dice, and where the pictures lie."""
    print("\nCommands that ran (environment and logs in the folder):")
    for command in report.commands:
        print(f"  {command}")
    print("\nSeconds")
    for step, seconds in report.seconds.items():
        print(f"  {seconds:7.0f}  {step}")
    print(f"  {sum(report.seconds.values()):7.0f}  in all")
    tested, labelled = counted(len(report.cases[RUNS[0]]), "test case"), counted(report.labelled, "labelled case")
    print(
        f"\nDice on {tested} that no training saw ({labelled}, {report.pool} images "
        f"for pretraining; {demo.budget.finetuning}, from scratch {demo.budget.scratch})"
    )
    print(f"  {'class':22}" + "".join(f"{run:>14}" for run in RUNS))
    for name, row in report.table.iterrows():
        print(f"  {name:22}" + "".join(f"{row[run]:14.3f}" for run in RUNS))
    if len(report.matching):
        print(f"\nError of matching in mm, random body points of {demo.budget.pairs} pairs of unlabelled phantoms")
        print(report.matching.to_string(index=False, float_format="{:.2f}".format))
    print("\nPictures")
    for name, path in report.pictures.items():
        print(f"  {name}: {path}")


def _conclusion(report: "DemoReport", own: bool) -> str:
    """Return the sentences that say what was shown, and what was not."""
    points, tested = 100 * report.gain, len(report.cases[RUNS[0]])
    shown = (
        f"Shown: with {counted(report.labelled, 'labelled case')} and the same short training, the network pretrained "
        f"on {report.pool} images without labels ends {counted(round(abs(points)), 'point')} of mean Dice "
        f"{'above' if points >= 0 else 'below'} the one from scratch, and is better on {report.won} of "
        f"{counted(tested, 'test case')}."
    )
    if own:
        return (
            f"{shown} Not shown: other draws of the labelled cases, other seeds, a learning rate tuned for each, "
            "nnU-Net's full length; nnunet_alice benchmark compares those."
        )
    return (
        f"{shown} Not shown: real images, other seeds, and longer training on labels, in which both come closer "
        "(docs/results/demo.md)."
    )
