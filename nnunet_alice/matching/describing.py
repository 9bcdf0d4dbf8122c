"""Descriptors of any points of a volume by a trained embedding: sliding windows, nothing dense is ever kept.

Windows have the size that the network was trained with and overlap by half; where windows overlap, descriptors are
averaged with the weight of nnU-Net's own sliding window (a Gaussian around the window's middle) and made unit vectors
again. Only descriptors of the asked points are summed up. So memory follows from their number and not from the
volume's size, and windows without a point are skipped.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_alice.anatomy.orientation import differ
from nnunet_alice.anatomy.world import dataset_orientation
from nnunet_alice.checkpoints.loading import check_finite, finite_weights, load_checkpoint
from nnunet_alice.checkpoints.networks import network_of_file
from nnunet_alice.checkpoints.pretraining import pretrained_orientation
from nnunet_alice.cropping import crop_centred
from nnunet_alice.dataset import LazyImage, PreprocessedDataset
from nnunet_alice.errors import CheckpointError
from nnunet_alice.matching.index import checkpoint_checksum
from nnunet_alice.methods.embedding.model import EmbeddingNetwork
from nnunet_alice.methods.embedding.positions import feature_affine, sample_map
from nnunet_alice.words import telling

#: method of the checkpoints that can be used
METHOD = "AnatomicalEmbedding"
#: standard deviation of a window's weight, as a share of its edge (nnU-Net's)
_SIGMA = 1 / 8
#: voxels of all windows in one pass: 2 of 96 x 160 x 160
_VOXELS_A_PASS = 5_000_000


class Describer:
    """A trained network that gives descriptors of points.

    Args:
        network: the trained network.
        patch_size: (3,) voxels of a window.
        device: where to compute.
    """

    def __init__(self, network: EmbeddingNetwork, patch_size: Sequence[int], device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.patch_size = tuple(int(n) for n in patch_size)
        self.device = device
        self.dimension = network.heads.fine.out_channels
        self.fine_stride = network.heads.fine_stride

    @torch.inference_mode()
    def describe(self, image: LazyImage, points_vox: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return fine and coarse descriptors of points of a volume, (N, D) float32 each, unit length.

        Args:
            image: (C, z, y, x), read window by window.
            points_vox: (N, 3) voxels within the volume, (z, y, x).
        """
        points = np.asarray(points_vox, dtype=float)
        sums = torch.zeros(2, len(points), self.dimension, device=self.device)
        per_pass = max(1, _VOXELS_A_PASS // int(np.prod(self.patch_size)))
        windows = list(self._windows(image.shape[1:], points))
        passes = [windows[first : first + per_pass] for first in range(0, len(windows), per_pass)]
        # One pass ahead: the next windows are read and unpacked while the network works.
        with ThreadPoolExecutor(1) as reader:
            following = [reader.submit(self._read, image, passes[0])] if passes else []
            for number, current in enumerate(passes):
                crops = following.pop().result()
                if number + 1 < len(passes):
                    following.append(reader.submit(self._read, image, passes[number + 1]))
                self._add(sums, crops, current, points)
        fine, coarse = torch.nn.functional.normalize(sums, dim=2).cpu().numpy()
        return fine, coarse

    def _windows(self, shape: Sequence[int], points: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the first voxel of each window and the rows of the points in it, for windows that have any."""
        patch = np.asarray(self.patch_size)
        for corner in itertools.product(*map(window_starts, shape, self.patch_size)):
            start = np.asarray(corner)
            rows = np.flatnonzero(((points >= start - 0.5) & (points <= start + patch - 0.5)).all(axis=1))
            if len(rows):
                yield start, rows

    def _read(self, image: LazyImage, windows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        patch = np.asarray(self.patch_size)
        return torch.from_numpy(np.stack([crop_centred(image, start + patch // 2, patch) for start, _ in windows]))

    def _add(
        self, sums: Tensor, crops: Tensor, windows: Sequence[tuple[np.ndarray, np.ndarray]], points: np.ndarray
    ) -> None:
        """Add the weighted descriptors of the points in some windows."""
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            maps = self.network(crops.to(self.device))
        identity = torch.eye(4)[None]
        strides = (self.network.heads.fine_stride, self.network.heads.coarse_stride)
        for number, (start, rows) in enumerate(windows):
            local = torch.from_numpy(points[rows] - start)
            offset = (local + 0.5) / torch.tensor(self.patch_size) - 0.5
            weight = torch.exp(-0.5 * (offset / _SIGMA).square().sum(dim=1)).clamp(min=1e-4)
            local, weight = local.float().to(self.device)[None], weight.float().to(self.device)[:, None]
            index = torch.from_numpy(rows).to(self.device)
            for total, values, stride in zip(sums, (maps.fine, maps.coarse), strides, strict=True):
                affine = feature_affine(identity, stride).to(self.device)
                found = sample_map(values[number : number + 1].float(), affine, local)[0]
                total.index_add_(0, index, weight * found)


def window_starts(size: int, window: int) -> list[int]:
    """Return the first voxels of windows along one axis: evenly spaced, neighbours overlap by half or more.

    A window that is larger than the volume starts before it, so that the volume lies in its middle.
    """
    if window >= size:
        return [-((window - size) // 2)]
    count = -(-(size - window) // max(1, window // 2)) + 1
    return np.rint(np.linspace(0, size - window, count)).astype(int).tolist()


def load_describer(
    path: str | os.PathLike, dataset: PreprocessedDataset, device: torch.device
) -> tuple[Describer, str]:
    """Return a describer from a checkpoint of ``AnatomicalEmbeddingTrainer``, checked against the data.

    The checkpoint may come from a different dataset whose plans prepare images alike: spacing, order of axes and
    normalisation have to be the same.

    Args:
        path: the checkpoint.
        dataset: what will be described.
        device: where to compute.

    Returns:
        the describer and the checkpoint's SHA-256.

    Raises:
        CheckpointError: the file is unusable, of a different method, or does not fit the data.
    """
    checkpoint = load_checkpoint(path)
    run = checkpoint.get("pretraining")
    if run is None or run["method"] != METHOD or "embedding" not in checkpoint:
        found = "no pretraining checkpoint of this package" if run is None else f"trained with {run['method']}"
        raise CheckpointError(f"{path} is {found}; name one of AnatomicalEmbeddingTrainer with --checkpoint.").about(
            path=path, value=found, option="--checkpoint"
        )
    trained = PlansManager(run["plans"]).get_configuration(run["configuration"])
    _check_preparation(path, run, trained, dataset)
    channels = run["num_input_channels"]
    network = network_of_file(path, trained, channels, channels, allow_init=False, deep_supervision=False)
    model = EmbeddingNetwork(network, checkpoint["embedding"]["dimension"])
    weights = finite_weights(checkpoint, path)
    check_finite(checkpoint["model_state"], path)
    try:
        network.load_state_dict(weights)
        missing, unknown = model.load_state_dict(checkpoint["model_state"], strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own plans ({telling(error)}).").about(path=path) from None
    if unknown or any(name.startswith("heads.") for name in missing):
        raise CheckpointError(f"{path} holds other heads than this version makes; train again.").about(
            path=path, value="heads"
        )
    return Describer(model, trained.patch_size, device), checkpoint_checksum(path)


def _check_preparation(path: str | os.PathLike, run: dict, trained: Any, dataset: PreprocessedDataset) -> None:
    """Make sure that images look the same as in training.

    Raises:
        CheckpointError: they do not.
    """
    own = dataset.configuration_manager
    compared = {
        "spacing": (trained.spacing, own.spacing),
        "normalisation": (trained.normalization_schemes, own.normalization_schemes),
        "order of axes": (run["plans"]["transpose_forward"], dataset.plans["transpose_forward"]),
        "number of channels": (run["num_input_channels"], len(own.normalization_schemes)),
    }
    lay, lie = pretrained_orientation({"pretraining": run}), dataset_orientation(dataset)
    if differ(lay, lie):
        compared["orientation"] = (lay, lie)
    for name, (there, here) in compared.items():
        same = np.allclose(there, here, rtol=1e-3) if name == "spacing" else there == here
        if not same:
            raise CheckpointError(
                f"{path} was trained on images of a different {name} ({there}) than those of {dataset.folder} "
                f"({here}); train on this dataset, or move the plans of the checkpoint onto it."
            ).about(path=path, value=name)
