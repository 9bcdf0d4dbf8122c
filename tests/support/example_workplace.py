"""What the examples of docstrings and of ``examples/`` take for granted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import nnunet_alice
from nnunet_alice.trainers.alice import AliceTrainer
from support.pretraining_runs import make_trainer, phantom_images, with_settings, write_run
from support.small_datasets import set_folders


@contextmanager
def example_workplace(folder: Path) -> Iterator[Path]:
    """Work in a folder with dataset 900 (three phantoms), its atlas, a checkpoint and a folder of scans."""
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, folder)
        patch.chdir(folder)
        images = phantom_images(3)
        write_run(folder / "preprocessed", images)
        trainer = make_trainer(with_settings(AliceTrainer, {"run.epochs": 1}), folder / "preprocessed")
        trainer.initialize()
        trainer.save_checkpoint("checkpoint_final.pth")
        nnunet_alice.prepare_atlas(nnunet_alice.open_dataset(900), 1)
        (folder / "scans").mkdir()
        scan = sitk.GetImageFromArray((images["case0"][0] * 400 - 200).astype(np.int16))
        scan.SetSpacing((16.0,) * 3)
        sitk.WriteImage(scan, str(folder / "scans" / "torso.nii.gz"))
        yield folder
