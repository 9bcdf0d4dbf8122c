"""Affine registration of one case to the atlas on their coarse grids, and how far its result can be trusted.

What was chosen by trying (label centroids of real hippocampi, a torso CT deformed by known maps): mutual information
rather than correlation, which is misled more often where contrast differs from scan to scan; a full affine at once, as
going through translation or similarity first ends in more wrong optima; two kinds of starts, as the centres of two
bodies agree only where fields of view agree. Only a search over all shifts finds a slab in a torso.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.geometry import CaseGeometry

#: Starts whose refinement is tried, best first, until one is good enough.
MAX_REFINEMENTS = 3
#: Registrations below it are poor and are not used. A mirrored body looks like a right one.
MIN_QUALITY = 0.25
#: Where edges agree less, they are poor, too: a chest turned upside down has lungs where lungs are, and qualities up to
#: 0.43. Of real hippocampi, abdomens and chests both bounds keep 84 of 85, and none of 37 that were turned
#: (docs/results/registrations.md).
MIN_EDGE_AGREEMENT = 0.23
#: Edges are seen at this share of the cube root of the body's volume, 9 mm in a torso: the same on any grid.
_EDGE_SHARE = 0.03
#: No further start is refined once a result is as good as this.
_GOOD_ENOUGH = 0.4
#: Body proportions may explain stretching by this factor, not more.
MAX_STRETCH = 1.8
#: Samples of the metric on each level.
_SAMPLES = 20_000
_SEED = 1
#: Cells of the grid on which all shifts are searched; with 24**3 half torsos ended 3 mm farther off.
_SHIFT_CELLS = 32**3
#: Smaller overlaps of the two arrays are not considered in the search of shifts.
_MIN_SHIFT_OVERLAP = 0.25
#: Fewest cells that a correlation is computed from.
_MIN_CELLS = 30


@dataclass(frozen=True)
class Registration:
    """Affine map from a case to the atlas, and the figures that say how good it is.

    Attributes:
        affine: (4, 4) float64, homogeneous case mm (z, y, x, 1) -> atlas mm.
        correlation: correlation coefficient of case and atlas where their bodies overlap, in [-1, 1].
        overlap: overlap of the two bodies as a share of the smaller one, in [0, 1].
        edges: see :func:`edge_agreement`; None where nobody measured it.
    """

    affine: np.ndarray
    correlation: float
    overlap: float
    edges: float | None = None

    @property
    def quality(self) -> float:
        """``correlation * overlap``, in [0, 1]; 0 for a negative correlation and for implausible stretching."""
        if self.stretch > MAX_STRETCH or np.linalg.det(Affine(self.affine).linear) <= 0:
            return 0.0
        return max(0.0, self.correlation) * self.overlap

    @property
    def problem(self) -> str:
        """Why the registration is poor; empty for a good one."""
        if self.quality < MIN_QUALITY:
            return f"quality {self.quality:.2f} is below {MIN_QUALITY}"
        if self.edges is not None and self.edges < MIN_EDGE_AGREEMENT:
            return f"edges agree by {self.edges:.2f}, below {MIN_EDGE_AGREEMENT}; does it lie upside down?"
        return ""

    @property
    def stretch(self) -> float:
        """Largest factor by which a length grows or shrinks; infinite for a singular map."""
        values = np.linalg.svd(Affine(self.affine).linear, compute_uv=False)
        return float(max(values.max(), 1 / values.min() if values.min() > 0 else np.inf))


#: What a case can be registered by.
BODY, LUNGS = REGIONS = ("body", "lungs")


def register(case: CaseGeometry, atlas: CaseGeometry) -> Registration:
    """Register a case to the atlas. Deterministic, one thread.

    Several starts are ranked by the quality they give on a thinned grid; the best is refined by SimpleITK, the next
    ones only while the result is not good. A refinement that ends worse than its start is not taken.

    Args:
        case: geometry of the case.
        atlas: geometry of the atlas.

    Returns:
        the best registration found, which may still be bad: look at its ``quality``.
    """
    with on_one_thread():
        starts = [assess(affine, case, atlas, thin=2) for affine in _starts(case, atlas)]
        starts.sort(key=lambda start: start.quality, reverse=True)
        case_image, atlas_image = to_sitk(case, case.image), to_sitk(atlas, atlas.image)
        # A margin of air around the body, so that its outline counts too.
        case_mask = to_sitk(case, ndimage.binary_dilation(case.body, iterations=2))
        best = assess(starts[0].affine, case, atlas)
        for start in starts[:MAX_REFINEMENTS]:
            refined = assess(_refine(case_image, case_mask, atlas_image, start.affine), case, atlas)
            best = max(best, refined, key=lambda result: result.quality)
            if best.quality >= _GOOD_ENOUGH:
                break
    return best


def assess(affine: np.ndarray, case: CaseGeometry, atlas: CaseGeometry, thin: int = 1) -> Registration:
    """Return quality figures of an affine map from a case to the atlas.

    Args:
        affine: (4, 4), case mm -> atlas mm, (z, y, x).
        case: geometry of the case.
        atlas: geometry of the atlas.
        thin: take every ``thin``-th grid cell of the case along each axis.
    """
    image, warped, warped_body = warp_atlas(affine, case, atlas, thin)
    both = case.body[::thin, ::thin, ::thin] & warped_body
    cells = int(both.sum())
    if cells < _MIN_CELLS:
        return Registration(affine, 0.0, 0.0)
    overlap = _overlap(cells * thin**3, affine, case, atlas)
    return Registration(affine, correlation(image[both], warped[both]), overlap)


def edge_agreement(affine: np.ndarray, case: CaseGeometry, atlas: CaseGeometry) -> float:
    """Return how well edges lie on each other: the correlation of gradient magnitudes, times the bodies' overlap.

    Args:
        affine: (4, 4), case mm -> atlas mm, (z, y, x).
        case: geometry of the case, all of its body.
        atlas: geometry of the atlas.

    Returns:
        in [-1, 1]; 0 where the bodies hardly overlap.
    """
    image, warped, warped_body = warp_atlas(affine, case, atlas)
    both = case.body & warped_body
    agreement = correlation(edges(case, image)[both], edges(case, warped)[both])
    return agreement * _overlap(int(both.sum()), affine, case, atlas)


def edges(case: CaseGeometry, image: np.ndarray) -> np.ndarray:
    """Return gradient magnitudes (float32) of an image on the grid of a case, at the size of structures in its body."""
    sigma = body_share_cells(case, _EDGE_SHARE)
    return ndimage.gaussian_gradient_magnitude(image.astype(np.float32), sigma)


def body_share_cells(case: CaseGeometry, share: float) -> np.ndarray:
    """Return a share of the cube root of the body's volume, in grid cells along each axis: the same mm on any grid."""
    cell_mm = np.asarray(case.grid_spacing_mm)
    return share * (case.body_cells * cell_mm.prod()) ** (1 / 3) / cell_mm


