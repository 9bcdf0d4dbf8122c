"""Indices of three cases whose right answers are known."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.matching.index import CaseIndex, Fingerprint, IndexStore, index_grid
from support.small_datasets import FourierField, ball, write_preprocessed

SPACING = (3.0, 1.0, 1.5)
SHAPE = (16, 44, 30)
SHIFTS_MM = {"a": np.zeros(3), "b": np.array([3.0, -2.0, 4.0]), "c": np.array([-3.0, 4.0, 1.0])}
ORIGIN = np.array([10.0, -20.0, 30.0])  # world x, y, z
CENTRE_VOX = np.array([7.5, 21.5, 14.5])


def write_known_matches(base: Path) -> None:
    """Write three cases with the same descriptors, shifted; label 1 around the shifted centre."""
    grids = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    segs, properties = {}, {}
    for case, shift in SHIFTS_MM.items():
        at = CENTRE_VOX + shift / SPACING
        segs[case] = (np.linalg.norm((grids - at) * SPACING, axis=-1) < 6)[None]
        properties[case] = {
            "sitk_stuff": {"spacing": SPACING[::-1], "origin": ORIGIN, "direction": np.eye(3).ravel()},
            "shape_after_cropping_and_before_resampling": SHAPE,
            "bbox_used_for_cropping": [[0, n] for n in SHAPE],
        }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(base))
        dataset = write_preprocessed(base, {case: ball(SHAPE, SPACING, 21) for case in segs}, SPACING, segs, properties)
        store, fingerprint = IndexStore(dataset), Fingerprint.of(dataset, "a" * 64, 32)
        store.begin(fingerprint, "checkpoint_final.pth")
        fields = FourierField(32, 10.0, 1), FourierField(32, 30.0, 2)
        for case, shift in SHIFTS_MM.items():
            geometry = load_geometry(dataset, case)
            grid = index_grid(geometry, 32, 4.0)
            fine, coarse = (field(grid.points_vox * SPACING - shift) for field in fields)
            store.write(case, CaseIndex(geometry.shape, geometry.spacing, grid, fine, coarse), fingerprint)
