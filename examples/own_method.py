"""A pretraining method of your own: learn to remove noise. Found by ``nnUNetv2_train -tr DenoisingTrainer``."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nnunet_alice.cropping import crop_centred
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.pretraining.method import Method, Progress, StepResult
from nnunet_alice.pretraining.settings import PretrainingSettings
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.training.variants import trainer_names
from nnunet_alice.views.batch import Batch


@dataclass(frozen=True)
class DenoisingSettings:
    """How much noise is to be removed."""

    noise: float = 0.5


@dataclass
class RandomCrops:
    """Makes batches of crops around random voxels."""

    dataset: PreprocessedDataset
    patch_size: tuple[int, ...]
    batch_size: int
    cases: list[str]

    def __call__(self, number: int, rng: np.random.Generator) -> Batch:
        cases = [str(case) for case in rng.choice(self.cases, self.batch_size)]
        crops = []
        for case in cases:
            point_vox = rng.uniform(0, self.dataset.shape(case))
            crops.append(crop_centred(self.dataset.image(case), point_vox, self.patch_size))
        return Batch(torch.from_numpy(np.stack(crops)), cases)


class Denoising(Method[Batch, DenoisingSettings]):
    """The network reconstructs crops from noisy ones."""

    name = "Denoising"

    def make_model(self, network: nn.Module) -> nn.Module:
        return network

    def batches(self, cases: list[str], training: bool) -> RandomCrops:
        return RandomCrops(self.context.dataset, self.context.patch_size, self.batch_size, cases)

    def compute(self, batch: Batch, progress: Progress, training: bool) -> StepResult:
        noisy = batch.views + self.settings.noise * torch.randn_like(batch.views)
        loss = (self.module_for(training)(noisy) - batch.views).square().mean()
        return StepResult(loss, {"loss": loss.detach()})


class DenoisingTrainer(PretrainingTrainer):
    """Learns to remove noise."""

    method_class = Denoising
    settings = PretrainingSettings(DenoisingSettings())


__getattr__ = trainer_names(globals())  # DenoisingTrainer_100epochs and the other endings