def _overlap(cells: int, affine: np.ndarray, case: CaseGeometry, atlas: CaseGeometry) -> float:
    """Return how much of the smaller body so many common cells of the case are, in [0, 1]."""
    cell_mm3 = np.prod(case.grid_spacing_mm)
    atlas_body_mm3 = atlas.body_cells * np.prod(atlas.grid_spacing_mm) / abs(np.linalg.det(Affine(affine).linear))
    return float(min(1.0, cells * cell_mm3 / min(case.body_cells * cell_mm3, atlas_body_mm3)))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation coefficient of two lists of numbers; 0 of few, and where one of them is constant."""
    if len(a) < _MIN_CELLS:
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else 0.0


def warp_atlas(
    affine: np.ndarray, case: CaseGeometry, atlas: CaseGeometry, thin: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring the atlas onto the (thinned) grid of a case.

    Returns:
        coarse image of the case, uint8; the atlas there, float32 (0 outside of its array); its body there, bool.
    """
    matrix, offset = cell_map(affine, case, atlas)
    image = case.image[::thin, ::thin, ::thin]
    warped = ndimage.affine_transform(atlas.image, matrix * thin, offset, image.shape, np.float32, order=1)
    body = ndimage.affine_transform(atlas.body.view(np.uint8), matrix * thin, offset, image.shape, order=0)
    return image, warped, body.astype(bool)


