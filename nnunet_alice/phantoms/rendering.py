"""From a subject to a volume: pull every voxel back to the canonical body and look there."""

from dataclasses import dataclass

import numpy as np

from nnunet_alice.errors import InputError
from nnunet_alice.phantoms.body import AIR_HU, paint
from nnunet_alice.phantoms.subject import NOISE_STREAM, Subject


@dataclass(frozen=True)
class Phantom:
    """A rendered volume; all arrays are (z, y, x).

    Attributes:
        image: Hounsfield units, float32.
        labels: organs by ``LABELS``, uint8.
        body: body mask, bool.
        spacing_mm: voxel size (z, y, x).
        origin_mm: centre of voxel (0, 0, 0) in the subject's mm (z, y, x).
    """

    image: np.ndarray
    labels: np.ndarray
    body: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def to_voxels(self, points_mm: np.ndarray) -> np.ndarray:
        """Return Voxel coordinates (..., 3) of points of the subject in mm; whole numbers are voxel centres."""
        return (np.asarray(points_mm) - self.origin_mm) / self.spacing_mm

    def to_mm(self, points_vox: np.ndarray) -> np.ndarray:
        """Return the subject's mm (..., 3) of voxel coordinates."""
        return np.asarray(points_vox) * self.spacing_mm + self.origin_mm


def render(
    subject: Subject,
    spacing_mm: float | tuple[float, float, float] = 4.0,
    shape: tuple[int, int, int] | None = None,
    *,
    noise: bool = True,
) -> Phantom:
    """Make the CT of a subject.

    Args:
        subject: who is scanned.
        spacing_mm: voxel size, one for all axes or (z, y, x). 4 mm makes about 100 x 62 x 86 voxels.
        shape: (z, y, x) size of the volume, centred on the field of view; as large as that if not given.
        noise: whether the scanner adds its noise (seeded by the subject).

    Raises:
        InputError: spacing or shape are not positive.
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=float), (3,))
    if spacing.min() <= 0 or (shape is not None and (len(shape) != 3 or min(shape) < 1)):
        raise InputError(f"A phantom needs a positive spacing and 3D shape, not {spacing_mm} mm and {shape}.").about(
            option="spacing", value=spacing_mm
        )
    low, high = np.array(subject.field_low_mm), np.array(subject.field_high_mm)
    size = np.array(shape) if shape is not None else np.maximum(1, np.round((high - low) / spacing)).astype(int)
    origin = (low + high) / 2 - (size - 1) / 2 * spacing
    axes = tuple(origin[d] + spacing[d] * np.arange(size[d]) for d in range(3))
    canonical = subject.deformation.to_canonical_grid(axes)
    edge_mm = float(np.cbrt(spacing.prod())) / subject.size_scale
    hu, labels, body = paint(canonical, subject.appearance, subject.disease, edge_mm)
    if noise:
        rng = np.random.default_rng([subject.seed, NOISE_STREAM])
        hu += np.float32(subject.appearance.noise_hu) * rng.standard_normal(len(hu), dtype=np.float32)
    return Phantom(
        image=np.clip(hu, AIR_HU - 24, 3071).reshape(size),
        labels=labels.reshape(size),
        body=body.reshape(size),
        spacing_mm=tuple(spacing.tolist()),
        origin_mm=tuple(origin.tolist()),
    )
