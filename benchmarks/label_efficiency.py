"""What the label-efficiency benchmarks share: public commands, pretraining of every seed, the final tables."""

import os
import shlex
import subprocess
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from folders import set_folders

#: for every command on the CPU: one core a run, so that several go side by side (--part); no eight new processes for
#: every validation, which cost more than its small images
ON_CPU = {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}
#: for trainings alone, as nnU-Net's planning refuses it: batches drawn in the trainer's own process, which makes them
#: the same in every run
IN_TRAINING = {"nnUNet_n_proc_DA": "0"}


def arguments(description: str, settings: Path, epochs: int, methods: Sequence[str]) -> ArgumentParser:
    """Return the flags of these benchmarks; by default every method is pretrained for ``epochs`` of 50 iterations."""
    trainers = [f"{method}_{epochs}epochs_50iterations" for method in methods]
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="for everything that is made")
    parser.add_argument("-np", default="2", help="processes [2]")
    parser.add_argument("--settings", type=Path, default=settings, help=f"of the benchmark [{settings.name}]")
    parser.add_argument("--trainers", nargs="+", default=trainers, help=f"pretraining trainers [{' '.join(trainers)}]")
    parser.add_argument("--seeds", nargs="+", default=["1", "2"], help="of pretraining [1 2]")
    parser.add_argument("--part", default="1/1", help="share of the runs, once pretraining is done [1/1]")
    parser.add_argument("-device", default="cpu", help="for every training [cpu]")
    return parser


def prepare(args: Namespace) -> dict[str, Path]:
    """Set nnU-Net's folders below ``-o``, and ``ON_CPU``."""
    on_cpu(args.device, ON_CPU)
    return set_folders(args.o)


def on_cpu(device: str, variables: dict[str, str]) -> None:
    """Set variables of the environment that it does not have, if the device is the CPU."""
    if device == "cpu":
        for name, value in variables.items():
            os.environ.setdefault(name, value)


def call(*words) -> None:
    """Run a command, shown as one would type it; stop where it fails."""
    command = [str(word) for word in words]
    print("$", shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def pretrain(dataset: str, plans: str, trainers: Sequence[str], seeds: Sequence[str], device: str) -> None:
    """Pretrain every trainer with every seed, or go on from its last checkpoint."""
    on_cpu(device, IN_TRAINING)
    for seed in seeds:
        for trainer in trainers:
            name = f"{trainer}_seed{seed}"
            fold = Path(os.environ["nnUNet_results"]) / dataset / f"{name}__{plans}__3d_fullres" / "fold_all"
            if (fold / "checkpoint_final.pth").is_file():
                continue
            resume = ["--c"] if (fold / "checkpoint_latest.pth").is_file() else []
            words = [dataset, "3d_fullres", "all", "-tr", name, "-p", plans, "-device", device, *resume]
            call("nnUNetv2_train", *words)


def compare(args: Namespace, folder: str = "benchmark") -> None:
    """Do every run of the settings that is not done, and write the report, in a folder of that name below ``-o``."""
    on_cpu(args.device, IN_TRAINING)
    bench = args.o.absolute() / folder
    call("nnunet_alice", "benchmark", args.settings, "-o", bench, "--part", args.part, "-device", args.device)
    call("nnunet_alice", "report", "-i", bench, "-np", args.np)
