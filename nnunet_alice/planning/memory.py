"""How much GPU memory training takes: bytes of live tensors, on the scale that nnU-Net itself plans with.

nnU-Net's planners count the elements of all convolution feature maps of one sample, ``E``
(``compute_conv_feature_map_size``), and hold ``E * batch size`` against a reference measured once: for the default
planner 560e6 elements at batch 2 take 8 GB. Live tensors of that step add up to 5.7 GB. The rest (workspace,
fragmentation, CUDA itself) is taken to grow in proportion for any method's step.

Live bytes of a step follow from the network's parameters and feature maps (:class:`StepBytes`). The numbers were fitted
to steps of the real modules on tensors without memory, in mixed precision (``tests/audit/test_live_bytes.py``).
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

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
        parameters: number of weights.
        encoder_parameters: those of the encoder.
    """

    elements: int
    parameters: int
    encoder_parameters: int = 0


@dataclass(frozen=True)
class StepBytes:
    """Live bytes of a training step at its peak.

    Attributes:
        parameter: bytes a weight takes: itself, its gradient, optimiser, teacher, copy in half precision.
        element: bytes an element of a sample's feature maps takes.
        rest: bytes of heads and whatever else does not depend on the network.
    """

    parameter: float
    element: float
    rest: float = 0.0

    def fixed(self, cost: NetworkCost) -> float:
        """Return bytes that do not depend on the batch."""
        return self.parameter * cost.parameters + self.rest

    def sample(self, cost: NetworkCost) -> float:
        """Return bytes of one sample of the batch."""
        return self.element * cost.elements


#: nnU-Net's own step: weight, gradient, momentum, half copy.
STOCK = StepBytes(parameter=14, element=5.0)
#: Alice: the student sees every view once, the teacher stores nothing. A weight has AdamW's two moments and the
#: teacher's copy; heads and the logits of the regions are the rest.
ALICE = StepBytes(parameter=20, element=5.2, rest=0.25 * _GB)


def network_cost(architecture: Mapping, patch_size: Sequence[int], input_channels: int, classes: int) -> NetworkCost:
    """Count what the network of a plans configuration needs.

    Args:
        architecture: ``architecture`` of a configuration: network class, its arguments, which of them to import.
        patch_size: voxels, (z, y, x) or (y, x).
        input_channels: channels of an image.
        classes: output channels.
    """
    described = json.dumps(architecture, default=_plain)
    return _cost_without_memory(described, tuple(map(int, patch_size)), input_channels, classes)


@functools.lru_cache(maxsize=4096)
def _cost_without_memory(
    architecture: str, patch_size: tuple[int, ...], input_channels: int, classes: int
) -> NetworkCost:
    """Return the cost; kept, because searches for a patch meet the same ones."""
    return cost_of(_network_without_memory(architecture, input_channels, classes), patch_size)


def cost_of(network: torch.nn.Module, patch_size: Sequence[int]) -> NetworkCost:
    """Count what one of nnU-Net's U-Nets needs at a patch size, voxels."""
    patch_size = [int(length) for length in patch_size]
    unet: Any = network  # torch leaves open what a network of nnU-Net's has
    return NetworkCost(
        int(unet.compute_conv_feature_map_size(patch_size)),
        sum(parameter.numel() for parameter in unet.parameters()),
        sum(parameter.numel() for parameter in unet.encoder.parameters()),
    )


@functools.lru_cache(maxsize=64)
def _network_without_memory(architecture: str, input_channels: int, classes: int) -> torch.nn.Module:
    """Return the network on the meta device; kept, because planning asks for one network at many patch sizes."""
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


def _plain(number: np.generic) -> int | float:
    """Return numpy's numbers as JSON takes them."""
    return number.item()


def overhead(cost: NetworkCost, reference: MemoryReference) -> float:
    """Return memory that nnU-Net's reference took, as a multiple of the live bytes of that step."""
    live = live_bytes_of_training(replace(cost, elements=round(reference.elements)), reference.batch_size)
    return reference.gigabytes * _GB / live


