"""Everything for the benchmark on MSD Task04 with one command; start it again after an interruption.

    python benchmarks/hippocampus.py -i Task04_Hippocampus -o FOLDER
    python benchmarks/hippocampus.py -i Task04_Hippocampus -o FOLDER -p nnUNetPlans -device cuda

Converts and plans the labelled data, sets 60 test cases aside, pretrains on the images of the others (four trainers,
two seeds each, and an embedding that one of them matches its views with), then runs ``nnunet_alice benchmark
hippocampus.yaml`` and ``nnunet_alice report``. Only public commands are called. To add a method, add its trainer to
``--trainers`` and an arm to the settings. With ``-p nnUNetPlans`` nnU-Net's own plans take the place of the small ones;
on a GPU, batches come from nnU-Net's workers, which no seed reaches. All else is the same.
"""

import random
import re
import shutil
import sys
from pathlib import Path

from label_efficiency import arguments, call, compare, prepare, pretrain

from nnunet_alice.files import read_json, write_json

LABELLED, UNLABELLED = "Dataset004_Hippocampus", "Dataset904_HippocampusUnlabelled"
SMALL = "nnUNetSmallPlans"
#: what makes nnU-Net's own plans bearable without a GPU
FEATURES, BATCH = (8, 16, 32, 64), 2
#: memory that 8 pairs of views of 24 x 32 x 24 voxels fit
PAIRS_GB = {SMALL: 0.18, "nnUNetPlans": 0.7}
#: DrasCLR's landmarks: the defaults (patches of 32 mm, 26 mm apart) are made for a torso, these volumes are 35 to 50 mm
LANDMARKS = ("--landmark_patch_mm", 16, "--landmark_step_mm", 8)
#: pretraining; the matcher is named because plain ``AliceTrainer`` takes whichever is there when it starts
TRAINERS = ("AliceTrainer_noContrast", "AliceTrainer_atlas", "DrasCLRTrainer", "AliceTrainer_embedding")
#: learns the embedding, on the same 140 images, that ``AliceTrainer_embedding`` matches with; one for all its seeds
EMBEDDING = "AnatomicalEmbeddingTrainer_10epochs_50iterations"


def main() -> int:
    """Run the steps that are not done."""
    parser = arguments(__doc__, Path(__file__).with_suffix(".yaml"), 20, TRAINERS)
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="Task04_Hippocampus as downloaded")
    parser.add_argument("-p", default=SMALL, choices=PAIRS_GB, help=f"plans [{SMALL}]")
    args = parser.parse_args()
    moved = f"{args.p}_from004"
    folders = prepare(args)
    labelled, unlabelled = folders["nnUNet_raw"] / LABELLED, args.o.absolute() / "unlabelled"
    if not (labelled / "dataset.json").is_file():
        shutil.rmtree(labelled, ignore_errors=True)  # what an interrupted conversion left stops the next one
        call("nnUNetv2_convert_MSD_dataset", "-i", args.i.absolute(), "-np", args.np)
    done = folders["nnUNet_preprocessed"] / LABELLED / "preprocessed.done"
    if not done.is_file():  # nnU-Net's commands start anew each time; they also keep the truth to test against
        call("nnUNetv2_extract_fingerprint", "-d", 4, "-np", args.np)
        call("nnUNetv2_plan_experiment", "-d", 4)
        write_small_plans(done.parent)
        call("nnUNetv2_preprocess", "-d", 4, "-plans_name", args.p, "-c", "3d_fullres", "-np", args.np)
        done.touch()
    link_unlabelled(labelled, unlabelled)
    new = ["-d", 904, "-n", UNLABELLED.partition("_")[2]]
    call("nnunet_alice", "import", "-i", unlabelled, *new, "--channel", "MRI", "-np", args.np)
    target = ["--target", 4, "--target_plans", args.p, "-gpu_memory_target", PAIRS_GB[args.p]]
    call("nnunet_alice", "plan", "-d", 904, *target, "-np", args.np)
    anatomy = ("nnunet_alice", "anatomy", "-d", 904, "-p", moved, "-c", "3d_fullres")
    call(*anatomy, *LANDMARKS, "-np", args.np)
    if any("_embedding" in trainer for trainer in args.trainers):
        pretrain(UNLABELLED, moved, [EMBEDDING], ["1"], args.device)
        call(*anatomy, "--method", "embedding", "-device", args.device)
    pretrain(UNLABELLED, moved, args.trainers, args.seeds, args.device)
    args.settings = settings_for(args.p, args.settings, args.o)
    compare(args, "benchmark" if args.p == SMALL else f"benchmark_{args.p}")
    return 0


def write_small_plans(folder: Path) -> None:
    """Write nnU-Net's plans with fewer features and a smaller batch; patch, depth and the rest are its own."""
    plans = read_json(folder / "nnUNetPlans.json")
    network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = list(FEATURES[: network["n_stages"]])
    plans["configurations"] = {"3d_fullres": plans["configurations"]["3d_fullres"] | {"batch_size": BATCH}}
    plans["plans_name"] = SMALL
    write_json(folder / f"{SMALL}.json", plans)


def settings_for(plans: str, settings: Path, folder: Path) -> Path:
    """Return the settings, or a copy in the folder that names other plans."""
    if plans == SMALL:
        return settings
    copy = folder / f"{settings.stem}_{plans}.yaml"
    copy.write_text(settings.read_text(encoding="utf-8").replace(SMALL, plans), encoding="utf-8")
    return copy


def link_unlabelled(labelled: Path, target: Path) -> None:
    """Draw 60 test cases once, and link the images of all others into a folder: pretraining sees no test image."""
    images = {
        re.sub(r"_0000\.nii\.gz$", "", path.name): path for path in sorted((labelled / "imagesTr").glob("*.nii.gz"))
    }
    file = labelled / "test_cases.json"
    if not file.is_file():
        write_json(file, sorted(random.Random(1).sample(sorted(images), 60)))
    test = set(read_json(file))
    target.mkdir(exist_ok=True)
    for case, path in images.items():
        link = target / f"{case}.nii.gz"
        if case not in test and not link.exists():
            link.unlink(missing_ok=True)  # of a folder that was moved
            link.symlink_to(path)


if __name__ == "__main__":
    sys.exit(main())
