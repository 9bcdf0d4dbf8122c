"""Augmentation with coordinate channels: nnU-Net's, to the bit, for the image; movement alone for coordinates."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_alice.finetuning.parts import without_timing
from nnunet_alice.methods.drasclr.located import WEIGHT
from nnunet_alice.views.location_channels import HideLastChannels, hide_from_intensities

PATCH = (10, 12, 14)
ONLY_MOVING = (SpatialTransform, MirrorTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)


def stock(dummy_2d: bool = False) -> ComposeTransforms:
    """nnU-Net's augmentation of training; timed, its blur would differ between two pipelines by rounding."""
    scales = [[1, 1, 1], [0.5, 0.5, 0.5]]
    return without_timing(
        nnUNetTrainer.get_training_transforms(
            PATCH, (-0.5, 0.5), scales, (0, 1, 2), dummy_2d, use_mask_for_norm=[True, False]
        )
    )


def sample(seed: int) -> dict:
    """Two image channels, smooth coordinates, a segmentation with some outside (-1)."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in PATCH), indexing="ij")
    coordinates = WEIGHT * (1 + torch.stack(grids) / 2)
    seg = torch.randint(-1, 3, (1, *PATCH), generator=generator, dtype=torch.int16)
    return {"image": torch.cat((torch.randn(2, *PATCH, generator=generator), coordinates)), "segmentation": seg}


def draw(transform, data: dict, seed: int) -> dict:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  what nnU-Net's transforms draw from
    return transform(**{name: value.clone() for name, value in data.items()})


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_the_image_is_augmented_as_without_coordinates_and_these_only_move(dummy_2d):
    plain, ours = stock(dummy_2d), hide_from_intensities(stock(dummy_2d), 3)
    moving = ComposeTransforms([t for t in stock(dummy_2d).transforms if isinstance(t, ONLY_MOVING)])
    moved = 0
    for seed in range(25):
        data = sample(seed)
        result = draw(ours, data, seed)
        expected = draw(plain, data | {"image": data["image"][:2]}, seed)
        torch.testing.assert_close(result["image"][:2], expected["image"], rtol=0, atol=0)
        for one, other in zip(result["segmentation"], expected["segmentation"], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        coordinates = result["image"][2:]
        if torch.equal(coordinates, data["image"][2:]):
            continue
        moved += 1
        # Mirroring draws after the intensities, so that its axes are found by trying.
        spatial = draw(moving, data, seed)["image"][2:]
        flips = [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]
        undone = {axes: spatial.flip(axes) if axes else spatial for axes in flips}
        assert any(torch.equal(a.flip(f) if f else a, coordinates) for a in undone.values() for f in flips)
    assert moved > 5


def test_what_hides_channels_still_draws_and_passes_everything_else():
    class AddOne:
        def __call__(self, image, **rest):
            return {"image": image + 1, **rest}

    data = sample(0)
    result = HideLastChannels(AddOne(), 3)(**data)
    torch.testing.assert_close(result["image"][:2], data["image"][:2] + 1)
    assert torch.equal(result["image"][2:], data["image"][2:])
    assert result["segmentation"] is data["segmentation"]
