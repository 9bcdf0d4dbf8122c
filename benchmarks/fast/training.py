"""Pretraining and fine-tuning of one small U-Net on the CPU: channels-last, one thread, bfloat16 where it is fast."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from benchmarks.fast.dense import LEVELS, DenseTerm, Frame, shared_points
from benchmarks.fast.sets import Case
from benchmarks.fast.views import points_of, random_intensities, random_map, sample
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.anatomy.regions import lay_regions
from nnunet_alice.finetuning.class_weights import count_voxels, rarity
from nnunet_alice.methods.alice.regions import GRID_STEP, RegionHead, grid_size, region_accuracy, region_loss
from nnunet_alice.methods.intermediate_features import IntermediateFeatures
from nnunet_alice.methods.schedules import warmup_cosine
from nnunet_alice.views.masking import block_mask

FEATURES = (8, 16, 32, 64)
_CHANNELS_LAST = torch.channels_last_3d


@dataclass(frozen=True)
class Objective:
    """What a pretraining learns from. Half of the views of a step are queries, half anchors of the same place.

    Attributes:
        reconstruction: weight of the squared error, over the views that are masked.
        regions: weight of ``L_reg``.
        num_regions: of the atlas.
        query_mask: share of the query views' blocks that are masked.
        anchor_mask: the same of the anchor views.
        dense: weight of ``L_dense``.
        later: share of the run before regions are learned; until then reconstruction alone.
    """

    reconstruction: float = 1.0
    regions: float = 0.0
    num_regions: int = 100
    query_mask: float = 0.75
    anchor_mask: float = 0.75
    dense: float = 0.0
    later: float = 0.0


@dataclass(frozen=True)
class Length:
    """Steps, rate and crops of a training.

    Attributes:
        steps: of the optimiser (AdamW, 5 % warm-up, cosine).
        rate: highest learning rate.
        size: (3,) voxels of a crop.
        views: crops a step.
        mirrored: half of all crops are mirrored along each axis, as in nnU-Net; on labels alone.
        deep: deep supervision with nnU-Net's weights; on labels alone.
        stages: of the network, at most four.
        rescaled: pretrained weights start as large as random ones (:func:`rescale`); on labels alone.
    """

    steps: int
    rate: float = 3e-3
    size: tuple[int, int, int] = (40, 40, 40)
    views: int = 4
    mirrored: bool = False
    deep: bool = False
    stages: int = len(FEATURES)
    rescaled: bool = False

    @property
    def block(self) -> tuple[int, int, int]:
        """Voxels of a block that masking hides."""
        return (max(2, self.size[0] // 5),) * 3


def network(outputs: int, stages: int = len(FEATURES)) -> nn.Module:
    """Return a PlainConvUNet of 8 to 64 features, as nnU-Net's plans for small images build it."""
    return PlainConvUNet(
        1, stages, FEATURES[:stages], nn.Conv3d, 3, [1] + [2] * (stages - 1), 2, outputs, 2,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    ).to(memory_format=_CHANNELS_LAST)  # fmt: skip