def cell_map(affine: np.ndarray, case: CaseGeometry, atlas: CaseGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix (3, 3) and offset (3,) of a map between mm, from grid cells of the case to the atlas's."""
    to_atlas, target = Affine(affine), np.asarray(atlas.grid_spacing_mm)
    matrix = to_atlas.linear * np.asarray(case.grid_spacing_mm) / target[:, None]
    return matrix, (to_atlas.points(case.grid_origin_mm) - atlas.grid_origin_mm) / target


def _starts(case: CaseGeometry, atlas: CaseGeometry) -> Iterator[np.ndarray]:
    """Yield affine maps (shift and scale along the axes) from which one should be near enough to be refined."""
    (case_centre, case_spread), (atlas_centre, atlas_spread) = _moments(case), _moments(atlas)
    ratio = np.clip(atlas_spread / case_spread, 0.7, 1.4)
    # Same size; same thickness of the body, whatever field of view lies along the first axis; same size of everything.
    same, across, all_axes = np.ones(3), np.array([1.0, ratio[1], ratio[2]]), ratio
    for scale in (same, across, all_axes):
        yield Affine.scaling(scale, atlas_centre - scale * case_centre).matrix
    for scale in (same, across):
        yield _best_shift(case, atlas, scale)


def _moments(geometry: CaseGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre and standard deviation of the body in mm along each axis."""
    points_mm = np.argwhere(geometry.body) * geometry.grid_spacing_mm + geometry.grid_origin_mm
    return points_mm.mean(axis=0), np.maximum(points_mm.std(axis=0), geometry.grid_spacing_mm)


def _best_shift(case: CaseGeometry, atlas: CaseGeometry, scale: np.ndarray) -> np.ndarray:
    """Return shift, of all shifts, at which the case (scaled) and the atlas correlate best; by FFT on a rough grid."""
    sizes_mm = [np.asarray(g.shape) * g.spacing * s for g, s in ((case, scale), (atlas, np.ones(3)))]
    cell_mm = float((np.prod(np.maximum(*sizes_mm)) / _SHIFT_CELLS) ** (1 / 3))
    fixed, moving = _rough(case, scale, cell_mm), _rough(atlas, np.ones(3), cell_mm)
    shape = np.maximum(fixed.shape, moving.shape)
    (moving, there), (fixed, here) = _padded(moving, shape), _padded(fixed, shape)
    # Normalised correlation over what overlaps, as ITK's MaskedFFTNormalizedCorrelation has it, more slowly.
    shift, *_ = phase_cross_correlation(
        moving, fixed, reference_mask=there, moving_mask=here, overlap_ratio=_MIN_SHIFT_OVERLAP
    )
    peak = -np.round(shift)
    # Rough grids start at the corner of the array, half a voxel before its origin.
    corner_shift = scale * np.asarray(case.spacing) / 2 - np.asarray(atlas.spacing) / 2
    return Affine.scaling(scale, corner_shift - peak * cell_mm).matrix


def _padded(array: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the array with zeros added at the ends of its axes, and which elements are its own (bool)."""
    widths = [(0, more) for more in (shape - array.shape).tolist()]
    return np.pad(array, widths), np.pad(np.ones(array.shape, bool), widths)


def _rough(geometry: CaseGeometry, scale: np.ndarray, cell_mm: float) -> np.ndarray:
    """Return image (float32, 0 outside of the body) averaged onto cubes of ``cell_mm`` of the scaled case."""
    factor = cell_mm / (np.asarray(geometry.grid_spacing_mm) * scale)
    # Lungs are darker than the window and must not look like air.
    image = np.where(geometry.body, geometry.image + np.float32(64), np.float32(0))
    image = ndimage.uniform_filter(image, np.maximum(1, np.round(factor)).astype(int).tolist(), mode="nearest")
    shape = np.maximum(1, np.round(np.asarray(geometry.grid_shape) / factor)).astype(int)
    return ndimage.affine_transform(image, factor, (factor - 1) / 2, tuple(shape.tolist()), order=1, mode="nearest")


def _refine(case_image: sitk.Image, case_mask: sitk.Image, atlas_image: sitk.Image, start: np.ndarray) -> np.ndarray:
    """Let SimpleITK improve a start; gives the start back where its optimiser finds no way."""
    size = case_image.GetSize()
    centre = np.array(case_image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size]))
    # SimpleITK's axes are (x, y, z).
    matrix, shift = start[2::-1, 2::-1], start[2::-1, 3]
    transform = sitk.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(matrix.ravel().tolist())
    transform.SetTranslation((matrix @ centre + shift - centre).tolist())
    shrink = [factor for factor in (4, 2, 1) if factor == 1 or min(size) / factor >= 8]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricFixedMask(case_mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    shares = [min(1.0, _SAMPLES / (np.prod(size) / factor**3)) for factor in shrink]
    method.SetMetricSamplingPercentagePerLevel([float(share) for share in shares], _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    # Steps are in mm: at first of half a cell (longer ones jump out of the right optimum: with two cells 3 of 10 known
    # maps were missed, with one cell 1, with half a cell none of 16), at last of a two-hundredth.
    cell_mm = float(min(case_image.GetSpacing()))
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=cell_mm / 2, minStep=cell_mm / 200, numberOfIterations=200, relaxationFactor=0.7,
        gradientMagnitudeTolerance=1e-6,
    )  # fmt: skip
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([factor // 2 for factor in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(case_image, atlas_image)
    except RuntimeError:
        # "All samples map outside": this start was hopeless.
        return start
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    shift = np.array(transform.GetTranslation()) + centre - matrix @ centre
    return Affine.of_parts(matrix[::-1, ::-1], shift[::-1]).matrix


def to_sitk(geometry: CaseGeometry, array: np.ndarray) -> sitk.Image:
    """Return the array on the grid of a case as an image in mm: float32, or uint8 for a mask."""
    image = sitk.GetImageFromArray(array.astype(np.uint8 if array.dtype == bool else np.float32))
    image.SetSpacing([float(v) for v in geometry.grid_spacing_mm[::-1]])
    image.SetOrigin([float(v) for v in geometry.grid_origin_mm[::-1]])
    return image


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Give ITK one thread: cases run in parallel, and sums must not change from run to run."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
