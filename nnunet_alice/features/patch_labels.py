"""Labelled patches: points of cases with a label each, from a table or from label images."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from nnunet_alice.errors import InputError, named
from nnunet_alice.features.images import OpenedImage
from nnunet_alice.files import read_table
from nnunet_alice.importing.endings import ENDINGS_OF_IMPORT, volume_ending
from nnunet_alice.words import counted, telling

logger = logging.getLogger(__name__)

#: Columns of a point: world mm as SimpleITK and DICOM have them (LPS), or voxels of the image's file.
MM, VOXELS = ("x_mm", "y_mm", "z_mm"), ("x_vox", "y_vox", "z_vox")


@dataclass(frozen=True)
class PatchLabels:
    """Labels at points of cases.

    Attributes:
        cases: (N,) case of each point.
        points: (N, 3) in world mm (x, y, z), LPS; or voxels of the file (x, y, z).
        in_mm: which of the two.
        labels: (N,) str.
        groups: (N,) str, what folds keep together.
    """

    cases: np.ndarray
    points: np.ndarray
    in_mm: bool
    labels: np.ndarray
    groups: np.ndarray

    def of_case(self, case: str) -> np.ndarray:
        """Return rows of a case."""
        return np.flatnonzero(self.cases == case)

    def points_vox(self, rows: np.ndarray, opened: OpenedImage) -> np.ndarray:
        """Return (M, 3) voxels of the preprocessed array, (z, y, x), of rows of one case.

        Raises:
            InputError: a point lies outside of the image.
        """
        points = self.points[rows]
        if not self.in_mm:
            points = opened.file_grid()[0].points(points[:, ::-1])
        found = opened.world_affine().points_back(points)
        outside = ~opened.geometry.contains(found)
        if outside.any():
            case, point = opened.geometry.case, ", ".join(f"{x:g}" for x in self.points[rows][outside][0])
            raise InputError(
                f"Case {case}: {outside.sum()} of {len(rows)} points lie outside of its image, the first is {point}; "
                "x_mm, y_mm and z_mm are those of DICOM and SimpleITK (LPS), x_vox, y_vox and z_vox count from 0."
            ).about(case=case, value=point)
        return found


def read_patch_table(
    path: str | os.PathLike,
    target: str,
    id_column: str | None = None,
    group: str | None = None,
    subject_of: Mapping[str, str] | None = None,
) -> PatchLabels:
    """Return labels of a CSV table with one row a patch.

    Args:
        path: columns of the case, of the point (``x_mm``, ``y_mm``, ``z_mm`` or ``x_vox``, ``y_vox``, ``z_vox``) and of
            the label.
        target: column of the label; rows without one are left out.
        id_column: column of case names; None is the first one.
        group: column of what folds keep together; where it is empty, what other rows of the subject say first, else
            the subject. None takes the subject.
        subject_of: case -> subject; cases that are missing there are subjects of their own.

    Raises:
        InputError: the table cannot be read, a column is missing, or a coordinate is no number.
    """
    table = read_table(path)
    id_column = id_column or table.columns[0]
    columns = MM if set(MM) <= set(table.columns) else VOXELS
    missing = [c for c in (id_column, target, *columns, *([group] if group else [])) if c not in table.columns]
    if missing:
        raise InputError(
            f"{path} has no column '{missing[0]}'; a table of patches has the case, its point as {', '.join(MM)} or "
            f"{', '.join(VOXELS)}, and '{target}'."
        ).about(path=path, column=missing[0])
    table = table.dropna(subset=[id_column, target, *columns])
    if table.empty:
        raise InputError(f"{path} has no row with a case, a point and a '{target}'.").about(path=path)
    points = table[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(points).all():
        row = table[~np.isfinite(points).all(axis=1)].iloc[0]
        raise InputError(
            f"{path}: a coordinate of case '{row[id_column]}' is no number ({row[list(columns)].tolist()})."
        ).about(case=row[id_column], path=path)
    cases = table[id_column].to_numpy(dtype=str)
    groups = pd.Series(_subjects(cases, subject_of), table.index)
    if group:
        groups = table[group].fillna(table[group].groupby(groups).transform("first")).fillna(groups)
    return PatchLabels(cases, points, columns == MM, table[target].to_numpy(dtype=str), groups.to_numpy(dtype=str))


def sample_label_images(
    folder: str | os.PathLike,
    cases: Sequence[str],
    per_class: int,
    seed: int,
    subject_of: Mapping[str, str] | None = None,
) -> PatchLabels:
    """Return points drawn in label images, with the label at each.

    Args:
        folder: ``CASE`` and an ending that import reads, in any geometry; 0 is no label.
        cases: cases that may have one.
        per_class: points a label and image, at most.
        seed: of the draw.
        subject_of: see `read_patch_table`.

    Raises:
        InputError: no case has a label image with a label in it, or one cannot be read.
    """
    found_cases: list[str] = []
    points: list[Sequence[float]] = []
    labels: list[str] = []
    files = {
        path.name.removesuffix(ending): path
        for path in sorted(Path(folder).glob("*"))
        if (ending := volume_ending(path, ENDINGS_OF_IMPORT)) and path.is_file()
    }
    absent = sorted(files.keys() - set(cases))
    if absent:
        logger.warning("%s: no image for %s: %s.", folder, counted(len(absent), "label image"), named(absent))
    for case in cases:
        path = files.get(case)
        if path is None:
            continue
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise InputError(f"{path} cannot be read as a label image ({telling(error)}).").about(path=path) from None
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(f"{path} is no label image: it has to be 3D with one number a voxel.").about(path=path)
        array = sitk.GetArrayViewFromImage(image)
        rng = np.random.default_rng([seed, len(found_cases)])
        for value in np.unique(array[array != 0]):
            voxels = np.argwhere(array == value)
            for z, y, x in rng.permutation(voxels)[:per_class].tolist():
                points.append(image.TransformIndexToPhysicalPoint((x, y, z)))
                labels.append(np.format_float_positional(value, trim="-"))  # 1 of 1.0, and all digits
                found_cases.append(case)
    if not points:
        raise InputError(
            f"{folder} has no label image with a label in it for any of {counted(len(cases), 'case')} ({cases[0]}...)."
        ).about(case=cases[0], path=folder)
    cases_found = np.array(found_cases)
    return PatchLabels(cases_found, np.array(points), True, np.array(labels), _subjects(cases_found, subject_of))


def _subjects(cases: np.ndarray, subject_of: Mapping[str, str] | None) -> np.ndarray:
    return np.array([(subject_of or {}).get(case, case) for case in cases])
