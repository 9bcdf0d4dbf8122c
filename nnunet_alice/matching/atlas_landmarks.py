"""Landmarks of a dataset's atlas: laid over a region of interest, kept on disk, counted in every registered case."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.anatomy.landmarks import Landmarks, lay_landmarks, standard_lengths
from nnunet_alice.anatomy.lungs import lung_mask
from nnunet_alice.anatomy.registration import LUNGS
from nnunet_alice.anatomy.world import PreparedCases, sitk_place
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.files import write_json
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.words import telling

#: All of the body.
DEFAULT_REGION = "body"


@dataclass(frozen=True)
class LandmarkReport:
    """Outcome of laying landmarks.

    Attributes:
        landmarks: the landmarks.
        region: what they were laid on: ``body``, ``label:N`` or the path of a mask.
        cases: number of registered cases.
        seen: (L,) how many of them show each landmark.
        kept: whether landmarks that were there already were kept.
    """

    landmarks: Landmarks
    region: str
    cases: int
    seen: np.ndarray
    kept: bool


def prepare_landmarks(
    dataset: PreprocessedDataset,
    patch_mm: float | None = None,
    step_mm: float | None = None,
    region: str | None = None,
    overwrite: bool = False,
) -> LandmarkReport:
    """Lay landmarks on the atlas (DrasCLR, Section 3.1), map them into every registered case and store the outcome.

    Where nothing is asked for (all None) and landmarks of this atlas are there, they are kept and only counted again:
    whoever registers more cases keeps the landmarks that a run was trained with.

    Args:
        dataset: the preprocessed dataset; its atlas has to be prepared.
        patch_mm: edge of a landmark's patch; None is 32 mm, see `standard_lengths`.
        step_mm: distance of neighbours; None is 26 mm, likewise.
        region: see `region_of_interest`; None is the body.
        overwrite: lay them again in any case.

    Raises:
        NotPreparedError: the atlas is not prepared.
        InputError: the region cannot be had, or no patch holds enough of it.
    """
    matcher = AtlasMatcher(dataset)
    files, known = matcher.atlas.files, None
    if not overwrite and (patch_mm, step_mm, region) == (None, None, None):
        known = files.read_landmarks_report(matcher.fingerprint)
    if known is not None:
        landmarks, region = Landmarks.load(files.landmarks_file), known["region"]
    else:
        region = region or DEFAULT_REGION
        mask = region_of_interest(dataset, matcher.atlas.geometry.case, region)
        patch, step = standard_lengths(mask, dataset.spacing)
        patch_mm, step_mm = patch if patch_mm is None else patch_mm, step if step_mm is None else step_mm
        landmarks = lay_landmarks(mask, dataset.spacing, patch_mm, step_mm)
        files.landmarks_report_file.unlink(missing_ok=True)
        landmarks.save(files.landmarks_file)
    seen = LandmarkPlaces.of_registered(landmarks, matcher).seen()
    content = {"fingerprint": matcher.fingerprint, "region": region, "cases": len(matcher.cases), "seen": seen.tolist()}
    write_json(files.landmarks_report_file, content)
    return LandmarkReport(landmarks, region, len(matcher.cases), seen, known is not None)


def check_region(region: str) -> None:
    """Make sure that a region can be had at all, before an atlas is there.

    Args:
        region: see `region_of_interest`.

    Raises:
        InputError: it is no region.
    """
    if region.startswith("label:"):
        if not region.removeprefix("label:").isdigit():
            raise InputError(f"'{region}' names no label; write for example label:3.").about(value=region)
    elif region not in ("body", LUNGS):
        _read_mask(Path(region))


def region_of_interest(dataset: PreprocessedDataset, atlas_case: str, region: str) -> np.ndarray:
    """Return the mask of the atlas case that landmarks are laid on.

    Args:
        dataset: the preprocessed dataset.
        atlas_case: the atlas.
        region: ``body``; ``lungs``, found on CT (`lung_mask`); ``label:N``, of the atlas case's segmentation; or the
            path of a mask of the atlas case in any geometry (nonzero is inside), e.g. from a different tool.

    Returns:
        (z, y, x) bool, the atlas case's preprocessed array.

    Raises:
        InputError: the case has no lungs or no such label, or the file is missing, unreadable or shows nothing of it.
    """
    if region == "body":
        geometry = load_geometry(dataset, atlas_case)
        return geometry.body_crop(np.zeros(3, dtype=int), geometry.shape)
    if region == LUNGS:
        axial_axis = load_geometry(dataset, atlas_case).axial_axis
        try:
            return lung_mask(np.asarray(dataset.image(atlas_case)[0]), dataset.spacing, axial_axis=axial_axis)
        except InputError as error:
            raise InputError(f"The atlas case {atlas_case}: {error}").about(
                case=atlas_case, value=error.value
            ) from None
    check_region(region)
    if region.startswith("label:"):
        value = region.removeprefix("label:")
        mask = PreparedCases(dataset).segmentation(atlas_case) == int(value)
        if not mask.any():
            raise InputError(
                f"The atlas case {atlas_case} has no voxel with label {value}; choose a different label."
            ).about(case=atlas_case, value=value)
        return mask
    return _mask_from_file(dataset, atlas_case, Path(region))


def _read_mask(path: Path) -> sitk.Image:
    """Return a mask as its file has it."""
    if not path.is_file():
        raise MissingFileError(
            f"There is no mask {path}; --roi takes body, lungs, label:N or a mask file of the atlas case."
        ).about(path=path, option="--roi")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(
            f"{path} cannot be read as an image ({telling(error)}); --roi takes body, label:N or a mask file."
        ).about(path=path, option="--roi") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path} is no 3D mask of one channel.").about(path=path)
    return image


def _mask_from_file(dataset: PreprocessedDataset, atlas_case: str, path: Path) -> np.ndarray:
    """Return a mask file resampled (nearest neighbour) to the atlas case's array, through world mm."""
    image = _read_mask(path)
    cases = PreparedCases(dataset)
    spacing, direction, origin = sitk_place(cases.world_affine(atlas_case))
    inside = sitk.Resample(
        sitk.Cast(image != 0, sitk.sitkUInt8),
        dataset.shape(atlas_case)[::-1],
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        origin,
        spacing,
        direction,
        0,
        sitk.sitkUInt8,
    )
    mask = sitk.GetArrayFromImage(inside) != 0
    if not mask.any():
        raise InputError(f"{path} shows nothing inside case {atlas_case}, the atlas; give a mask of that case.").about(
            case=atlas_case, path=path
        )
    return mask
