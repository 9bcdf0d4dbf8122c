"""Picture of the registrations: every case as a checkerboard against the atlas."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from nnunet_alice.anatomy.atlas import PreparedAtlas
from nnunet_alice.anatomy.atlas_files import FAILED, OK, AtlasReport
from nnunet_alice.anatomy.geometry import CaseGeometry, load_geometry
from nnunet_alice.anatomy.registration import cell_map
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.pictures.saving import save_figure

#: More cases would be too small to judge: the worst ones are shown.
MAX_CASES = 24
_COLUMNS = 4
#: Height of one slice in pixels.
_SLICE_PIXELS = 120
#: Tiles of the checkerboard along the longer side of a slice.
_TILES = 8
_ATLAS_TINT = np.array([1.0, 1.0, 1.0])
_CASE_TINT = np.array([1.0, 0.75, 0.45])


def draw_atlas(dataset: PreprocessedDataset, report: AtlasReport) -> Path:
    """Draw the registrations of ``report`` (the worst ``MAX_CASES``) and store the picture beside it.

    Each case is brought into the frame of the atlas: middle slices of the atlas across its three axes; tiles of the
    case (orange) alternating with tiles of the atlas (grey), black where the case shows nothing. Outlines that go on
    across the tiles mean a good registration.

    Args:
        dataset: the preprocessed dataset.
        report: outcome of :func:`nnunet_alice.anatomy.atlas.prepare_atlas`.

    Returns:
        path of the PNG.
    """
    prepared = PreparedAtlas.open(dataset, report)
    atlas = prepared.geometry
    others = [r for r in report.records.values() if r.status != FAILED and r.case != report.atlas_case]
    shown = sorted(others, key=lambda record: (record.quality, record.case))[:MAX_CASES]
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(5.2 * columns, 2.1 * rows + 0.7), dpi=80, layout="constrained")
    which = f"the worst {len(shown)} of {len(others)} cases" if len(others) > len(shown) else f"{len(shown)} cases"
    figure.suptitle(f"{dataset.name}: {which} (orange) against the atlas {atlas.case} (grey), worst first", fontsize=12)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, record in zip(axes, shown, strict=False):
        if (affine := prepared.known_affine(record.case)) is not None:
            axis.imshow(checkerboards(load_geometry(dataset, record.case), atlas, affine), interpolation="nearest")
        remark = "" if record.status == OK else f" ({record.status})"
        colour = "black" if record.status == OK else "red"
        axis.set_title(f"{record.case}: {record.quality:.2f}{remark}", fontsize=10, color=colour)
    save_figure(figure, prepared.files.picture, 80)
    return prepared.files.picture


def checkerboards(case: CaseGeometry, atlas: CaseGeometry, affine: np.ndarray) -> np.ndarray:
    """Return the middle slices of the atlas across its three axes, side by side, in tiles that alternate with the case.

    Args:
        case: geometry of the case.
        atlas: geometry of the atlas.
        affine: (4, 4), mm of the case -> mm of the atlas.

    Returns:
        (rows, columns, 3) float in [0, 1].
    """
    # Pull: each cell of the atlas asks where it lies in the case.
    matrix, offset = cell_map(np.linalg.inv(affine), atlas, case)
    warped = ndimage.affine_transform(case.image, matrix, offset, atlas.grid_shape, np.float32, order=1, cval=0)
    panels = []
    for axis in range(3):
        middle = atlas.grid_shape[axis] // 2
        spacing = [s for a, s in enumerate(atlas.grid_spacing_mm) if a != axis]
        both = [_upright(volume.take(middle, axis=axis), spacing, axis) for volume in (atlas.image, warped)]
        panels.append(_checkerboard(*both))
    gap = np.ones((_SLICE_PIXELS, 4, 3))
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def _upright(image: np.ndarray, spacing: list[float], axis: int) -> np.ndarray:
    """Return the slice in [0, 1] with square pixels, ``_SLICE_PIXELS`` high; the first axis of the volume points up."""
    height_mm, width_mm = (n * s for n, s in zip(image.shape, spacing, strict=True))
    width = max(1, round(_SLICE_PIXELS * width_mm / height_mm))
    zoom = (_SLICE_PIXELS / image.shape[0], width / image.shape[1])
    enlarged = ndimage.zoom(image.astype(np.float32), zoom, order=1, grid_mode=True, mode="nearest") / 255
    return np.clip(enlarged if axis == 0 else enlarged[::-1], 0, 1)


def _checkerboard(atlas: np.ndarray, case: np.ndarray) -> np.ndarray:
    tile = max(atlas.shape) / _TILES
    row, column = np.meshgrid(*[(np.arange(n) // tile).astype(int) for n in atlas.shape], indexing="ij")
    of_case = ((row + column) % 2 == 1)[..., None]
    return np.where(of_case, case[..., None] * _CASE_TINT, atlas[..., None] * _ATLAS_TINT)
