"""What can be wrong with a phantom: lesions in single organs, or a diffuse change with a severity."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nnunet_alice.files import write_csv

DISEASES = ("none", "lesions", "emphysema", "fatty_liver")

# HU of a lesion in each organ that can carry one: solid nodules, hypodense metastases, cysts.
LESION_HU = {
    "lung_right": 35.0,
    "lung_left": 35.0,
    "liver": 35.0,
    "spleen": 40.0,
    "kidney_right": 8.0,
    "kidney_left": 8.0,
}


@dataclass(frozen=True)
class Lesion:
    """A ball of other tissue.

    Attributes:
        organ: name of the organ in ``LABELS``.
        centre_mm: centre (z, y, x) in canonical mm (after the bend of ``anatomy.organic``).
        radius_mm: its radius in canonical mm.
        value_hu: its intensity.
    """

    organ: str
    centre_mm: tuple[float, ...]
    radius_mm: float
    value_hu: float


@dataclass(frozen=True)
class Disease:
    """A subject's disease.

    Attributes:
        kind: one of ``DISEASES``.
        severity: from 0 (healthy) to 1; for lesions it sets their number and size.
        lesions: the lesions, for that kind.
    """

    kind: str = "none"
    severity: float = 0.0
    lesions: tuple[Lesion, ...] = ()

    @property
    def present(self) -> bool:
        """Whether there is anything to find."""
        return self.kind != "none"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Disease":
        """Rebuild from ``dataclasses.asdict`` after a trip through JSON."""
        lesions = tuple(
            Lesion(item["organ"], tuple(item["centre_mm"]), item["radius_mm"], item["value_hu"])
            for item in content["lesions"]
        )
        return cls(content["kind"], content["severity"], lesions)


def disease_table(diseases: Mapping[str, Disease]) -> pd.DataFrame:
    """Return what is wrong with whom, as labels to predict: a row a case, healthy organs having severity 0.

    Args:
        diseases: by case name.

    Returns:
        columns ``case``; ``kind``; ``lesions`` and ``diffuse``, 0 or 1; ``lesion_severity`` and ``diffuse_severity``;
        ``lesion_volume_ml``, of canonical balls, those that overlap counted twice.
    """
    rows = []
    for case, disease in diseases.items():
        lesions = disease.kind == "lesions"
        diffuse = disease.present and not lesions
        rows.append(
            {
                "case": case,
                "kind": disease.kind,
                "lesions": int(lesions),
                "diffuse": int(diffuse),
                "lesion_severity": disease.severity * lesions,
                "diffuse_severity": disease.severity * diffuse,
                "lesion_volume_ml": round(sum(4.18879e-3 * lesion.radius_mm**3 for lesion in disease.lesions), 4),
            }
        )
    return pd.DataFrame(rows)


def write_disease_table(path: str | os.PathLike, diseases: Mapping[str, Disease]) -> None:
    """Write `disease_table` as CSV, for ``nnunet_alice probe``."""
    write_csv(path, disease_table(diseases))
