"""Are time and memory of preparation flat a case? N tiny volumes through import, plan, anatomy and index.

    python benchmarks/preparation_scale.py -o DIR --volumes 500 2000

Makes eight phantoms, writes them N times with different noise, and runs the commands in processes of their own, one
process each. Prints CSV: seconds of processor time, milliseconds a volume, and the largest memory of the command.
20,000 volumes are the same command with a different number.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from folders import set_folders

from nnunet_alice.phantoms import make_subject, render

COMMANDS = ("import", "plan", "anatomy", "index")
NUMBER, PLANS, PHANTOMS = 913, "AliceSmallPlans", 8
TRAINER = "AnatomicalEmbeddingTrainer_1epoch_1iteration"


def main() -> None:
    """Run all commands for each number of volumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", required=True, type=Path, help="folder for everything; each number gets one in it")
    parser.add_argument("--volumes", type=int, nargs="+", default=(500, 2000), help="[%(default)s]")
    parser.add_argument("--spacing", type=float, default=14.0, help="mm [%(default)s]")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS, help="after those before [all]")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    print("volumes,command,processor seconds,ms a volume,peak memory MB", flush=True)
    for count in args.volumes:
        base = args.o / str(count)
        set_folders(base)
        write_volumes(base / "volumes", count, args.spacing)
        training = ["nnUNetv2_train", str(NUMBER), "3d_fullres", "all", "-tr", TRAINER, "-p", PLANS, "-device", "cpu"]
        anatomy = ["anatomy", "-d", str(NUMBER), "-p", PLANS]
        commands = {
            "import": ["import", "-i", str(base / "volumes"), "-d", str(NUMBER), "-n", "many", "--channel", "CT"],
            "plan": ["plan", "-d", str(NUMBER), "-pl", "AlicePlannerSmall"],
            "anatomy": anatomy,
            "index": [*anatomy, "--method", "embedding", "-device", "cpu"],
        }
        for name in args.commands:
            if name == "index":  # needs a network, however bad
                measured(training, base / "training.log")
            seconds, memory = measured(["nnunet_alice", *commands[name], "-np", "1"], base / f"{name}.log")
            print(f"{count},{name},{seconds:.1f},{1e3 * seconds / count:.1f},{memory:.0f}", flush=True)


def write_volumes(folder: Path, count: int, spacing_mm: float) -> None:
    """Write phantoms with noise as NIfTI; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = [render(make_subject(seed), spacing_mm).image for seed in range(PHANTOMS)]
    for number in range(count):
        path = folder / f"volume{number:05d}.nii.gz"
        if path.is_file():
            continue
        original = originals[number % PHANTOMS]
        noise = np.random.default_rng(number).normal(0, 5, original.shape)
        image = sitk.GetImageFromArray((original + noise).astype(np.int16))
        image.SetSpacing((spacing_mm,) * 3)
        sitk.WriteImage(image, str(path))


def measured(command: list[str], log: Path) -> tuple[float, float]:
    """Return processor seconds of a command, and resident memory (MB) of the largest of its processes.

    Raises:
        SystemExit: it failed.
    """
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
