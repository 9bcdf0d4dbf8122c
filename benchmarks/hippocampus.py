"""Everything for the benchmark on MSD Task04 with one command; start it again after an interruption.

    python benchmarks/hippocampus.py -i Task04_Hippocampus -o FOLDER

Converts and plans the labelled data, sets 60 test cases aside, pretrains on the images of the others (two methods, two
seeds each), then runs ``nnunet_alice benchmark hippocampus.yaml`` and ``nnunet_alice report``. Only public commands are
called. To add a method, add its trainer to ``--trainers`` and an arm to the settings.
"""

import argparse
import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

LABELLED, UNLABELLED = "Dataset004_Hippocampus", "Dataset904_HippocampusUnlabelled"
PLANS = "nnUNetSmallPlans"
#: what makes nnU-Net's own plans bearable without a GPU
FEATURES, BATCH, PAIRS_GB = (8, 16, 32, 64), 2, 0.25
MOVED = f"{PLANS}_from004"


def main() -> int:
    """Run the steps that are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="Task04_Hippocampus as downloaded")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="for everything that is made")
    parser.add_argument("-np", default="2", help="processes [2]")
    parser.add_argument(
        "--settings", type=Path, default=Path(__file__).with_suffix(".yaml"), help="of the benchmark [hippocampus.yaml]"
    )
    parser.add_argument(
        "--trainers",
        nargs="+",
        default=["AliceTrainer_noContrast_80epochs_50iterations", "AliceTrainer_80epochs_50iterations"],
        help="pretraining trainers [masked images, Alice: 4000 iterations each]",
    )
    parser.add_argument("--seeds", nargs="+", default=["1", "2"], help="of pretraining [1 2]")
    parser.add_argument("--part", default="1/1", help="share of the benchmark's runs, for several machines [1/1]")
    parser.add_argument("-device", default="cpu", help="for pretraining [cpu]; fine-tuning's is in the settings")
    args = parser.parse_args()
    folders = {name: args.o.absolute() / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["nnUNet_extTrainer"] = subprocess.run(
        ["nnunet_alice", "trainers"], check=True, capture_output=True, text=True
    ).stdout.strip()

    labelled, unlabelled = folders["nnUNet_raw"] / LABELLED, args.o.absolute() / "unlabelled"
    if not (labelled / "dataset.json").is_file():
        call("nnUNetv2_convert_MSD_dataset", "-i", args.i.absolute(), "-np", args.np)
    preprocessed = folders["nnUNet_preprocessed"] / LABELLED / "preprocessed.done"
    if (
        not preprocessed.is_file()
    ):  # nnU-Net's commands start anew each time, but they also keep the truth to test against
        call("nnUNetv2_extract_fingerprint", "-d", 4, "-np", args.np)
        call("nnUNetv2_plan_experiment", "-d", 4)
        write_small_plans(preprocessed.parent)
        call("nnUNetv2_preprocess", "-d", 4, "-plans_name", PLANS, "-c", "3d_fullres", "-np", args.np)
        preprocessed.touch()
    link_unlabelled(labelled, unlabelled)
    call(
        "nnunet_alice", "import", "-i", unlabelled, "-d", 904, "-n", UNLABELLED[11:], "--channel", "MRI", "-np", args.np
    )
    target = ["--target", 4, "--target_plans", PLANS, "-gpu_memory_target", PAIRS_GB]
    call("nnunet_alice", "plan", "-d", 904, *target, "-np", args.np)
    call("nnunet_alice", "anatomy", "-d", 904, "-p", MOVED, "-c", "3d_fullres", "-np", args.np)
    for seed in args.seeds:
        for trainer in args.trainers:
            pretrain(f"{trainer}_seed{seed}", folders["nnUNet_results"], args.device)
    bench = args.o.absolute() / "benchmark"
    call("nnunet_alice", "benchmark", args.settings, "-o", bench, "--part", args.part)
    call("nnunet_alice", "report", "-i", bench, "-np", args.np)
    return 0


def write_small_plans(folder: Path) -> None:
    """nnU-Net's plans with fewer features and a smaller batch; patch, depth and the rest are its own."""
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = list(FEATURES[: network["n_stages"]])
    plans["configurations"] = {"3d_fullres": plans["configurations"]["3d_fullres"] | {"batch_size": BATCH}}
    plans["plans_name"] = PLANS
    (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=2))


def call(*words) -> None:
    """Run a command, shown as one would type it; stop where it fails."""
    words = [str(word) for word in words]
    print("$", shlex.join(words), flush=True)
    subprocess.run(words, check=True)


def link_unlabelled(labelled: Path, target: Path) -> None:
    """Draw 60 test cases once, and link the images of all others into a folder: pretraining sees no test image."""
    images = {
        re.sub(r"_0000\.nii\.gz$", "", path.name): path for path in sorted((labelled / "imagesTr").glob("*.nii.gz"))
    }
    file = labelled / "test_cases.json"
    if not file.is_file():
        file.write_text(json.dumps(sorted(random.Random(1).sample(sorted(images), 60))))
    test = set(json.loads(file.read_text()))
    target.mkdir(exist_ok=True)
    for case, path in images.items():
        link = target / f"{case}.nii.gz"
        if case not in test and not link.exists():
            link.symlink_to(path)


def pretrain(trainer: str, results: Path, device: str) -> None:
    """Pretrain, or go on from the last checkpoint."""
    fold = results / UNLABELLED / f"{trainer}__{MOVED}__3d_fullres" / "fold_all"
    if (fold / "checkpoint_final.pth").is_file():
        return
    resume = ["--c"] if (fold / "checkpoint_latest.pth").is_file() else []
    call("nnUNetv2_train", 904, "3d_fullres", "all", "-tr", trainer, "-p", MOVED, "-device", device, *resume)


if __name__ == "__main__":
    sys.exit(main())
