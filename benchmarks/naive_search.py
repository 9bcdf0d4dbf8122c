"""Matching by searching every voxel of dense descriptors, as the reference does: what the compact index replaces."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.matching.describing import load_describer
from nnunet_alice.matching.interface import GeometryMatcher, Matches


class FullVolumeMatcher(GeometryMatcher):
    """Implements ``Matcher``: dense descriptors of a case, one similarity map at full resolution for every query.

    A query's descriptor is that at its own place in the dense maps. Voxels outside the body are no answers, which
    favours this search.

    Args:
        dataset: the preprocessed dataset.
        checkpoint: of ``AnatomicalEmbeddingTrainer``.
    """

    name = "every voxel"
    threshold = -1.0

    def __init__(self, dataset: PreprocessedDataset, checkpoint: Path) -> None:
        super().__init__(dataset, dataset.cases())
        self.describer, _ = load_describer(checkpoint, dataset, torch.device("cpu"))
        self._dense: OrderedDict[str, tuple[torch.Tensor, np.ndarray]] = OrderedDict()

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Return counterparts in ``case_b`` of ``points_vox`` (N, 3), whole voxels of B."""
        asked = self._describe(case_a, points_vox)
        dense, body = self.search(case_b)
        found, scores = np.empty((len(points_vox), 3)), np.empty(len(points_vox))
        for number, query in enumerate(asked):
            similarity = torch.einsum("d,dzyx->zyx", query, dense).numpy()
            similarity[~body] = -np.inf
            found[number] = np.unravel_index(similarity.argmax(), similarity.shape)
            scores[number] = similarity.max()
        return Matches(found, scores)

    def _describe(self, case: str, points_vox: np.ndarray) -> torch.Tensor:
        """Interpolate descriptors (N, 2 D) in the dense maps; their dot products are the mean of two cosines."""
        dense, _ = self.search(case)
        around = np.stack([ndimage.map_coordinates(channel, np.transpose(points_vox), order=1) for channel in dense], 1)
        return F.normalize(torch.from_numpy(around).unflatten(1, (2, -1)), dim=2).flatten(1) / 2

    def search(self, case: str) -> tuple[torch.Tensor, np.ndarray]:
        """Return fine and coarse descriptors of every voxel, (2 D, z, y, x), and which voxels lie in the body."""
        if case not in self._dense:
            shape = self.dataset.shape(case)
            points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
            fine, coarse = self.describer.describe(self.dataset.image(case), points)
            dense = torch.from_numpy(np.concatenate([fine, coarse], axis=1).T.copy()).reshape(-1, *shape)
            inside = self.geometry(case).in_body(points.astype(float)).reshape(shape)
            self._dense[case] = F.normalize(dense.unflatten(0, (2, -1)), dim=1).flatten(0, 1), inside
        return self._dense[case]
