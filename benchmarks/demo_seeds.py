"""The demo with several seeds of its phantoms: how often, and by how much, pretraining ends above scratch.

    python benchmarks/demo_seeds.py -o DIR --csv docs/results/data/demo_seeds.csv --seeds 0 1 2 3 4 5 6 7 8 9

A seed that stands in the CSV is not run again. Folders of finished demos are deleted but for their last picture.
``--pretraining``, ``--on_labels`` and ``--labelled`` try other budgets, on other seeds than those that are reported.
"""

import argparse
import csv
import functools
import shutil
from pathlib import Path

import numpy as np

from nnunet_alice.demo.budget import ON_LABELS, Budget, both_starts
from nnunet_alice.demo.sources import Phantoms
from nnunet_alice.demo.workflow import Demo

COLUMNS = ("seed", "pretrained", "from_scratch", "gain", "seconds")


def main() -> None:
    """Run the missing seeds and print all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="folder for the demos")
    parser.add_argument("--csv", type=Path, required=True, help="one row a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="[0 to 9]")
    parser.add_argument("--pretraining", default=Budget.pretraining, help="trainer [%(default)s]")
    parser.add_argument("--labelled", type=int, default=Phantoms.training, help="phantoms with labels [%(default)s]")
    parser.add_argument("--on_labels", default=ON_LABELS, help="endings of both trainers on labels [%(default)s]")
    args = parser.parse_args()
    budget = Budget(args.pretraining, *both_starts(args.on_labels))
    rows = read(args.csv)
    for seed in args.seeds:
        if seed in rows:
            continue
        folder = args.o / f"seed{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        announce = functools.partial(print, f"seed {seed}:", flush=True)
        report = Demo(folder, Phantoms(seed=seed, training=args.labelled), budget, announce).run()
        pretrained, scratch = report.mean("pretrained"), report.mean("from scratch")
        rows[seed] = (pretrained, scratch, report.gain, sum(report.seconds.values()))
        write(args.csv, rows)
        shutil.copy(report.pictures["the result"], args.o / f"seed{seed}.png")
        shutil.rmtree(folder)
    gains = np.array([gain for _, _, gain, *_ in rows.values()])
    for seed, (pretrained, scratch, gain, seconds) in sorted(rows.items()):
        print(f"seed {seed}: pretrained {pretrained:.3f}, from scratch {scratch:.3f}, {gain:+.3f}, {seconds:.0f} s")
    print(f"above scratch in {(gains > 0).sum()} of {len(gains)}, mean {gains.mean():+.3f}")


def read(path: Path) -> dict[int, tuple[float, ...]]:
    """Return seed -> Dice of both runs, gain, seconds."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {int(row["seed"]): tuple(float(row[name]) for name in COLUMNS[1:]) for row in csv.DictReader(file)}


def write(path: Path, rows: dict[int, tuple[float, ...]]) -> None:
    """Write the rows in the order of their seeds."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([seed, *(f"{value:.4f}" for value in rows[seed])] for seed in sorted(rows))


if __name__ == "__main__":
    main()
