"""How well do kept pretrainings fill masked blocks of cases that they never saw? Prints a row a file and mask.

    python -m benchmarks.fast.reconstruction abdomen_6mm --prepared DIR --weights DIR

Reads what ``benchmarks.fast.search run ... --weights DIR`` kept, named SET_ARM_STEPSsteps_foldFOLD_seedSEED.pt.
The error is the mean square over masked voxels, in units of the normalised image. All files of a fold see the same
crops, masks and intensities.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.fast.search import SIZES
from benchmarks.fast.sets import SETS, Case, folds, load
from benchmarks.fast.training import network
from benchmarks.fast.views import points_of, random_intensities, random_map, sample
from nnunet_alice.views.masking import block_mask

CROPS, MASKS = 100, (0.5, 0.75)
#: of a file, behind the set
_NAME = r"_(?P<arm>\w+)_(?P<steps>\d+)steps_fold(?P<fold>\d+)_seed(?P<seed>\d+)\.pt"


@torch.no_grad()
def masked_error(net: torch.nn.Module, cases: Sequence[Case], size: tuple[int, int, int], ratio: float) -> float:
    """Return the mean squared error over masked voxels of the same random crops for every network."""
    net.eval()
    rng, errors = np.random.default_rng(17), []
    for number in range(CROPS):
        case = cases[number % len(cases)]
        view = sample(case.image, points_of(case.geometry.body_points(1, rng)[0], random_map(rng, 0.8), size))
        mask = torch.from_numpy(block_mask(size, (max(2, size[0] // 5),) * 3, ratio, rng))
        found = net(random_intensities(view, rng).masked_fill(mask, 0)[None])[0]
        errors.append(float(((found - view)[mask.expand_as(view)] ** 2).mean()))
    return float(np.mean(errors))


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepared sets")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the kept weights")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases, _ = load(args.set, args.prepared)
    rows = []
    for path in sorted(args.weights.glob(f"{args.set}_*.pt")):
        named = re.fullmatch(args.set + _NAME, path.name)
        if named is None:
            continue
        weights, _, _ = torch.load(path, weights_only=True)
        net = network(1)
        net.load_state_dict(weights)
        test = [cases[i] for i in folds(len(cases))[int(named["fold"])][1]]
        for ratio in MASKS:
            error = masked_error(net, test, SIZES.get(args.set, (40, 40, 40)), ratio)
            rows.append({"set": args.set, **named.groupdict(), "masked": ratio, "error": round(error, 4)})
    pd.DataFrame(rows).to_csv(sys.stdout, index=False)


if __name__ == "__main__":
    main()
