"""Plans that a pretraining cannot use end it with one sentence, before anything is prepared."""

import json
import os
import subprocess
import sys

import pytest
from support.labelled_runs import stay_in_process
from support.pretraining_runs import DATASET, PLANS, make_trainer, phantom_images, write_run
from support.refused import refused

from nnunet_alice.discovery import trainer_folders
from nnunet_alice.errors import AliceError, InputError
from nnunet_alice.trainers import alice, anatomical_embedding, drasclr
from nnunet_alice.training import refusals

ONE, HALF = (1, 1, 1), (2, 2, 2)


def write_plans(base, strides=(ONE, HALF, HALF), patch_size=(16, 16, 16), **changes):
    """A dataset with a network of these strides; ``changes`` are entries of the architecture's arguments."""
    features = (4, 6, 8)[: len(strides)]
    write_run(base / "preprocessed", phantom_images(1), strides=strides, features=features, patch_size=patch_size)
    path = base / "preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]
    for name, value in changes.items():
        (network if name in network else network["arch_kwargs"])[name] = value
    path.write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("trainer", "plans", "fields"),
    [
        (alice.AliceTrainer, {"strides": [ONE]}, {"value": 1}),
        (alice.MIMTrainer, {"strides": [ONE]}, {"value": 1}),
        (alice.MIMTrainer, {"strides": [HALF, HALF, HALF]}, {"value": "2x2x2"}),
        (alice.MIMTrainer, {"patch_size": (15, 14, 17)}, {"option": "patch_size", "value": "15x14x17"}),
        (alice.MIMTrainer, {"network_class_name": "nowhere.Net"}, {"value": PLANS}),
        (alice.MIMTrainer, {"network_class_name": "torch.nn.Conv3d"}, {"value": PLANS}),
        (anatomical_embedding.AnatomicalEmbeddingTrainer, {"strides": [ONE, HALF]}, {"value": 2}),
        (anatomical_embedding.AnatomicalEmbeddingTrainer, {"strides": [ONE, HALF, ONE]}, {}),
        (drasclr.DrasCLRTrainer, {"norm_op": "torch.nn.BatchNorm3d"}, {"value": "batch normalisation"}),
        (
            drasclr.DrasCLRTrainer,
            {"conv_op": "torch.nn.Conv2d", "norm_op": "torch.nn.InstanceNorm2d"},
            {"value": "PlainConvUNet"},
        ),
    ],
)
def test_they_are_refused(folders, monkeypatch, trainer, plans, fields):
    stay_in_process(monkeypatch)
    write_plans(folders, **plans)
    with refused(InputError, **fields):
        make_trainer(trainer, folders / "preprocessed").initialize()


@pytest.mark.slow
def test_nnunets_command_shows_one_sentence(folders):
    write_plans(folders, strides=[ONE])
    code = "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
    words = [DATASET[7:10], "3d_fullres", "all", "-tr", "MIMTrainer", "-device", "cpu"]
    run = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "nnUNet_extTrainer": trainer_folders(), "nnUNet_n_proc_DA": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr + run.stdout
    assert "The plans' network has 1 stage, and this pretraining needs at least 2" in run.stderr.splitlines()[-1]


def test_other_errors_keep_their_traceback(capsys):
    for error, traced in ((AliceError("Mend it."), False), (ValueError("a fault of ours"), True)):
        refusals._tell(type(error), error, None)
        told = capsys.readouterr().err
        assert str(error) in told and ("ValueError" in told) == traced


def test_a_hook_of_somebody_else_stays(monkeypatch):
    for hook, kept in ((print, True), (sys.__excepthook__, False)):
        monkeypatch.setattr(sys, "excepthook", hook)
        refusals.tell_refusals()
        assert (sys.excepthook is hook) == kept
