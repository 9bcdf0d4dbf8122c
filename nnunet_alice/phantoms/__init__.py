"""Torso phantoms: subjects that are known smooth deformations of a parametric body, as CT-like volumes.

The true counterpart of every body point between any two subjects is known.
"""

from nnunet_alice.phantoms.anatomy import LABELS
from nnunet_alice.phantoms.body import Appearance
from nnunet_alice.phantoms.deformation import Bump, Deformation
from nnunet_alice.phantoms.disease import DISEASES, Disease, Lesion, disease_table, write_disease_table
from nnunet_alice.phantoms.files import (
    TRUTH_FILE,
    label_table,
    load_subjects,
    read_truth,
    write_dataset,
    write_subjects,
)
from nnunet_alice.phantoms.rendering import Phantom, render
from nnunet_alice.phantoms.subject import (
    FIELDS_OF_VIEW,
    Subject,
    corresponding_point,
    labels_at,
    make_disease,
    make_population,
    make_subject,
    sample_points,
)

__all__ = [
    "DISEASES",
    "FIELDS_OF_VIEW",
    "LABELS",
    "TRUTH_FILE",
    "Appearance",
    "Bump",
    "Deformation",
    "Disease",
    "Lesion",
    "Phantom",
    "Subject",
    "corresponding_point",
    "disease_table",
    "label_table",
    "labels_at",
    "load_subjects",
    "make_disease",
    "make_population",
    "make_subject",
    "read_truth",
    "render",
    "sample_points",
    "write_dataset",
    "write_disease_table",
    "write_subjects",
]
