"""Few labels of many organs: the label-efficiency benchmark on phantoms; start it again after an interruption.

    python benchmarks/phantom_organs.py -o FOLDER

Makes CT-like phantoms of different people: 40 labelled ones to train on, 40 labelled test cases that nothing else sees,
and 100 unlabelled ones, which pretraining sees beside the 40. Plans (``AlicePlannerSmall``), registers, pretrains
(three methods, two seeds each), then runs ``nnunet_alice benchmark phantom_organs.yaml`` and ``nnunet_alice report``.

Two labelled datasets share plans and weights: 803 has all 16 organs; 804, which the settings name, has half the test
cases and 8 organs, none of which is the mirror image of a different one. So a few hundred steps get somewhere.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from label_efficiency import arguments, call, compare, prepare, pretrain

from nnunet_alice.files import write_json
from nnunet_alice.phantoms import label_table, make_population, write_subjects

ALL, UNPAIRED = "Dataset803_PhantomOrgans", "Dataset804_PhantomUnpairedOrgans"
UNLABELLED = "Dataset903_PhantomsUnlabelled"
ORGANS = ("heart", "aorta", "liver", "spleen", "stomach", "spine", "pelvis", "bladder")
PLANS, MOVED = "AliceSmallPlans", "AliceSmallPlans_from803"
TRAINERS = ("AliceTrainer_noContrast", "AliceTrainer", "DrasCLRTrainer")
#: phantoms by what they are for: their numbers are their seeds
TRAIN, TEST, FURTHER = range(40), range(40, 80), range(80, 180)


def main() -> int:
    """Run the steps that are not done."""
    parser = arguments(__doc__, Path(__file__).with_suffix(".yaml"), 40, TRAINERS)
    parser.add_argument("--spacing_mm", type=float, default=8.0)
    args = parser.parse_args()
    folders = prepare(args)
    unlabelled = args.o.absolute() / "unlabelled"
    make_labelled(folders["nnUNet_raw"] / ALL, TEST, None, args.spacing_mm)
    make_labelled(folders["nnUNet_raw"] / UNPAIRED, TEST[:20], ORGANS, args.spacing_mm)
    if not (unlabelled / "truth.json").is_file():
        form: dict[str, Any] = {"images_folder": ".", "labels_folder": None}
        write_subjects(unlabelled, make_population([*TRAIN, *FURTHER], cut_share=0), spacing_mm=args.spacing_mm, **form)
    call("nnunet_alice", "plan", "-d", 803, "-pl", "AlicePlannerSmall", "-np", args.np)
    done = folders["nnUNet_preprocessed"] / UNPAIRED / "preprocessed.done"
    if not done.is_file():
        call("nnUNetv2_extract_fingerprint", "-d", 804, "-np", args.np)
        call("nnUNetv2_plan_experiment", "-d", 804)
        call("nnUNetv2_move_plans_between_datasets", "-s", 803, "-t", 804, "-sp", PLANS, "-tp", PLANS)
        call("nnUNetv2_preprocess", "-d", 804, "-plans_name", PLANS, "-c", "3d_fullres", "-np", args.np)
        done.touch()
    new = ["-d", 903, "-n", UNLABELLED.partition("_")[2]]
    call("nnunet_alice", "import", "-i", unlabelled, *new, "--channel", "CT", "-np", args.np)
    call("nnunet_alice", "plan", "-d", 903, "--target", 803, "--target_plans", PLANS, "-np", args.np)
    call("nnunet_alice", "anatomy", "-d", 903, "-p", MOVED, "-c", "3d_fullres", "-np", args.np)
    pretrain(UNLABELLED, MOVED, args.trainers, args.seeds, args.device)
    compare(args)
    return 0


def make_labelled(folder: Path, test: Sequence[int], organs: Sequence[str] | None, spacing_mm: float) -> None:
    """Write a labelled dataset in nnU-Net's form, with its list of test cases."""
    if (folder / "dataset.json").is_file():
        return
    form: dict[str, Any] = {
        "images_folder": "imagesTr",
        "labels_folder": "labelsTr",
        "image_suffix": "_0000",
        "organs": organs,
    }
    population = make_population([*TRAIN, *test], cut_share=0)
    write_subjects(folder, population, spacing_mm=spacing_mm, **form)
    write_json(folder / "test_cases.json", list(population)[len(TRAIN) :])
    content = {"channel_names": {"0": "CT"}, "labels": label_table(organs), "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", content | {"numTraining": len(population)})


if __name__ == "__main__":
    sys.exit(main())
