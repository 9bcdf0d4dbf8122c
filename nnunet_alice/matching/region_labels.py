"""Region labels of crops: what the atlas, its regions and the registrations say together."""

from collections.abc import Sequence

import numpy as np

from nnunet_alice.anatomy.regions import AtlasRegions, lay_regions
from nnunet_alice.matching.atlas import AtlasMatcher


class RegionLabels:
    """Gives crops of registered cases the regions of the atlas; other cases have no labels.

    Keeps a bounded number of cases open, like the matcher, and is pickled without them.

    Args:
        atlas: the registrations.
        count: number of regions wanted.
    """

    def __init__(self, atlas: AtlasMatcher, count: int) -> None:
        self.atlas = atlas
        self.regions: AtlasRegions = lay_regions(atlas.atlas.geometry, count)
        self._registered = frozenset(atlas.cases)

    def on_grid(
        self, case: str, first_vox: Sequence[float] | np.ndarray, step_vox: Sequence[float], size: Sequence[int]
    ) -> np.ndarray:
        """Return the regions at a regular grid of points, see :meth:`AtlasRegions.on_grid`; 0 for "not known"."""
        if case not in self._registered:
            return np.zeros(tuple(size), dtype=np.int64)
        return self.regions.on_grid(self.atlas.affine(case), self.atlas.geometry(case), first_vox, step_vox, size)
