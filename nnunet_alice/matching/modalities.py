"""Matching where a dataset holds several modalities: within each by its own atlas, never across."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_alice.anatomy.regions import lay_regions
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.interface import GeometryMatcher, Matcher, Matches

logger = logging.getLogger(__name__)


class ModalityAtlases(GeometryMatcher):
    """One atlas for each modality; a case has counterparts in cases of its own modality. Implements ``Matcher``.

    Args:
        dataset: the preprocessed dataset, of several modalities.

    Attributes:
        atlases: modality -> its atlas; a modality whose cases cannot be matched is missing.

    Raises:
        NotPreparedError: no modality has an atlas that can be used.
    """

    name = "atlas"
    threshold = AtlasMatcher.threshold

    def __init__(self, dataset: PreprocessedDataset) -> None:
        self.atlases: dict[str, AtlasMatcher] = {}
        problem = None
        for part in dataset.parts:
            try:
                self.atlases[str(part.modality)] = AtlasMatcher(part)
            except NotPreparedError as error:
                logger.warning("%s is not matched: %s", part.modality, error)
                problem = error
        if not self.atlases:
            raise problem or NotPreparedError(f"{dataset.name} has no modalities.")
        super().__init__(dataset, [case for atlas in self.atlases.values() for case in atlas.cases])
        self.fingerprint = {modality: atlas.fingerprint for modality, atlas in self.atlases.items()}

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Return counterparts in ``case_b``, as the atlas of its modality knows them; none across modalities."""
        of = self.dataset.modalities
        if of[case_a] != of[case_b]:
            return Matches(np.full((len(points_vox), 3), np.nan), np.full(len(points_vox), -np.inf))
        return self.atlases[of[case_a]].match(case_a, case_b, points_vox)

    def open(self, case: str) -> None:
        """Read geometry and registration of a case."""
        self.atlases[self.dataset.modalities[case]].open(case)


class RegionLabels:
    """Gives crops of registered cases the regions of the atlas; other cases have no labels.

    Keeps a bounded number of cases open, like the matcher, and is pickled without them.

    Args:
        atlas: the registrations.
        count: number of regions wanted.
    """

    def __init__(self, atlas: AtlasMatcher, count: int) -> None:
        self.atlas = atlas
        self.regions = lay_regions(atlas.atlas.geometry, count)
        self._registered = frozenset(atlas.cases)

    def open(self, case: str) -> None:
        """Read geometry and registration of a case, if it is registered, and keep them for a while."""
        if case in self._registered:
            self.atlas.open(case)

    def on_grid(
        self, case: str, first_vox: Sequence[float] | np.ndarray, step_vox: Sequence[float], size: Sequence[int]
    ) -> np.ndarray:
        """Return the regions at a regular grid of points; 0 for "not known".

        Args:
            case: name of the case.
            first_vox: (3,) first point, voxels of the case's array; may lie outside.
            step_vox: (3,) voxels between two points.
            size: (3,) number of points on every axis.

        Returns:
            int64 ``size``.
        """
        if case not in self._registered:
            return np.zeros(tuple(size), dtype=np.int64)
        points_vox = np.moveaxis(np.indices(tuple(size)), 0, -1) * np.asarray(step_vox) + first_vox
        atlas = self.atlas
        return self.regions.at(
            points_vox * atlas.dataset.spacing, atlas.affine(case), atlas.deformation(case), atlas.geometry(case)
        )


class ModalityRegions:
    """Regions of several atlases, numbered one atlas behind the other; as many for each of them.

    Args:
        atlases: modality -> its atlas.
        modality_of: case -> modality.
        count: number of all regions wanted.
    """

    def __init__(self, atlases: Mapping[str, AtlasMatcher], modality_of: Mapping[str, str], count: int) -> None:
        self.modality_of = modality_of
        self.each = count // len(atlases)
        self.labels = {modality: RegionLabels(atlas, self.each) for modality, atlas in atlases.items()}
        self.first = {modality: number * self.each for number, modality in enumerate(self.labels)}

    def open(self, case: str) -> None:
        """Read geometry and registration of a case, see :meth:`RegionLabels.open`."""
        if self.modality_of[case] in self.labels:
            self.labels[self.modality_of[case]].open(case)

    def on_grid(
        self, case: str, first_vox: Sequence[float] | np.ndarray, step_vox: Sequence[float], size: Sequence[int]
    ) -> np.ndarray:
        """Return the regions at a regular grid of points, see :meth:`RegionLabels.on_grid`; 0 for "not known"."""
        modality = self.modality_of[case]
        if modality not in self.labels:
            return np.zeros(tuple(size), dtype=np.int64)
        found = self.labels[modality].on_grid(case, first_vox, step_vox, size)
        return np.where(found > 0, found + self.first[modality], 0)


def lay_regions_of(matcher: Matcher, count: int) -> RegionLabels | ModalityRegions:
    """Return the regions of the atlas that matches cases, or of those of the modalities.

    Args:
        matcher: an ``AtlasMatcher`` or ``ModalityAtlases``.
        count: number of all regions wanted.
    """
    if isinstance(matcher, ModalityAtlases):
        return ModalityRegions(matcher.atlases, matcher.dataset.modalities, count)
    assert isinstance(matcher, AtlasMatcher), "only an atlas has regions"
    return RegionLabels(matcher, count)
