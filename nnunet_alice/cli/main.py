"""Entry point ``nnunet_alice <command>``: finds the command, runs it, turns known errors into one sentence.

A command is a module of this package with ``add_arguments(parser)``, ``run(args) -> int | None`` (exit status) and
``EXAMPLE`` (a command line shown by ``-h``). ``RESUMES = True`` says that it goes on where it was when it is run again
after Ctrl-C. Heavy imports belong inside ``run``, so that ``-h`` answers at once.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from nnunet_alice import __version__
from nnunet_alice.cli.common import NO_READER
from nnunet_alice.errors import INTERRUPTED, AliceError
from nnunet_alice.parallel import end_processes
from nnunet_alice.words import mend, telling

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
    "demo": ("demo", "the whole workflow in minutes on phantoms, or on a labelled dataset of yours"),
}


def build_parser(commands: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser that knows the arguments of ``commands`` and the names of all others."""
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
        resumes = getattr(implementation, "RESUMES", False)
        subparser.set_defaults(run=implementation.run, resumes=resumes)
    return parser


class _ToStdout(logging.StreamHandler):
    """Log to stdout; that nobody reads it any more ends the command, as with everything that is printed."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Pass on a broken pipe instead of printing a traceback for each message."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its name and arguments; those of the process by default.

    Returns:
        exit status: 0 good, 1 a known error, 2 wrong usage; 3 done but not for all cases, 130 after Ctrl-C, 141 when
        nobody reads the output any more.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # greets on import, into what --json prints
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_ToStdout(sys.stdout)])
    args = argparse.Namespace(command=" ".join(argv[:1]), resumes=False)  # until they are read
    try:
        try:
            args = build_parser([name for name in COMMANDS if name in argv[:1]]).parse_args(argv)
        finally:
            sys.stdout.flush()  # of -h
        status = args.run(args) or 0
        sys.stdout.flush()  # here, where a broken pipe is told from other errors
        return status
    except KeyboardInterrupt:
        end_processes()
        kept = "run it again: what is done is kept" if args.resumes else "nothing is left half-written; run it again"
        print(f"\nnnunet_alice {args.command}: interrupted; {kept}.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        end_processes()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return NO_READER
    except AliceError as error:
        print(f"nnunet_alice {args.command}: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno is None:  # not the system's: a fault of ours
            raise
        print(f"nnunet_alice {args.command}: {telling(error)}; {mend(error)}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
