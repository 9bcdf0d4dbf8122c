"""Find one point of a case in all other cases of a preprocessed dataset.

    python examples/match_a_point.py 900 CASE 40 60 55

The point is (z, y, x) in voxels of the preprocessed array. ``nnunet_alice anatomy -d 900`` prepares the matcher.
"""

import argparse

import numpy as np

import nnunet_alice


def main(dataset: str, case: str, point: list[float]) -> dict[str, tuple[np.ndarray, float]]:
    """Print and return case -> (counterpart in voxels, score), best first."""
    matcher = nnunet_alice.open_matcher(nnunet_alice.open_dataset(dataset))
    found = {}
    for other in matcher.cases:
        if other != case:
            matches = matcher.match(
                case, other, np.array([point])
            )  # (N, 3) points in, (N, 3) points and (N,) scores out
            found[other] = matches.points_vox[0], float(matches.scores[0])
    found = dict(sorted(found.items(), key=lambda item: -item[1][1]))
    for other, (voxel, score) in found.items():
        trusted = "" if score >= matcher.threshold else "  (not trusted)"
        print(f"{other}: voxel {np.round(voxel, 1)}, score {score:.2f}{trusted}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("case")
    parser.add_argument("point", type=float, nargs=3, metavar=("Z", "Y", "X"))
    main(**vars(parser.parse_args()))
