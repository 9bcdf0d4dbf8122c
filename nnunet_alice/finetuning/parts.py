"""Parts of fine-tuning: learning rates over the run and over the network, and whether weights were loaded at all."""

import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import nn

from nnunet_alice.checkpoints.loading import first_misfit
from nnunet_alice.errors import CheckpointError, InputError
from nnunet_alice.finetuning.settings import FineTuneOptimisation
from nnunet_alice.methods.schedules import linear
from nnunet_alice.nnunet_folders import dataset_number
from nnunet_alice.words import pasteable

_SEGMENTATION = ".seg_layers."
#: a location-conditioned encoder holds the plain one's stages one level deeper
_STAGE = re.compile(r"encoder\.(?:encoder\.)?stages\.(\d+)\.")


def warmup_poly(step: int, total: int, warmup: int, peak: float) -> float:
    """Return the linear warm-up, then nnU-Net's polynomial decay.

    ``peak * (step + 1) / warmup`` while ``step < warmup``, then
    ``peak * (1 - (step - warmup) / (total - warmup)) ** 0.9``; 0 from ``total`` on. No step has rate 0, so that
    none is wasted.

    Args:
        step: optimiser step, from 0.
        total: steps of the run.
        warmup: steps of the rise; 0 for nnU-Net's own schedule.
        peak: highest learning rate.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * linear(step - warmup, total - warmup, 1.0, 0.0) ** 0.9


def kept_epoch(percent: int, epochs: int) -> int:
    """Return epoch (from 1) at whose end the checkpoint at so many per cent of a run is kept."""
    return max(1, round(percent / 100 * epochs))


@dataclass(frozen=True)
class FineTuneSchedule:
    """Peak learning rate over a run, with an optional first phase in which only the decoder learns.

    The first phase warms up and stays at the peak; then the whole network warms up again and decays.

    Attributes:
        total: steps of the run.
        warmup: steps of each rise.
        peak: highest learning rate.
        decoder_only: steps of the first phase; 0 for none.
    """

    total: int
    warmup: int
    peak: float
    decoder_only: int = 0

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.decoder_only:
            return min(self.peak, self.peak * (step + 1) / max(1, self.warmup))
        whole = self.total - self.decoder_only
        return warmup_poly(step - self.decoder_only, whole, min(self.warmup, whole), self.peak)


class GroupRates:
    """Gives every parameter group its learning rate: the schedule's, times the group's ``scale``.

    It stands where nnU-Net expects a scheduler (``step(epoch)`` before each epoch), and moves within epochs by ``set``.

    Args:
        optimizer: its groups have an entry ``scale``.
        schedule: step -> learning rate.
        iterations: steps an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Callable[[int], float], iterations: int) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.iterations = iterations

    def step(self, epoch: int) -> None:
        """Set the rates of the first step of an epoch."""
        self.set(epoch * self.iterations)

    def set(self, step: int) -> None:
        """Set the rates of a step of the run."""
        rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]


def short_momentum(iterations: int) -> float:
    """Return the momentum of SGD: nnU-Net's 0.99, but a memory of at most a twentieth of the run.

    At 0.99 a step counts for a hundred; in a run of a few hundred that leaves networks, pretrained or not, predicting
    background alone. Never below 0.9.

    Args:
        iterations: of the run.
    """
    return min(0.99, max(0.9, 1 - 20 / iterations))


