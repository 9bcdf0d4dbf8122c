"""nnU-Net's preprocessor for the cases of one modality among several."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

#: smallest standard deviation that values are divided by, nnU-Net's
_EPS = 1e-8


class ModalityPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessor, but for the normalisation: that of the modality; a z-score is that of the body.

    nnU-Net's z-score of the whole image depends on how much air an image shows. The two differ by one factor and one
    shift for each image, which the first InstanceNorm of nnU-Net's networks takes out again: weights fit both.

    Args:
        scheme: name of nnU-Net's normalisation.
        statistics: channel -> intensity statistics; empty where the scheme needs none.
    """

    def __init__(self, scheme: str, statistics: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__(verbose=False)
        self.scheme = scheme
        self.statistics = statistics

    def _normalize(
        self,
        data: np.ndarray,
        seg: np.ndarray,
        configuration_manager: Any,  # noqa: ARG002 nnU-Net's hook
        foreground_intensity_properties_per_channel: dict,  # noqa: ARG002
    ) -> np.ndarray:
        """Return the image (C, z, y, x) normalised; ``seg`` (1, z, y, x) is 1 in the body."""
        body = seg[0] > 0
        for number, channel in enumerate(data):
            if self.scheme == schemes.ZScoreNormalization.__name__ and body.any():
                inside = channel[body]
                data[number] = (channel - inside.mean()) / max(float(inside.std()), _EPS)
            else:
                kind = getattr(schemes, self.scheme)
                data[number] = kind(False, dict(self.statistics.get(str(number), {}))).run(channel, seg[0])
        return data
