"""Finding counterparts in the indices of learned descriptors: one matrix product a batch, then a step between points.

Paper: Yan et al., TMI 2022, sec. III-C: the counterpart of a point is where the mean of fine and coarse cosine is
highest, and that mean is the score. Deviation: the reference convolves the query's descriptor over dense embedding
volumes of hundreds of MB; ours searches the compact index, then fits a quadratic surface to the similarities around
the best grid point (``matching.refinement``). It lets neighbouring points correct each other
(``matching.consensus``). A query's own descriptor is interpolated from the index of its case.
"""

import dataclasses
import logging
import math
from collections import OrderedDict
from functools import cached_property

import numpy as np
import torch
from scipy.spatial import KDTree

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import NotPreparedError, named
from nnunet_alice.matching.calibration import read_calibration
from nnunet_alice.matching.consensus import agreed_matches
from nnunet_alice.matching.index import CaseIndex, IndexStore
from nnunet_alice.matching.interface import GeometryMatcher, Matches, usable_cases
from nnunet_alice.matching.refinement import neighbour_offsets, quadratic_peaks
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: Matches that score below it are drawn again: the threshold of Alice (sec. 3.1), used until one was measured.
THRESHOLD = 0.7
#: indices held open, two for a match
_OPEN_INDICES = 8
#: similarities held at once: 64 MB
_BLOCK_SIMILARITIES = 16_000_000
_NEIGHBOURS = neighbour_offsets()
#: columns of these that are the neighbours before and behind on each axis
_ON_AXES = np.array([[4, 22], [10, 16], [12, 14]])


