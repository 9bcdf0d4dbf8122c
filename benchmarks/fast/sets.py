"""Labelled sets for the search: resampled once, registered to an atlas case, kept as one npz a case."""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from tqdm import tqdm

from nnunet_alice.anatomy.deformation import Deformation, deform
from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry
from nnunet_alice.anatomy.medoid import find_medoid
from nnunet_alice.anatomy.registration import register


@dataclass(frozen=True)
class SetSettings:
    """Where a set lies and what of it is used.

    Attributes:
        folder: below the data folder, with ``imagesTr`` and ``labelsTr``.
        spacing_mm: isotropic, of the search.
        labels: values of the label files that are segmented; they become 1, 2, ...
        scale_by_case: z-score by case (MR) instead of one scale for the set (CT).
    """

    folder: str
    spacing_mm: float
    labels: tuple[int, ...]
    scale_by_case: bool = False


#: spleen, kidneys, gallbladder, liver, stomach, aorta, pancreas
ABDOMINAL_ORGANS = (1, 2, 3, 4, 6, 7, 8, 11)

SETS = {
    "abdomen": SetSettings("Dataset060_AbdomenCT", 4.0, ABDOMINAL_ORGANS),
    # the same for a slow machine: a third of the voxels
    "abdomen_6mm": SetSettings("Dataset060_AbdomenCT", 6.0, ABDOMINAL_ORGANS),
    # esophagus, heart, trachea, aorta
    "chest": SetSettings("Dataset061_ChestCT", 4.0, (1, 2, 3, 4)),
    "chest_6mm": SetSettings("Dataset061_ChestCT", 6.0, (1, 2, 3, 4)),
    "hippocampus": SetSettings("Task04_Hippocampus", 1.0, (1, 2), scale_by_case=True),
    # written by write_phantoms
    "phantoms": SetSettings("phantoms", 8.0, (1, 2, 3, 4, 5)),
}


def prepare(name: str, data: Path, out: Path, first: int | None = None) -> None:
    """Write every case of a set as ``OUT/NAME/CASE.npz``: image, label, map to the atlas; and ``set.json``.

    Args:
        name: of the set.
        data: folder of the labelled sets.
        out: folder of the prepared sets.
        first: so many cases, in the order of their names; None for all.
    """
    settings, folder = SETS[name], out / name
    folder.mkdir(parents=True, exist_ok=True)
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for path in sorted((data / settings.folder / "labelsTr").glob("*.nii.gz"))[:first]:
        case = path.name.removesuffix(".nii.gz")
        images[case], labels[case] = read_case(path, settings)
    inside = np.concatenate([image[image > np.percentile(image, 30)][::50] for image in images.values()])
    for case, values in images.items():
        mean, std = (values.mean(), values.std()) if settings.scale_by_case else (inside.mean(), inside.std())
        images[case] = (values - mean) / std
    spacing = (settings.spacing_mm,) * 3
    geometries = {case: compute_geometry(case, image[None], spacing) for case, image in images.items()}
    atlas = find_medoid(list(geometries), geometries.__getitem__)
    for case, geometry in tqdm(geometries.items(), desc=f"Registering {name}"):
        affine, quality = np.eye(4), 1.0
        if case != atlas:
            result = register(geometry, geometries[atlas])
            affine, quality = result.affine, result.quality
        deformation = deform(affine, geometry, geometries[atlas])
        np.savez(
            folder / f"{case}.npz", image=images[case], label=labels[case], affine=affine, quality=quality,
            **asdict(deformation),
        )  # fmt: skip
    (folder / "set.json").write_text(json.dumps({"atlas": atlas, "spacing_mm": settings.spacing_mm}))


def read_case(path: Path, settings: SetSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return image (float32) and label (1, 2, ... as the settings count) of a label file, axes (z, y, x), resampled."""
    case, folder = path.name.removesuffix(".nii.gz"), path.parent.parent / "imagesTr"
    image = folder / f"{case}_0000.nii.gz"
    image = image if image.exists() else folder / f"{case}.nii.gz"
    values = _read(path, settings.spacing_mm, sitk.sitkNearestNeighbor)
    label = np.zeros(values.shape, np.uint8)
    for number, value in enumerate(settings.labels, start=1):
        label[values == value] = number
    return _read(image, settings.spacing_mm, sitk.sitkLinear).astype(np.float32), label


def _read(path: Path, spacing_mm: float, interpolator: int) -> np.ndarray:
    """Return array (z, y, x) of a file, turned to LPS, smoothed where it is resampled to coarser voxels."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    if interpolator == sitk.sitkLinear:
        image = sitk.Cast(image, sitk.sitkFloat32)
        sigma = [max(1e-3, (spacing_mm - spacing) / 2) for spacing in image.GetSpacing()]
        image = sitk.SmoothingRecursiveGaussian(image, sigma)
    size = [max(1, round(n * s / spacing_mm)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    resampled = sitk.Resample(
        image, size, sitk.Transform(), interpolator, image.GetOrigin(), [spacing_mm] * 3, image.GetDirection()
    )
    return sitk.GetArrayFromImage(resampled)


@dataclass(frozen=True)
class Case:
    """One case in memory, axes (z, y, x).

    Attributes:
        name: of the case.
        image: (1, 1, z, y, x) float32.
        label: (1, 1, z, y, x) float32, 0 for background.
        affine: (4, 4), mm of the case -> mm of the atlas.
        deformation: what the affine map leaves over.
        geometry: body and coarse image.
    """

    name: str
    image: torch.Tensor
    label: torch.Tensor
    affine: np.ndarray
    deformation: Deformation
    geometry: CaseGeometry

    @cached_property
    def organs(self) -> dict[int, np.ndarray]:
        """Voxels (N, 3) of every organ that the case shows."""
        label = self.label[0, 0].numpy()
        return {int(value): np.argwhere(label == value) for value in np.unique(label) if value > 0}


def load(name: str, prepared: Path) -> tuple[list[Case], CaseGeometry]:
    """Return the cases of a prepared set, in the order of their names, and the geometry of its atlas."""
    facts = json.loads((prepared / name / "set.json").read_text())
    cases = []
    for path in sorted((prepared / name).glob("*.npz")):
        with np.load(path) as file:
            geometry = compute_geometry(path.stem, file["image"][None], (facts["spacing_mm"],) * 3)
            image, label = (torch.from_numpy(file[key].astype(np.float32))[None, None] for key in ("image", "label"))
            displacement = Deformation(*(file[field.name] for field in fields(Deformation)))
            cases.append(Case(path.stem, image, label, file["affine"], displacement, geometry))
    return cases, next(case.geometry for case in cases if case.name == facts["atlas"])


def folds(cases: int, number: int = 3) -> list[tuple[list[int], list[int]]]:
    """Return training and test indices of each fold; the same for the same number of cases."""
    parts = np.array_split(np.random.default_rng(0).permutation(cases), number)
    return [(sorted(set(range(cases)) - set(part.tolist())), sorted(part.tolist())) for part in parts]
