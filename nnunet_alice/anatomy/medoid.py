"""Which case is the most typical? The medoid of a few candidates: its anatomy becomes the atlas of all."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.errors import InputError
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: So many candidates are compared, whatever the size of the dataset.
MAX_CANDIDATES = 24
_SEED = 0
#: Blocks of the rough picture along each axis.
_ROUGH = 8


def find_medoid(cases: Sequence[str], geometry_of: Callable[[str], CaseGeometry]) -> str:
    """Return the name of the case whose size, body shape and intensities differ least from those of the others.

    A seeded choice of ``MAX_CANDIDATES`` cases stands for all of them. Each of the three kinds of difference is
    divided by its median, so that none outweighs the others.

    Args:
        cases: names to choose from.
        geometry_of: case -> its geometry; a case for which it fails is no candidate.

    Raises:
        InputError: no candidate has a usable image.
    """
    order = np.random.default_rng(_SEED).permutation(len(cases))
    names: list[str] = []
    descriptors: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for index in order:
        if len(names) == MAX_CANDIDATES:
            break
        try:
            descriptors.append(describe(geometry_of(cases[index])))
        except Exception as error:
            logger.warning("Case %s cannot be the atlas: %s", cases[index], error)
            continue
        names.append(cases[index])
    if not names:
        raise InputError(
            f"None of the {counted(len(cases), 'case')} has a usable image; the first reason is logged above."
        ).about(value=len(cases))
    total = np.zeros((len(names), len(names)))
    for part in zip(*descriptors, strict=True):
        values = np.stack(part)
        distance = np.linalg.norm(values[:, None] - values[None], axis=-1)
        scale = np.median(distance[np.triu_indices(len(names), 1)]) if len(names) > 1 else 0.0
        if scale > 0:
            total += distance / scale
    return names[int(np.argmin(total.sum(axis=0)))]


def describe(geometry: CaseGeometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return size (3,) as log mm, rough body mask (512,) in [0, 1] and rough intensities (512,) in [0, 1] of a case."""
    size = np.log(np.asarray(geometry.shape) * geometry.spacing)
    return size, _rough(geometry.body), _rough(geometry.image / np.float32(255))


def _rough(array: np.ndarray) -> np.ndarray:
    factor = np.asarray(array.shape) / _ROUGH
    smooth = ndimage.uniform_filter(array.astype(np.float32), np.maximum(1, np.round(factor)).astype(int).tolist())
    centres = ((np.arange(_ROUGH) + 0.5) * factor[:, None]).astype(int)
    return smooth[np.ix_(*centres)].ravel()
