"""Entry point ``nnunet_alice <command>``: finds the command, runs it, turns known errors into one sentence.

A command is a module of this package with ``add_arguments(parser)``, ``run(args) -> int | None`` (exit status) and
``EXAMPLE`` (a command line shown by ``-h``). Heavy imports belong inside ``run``, so that ``-h`` answers at once.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from nnunet_alice import __version__
from nnunet_alice.errors import AliceError

#: command -> (module in this package, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "trainers": ("trainers", "print the folder for nnUNet_extTrainer, or list all trainers"),
    "import": ("import_unlabelled", "make an nnU-Net dataset of a folder of unlabelled volumes"),
    "convert_btcv": ("convert_btcv", "make an nnU-Net dataset of BTCV's 30 abdominal CTs, with the common splits"),
    "plan": ("plan", "plan and preprocess an unlabelled dataset, with the plans of a target dataset or its own"),
    "anatomy": ("anatomy", "find out where in the body every case lies, so that views can be matched"),
    "train": ("train", "nnUNetv2_train, also for many processes on several machines (torchrun)"),
    "match": ("match", "find one point of a case in other cases"),
    "evaluate_matching": ("evaluate_matching", "measure how far matches are off, every method side by side"),
    "inspect": ("inspect_checkpoint", "say what a checkpoint holds and how to fine-tune from it"),
    "transfer": ("transfer", "fit a pretrained checkpoint to other plans, for -pretrained_weights"),
    "extend": ("extend", "make a finished pretraining longer, and say what its schedules do"),
    "publish": ("publish", "write a pretrained checkpoint as a folder for others: weights, plans, model card"),
    "fetch": ("fetch", "bring a published model here, checked: from the Hugging Face hub, a web server or a folder"),
    "export": ("export", "write a fine-tuned model for stock nnU-Net, after checking that the logits are the same"),
    "benchmark": ("benchmark", "compare fine-tuning from scratch and from checkpoints, by number of labels"),
    "report": ("report", "tables, tests and pictures of a benchmark"),
    "features": ("features", "turn images into features of patches, cases or dense maps"),
    "probe": ("probe", "measure what a linear model reads off case features"),
    "targets": ("targets", "store what ClassificationTrainer and RegressionTrainer are to predict"),
    "predict_targets": ("predict_targets", "predict classes, numbers or risks of new images"),
    "locate": ("locate", "append atlas coordinates to images, for DrasCLRFineTuneTrainer"),
    "demo": ("demo", "the whole workflow on phantoms, in minutes"),
}


def build_parser(commands: Sequence[str]) -> argparse.ArgumentParser:
    """Parser that knows the arguments of ``commands`` and the names of all others."""
    parser = argparse.ArgumentParser(
        prog="nnunet_alice",
        description="Self-supervised pretraining inside stock nnU-Net v2.",
        epilog="Example: nnunet_alice demo",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (module, summary) in COMMANDS.items():
        if name not in commands:
            subparsers.add_parser(name, help=summary)
            continue
        implementation = importlib.import_module(f"nnunet_alice.cli.{module}")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=implementation.__doc__,
            epilog=f"Example: {implementation.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        implementation.add_arguments(subparser)
        subparser.set_defaults(run=implementation.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (0 good, 1 a known error, 2 wrong usage)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # greets on import, into what --json prints
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    args = build_parser([name for name in COMMANDS if name in argv[:1]]).parse_args(argv)
    try:
        return args.run(args) or 0
    except AliceError as error:
        print(f"nnunet_alice {args.command}: {error}", file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        reason = error.strerror or type(error).__name__
        print(f"nnunet_alice {args.command}: {error.filename}: {reason}; see permissions and space.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
