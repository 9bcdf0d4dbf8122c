"""Features of images that lie in memory: arrays in, arrays out."""

import numpy as np

from nnunet_alice.anatomy.orientation import axial_axis_of_plans
from nnunet_alice.errors import InputError
from nnunet_alice.features.encoders import TrainedEncoder
from nnunet_alice.features.extraction import dense_features, encode_patches, point_features
from nnunet_alice.features.images import opened_array


def extract_features(
    encoder: TrainedEncoder, image: np.ndarray, *, points_vox: np.ndarray | None = None, name: str = "image"
) -> np.ndarray:
    """Return features of an image: around points, or everywhere.

    >>> import nnunet_alice
    >>> image = nnunet_alice.open_dataset(900).image("case0")[:]
    >>> encoder = nnunet_alice.open_encoder("checkpoint_final.pth", needs_landmarks=False)
    >>> nnunet_alice.extract_features(encoder, image).shape  # features, and cells of the bottleneck
    (8, 7, 4, 6)
    >>> nnunet_alice.extract_features(encoder, image, points_vox=np.array([[12, 7, 10]])).shape
    (1, 62)

    Args:
        encoder: from :func:`nnunet_alice.features.encoders.open_encoder`.
        image: (C, z, y, x), preprocessed as the encoder's plans say: its voxel size is ``encoder.spacing``.
        points_vox: (M, 3) voxels of the image, (z, y, x); None for all of it.
        name: of the image, for messages.

    Returns:
        (M, F) float32 around points, as ``nnunet_alice features --level patch`` gives them. Else (C, cells...) float32
        at the resolution of the bottleneck: cell i covers voxels ``i * stride`` to ``(i + 1) * stride - 1``.

    Raises:
        InputError: the image has other channels or shows no body, there is no point, or a location-conditioned encoder
            cannot register it.
        NotPreparedError: a location-conditioned encoder was opened without its atlas.
    """
    channels = encoder.run["num_input_channels"]
    if image.ndim != 4 or len(image) != channels:
        raise InputError(
            f"{name} has shape {image.shape}; the encoder takes (channels, z, y, x) with {channels} channel(s)."
        ).about(value=image.shape)
    if points_vox is not None and not encoder.conditional:  # places do not matter, so that no registration can fail
        points = np.asarray(points_vox, dtype=float)
        return encode_patches(encoder, image, points, np.zeros((len(points), 3), dtype=np.float32))
    opened = opened_array(name, image, encoder.spacing, axial_axis_of_plans(encoder.run["plans"]))
    if points_vox is None:
        return dense_features(encoder, opened)
    return point_features(encoder, opened, np.asarray(points_vox, dtype=float))