def pair_bytes(cost: NetworkCost) -> float:
    """Live bytes of a pair of views."""
    return 2 * ALICE.sample(cost)


def pair_budget(cost: NetworkCost, reference: MemoryReference, gigabytes: float) -> float:
    """Live bytes that ``gigabytes`` of GPU memory leave for the views; 0 when the weights take it all."""
    return max(0.0, gigabytes * _GB / overhead(cost, reference) - ALICE.fixed(cost))


def pairs_in_memory(cost: NetworkCost, reference: MemoryReference, gigabytes: float) -> int:
    """Return pairs of views per step that fit into ``gigabytes`` of GPU memory; can be 0."""
    return math.floor(pair_budget(cost, reference, gigabytes) / pair_bytes(cost))


def live_bytes_of_pairs(cost: NetworkCost, pairs: int) -> float:
    """Live bytes of a step of Alice with so many pairs of views: what plans foresee, and other methods fill."""
    return ALICE.fixed(cost) + pairs * pair_bytes(cost)


def gigabytes_of_pairs(cost: NetworkCost, reference: MemoryReference, pairs: int) -> float:
    """Return GPU memory that steps of ``pairs`` pairs of views take, GB."""
    return live_bytes_of_pairs(cost, pairs) * overhead(cost, reference) / _GB


def gigabytes_of_training(cost: NetworkCost, reference: MemoryReference, batch_size: int) -> float:
    """Return GPU memory that nnU-Net's own training takes with ``batch_size`` samples, GB."""
    return batch_size * cost.elements / reference.elements_per_gb


def live_bytes_of_training(cost: NetworkCost, batch_size: int) -> float:
    """Live bytes of a step of nnU-Net's own training, and of fine-tuning."""
    return STOCK.fixed(cost) + batch_size * STOCK.sample(cost)


#: Live bytes of DrasCLR: for a weight of an expert (itself, gradient, momentum, the key encoder's copy), and for an
#: element of a crop's feature maps, some of which are kept in full precision for the statistics that norms take out.
DRASCLR_EXPERT_WEIGHT, DRASCLR_ELEMENT = 16.3, 9.2
#: What the smallest GPU that plans are made for holds in any case: nnU-Net's 8 GB without workspace and CUDA itself.
MIN_GPU = 5.5 * _GB


def live_bytes_of_subjects(cost: NetworkCost, experts: int, crop_elements: int, crops: int, subjects: int) -> float:
    """Live bytes of a step of DrasCLR.

    Args:
        cost: size of the network.
        experts: E, kernels of each convolution.
        crop_elements: elements of the encoder's feature maps of one crop.
        crops: with gradient, of each subject.
        subjects: of a batch.
    """
    encoders = DRASCLR_EXPERT_WEIGHT * experts * cost.encoder_parameters
    return encoders + subjects * DRASCLR_ELEMENT * crops * crop_elements


def subjects_in_memory(cost: NetworkCost, pairs: int, experts: int, crop_elements: int, crops: int) -> int:
    """Return subjects of a batch of DrasCLR for which the memory suffices that plans foresee for ``pairs``; can be 0.

    The other arguments are those of :func:`live_bytes_of_subjects`.
    """
    available = max(live_bytes_of_pairs(cost, pairs), MIN_GPU)
    fixed, with_one = (live_bytes_of_subjects(cost, experts, crop_elements, crops, n) for n in (0, 1))
    return max(0, math.floor((available - fixed) / (with_one - fixed)))


#: Live bytes of a weight of fine-tuning's conditional encoder beyond the plain one: itself, gradient or half copy,
#: momentum, as far as they are alive at the peak of a step.
LOCATED_EXPERT_WEIGHT = 9.3


def more_bytes_of_experts(encoder: torch.nn.Module, experts: int) -> float:
    """Live bytes that fine-tuning with a conditional encoder takes beyond the same network with a plain one."""
    return LOCATED_EXPERT_WEIGHT * sum(p.numel() for p in encoder.parameters()) * (1 - 1 / experts)
