"""The online probe: it says what features know, and a run with it is the run without it, to the bit."""

import json

import numpy as np
import pytest
import torch
from support.pretraining_runs import (
    DATASET,
    PLANS,
    make_trainer,
    phantom_images,
    run,
    same_content,
    training_log,
    whole_and_resumed,
    with_settings,
    write_run,
)

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.dataset import PROBE_FILE, PROBE_IGNORED, PreprocessedDataset, preprocessing_recipe
from nnunet_alice.methods.linear_probe import LinearDiscriminant, mean_dice
from nnunet_alice.pretraining.online_probe import OnlineProbe, open_probe
from nnunet_alice.trainers.alice import AliceTrainer_noContrast

TIMES = ("seconds", "views_per_second", "seconds_probe")


def short():
    """A short run that measures in every second epoch and in the last."""
    own = {"run.epochs": 3, "run.iterations": 2, "run.probe_every": 2, "run.save_every": 1}
    return with_settings(AliceTrainer_noContrast, own, "AliceTrainer_test")


@pytest.fixture
def base(folders):
    """A pool of phantoms, and labelled crops of four of them: what is bright is one class."""
    images = phantom_images(4)
    write_run(folders / "preprocessed", images)
    dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
    plans = json.loads((dataset.base / f"{PLANS}.json").read_text())
    missing = {"resampling_fn_data": "", "resampling_fn_data_kwargs": {}, "resampling_fn_seg": ""}
    plans["configurations"]["3d_fullres"] |= missing | {"resampling_fn_seg_kwargs": {}}
    plans["foreground_intensity_properties_per_channel"] = {}
    (dataset.base / f"{PLANS}.json").write_text(json.dumps(plans))
    return folders / "preprocessed"


def write_probe(base, changes=None) -> PreprocessedDataset:
    """What `plan --probe` would keep: crops of the phantoms."""
    dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
    folder = dataset.probe_folder
    folder.mkdir()
    for case, image in phantom_images(4).items():
        crop = np.zeros((1, 16, 16, 16), np.float32)
        part = image[:, :16, :16, :16]
        crop[:, : part.shape[1], : part.shape[2], : part.shape[3]] = part
        np.savez_compressed(folder / f"{case}.npz", image=crop, label=(crop[0] > 0.3).astype(np.uint8))
    recipe = preprocessing_recipe(dataset.plans, dataset.configuration_manager.configuration)
    record = {"dataset": "Dataset004_T", "fitted": ["case0", "case1", "case2"], "tested": ["case3"], "recipe": recipe}
    (folder / PROBE_FILE).write_text(json.dumps(record | (changes or {})))
    return dataset


@pytest.mark.slow
def test_a_run_with_the_probe_is_the_run_without_it_also_when_continued(base):
    without = run(make_trainer(short(), base))
    weights = load_checkpoint(without / "checkpoint_final.pth")["network_weights"]
    (without / "checkpoint_final.pth").unlink()
    write_probe(base)
    whole, resumed = whole_and_resumed(short(), base, killed_in=1)
    for checkpoint in (whole, resumed):
        assert same_content(checkpoint["network_weights"], weights)
        rows = checkpoint["history"]
        assert ["probe_dice" in row for row in rows] == [True, False, True]
        for row in rows[::2]:
            assert row["probe_dice"] > 0.5  # brightness is there from the first layer on
            assert 1 <= row["bottleneck_rank"] <= 8 and 0 <= row["bottleneck_dead"] <= 1
    kept = [[{k: v for k, v in row.items() if k not in TIMES} for row in c["history"]] for c in (whole, resumed)]
    assert same_content(*kept)
    assert "Online probe on 3 + 1 crops of Dataset004_T" in training_log(without)


def test_an_untrained_decoder_is_not_asked(base):
    dataset = write_probe(base)
    trainer = make_trainer(short(), base)
    trainer.initialize()
    state = torch.get_rng_state()
    modes = [module.training for module in trainer.network.modules()]
    probe = open_probe(trainer.network, dataset, torch.device("cpu"), decoder=False, log=print)
    found = probe.measure(trainer.network.state_dict())
    assert "probe_dice" not in found and found["bottleneck_rank"] > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in trainer.network.modules()] == modes


def test_ignored_voxels_are_neither_fitted_nor_tested(base):
    dataset = write_probe(base)
    trainer = make_trainer(short(), base)
    trainer.initialize()

    def measured(hidden: int) -> tuple[int, float]:
        """Classes and Dice where labels of half of every crop say something wrong, or that it is ignored."""
        for path in dataset.probe_folder.glob("*.npz"):
            with np.load(path) as file:
                image, label = file["image"], file["label"]
            label[8:] = hidden
            np.savez_compressed(path, image=image, label=label)
        probe = OnlineProbe(trainer.network, dataset, torch.device("cpu"), decoder=True)
        return probe.classes, probe.measure(trainer.network.state_dict())["probe_dice"]

    assert measured(2)[0] == 3
    classes, dice = measured(PROBE_IGNORED)
    probe = OnlineProbe(trainer.network, dataset, torch.device("cpu"), decoder=True)
    halves = []
    for image, label in (*probe.fitted, *probe.tested):
        decoded = probe.network(image[None], None).decoder[-1][0, :, :8].flatten(1).T
        halves.append((decoded, label[:8].flatten()))
    layer = LinearDiscriminant(2, halves[0][0].shape[1])
    for features, labels in halves[:3]:
        layer.add(features, labels)
    assert classes == 2 and dice == mean_dice(layer.predict(halves[3][0]), halves[3][1], 2)


def test_crops_of_other_plans_are_left_alone(base, capsys):
    dataset = write_probe(base, {"recipe": {"spacing": [9.0] * 3}})
    assert open_probe(torch.nn.Identity(), dataset, torch.device("cpu"), True, print) is None
    assert "other plans" in capsys.readouterr().out
