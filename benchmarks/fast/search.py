"""One arm of the search, from a prepared set to rows of Dice, appended to a CSV that is the log of all trials.

    python -m benchmarks.fast.search prepare abdomen --data ../shared/data --prepared DIR
    python -m benchmarks.fast.search run abdomen scratch --prepared DIR --log trials.csv
    python -m benchmarks.fast.search run abdomen regions --prepared DIR --log trials.csv --steps 3000

Cases of the test fold are never pretrained on, and nothing is chosen by them: every arm's rate comes from the same
grid, by training cases that were kept apart. Lengths are the same for all arms but ``scratch_twice``.
"""

import argparse
import csv
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.fast.alice import pretrain_alice
from benchmarks.fast.contrast import Contrast, pretrain_encoder
from benchmarks.fast.sets import SETS, Case, folds, load, prepare
from benchmarks.fast.training import Length, Objective, encoder_weights, finetune, mean_dice, pretrain
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.files import atomic_write
from nnunet_alice.phantoms import write_dataset
from nnunet_alice.pretraining.alice import AlicePretrainingSettings
from nnunet_alice.trainers.alice import AliceTrainer, AliceTrainer_regionsOnly

#: from scratch with twice the steps on labels
TWICE = "scratch_twice"
#: cases that a rate is chosen on
TUNING_CASES = 3
#: the arms by name; None is training from random weights
ARMS: dict[str, Objective | AlicePretrainingSettings | Contrast | None] = {
    "scratch": None,
    TWICE: None,
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
    "alice": AliceTrainer.settings.method,
    "alice_regionsOnly": AliceTrainer_regionsOnly.settings.method,
    "drasclr": Contrast(),
    "drasclr_noLocation": Contrast(conditional=False),
    "drasclr_noRegional": Contrast(neighbours=0),
}
#: of a crop; phantoms at 8 mm are small
SIZES = {"phantoms": (24, 24, 24), "abdomen_6mm": (24, 24, 24), "chest_6mm": (24, 24, 24), "hippocampus": (24, 32, 24)}
PHANTOM_ORGANS = ("heart", "liver", "stomach", "spine", "pelvis")


def run(args: argparse.Namespace) -> None:
    """Pretrain one arm on each fold and seed, fine-tune every draw of labelled cases, and append a row for each."""
    cases, atlas = load(args.set, args.prepared)
    size = tuple(args.crop or SIZES.get(args.set, (40, 40, 40)))
    objective, classes = ARMS[args.arm], len(SETS[args.set].labels) + 1
    before = Length(args.steps, size=size, stages=args.stages)
    steps = args.finetuning_steps * (2 if args.arm == TWICE else 1)
    after = Length(
        steps, size=size, views=args.crops, mirrored=args.mirrored, deep=args.deep, stages=args.stages,
        rescaled=args.rescaled,
    )  # fmt: skip
    shape = "".join(f"_{n}" for n in args.crop or ()) + f"_{args.stages}stages" * (args.stages != Length.stages)
    arm = args.arm + "_encoder" * args.encoder_only + "_mirrored" * args.mirrored + "_deep" * args.deep
    arm += "_rescaled" * args.rescaled + shape + f"_{args.crops}crops" * (args.crops != 2)
    for fold in args.folds:
        inside, outside = folds(len(cases))[fold]
        training, test = [cases[i] for i in inside], [cases[i] for i in outside]
        for seed in args.seeds:
            weights: Mapping[str, Tensor] | None = None
            losses: dict[str, float] = {}
            seconds = 0.0
            if objective is not None:
                name = f"{args.set}_{args.arm}{shape}_{args.steps}steps_fold{fold}_seed{seed}.pt"
                train = functools.partial(_pretrain, training, atlas, objective, before, seed)
                weights, losses, seconds = pretrained(args.weights and args.weights / name, train)
            if weights is not None and args.encoder_only:
                weights = encoder_weights(weights)
            dice = functools.partial(finetuned_dice, weights, classes, after, seed)
            for labels in args.labels:
                rate, tried = tuned_rate(dice, args.rates, training, labels, fold)
                for draw in range(1 if labels >= len(training) else args.draws):
                    drawn = np.random.default_rng([11, fold, draw]).permutation(len(training))[:labels]
                    row = {
                        "set": args.set, "arm": arm, "fold": fold, "seed": seed, "labels": labels, "draw": draw,
                        "dice": round(dice([training[i] for i in drawn], test, rate, draw), 4), "rate": rate,
                        "steps": 0 if objective is None else args.steps, "finetuning_steps": steps,
                        "pretraining_seconds": round(seconds),
                        "objective": json.dumps(objective and dataclasses.asdict(objective)),
                        "losses": json.dumps({name: round(value, 4) for name, value in losses.items()}),
                        "tuning": json.dumps(tried),
                    }  # fmt: skip
                    append(args.log, row)
                    print(
                        {name: row[name] for name in ("arm", "fold", "seed", "labels", "draw", "dice", "rate")},
                        flush=True,
                    )


