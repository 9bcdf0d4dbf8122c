"""The encoder of a pretraining checkpoint, ready to turn patches into features, with its atlas and landmarks."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_alice.anatomy.atlas import Atlas, PreparedAtlas
from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.checkpoints.conditional import query_encoder_state
from nnunet_alice.checkpoints.loading import check_finite, finite_weights, load_checkpoint
from nnunet_alice.checkpoints.networks import network_of_file
from nnunet_alice.checkpoints.pretraining import pretrained_configuration, pretrained_orientation
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, NotPreparedError
from nnunet_alice.methods.drasclr.conditional import LocatedEncoder, LocationGroups, UnconditionedEncoder
from nnunet_alice.methods.drasclr.conversion import to_conditional
from nnunet_alice.methods.drasclr.representation import PatchRepresentation
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.views.landmark_crops import crop_size


@dataclass(frozen=True)
class TrainedEncoder:
    """Encoder of a checkpoint and where it looks.

    Attributes:
        module: called with patches and locations; gives the encoder's stages, bottleneck last.
        represent: what is read off its patches.
        run: what the checkpoint says about itself (``pretraining``).
        landmarks: landmarks of the atlas; None where none were needed and none are there.
        atlas: what cases are registered to; None likewise.
        size: (3,) crop in voxels, (z, y, x).
        strides: for each stage its (3,) stride against the image.
        conditional: whether locations matter.
    """

    module: LocatedEncoder
    represent: PatchRepresentation
    run: dict[str, Any]
    landmarks: Landmarks | None
    atlas: Atlas | None
    size: tuple[int, ...]
    strides: list[tuple[int, ...]]
    conditional: bool

    @property
    def needed_atlas(self) -> Atlas:
        """The atlas.

        Raises:
            NotPreparedError: the encoder was opened without it.
        """
        if self.atlas is None:
            raise NotPreparedError("This encoder was opened without its atlas and landmarks.")
        return self.atlas

    @property
    def spacing(self) -> tuple[float, ...]:
        """(3,) voxel size in mm of the images that the encoder takes."""
        if self.atlas is not None:
            return self.atlas.geometry.spacing
        return tuple(float(mm) for mm in pretrained_configuration(self.run)["spacing"])

    @property
    def orientation(self) -> str:
        """How the images lay that it was trained on; empty or ``mixed`` where they cannot be compared with others."""
        return pretrained_orientation({"pretraining": self.run})

    @torch.no_grad()
    def stages(self, patches: Tensor, locations: Tensor) -> list[Tensor]:
        """Return feature maps (B, C_s, ...) of patches (B, C, z, y, x) at locations (B, 3)."""
        return self.module(*self._placed(patches, locations))

    @torch.no_grad()
    def features(self, patches: Tensor, locations: Tensor) -> np.ndarray:
        """Return `PatchRepresentation.features` of patches (B, C, z, y, x) at locations (B, 3): (B, F) float32."""
        return self.represent.features(*self._placed(patches, locations)).float().cpu().numpy()

    def _placed(self, patches: Tensor, locations: Tensor) -> tuple[Tensor, LocationGroups]:
        """Return patches and the location of each, where the encoder computes."""
        device = next(self.module.parameters()).device
        where = LocationGroups(locations.to(device, torch.float32), (1,) * len(patches))
        return patches.to(device), where


def open_encoder(
    path: str | os.PathLike,
    *,
    plain: bool = False,
    untrained: bool = False,
    device: torch.device | str = "cpu",
    needs_landmarks: bool = True,
) -> TrainedEncoder:
    """Open the encoder of a checkpoint: DrasCLR's conditional one, or the network's own.

    >>> import nnunet_alice
    >>> encoder = nnunet_alice.open_encoder("checkpoint_final.pth", needs_landmarks=False)
    >>> encoder.strides  # voxels a cell, (z, y, x), of every stage
    [(1, 1, 1), (2, 2, 2), (4, 4, 4)]

    Args:
        path: checkpoint of a pretraining trainer of ours.
        plain: take the plain network's encoder of a DrasCLR checkpoint, too.
        untrained: leave the network at fresh weights (seed 0): the baseline that shows what training brought.
        device: where it computes.
        needs_landmarks: whether features at landmarks will be taken; dense maps of a plain encoder need none.

    Raises:
        CheckpointError: damaged, or not written by a pretraining trainer of ours.
        NotPreparedError: the checkpoint brings no atlas and its dataset is not here or has no landmarks, where they are
            needed.
    """
    checkpoint = load_checkpoint(path)
    run = checkpoint.get("pretraining")
    if run is None:
        raise CheckpointError(f"{path} was not written by a pretraining trainer of nnunet_alice.").about(path=path)
    own: Mapping | None = checkpoint.get("drasclr")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _build_network(path, run)
    if not untrained:
        missing = network.load_state_dict(finite_weights(checkpoint, path), strict=False)
        if any(name.startswith("encoder.") for name in missing.missing_keys):
            raise CheckpointError(f"{path} holds no weights for the encoder of its own plans.").about(path=path)
    conditional = own is not None and own["settings"]["conditional"] and not plain and not untrained
    module: LocatedEncoder
    if own is not None and conditional:
        module = to_conditional(encoder_of(network), own["settings"]["num_experts"])
        state = query_encoder_state(checkpoint)
        check_finite(state, path)
        module.load_state_dict(state)
    else:
        module = UnconditionedEncoder(encoder_of(network))
    strides = np.cumprod([np.broadcast_to(stride, 3) for stride in encoder_of(network).strides], axis=0)
    try:
        landmarks, atlas = _anatomy(run, own)
    except NotPreparedError:
        if needs_landmarks:
            raise
        landmarks, atlas = None, None
    size = patch_size = pretrained_configuration(run)["patch_size"]
    if own:
        size = own["crop_size"]
    elif landmarks is not None and atlas is not None:
        size = crop_size(landmarks.patch_mm, atlas.geometry.spacing, strides[-1].tolist(), patch_size)
    return TrainedEncoder(
        module.to(device).eval(),
        PatchRepresentation(module, encoder_of(network).output_channels[-1]),
        run,
        landmarks,
        atlas,
        tuple(size),
        [tuple(stride) for stride in strides.tolist()],
        conditional,
    )


def _build_network(path: str | os.PathLike, run: Mapping) -> nn.Module:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = PlansManager(run["plans"]).get_configuration(run["configuration"])
    channels = run["num_input_channels"]
    return network_of_file(path, configuration, channels, channels, deep_supervision=False)


def _anatomy(run: Mapping, own: Mapping | None) -> tuple[Landmarks, Atlas]:
    """Return landmarks and atlas of a DrasCLR checkpoint, else of the dataset that the checkpoint was trained on."""
    if own is None:
        dataset = PreprocessedDataset.find(run["dataset_name"], run["plans_name"], run["configuration"])
        atlas = PreparedAtlas.open(dataset)
        return atlas.landmarks(), atlas
    laid = own["landmarks"]
    landmarks = Landmarks(
        laid["points_mm"].numpy(),
        tuple(laid["atlas_shape"]),
        tuple(laid["atlas_spacing"]),
        laid["patch_mm"],
        laid["step_mm"],
    )
    return landmarks, Atlas.of_stored(own)
