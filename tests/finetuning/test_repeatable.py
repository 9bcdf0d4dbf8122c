"""Seeded fine-tuning draws the same images in every run, whichever convolution is faster at the moment."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise import gaussian_blur
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_alice.trainers import drasclr_finetuning, finetuning

SETTINGS = ((12, 12, 12), (-0.5, 0.5), [[1, 1, 1]], (0, 1, 2), False)


def blurred(trainer: type[nnUNetTrainer], fft_is_faster: bool, monkeypatch) -> torch.Tensor:
    """Augmented images of a trainer on a machine where FFT is faster, or slower."""
    times = iter(range(10**9))

    def clock() -> float:
        # each measurement is two calls; the first nine are those of the direct convolution
        number = next(times)
        measurement, ends = divmod(number, 2)
        slow = ((measurement // 9) % 2 == 0) == fft_is_faster
        return float(measurement * 10 + (5 if slow else 1) * ends)

    monkeypatch.setattr(gaussian_blur, "time", clock)
    transforms = trainer.get_training_transforms(*SETTINGS, use_mask_for_norm=[False] * 5)
    images = []
    for seed in range(12):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  what nnU-Net's transforms draw from
        image = torch.randn(5, 12, 12, 12)
        images.append(transforms(image=image, segmentation=torch.zeros(1, 12, 12, 12, dtype=torch.int16))["image"])
    return torch.stack(images)


@pytest.mark.parametrize(
    ("trainer", "equal"),
    [
        (nnUNetTrainer, False),
        (finetuning.FineTuneTrainer, False),
        (finetuning.FineTuneTrainer_seed1, True),
        (drasclr_finetuning.DrasCLRFineTuneTrainer_seed1, True),
    ],
)
def test_images_do_not_depend_on_which_convolution_was_faster(trainer, equal, monkeypatch):
    first, second = (blurred(trainer, faster, monkeypatch) for faster in (False, True))
    assert torch.equal(first, second) == equal
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