def _pretrain(
    cases: Sequence[Case],
    atlas: CaseGeometry,
    objective: Objective | AlicePretrainingSettings | Contrast,
    length: Length,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return weights and last losses of a pretraining, by the kind of its objective."""
    if isinstance(objective, Objective):
        return pretrain(cases, atlas, objective, length, seed)
    if isinstance(objective, AlicePretrainingSettings):
        return pretrain_alice(cases, atlas, objective, length, seed)
    return pretrain_encoder(cases, atlas, objective, length, seed)


def pretrained(
    path: Path | None, train: Callable[[], tuple[Mapping[str, Tensor], dict[str, float]]]
) -> tuple[Mapping[str, Tensor], dict[str, float], float]:
    """Return weights, last losses and seconds of a pretraining, from a file if it is there; else it is written."""
    if path is not None and path.is_file():
        return torch.load(path, weights_only=True)
    started = time.time()
    made = (*train(), time.time() - started)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            torch.save(made, temporary)
    return made


def finetuned_dice(
    weights: Mapping[str, Tensor] | None,
    classes: int,
    length: Length,
    seed: int,
    chosen: Sequence[Case],
    tested: Sequence[Case],
    rate: float,
    draw: int,
) -> float:
    """Return the Dice on some cases after training on others, from weights or from scratch."""
    net = finetune(weights, chosen, classes, dataclasses.replace(length, rate=rate), 100 * draw + seed)
    return mean_dice(net, tested, classes, length.size)


def tuned_rate(
    dice: Callable[[Sequence[Case], Sequence[Case], float, int], float],
    rates: Sequence[float],
    training: Sequence[Case],
    labels: int,
    fold: int,
) -> tuple[float, dict[float, float]]:
    """Return the best rate of a grid, and the Dice of each, on training cases that this one training does not see.

    The draw is not among those that are reported. With all labels no case is left, and a third is kept apart.

    Args:
        dice: of (labelled cases, cases to test on, rate, number of the draw).
        rates: the grid; of a single one nothing is measured.
        training: cases of the fold.
        labels: number of labelled cases.
        fold: seed of the draw.
    """
    if len(rates) == 1:
        return rates[0], {}
    order = np.random.default_rng([13, fold]).permutation(len(training))
    apart = min(TUNING_CASES, len(training) // 3)
    chosen, tested = order[:-apart][:labels], order[-apart:]
    parts = [[training[i] for i in part] for part in (chosen, tested)]
    tried = {rate: round(dice(parts[0], parts[1], rate, 99), 4) for rate in rates}
    return max(tried, key=tried.__getitem__), tried


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
    preparing.add_argument("--cases", type=int, help="the first so many of the set [all]")
    running.add_argument("arm", choices=ARMS)
    for command in (preparing, running):
        command.add_argument("--prepared", type=Path, required=True, help="folder of the prepared sets")
    running.add_argument("--encoder_only", action="store_true", help="carry only the encoder on; the decoder is fresh")
    running.add_argument("--rescaled", action="store_true", help="pretrained weights start as large as random ones")
    running.add_argument("--mirrored", action="store_true", help="mirror the labelled crops as nnU-Net does")
    running.add_argument("--deep", action="store_true", help="deep supervision on labels")
    running.add_argument("--crop", type=int, nargs=3, help="voxels of a crop, z y x [by set]")
    running.add_argument("--crops", type=int, default=2, help="a step on labels [2]")
    running.add_argument("--stages", type=int, default=Length.stages, help="of the network [4]")
    running.add_argument("--weights", type=Path, help="folder that keeps pretrained weights, for other labels later")
    running.add_argument("--log", type=Path, required=True, help="CSV of all trials")
    running.add_argument("--steps", type=int, default=1000, help="of the pretraining [1000]")
    running.add_argument("--finetuning_steps", type=int, default=400, help="[400]")
    running.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2], help="on labels [0.003 0.01]")
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
    prepare(args.set, args.data, args.prepared, args.cases)


if __name__ == "__main__":
    main()
