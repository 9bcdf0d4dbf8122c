"""Preprocessed phantoms of mixed fields of view, whose true counterparts are known, for tests of the atlas."""

from pathlib import Path

import numpy as np

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.phantoms import Phantom, Subject, corresponding_point, make_subject, render
from support.small_datasets import write_preprocessed

SPACING = (10.0, 10.0, 10.0)
FIELDS = {"p0": "torso", "p1": "torso", "p2": "abdomen_pelvis", "p3": "torso", "p4": "chest"}


class Phantoms:
    """Rendered subjects and the truth between them.

    Args:
        fields: case -> its field of view.
    """

    def __init__(self, fields: dict[str, str] = FIELDS) -> None:
        self.subjects: dict[str, Subject] = {
            case: make_subject(10 + number, field_of_view=field) for number, (case, field) in enumerate(fields.items())
        }
        self.volumes: dict[str, Phantom] = {case: render(s, SPACING) for case, s in self.subjects.items()}
        self.images = {case: np.clip(v.image, -1000, 1000)[None] / 300 for case, v in self.volumes.items()}

    def write(self, base: Path, **more: np.ndarray) -> PreprocessedDataset:
        """Write them, and ``more`` images (1, z, y, x), as a dataset below ``base`` (``nnUNet_preprocessed``)."""
        return write_preprocessed(base, {**self.images, **more}, SPACING)

    def truth(self, case_a: str, case_b: str, points_vox: np.ndarray) -> np.ndarray:
        """True counterparts (N, 3) in voxels of B."""
        points_mm = self.volumes[case_a].to_mm(points_vox)
        return self.volumes[case_b].to_voxels(
            corresponding_point(points_mm, self.subjects[case_a], self.subjects[case_b])
        )
