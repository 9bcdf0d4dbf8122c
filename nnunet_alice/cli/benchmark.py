"""Compare fine-tuning from several starts (scratch, checkpoints) with several numbers of labelled cases.

Settings come from a YAML file, from flags, or both (flags win); docs/how-to/compare-pretrainings.md explains them.
The labelled dataset has to be preprocessed; it is linked into the benchmark's folder and stays untouched. Every run is
one nnUNetv2_train.
Start the same command again after an interruption: finished runs are kept, started ones continued. Then:
nnunet_alice report -i FOLDER
"""

import argparse
from pathlib import Path

from nnunet_alice.errors import InputError
from nnunet_alice.words import counted, pasteable

EXAMPLE = "nnunet_alice benchmark hippocampus.yaml -o /results/hippocampus --part 1/4"
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("settings", nargs="?", metavar="SETTINGS.yaml", help="what to compare")
    parser.add_argument("-o", dest="folder", required=True, metavar="FOLDER", help="folder of the benchmark")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="prepare the data and print the commands, for a cluster; they take no lock: let no two processes run one",
    )
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="I/N", help="run the I-th of N shares (default: 1/1)"
    )
    flags = parser.add_argument_group("settings as flags")
    flags.add_argument("-d", dest="dataset", metavar="DATASET", help="labelled dataset, number or name")
    flags.add_argument("-p", dest="plans", metavar="PLANS", help="plans [nnUNetPlans]")
    flags.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="configuration [3d_fullres]")
    flags.add_argument(
        "--arm",
        dest="arms",
        action="append",
        type=_arm,
        metavar="NAME[=CHECKPOINT[,CHECKPOINT...]][@RATE[,RATE...]]",
        help="a start, e.g. scratch@1e-2 or alice=a.pth,b.pth@1e-3,3e-3; give it once for each arm",
    )
    flags.add_argument("--labels", nargs="+", metavar="N", help="numbers of labelled cases, 'all' among them")
    flags.add_argument("--test_cases", type=int, metavar="N", help="number of fixed test cases")
    flags.add_argument("--test_file", metavar="FILE", help="JSON list of fixed test cases")
    flags.add_argument("--test_folds", type=int, nargs="+", metavar="FOLD", help="folds of splits_final.json, in turn")
    flags.add_argument("--draws", type=int, metavar="N", help="draws of the labelled cases [5]")
    flags.add_argument("--draws_of_all", type=int, metavar="N", help="runs with 'all', which draw nothing [--draws]")
    flags.add_argument("--seeds", type=int, metavar="N", help="runs of each draw [1]")
    flags.add_argument("--epochs", type=int, metavar="N", help="epochs of fine-tuning [the trainer's]")
    flags.add_argument("--iterations", type=int, metavar="N", help="iterations an epoch [the trainer's]")
    flags.add_argument(
        "--disable_tta",
        action="store_const",
        const=False,
        dest="mirroring",
        help="predict without mirroring, 8x faster",
    )
    flags.add_argument("-device", dest="device", choices=("cuda", "cpu", "mps"), help="device [cuda]")


def run(args: argparse.Namespace) -> int:
    """Run, or print the commands."""
    from nnunet_alice.benchmark.parsing import absolute_paths, parse_settings, read_settings
    from nnunet_alice.benchmark.runner import Runner

    content = read_settings(args.settings) if args.settings else {}
    runner = Runner(parse_settings(content | absolute_paths(_flags(args), Path.cwd())), args.folder)
    if args.dry_run:
        for line in runner.dry_run(args.part):
            print(line)
        return 0
    outcome = runner.run(args.part)
    print(
        f"{counted(len(outcome.done), 'run')} done, {len(outcome.failed)} failed, "
        f"{len(outcome.waiting)} waiting for others."
    )
    for name, why in outcome.failed.items():
        print(f"  {name}: {why}")
    if outcome.waiting:
        print("Start this command again when the other parts have finished, to run what waited for them.")
    print(f"Next: {pasteable('nnunet_alice', 'report', '-i', args.folder)}")
    return 1 if outcome.failed else 0


def _flags(args: argparse.Namespace) -> dict:
    """Return settings that were given as flags."""
    names = (
        "dataset",
        "plans",
        "configuration",
        "labels",
        "draws",
        "draws_of_all",
        "seeds",
        "epochs",
        "iterations",
        "mirroring",
        "device",
    )
    found = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.arms:
        found["arms"] = dict(args.arms)
        if len(found["arms"]) < len(args.arms):
            raise InputError(
                "--arm is given twice for one name; list its checkpoints in one, with commas between."
            ).about(option="--arm")
    test = {"cases": args.test_cases, "file": args.test_file, "folds": args.test_folds}
    if any(value is not None for value in test.values()):
        found["test"] = {key: value for key, value in test.items() if value is not None}
    return found


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is not of the form 1/4")
    return int(number), int(of)


def _arm(text: str) -> tuple[str, dict]:
    start, _, rates = text.partition("@")
    name, _, checkpoints = start.partition("=")
    arm: dict = {"checkpoints": checkpoints.split(",")} if checkpoints else {}
    if rates:
        arm["learning_rates"] = rates.split(",")
    return name, arm
