"""One arm of the search, from a prepared set to rows of Dice, appended to a CSV that is the log of all trials.

    python -m benchmarks.fast.search prepare abdomen --data ../shared/data --prepared DIR
    python -m benchmarks.fast.search run abdomen scratch --prepared DIR --log trials.csv
    python -m benchmarks.fast.search run abdomen regions --prepared DIR --log trials.csv --steps 3000

Cases of the test fold are never pretrained on, and nothing is chosen by them: rates and lengths are the same for all.
"""

import argparse
import csv
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.fast.sets import SETS, folds, load, prepare
from benchmarks.fast.training import Length, Objective, finetune, mean_dice, pretrain
from nnunet_alice.phantoms import write_dataset

#: the arms by name; None is training from random weights
ARMS: dict[str, Objective | None] = {
    "scratch": None,
    "mim": Objective(),
    "regions": Objective(regions=1.0, query_mask=0.5, anchor_mask=0.0),
    "regions_mask75": Objective(regions=1.0, anchor_mask=0.0),
    "regions_all_masked": Objective(regions=1.0),
    "regions_only": Objective(reconstruction=0.0, regions=1.0, query_mask=0.0, anchor_mask=0.0),
    "mim_dense": Objective(dense=0.1),
    "regions_dense": Objective(regions=1.0, query_mask=0.5, anchor_mask=0.0, dense=0.1),
    "regions_later": Objective(regions=1.0, query_mask=0.5, anchor_mask=0.0, later=0.5),
    "regions_30": Objective(regions=1.0, num_regions=30, query_mask=0.5, anchor_mask=0.0),
    "regions_300": Objective(regions=1.0, num_regions=300, query_mask=0.5, anchor_mask=0.0),
}
#: of a crop; phantoms at 8 mm are small
SIZES = {"phantoms": (24, 24, 24), "abdomen_6mm": (24, 24, 24), "hippocampus": (24, 32, 24)}
PHANTOM_ORGANS = ("heart", "liver", "stomach", "spine", "pelvis")


def run(args: argparse.Namespace) -> None:
    """Pretrain one arm on each fold and seed, fine-tune every draw of labelled cases, and append a row for each."""
    cases, atlas = load(args.set, args.prepared)
    size = SIZES.get(args.set, (40, 40, 40))
    objective, classes = ARMS[args.arm], len(SETS[args.set].labels) + 1
    before, after = Length(args.steps, size=size), Length(args.finetuning_steps, size=size, views=2)
    for fold in args.folds:
        inside, outside = folds(len(cases))[fold]
        training, test = [cases[i] for i in inside], [cases[i] for i in outside]
        for seed in args.seeds:
            started, weights = time.time(), None
            losses: dict = {}
            if objective is not None:
                weights, losses = pretrain(training, atlas, objective, before, seed)
            seconds = time.time() - started
            for labels in args.labels:
                for draw in range(1 if labels >= len(training) else args.draws):
                    chosen = np.random.default_rng([11, fold, draw]).permutation(len(training))[:labels]
                    net = finetune(weights, [training[i] for i in chosen], classes, after, 100 * draw + seed)
                    row = {
                        "set": args.set, "arm": args.arm, "fold": fold, "seed": seed, "labels": labels, "draw": draw,
                        "dice": round(mean_dice(net, test, classes, size), 4),
                        "steps": 0 if objective is None else args.steps, "finetuning_steps": args.finetuning_steps,
                        "pretraining_seconds": round(seconds),
                        "objective": json.dumps(objective and dataclasses.asdict(objective)),
                        "losses": json.dumps({name: round(value, 4) for name, value in losses.items()}),
                    }  # fmt: skip
                    append(args.log, row)
                    print({name: row[name] for name in ("arm", "fold", "seed", "labels", "draw", "dice")}, flush=True)


def append(path: Path, row: dict) -> None:
    """Add a row to a CSV, with a header if it is new."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Parse the command line and work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing, running = commands.add_parser("prepare"), commands.add_parser("run")
    for command in (preparing, running):
        command.add_argument("set", choices=SETS)
    preparing.add_argument("--data", type=Path, required=True, help="folder of the labelled sets; phantoms go there")
    running.add_argument("arm", choices=ARMS)
    for command in (preparing, running):
        command.add_argument("--prepared", type=Path, required=True, help="folder of the prepared sets")
    running.add_argument("--log", type=Path, required=True, help="CSV of all trials")
    running.add_argument("--steps", type=int, default=1000, help="of the pretraining [1000]")
    running.add_argument("--finetuning_steps", type=int, default=400, help="[400]")
    running.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2], help="[0 1 2]")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of pretraining and fine-tuning [0 1]")
    running.add_argument("--labels", type=int, nargs="+", default=[1, 3, 12], help="labelled cases [1 3 12]")
    running.add_argument("--draws", type=int, default=3, help="choices of the labelled cases [3]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "run":
        run(args)
        return
    phantoms = args.data / SETS["phantoms"].folder
    if args.set == "phantoms" and not phantoms.exists():
        write_dataset(
            phantoms, range(36), cut_share=0.1, spacing_mm=8.0, organs=PHANTOM_ORGANS,
            images_folder="imagesTr", labels_folder="labelsTr", image_suffix="_0000",
        )  # fmt: skip
    prepare(args.set, args.data, args.prepared)


if __name__ == "__main__":
    main()
