"""Features of one preprocessed case: a map of the whole image, and vectors around points.

    python examples/extract_features.py checkpoint_final.pth 900 CASE

The image may be any array that was preprocessed as the checkpoint's plans say.
"""

import argparse

import numpy as np

import nnunet_alice


def main(checkpoint: str, dataset: str, case: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the map (C, cells...) and the features (M, F) of three points."""
    encoder = nnunet_alice.open_encoder(checkpoint, needs_landmarks=False)
    image = nnunet_alice.open_dataset(dataset).image(case)[:]  # (C, z, y, x) float32
    everywhere = nnunet_alice.extract_features(encoder, image, name=case)
    centre = np.array(image.shape[1:]) / 2
    points_vox = np.stack([centre - 2, centre, centre + 2])
    at_points = nnunet_alice.extract_features(encoder, image, points_vox=points_vox, name=case)
    print(f"{case}: map {everywhere.shape}, one cell every {encoder.strides[-1]} voxels; points {at_points.shape}")
    return everywhere, at_points


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "dataset", "case"):
        parser.add_argument(name)
    main(**vars(parser.parse_args()))