def pretrain(
    cases: Sequence[Case], atlas: CaseGeometry, objective: Objective, length: Length, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the weights of a pretrained network, and the means of its losses over the last tenth of the run."""
    torch.manual_seed(1000 + seed)
    rng = np.random.default_rng([3, seed])
    net, regions = network(1, length.stages), lay_regions(atlas, objective.num_regions)
    widths = FEATURES[: length.stages - 1][::-1]
    backbone, head = IntermediateFeatures(net), RegionHead(widths, objective.num_regions)
    trained = nn.ModuleList([net, head])
    dense, places_rng = None, np.random.default_rng([5, seed])
    if objective.dense:
        dense = DenseTerm(backbone, widths[-LEVELS:])
        trained.extend([dense.projections, dense.predictions])
    optimizer = torch.optim.AdamW(trained.parameters(), length.rate, weight_decay=0.02)
    history: dict[str, list[float]] = {}
    for step in range(length.steps):
        set_rate(optimizer, step, length)
        first, asked = asked_voxels(length, rng)
        seen, clean, masks, labels, anchors, pairs = [], [], [], [], [], []
        for _ in range(length.views // 2):
            case = cases[int(rng.integers(len(cases)))]
            place, frames = case.geometry.body_points(1, rng)[0], []
            for ratio in (objective.query_mask, objective.anchor_mask):
                centre = place + rng.uniform(-1 / 8, 1 / 8, 3) * length.size
                matrix = random_map(rng, 0.8)
                points = points_of(centre, matrix, length.size)
                view = sample(case.image, points)
                mask = torch.from_numpy(block_mask(length.size, length.block, ratio, rng))
                whole = random_intensities(view, rng)
                seen.append(whole.masked_fill(mask, 0))
                frames.append(Frame(centre, matrix))
                clean.append(view)
                masks.append(ratio > 0)
                places_mm = points[asked].double().numpy() * case.geometry.spacing
                found = regions.at(places_mm, case.affine, case.deformation, case.geometry)
                labels.append(torch.from_numpy(found))
            anchors.append(whole)
            pairs.append((case.geometry, frames[0], frames[1]))
        with autocast():
            maps = backbone(torch.stack(seen).contiguous(memory_format=_CHANNELS_LAST))
            logits = head(maps.decoder, torch.from_numpy(first))
            found_again = None
            if dense is not None:
                found_again = dense(
                    [stage[::2] for stage in maps.decoder],  # queries and anchors take turns
                    torch.stack(anchors).contiguous(memory_format=_CHANNELS_LAST),
                    shared_points(pairs, length.size, places_rng),
                )
        parts, chosen = {}, torch.tensor(masks)
        if objective.reconstruction and maps.output is not None and chosen.any():
            parts["reconstruction"] = F.mse_loss(maps.output.float()[chosen], torch.stack(clean)[chosen])
        if objective.regions and step >= objective.later * length.steps:
            parts["regions"] = region_loss(logits, torch.stack(labels))
        if found_again is not None:
            parts["dense"] = found_again[0]
        loss = sum(getattr(objective, name) * value for name, value in parts.items())
        optimise(optimizer, trained, loss)
        if dense is not None and found_again is not None:
            dense.follow(backbone, step / length.steps)
            parts["found_again"] = found_again[1]
        parts["accuracy"] = region_accuracy(logits, torch.stack(labels))
        for name, value in parts.items():
            history.setdefault(name, []).append(float(value.detach()))
    return net.state_dict(), at_the_end(history, length)


def asked_voxels(length: Length, rng: np.random.Generator) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Draw which voxels of a step's crops are asked for their region: the first on every axis (3,), and all of them."""
    first = rng.integers(GRID_STEP, size=3)
    counts = grid_size(length.size)
    return first, tuple(slice(a, a + GRID_STEP * n, GRID_STEP) for a, n in zip(first, counts, strict=True))


def at_the_end(history: Mapping[str, Sequence[float]], length: Length) -> dict[str, float]:
    """Return the mean of every term over the last tenth of a run, of values a step."""
    last = max(1, length.steps // 10)
    return {name: float(np.nanmean(values[-last:])) for name, values in history.items()}


def finetune(
    weights: Mapping[str, Tensor] | None, training: Sequence[Case], classes: int, length: Length, seed: int
) -> nn.Module:
    """Return a network trained on labelled cases, from all pretrained weights but the last layer's, or from scratch.

    Dice and cross-entropy, classes weighted by the root of their rarity, as few steps on small organs need; the same
    for every arm.
    """
    torch.manual_seed(seed)
    rng, net = np.random.default_rng([7, seed]), network(classes, length.stages)
    if weights is not None:
        own = {name: value for name, value in weights.items() if "seg_layers" not in name}
        sizes = [float(conv.weight.detach().norm()) for conv in normalised_convolutions(net)]
        net.load_state_dict(net.state_dict() | own)
        if length.rescaled:
            rescale(net, sizes)
    weight = torch.from_numpy(rarity(count_voxels((case.label.numpy() for case in training), classes)))
    decoder = net.get_submodule("decoder")
    assert isinstance(decoder, UNetDecoder), "of PlainConvUNet"
    decoder.deep_supervision = length.deep
    optimizer = torch.optim.AdamW(net.parameters(), length.rate, weight_decay=0.01)
    for step in range(length.steps):
        set_rate(optimizer, step, length)
        views, labels = [], []
        for number in range(length.views):
            case = training[int(rng.integers(len(training)))]
            if number % 2 == 0 and case.organs:  # as nnU-Net oversamples foreground
                voxels = case.organs[rng.choice(list(case.organs))]
                centre = voxels[rng.integers(len(voxels))] + rng.uniform(-8, 8, 3)
            else:
                centre = case.geometry.body_points(1, rng)[0]
            matrix = random_map(rng, 0.3)
            if length.mirrored:
                matrix = matrix * rng.choice([-1.0, 1.0], 3)
            points = points_of(centre, matrix, length.size)
            views.append(random_intensities(sample(case.image, points), rng))
            labels.append(sample(case.label, points, "nearest", "zeros")[0].long())
        with autocast():
            outputs = net(torch.stack(views).contiguous(memory_format=_CHANNELS_LAST))
        loss, truth = torch.zeros(()), torch.stack(labels)
        for stage, output in enumerate(outputs[:-1] if length.deep else [outputs]):  # the lowest does not count
            coarse = truth[:, :: 2**stage, :: 2**stage, :: 2**stage]
            dice = _soft_dice(output.float(), coarse, classes)
            loss = loss + 0.5**stage * (F.cross_entropy(output.float(), coarse, weight=weight) - dice)
        optimise(optimizer, net, loss)
    decoder.deep_supervision = False
    return net


def normalised_convolutions(net: nn.Module) -> list[nn.Conv3d]:
    """Return the convolutions that a norm follows: how large their weights are does not change what they compute."""
    return [block.conv for block in net.modules() if isinstance(block, ConvDropoutNormReLU)]


@torch.no_grad()
def rescale(net: nn.Module, sizes: Sequence[float]) -> None:
    """Scale weights and biases of the convolutions that a norm follows so that their weights have these norms."""
    for conv, size in zip(normalised_convolutions(net), sizes, strict=True):
        share = size / conv.weight.norm()
        conv.weight *= share
        conv.bias *= share


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors, under both names: nnU-Net's decoder lists the encoder as a part of its own."""
    return {name: value for name, value in weights.items() if "encoder." in name}


def set_rate(optimizer: torch.optim.Optimizer, step: int, length: Length) -> None:
    """Set the learning rate of a step: warm-up, then a cosine to zero."""
    warmup = max(1, length.steps // 20)
    for group in optimizer.param_groups:
        group["lr"] = warmup_cosine(step, length.steps, warmup, length.rate, end=0.0)


def optimise(
    optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor, frozen: Iterable[nn.Parameter] = ()
) -> None:
    """Take one step of the optimiser, with clipped gradients; some parameters may stay where they are."""
    optimizer.zero_grad()
    loss.backward()
    for parameter in frozen:
        parameter.grad = None
    nn.utils.clip_grad_norm_(module.parameters(), 5.0)
    optimizer.step()


@torch.no_grad()
def mean_dice(net: nn.Module, cases: Sequence[Case], classes: int, size: Sequence[int]) -> float:
    """Return the Dice of all organs, averaged over organs of a case, then over cases; sliding window, no mirroring."""
    net.eval()
    scores = []
    for case in cases:
        found, truth = _predict(net, case, classes, size), case.label[0, 0]
        organs = [c for c in range(1, classes) if (truth == c).any()]
        dice = [2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum()) for c in organs]
        scores.append(float(torch.stack(dice).mean()))
    return float(np.mean(scores))


def autocast() -> torch.autocast:
    """Return bfloat16 autocast, switched off on a CPU that only imitates bfloat16 (12 times slower than float32)."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _predict(net: nn.Module, case: Case, classes: int, size: Sequence[int]) -> Tensor:
    shape = case.image.shape[2:]
    pads = [extra for n, s in zip(shape[::-1], size[::-1], strict=True) for extra in (0, max(0, s - n))]
    image = F.pad(case.image, pads, value=float(case.image.min()))
    starts = []
    for n, s in zip(image.shape[2:], size, strict=True):
        starts.append(np.linspace(0, n - s, max(1, math.ceil((n - s) / (0.7 * s)) + 1)).round().astype(int).tolist())
    bumps = [torch.exp(-0.5 * ((torch.arange(s) - (s - 1) / 2) / (s / 4)) ** 2) for s in size]
    weight = bumps[0][:, None, None] * bumps[1][:, None] * bumps[2]
    total = torch.zeros(classes, *image.shape[2:])
    corners = [(z, y, x) for z in starts[0] for y in starts[1] for x in starts[2]]
    for begin in range(0, len(corners), 4):
        windows = [
            tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True)) for corner in corners[begin : begin + 4]
        ]
        batch = torch.cat([image[(slice(None), slice(None), *window)] for window in windows])
        with autocast():
            output = net(batch.contiguous(memory_format=_CHANNELS_LAST))
        for window, probabilities in zip(windows, output.float().softmax(1), strict=True):
            total[(slice(None), *window)] += probabilities * weight
    return total.argmax(0)[tuple(slice(n) for n in shape)]


def _soft_dice(output: Tensor, truth: Tensor, classes: int) -> Tensor:
    probabilities, wanted = output.softmax(1), F.one_hot(truth, classes).movedim(-1, 1).float()
    both = (probabilities * wanted).sum((0, 2, 3, 4))
    either = probabilities.sum((0, 2, 3, 4)) + wanted.sum((0, 2, 3, 4))
    return ((2 * both + 1e-5) / (either + 1e-5))[1:].mean()
