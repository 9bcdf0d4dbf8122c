"""How much GPU memory pretraining takes, on the scale that nnU-Net itself plans with.

nnU-Net's planners count the elements of all convolution feature maps of one sample, ``E``
(``compute_conv_feature_map_size``), and hold ``E * batch size`` against a reference measured once: for the default
planner 560e6 elements at batch 2 take 8 GB, weights, optimiser and workspace included. A step of Alice on one view

- runs the student over the masked view, forward and backward:                                   ``E``
- may run the student's encoder over the unmasked view, forward and backward:                    ``E_enc``
- runs the teacher over the unmasked view without gradient, encoder and first decoder stage; no map is stored, only
  a few are alive at a time.

So a view is charged ``E + E_enc``, and a pair of views twice that. Live tensors counted at patches of 64 and 128 voxels
in mixed precision: both student passes and the teacher peak at 1.25 times nnU-Net's own step for PlainConvUNet
(charged: 1.40) and 1.43 to 1.57 times for ResidualEncoderUNet (charged: 1.67), so the teacher's passing maps fit into
what the encoder pass is overcharged, whether it runs before or after the student.

Each weight costs 8 bytes more than in nnU-Net's training: the teacher's copy, and AdamW's second moment.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

#: Bytes a network parameter takes beyond nnU-Net's own training (teacher 4, second moment of AdamW 4).
EXTRA_BYTES_PER_PARAMETER = 8
_GB = 2**30


@dataclass(frozen=True)
class MemoryReference:
    """What one planner of nnU-Net holds its estimates against.

    Attributes:
        elements: feature map elements of one sample that fit into ``gigabytes``.
        batch_size: samples at once in that measurement.
        gigabytes: GPU memory of that measurement, GB.
    """

    elements: float
    batch_size: int
    gigabytes: float

    @property
    def elements_per_gb(self) -> float:
        """Feature map elements of a training step that take one GB, everything included."""
        return self.elements * self.batch_size / self.gigabytes


@dataclass(frozen=True)
class NetworkCost:
    """Size of a network at one patch size.

    Attributes:
        elements: ``E``, elements of all convolution feature maps of one sample.
        encoder_elements: ``E_enc``, those of the encoder.
        parameters: number of weights.
    """

    elements: int
    encoder_elements: int
    parameters: int

    @property
    def pair_elements(self) -> int:
        """Elements charged for a pair of views: two views, each seen whole and by the encoder alone."""
        return 2 * (self.elements + self.encoder_elements)

    @property
    def extra_gigabytes(self) -> float:
        """Memory of teacher and optimiser beyond nnU-Net's own training, GB."""
        return EXTRA_BYTES_PER_PARAMETER * self.parameters / _GB


def network_cost(architecture: Mapping, patch_size: Sequence[int], input_channels: int, classes: int) -> NetworkCost:
    """Count what the network of a plans configuration needs.

    Args:
        architecture: ``architecture`` of a configuration: network class, its arguments, which of them to import.
        patch_size: voxels, (z, y, x) or (y, x).
        input_channels: channels of an image.
        classes: output channels.
    """
    network = _network_without_memory(json.dumps(architecture, default=_plain), input_channels, classes)
    patch_size = [int(length) for length in patch_size]
    return NetworkCost(
        int(network.compute_conv_feature_map_size(patch_size)),
        int(network.encoder.compute_conv_feature_map_size(patch_size)),
        sum(parameter.numel() for parameter in network.parameters()),
    )


@functools.lru_cache(maxsize=64)
def _network_without_memory(architecture: str, input_channels: int, classes: int) -> torch.nn.Module:
    """Network on the meta device; kept, because planning asks for one network at many patch sizes."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    content = json.loads(architecture)
    with torch.device("meta"):
        return get_network_from_plans(
            content["network_class_name"],
            content["arch_kwargs"],
            content["_kw_requires_import"],
            input_channels,
            classes,
            allow_init=False,
        )


def _plain(number):
    """JSON form of numpy's numbers."""
    return number.item()


def pair_budget(cost: NetworkCost, reference: MemoryReference, gigabytes: float) -> float:
    """Feature map elements that ``gigabytes`` of GPU memory leave for the views; 0 when the weights take it all."""
    return max(0.0, gigabytes - cost.extra_gigabytes) * reference.elements_per_gb


def pairs_in_memory(cost: NetworkCost, reference: MemoryReference, gigabytes: float) -> int:
    """Pairs of views per step that fit into ``gigabytes`` of GPU memory; can be 0."""
    return math.floor(pair_budget(cost, reference, gigabytes) / cost.pair_elements)


def gigabytes_of_pairs(cost: NetworkCost, reference: MemoryReference, pairs: int) -> float:
    """GPU memory that steps of ``pairs`` pairs of views take, GB."""
    return pairs * cost.pair_elements / reference.elements_per_gb + cost.extra_gigabytes


def gigabytes_of_training(cost: NetworkCost, reference: MemoryReference, batch_size: int) -> float:
    """GPU memory that nnU-Net's own training takes with ``batch_size`` samples, GB."""
    return batch_size * cost.elements / reference.elements_per_gb
