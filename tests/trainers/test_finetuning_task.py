"""What FineTuneTrainer asks of the network where a name asks for more than nnU-Net: mirroring, weights of classes."""

from pathlib import Path

import numpy as np
import torch
from support.finetuning_runs import log_of, short, start, weights_file
from support.labelled_runs import labelled_volume, make_finetuner
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.finetuning.class_weights import rarity


def test_mirroring_can_be_left_out_of_validation(dataset, tmp_path):
    predicted = {}
    for endings in ("_seed1", "_noTTA_seed1"):
        trainer = start(
            make_finetuner(short(epochs=1, endings=endings), dataset), weights_file(dataset, tmp_path / "w.pth")
        )
        trainer.run_training()
        axes = trainer.inference_allowed_mirroring_axes
        trainer.perform_actual_validation(save_probabilities=True)
        assert axes == (0, 1, 2) and trainer.inference_allowed_mirroring_axes == (None if "noTTA" in endings else axes)
        predicted[endings] = np.load(next(Path(trainer.output_folder).glob("validation/*.npz")))["probabilities"]
    one, two = predicted.values()
    assert one.shape == two.shape and np.abs(one - two).max() > 1e-4


def transforms_of(trainer) -> list[str]:
    return [type(step).__name__ for step in trainer.dataloader_train.data_loader.transforms.transforms]


def test_without_mirroring_neither_training_nor_prediction_mirrors(dataset):
    trainer = start(make_finetuner(short(endings="_noMirroring_seed1"), dataset))
    trainer.on_train_start()
    assert trainer.inference_allowed_mirroring_axes is None
    assert "MirrorTransform" not in transforms_of(trainer) and "SpatialTransform" in transforms_of(trainer)
    stock = start(make_finetuner(short(), dataset))
    stock.on_train_start()
    assert "MirrorTransform" in transforms_of(stock)
    assert stock.inference_allowed_mirroring_axes == (0, 1, 2)


def test_classes_weigh_by_the_rarity_of_the_training_cases(dataset):
    trainer = start(make_finetuner(short(endings="_weightedClasses_seed1"), dataset))
    trainer.on_train_start()
    training = [labelled_volume(seed)[1] for seed in (0, 1)]  # without the test case
    counts = [sum(int((labels == value).sum()) for labels in training) for value in (0, 1, 2)]
    found = trainer.loss.loss.ce.weight
    np.testing.assert_array_equal(found, rarity(counts))
    assert f"1: {found[1]:.2f}" in log_of(trainer)

    logits, target = torch.randn(2, 3, 4, 4, 4), torch.randint(3, (2, 1, 4, 4, 4))
    expected = torch.nn.functional.cross_entropy(logits, target[:, 0], weight=found)
    torch.testing.assert_close(trainer.loss.loss.ce(logits, target), expected)
    trainer.on_train_epoch_start()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])


def test_regions_cannot_be_weighted(dataset, monkeypatch):
    trainer = make_finetuner(short(endings="_weightedClasses_seed1"), dataset)
    monkeypatch.setattr(type(trainer.label_manager), "has_regions", True)
    with refused(InputError, option="_weightedClasses"):
        trainer.initialize()


def test_a_run_of_weighted_classes_is_recorded_and_continued(dataset):
    kind = short(endings="_weightedClasses_noMirroring_seed1")
    trainer = start(make_finetuner(kind, dataset))
    trainer.run_training()
    weights = trainer.loss.loss.ce.weight
    continued = make_finetuner(kind, dataset, continue_training=True)
    continued.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    continued.on_train_start()
    assert torch.equal(continued.loss.loss.ce.weight, weights)
    text = (Path(trainer.output_folder) / "start.json").read_text()
    assert '"weighted_classes": true' in text and '"mirrored": false' in text
