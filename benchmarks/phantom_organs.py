"""Few labels of many organs: the label-efficiency benchmark on phantoms; start it again after an interruption.

    python benchmarks/phantom_organs.py -o FOLDER

Makes CT-like phantoms of different people: 40 with labels of 16 organs to train on, 40 labelled test cases that nothing
else sees, and 100 unlabelled ones, which pretraining sees beside the 40. Plans (``AlicePlannerSmall``), registers,
pretrains (two methods, two seeds each), then runs ``nnunet_alice benchmark phantom_organs.yaml`` and ``nnunet_alice
report``.
"""

import json
import sys
from pathlib import Path

from label_efficiency import arguments, call, compare, pretrain, set_folders

from nnunet_alice.data.phantom import label_table, make_population, write_subjects

LABELLED, UNLABELLED = "Dataset803_PhantomOrgans", "Dataset903_PhantomsUnlabelled"
PLANS, MOVED = "AliceSmallPlans", "AliceSmallPlans_from803"
TRAINERS = ("AliceTrainer_noContrast_40epochs_50iterations", "AliceTrainer_40epochs_50iterations")
#: phantoms by what they are for: their numbers are their seeds
TRAIN, TEST, FURTHER = range(40), range(40, 80), range(80, 180)


def main() -> int:
    """Run the steps that are not done."""
    parser = arguments(__doc__, TRAINERS, Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--spacing_mm", type=float, default=8.0)
    args = parser.parse_args()
    folders = set_folders(args.o)
    make_phantoms(folders["nnUNet_raw"] / LABELLED, args.o.absolute() / "unlabelled", args.spacing_mm)
    call("nnunet_alice", "plan", "-d", 803, "-pl", "AlicePlannerSmall", "-np", args.np)
    new = ["-d", 903, "-n", UNLABELLED.partition("_")[2]]
    call("nnunet_alice", "import", "-i", args.o.absolute() / "unlabelled", *new, "--channel", "CT", "-np", args.np)
    call("nnunet_alice", "plan", "-d", 903, "--target", 803, "--target_plans", PLANS, "-np", args.np)
    call("nnunet_alice", "anatomy", "-d", 903, "-p", MOVED, "-c", "3d_fullres", "-np", args.np)
    pretrain(UNLABELLED, MOVED, args)
    compare(args)
    return 0


def make_phantoms(labelled: Path, unlabelled: Path, spacing_mm: float) -> None:
    """The labelled dataset in nnU-Net's form with its list of test cases, and a folder of all other images."""
    if not (labelled / "dataset.json").is_file():
        form = {"images_folder": "imagesTr", "labels_folder": "labelsTr", "image_suffix": "_0000"}
        write_subjects(labelled, make_population([*TRAIN, *TEST], cut_share=0), spacing_mm=spacing_mm, **form)
        test = sorted(make_population(TEST, cut_share=0))
        (labelled / "test_cases.json").write_text(json.dumps(test))
        content = {"channel_names": {"0": "CT"}, "labels": label_table(), "file_ending": ".nii.gz"}
        content["numTraining"] = len(TRAIN) + len(TEST)
        (labelled / "dataset.json").write_text(json.dumps(content, indent=2))
    if not (unlabelled / "truth.json").is_file():
        form = {"images_folder": ".", "labels_folder": None}
        write_subjects(unlabelled, make_population([*TRAIN, *FURTHER], cut_share=0), spacing_mm=spacing_mm, **form)


if __name__ == "__main__":
    sys.exit(main())