def make_optimizer(
    groups: Iterable[dict], settings: FineTuneOptimisation, iterations: int, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW, or nnU-Net's SGD with a momentum that suits the length of the run.

    Args:
        groups: of ``layer_groups``.
        settings: name and learning rate.
        iterations: of the run.
        weight_decay: of SGD; AdamW has its own.
    """
    groups = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    rate = settings.learning_rate
    if settings.optimizer_name == "AdamW":
        return torch.optim.AdamW(groups, lr=rate)
    momentum = short_momentum(iterations)
    return torch.optim.SGD(groups, lr=rate, weight_decay=weight_decay, momentum=momentum, nesterov=True)


def seed_generators(seed: int) -> None:
    """Seed the global generators that nnU-Net's loader and augmentation draw from: torch's, numpy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def is_encoder(name: str) -> bool:
    """Return whether a parameter, by its first name in the network, belongs to the encoder."""
    return name.startswith("encoder.")


def layer_groups(network: nn.Module, encoder_decay: float) -> list[dict]:
    """Return parameter groups with lower learning rates towards the input.

    Encoder stage s of S (and the stem as stage 0) gets the scale ``encoder_decay ** (S - s)``, everything else 1. The
    group of scale 1 comes first: its rate is the one that nnU-Net logs.

    Args:
        network: one of nnU-Net's U-Nets. Parameters without gradient are left out.
        encoder_decay: above 0, at most 1; 1 gives all the same rate.

    Returns:
        dicts with ``params`` and ``scale``; the names are in ``names``.

    Raises:
        InputError: the decay is out of range, or the network has no encoder stages to decay over.
    """
    if not 0 < encoder_decay <= 1:
        raise InputError(f"The layer-wise decay is {encoder_decay}; it lies above 0 and at most at 1.").about(
            value=encoder_decay
        )
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    stages = [int(match[1]) for name, _ in network.named_parameters() if (match := _STAGE.match(name))]
    if not stages and encoder_decay < 1:
        raise InputError(
            "This network has no encoder stages; a layer-wise learning rate needs one of nnU-Net's U-Nets."
        )
    depth = max(stages, default=-1) + 1
    groups: dict[float, dict] = {1.0: {"params": [], "names": [], "scale": 1.0}}
    for name, value in parameters.items():
        match = _STAGE.match(name)
        scale = encoder_decay ** (depth - int(match[1] if match else 0)) if is_encoder(name) else 1.0
        group = groups.setdefault(scale, {"params": [], "names": [], "scale": scale})
        group["params"].append(value)
        group["names"].append(name)
    return [group for group in groups.values() if group["params"]]


def load_all_but_segmentation(
    network: nn.Module, weights: Mapping[str, torch.Tensor], path: str | os.PathLike, fix: str
) -> int:
    """Copy what nnU-Net's ``-pretrained_weights`` does, every tensor but the segmentation layers', or nothing.

    Args:
        network: nnU-Net's, without the wrappers of DDP and ``torch.compile``; changed in place.
        weights: tensors by the network's names; any that it lacks are left out.
        path: their file, for the error message.
        fix: what to do about weights that do not fit, for the error message.

    Raises:
        CheckpointError: a tensor is missing, or of a different shape.
    """
    return load_tensors(
        network, weights, [name for name in network.state_dict() if _SEGMENTATION not in name], path, fix
    )


def load_tensors(
    network: nn.Module, weights: Mapping[str, torch.Tensor], names: Iterable[str], path: str | os.PathLike, fix: str
) -> int:
    """Copy the tensors of these names, or none; return how many of them are parameters.

    Args:
        network: without the wrappers of DDP and ``torch.compile``; changed in place.
        weights: tensors by the network's names; others are left out.
        names: of the network's tensors.
        path: file of the weights, for the error message.
        fix: what to do about weights that do not fit, for the error message.

    Raises:
        CheckpointError: a tensor is missing, or of a different shape.
    """
    own, names = network.state_dict(), list(names)
    misfit = first_misfit(weights, own, names)
    if misfit is not None:
        name, there, here = misfit
        raise CheckpointError(
            f"{path} does not fit: '{name}' is {there} there and {here} in this network; {fix}."
        ).about(path=path, value=name)
    network.load_state_dict(own | {name: weights[name] for name in names})
    return len({name for name, _ in network.named_parameters()}.intersection(names))


def transfer_hint(path: str | os.PathLike, dataset: str, plans_name: str, configuration: str) -> str:
    """Return what to do about weights that do not fit the plans of a dataset, for ``load_all_but_segmentation``."""
    number = dataset_number(dataset)
    words = ["nnunet_alice", "transfer", "-i", path, "-d", number, "-p", plans_name, "-c", configuration]
    return f"make a file that does with {pasteable(*words, '-o', 'adapted.pth')}"


def without_timing(transforms: ComposeTransforms) -> ComposeTransforms:
    """Keep the blur from choosing its convolution (direct or by FFT) by which of them was faster just now.

    Both give the same up to rounding, and a training does not stay the same up to rounding.

    Args:
        transforms: a trainer's augmentation; changed in place.
    """
    for transform in transforms.transforms:
        inner: BasicTransform = transform.transform if isinstance(transform, RandomTransform) else transform
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return transforms