class IndexSearch:
    """Searches the index of one case.

    Args:
        index: descriptors of the case.
    """

    def __init__(self, index: CaseIndex) -> None:
        self.dimension = index.fine.shape[1]
        # Scaled so that one dot product of joined descriptors is the mean of both cosines. Stored descriptors are unit
        # vectors up to half precision; torch widens them several times faster than numpy, and most of the time of a
        # match between two unopened cases is spent here.
        table = torch.empty(len(index.fine), 2 * self.dimension)
        table[:, : self.dimension] = torch.from_numpy(index.fine)
        table[:, self.dimension :] = torch.from_numpy(index.coarse)
        self._table = table.mul_(math.sqrt(0.5)).numpy()
        read = np.empty((0, self.dimension), index.fine.dtype)  # the table has them now: half of what they took
        self.index = dataclasses.replace(index, fine=read, coarse=read)

    def describe(self, points_vox: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return descriptors at any points of this case, trilinear between the grid points around each.

        A point without a grid point around it (at the skin) takes the nearest one's.

        Args:
            points_vox: (Q, 3) voxels, (z, y, x).

        Returns:
            joined descriptors (Q, 2 D) float32 for :meth:`match`, and bool (Q,): False for points farther from the
            body grid than the diagonal of a grid cell, about whose anatomy the index says nothing.
        """
        points_vox = np.asarray(points_vox, dtype=float).reshape(-1, 3)
        rows, weights = self.index.grid.corners(points_vox)
        known = weights.sum(axis=1) > 0
        lost = np.flatnonzero(~known)
        if len(lost):
            spacing = np.asarray(self.index.spacing)
            reach_mm = float(np.linalg.norm(np.asarray(self.index.grid.step_vox) * spacing))
            distance, nearest = self._tree.query(points_vox[lost] * spacing)
            close = distance <= reach_mm
            rows[lost, 0], weights[lost, 0] = nearest, 1
            known[lost] = close
        joined = np.zeros((len(rows), 2 * self.dimension), dtype=np.float32)
        for corner in range(8):
            joined += weights[:, corner, None].astype(np.float32) * self._table[rows[:, corner]]
        fine, coarse = joined[:, : self.dimension], joined[:, self.dimension :]
        return np.concatenate([_unit(fine), _unit(coarse)], axis=1) * np.float32(math.sqrt(0.5)), known

    def match(self, descriptors: np.ndarray, known: np.ndarray | None = None) -> Matches:
        """Return counterparts in this case of points with these descriptors.

        Args:
            descriptors: (Q, 2 D) float32 from :meth:`describe` of a different index.
            known: bool (Q,) from there; queries that are not known get NaN and score ``-inf``.
        """
        count = len(descriptors)
        points, scores = np.empty((count, 3)), np.empty(count)
        block = max(1, _BLOCK_SIMILARITIES // len(self._table))
        for first in range(0, count, block):
            part = slice(first, first + block)
            points[part], scores[part] = self._match_block(descriptors[part])
        if known is not None:
            points[~known], scores[~known] = np.nan, -np.inf
        return Matches(points, scores)

    def _match_block(self, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        similarity = descriptors @ self._table.T
        best = similarity.argmax(axis=1)
        peak = similarity[np.arange(len(best)), best].astype(float)
        near = self.index.grid.neighbours(best, _NEIGHBOURS)
        values = np.take_along_axis(similarity, np.maximum(near, 0), axis=1).astype(float)
        around = values[:, _ON_AXES]
        _, gain = _parabola_peak(around[..., 0], peak[:, None], around[..., 1])
        # At the rim of the body one side is missing: no gain and no step along that axis.
        whole = (near[:, _ON_AXES] >= 0).all(axis=2)
        scores = np.minimum(peak + np.where(whole, gain, 0).sum(axis=1), 1.0)
        moved = np.where(whole, quadratic_peaks(values, near >= 0, _NEIGHBOURS), 0)
        return self.index.grid.points_vox[best] + moved * np.asarray(self.index.grid.step_vox), scores

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.index.grid.points_vox * np.asarray(self.index.spacing))


class EmbeddingMatcher(GeometryMatcher):
    """Matches points by learned descriptors; implements ``matching.Matcher``.

    Memory is bounded: at most eight indices are held, each twice its file's size (20 MB at most).

    Args:
        dataset: preprocessed dataset with indices.
        threshold: matches that score below are not to be trusted; None takes the one that was measured with these
            indices (``matching.calibration``).

    Raises:
        NotPreparedError: there are no indices, or stale ones.
    """

    name = "embedding"

    def __init__(self, dataset: PreprocessedDataset, *, threshold: float | None = None) -> None:
        self.store = IndexStore(dataset)
        self.fingerprint = self.store.fingerprint()
        there, existing = set(self.store.cases()), dataset.cases()
        indexed = [case for case in existing if case in there]
        usable = usable_cases(
            indexed, lambda case: self.store.is_usable(case, self.fingerprint), "indices", self.store.command
        )
        super().__init__(dataset, usable)
        if len(self.cases) < 2:
            raise NotPreparedError(
                f"{self.store.folder} holds usable indices of {len(self.cases)} of {counted(len(existing), 'case')}; "
                f"run: {self.store.command}"
            ).about(path=self.store.folder, value=len(self.cases), command=self.store.command)
        if not there.issuperset(existing):
            missing = [case for case in existing if case not in there]
            logger.warning(
                "%d of %d cases (%s) have no index yet and are left out; run: %s",
                len(missing), len(existing), named(missing), self.store.command,
            )  # fmt: skip
        if threshold is None:
            calibration = read_calibration(self.store, self.fingerprint.checkpoint)
            threshold = THRESHOLD if calibration is None else calibration.threshold
        self.threshold = threshold
        self._searches: OrderedDict[str, IndexSearch] = OrderedDict()

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Return counterparts in ``case_b`` of ``points_vox`` (N, 3), (z, y, x) voxels of ``case_a``'s array.

        Raises:
            NotPreparedError: the index of a case is missing, damaged or stale.
        """
        here, there = self.search(case_a), self.search(case_b)
        spacing = np.asarray(self.dataset.spacing)
        # The coarser of the two grids: neighbours closer than its points would repeat the same answers.
        step_mm = float(max((np.asarray(s.index.grid.step_vox) * spacing).max() for s in (here, there)))
        return agreed_matches(lambda points: there.match(*here.describe(points)), points_vox, step_mm, spacing)

    def open(self, case: str) -> None:
        """Read the index of a case."""
        self.search(case)

    def search(self, case: str) -> IndexSearch:
        """Return the opened index of a case.

        Raises:
            NotPreparedError: it is missing, damaged or stale.
        """
        if case not in self._searches:
            # Room first: the bound holds while the next index is read, too.
            while len(self._searches) >= _OPEN_INDICES:
                self._searches.popitem(last=False)
            self._searches[case] = IndexSearch(self.store.read(case, self.fingerprint))
        self._searches.move_to_end(case)
        return self._searches[case]

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_searches": OrderedDict()}


def embedding_is_prepared(dataset: PreprocessedDataset) -> bool:
    """Return whether a dataset has indices that can be used and are finished; the log says so when it has others."""
    store = IndexStore(dataset)
    if not store.description_file.is_file():
        return False
    try:
        checkpoint = store.fingerprint().checkpoint
    except NotPreparedError as error:
        logger.warning("%s", error)
        return False
    if read_calibration(store, checkpoint) is None:
        logger.warning("The indices in %s are not finished and are not used; run: %s", store.folder, store.command)
        return False
    return len(store.cases()) >= 2


def open_embedding(dataset: PreprocessedDataset) -> EmbeddingMatcher:
    """Open the embedding of a dataset, if any of its matches is to be trusted.

    Raises:
        NotPreparedError: there are no usable indices, or the embedding that made them finds nothing.
    """
    matcher = EmbeddingMatcher(dataset)
    calibration = read_calibration(matcher.store, matcher.fingerprint.checkpoint)
    if calibration is not None and calibration.finds_nothing:
        raise NotPreparedError(
            f"The embedding of {dataset.name} finds nothing (of the points matched to a different case and back, "
            f"{calibration.returned:.0%} came back, and no score tells which): train it longer, then run: "
            f"{matcher.store.command}"
        ).about(command=matcher.store.command)
    return matcher


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _parabola_peak(before: np.ndarray, middle: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the peak of the parabola through three samples one step apart, of which the middle one is the highest.

    Returns:
        place of the peak in steps from the middle, in [-0.5, 0.5], and its height above the middle sample; both 0
        where the three are equal.
    """
    curvature = 2 * middle - before - behind
    slope = behind - before
    offset = np.divide(slope, 2 * curvature, out=np.zeros_like(slope), where=curvature > 1e-9)
    offset = np.clip(offset, -0.5, 0.5)
    return offset, slope * offset / 4
