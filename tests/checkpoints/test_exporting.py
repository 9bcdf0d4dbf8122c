"""Exported models: the same logits, predicted by stock nnU-Net without this package, or refused."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from support.labelled_runs import train_briefly
from support.refused import refused

from nnunet_alice.checkpoints import exporting
from nnunet_alice.checkpoints.exporting import export_model
from nnunet_alice.cli.main import main
from nnunet_alice.errors import CheckpointError, InputError, MissingFileError, OccupiedError, UnsafeCheckpointError
from nnunet_alice.trainers import finetuning


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Model folder of a short training, and the trained network."""
    return train_briefly(tmp_path_factory.mktemp("export"))


def test_the_export_is_small_plain_and_says_whence(trained, tmp_path):
    model, _ = trained
    export = export_model(model, tmp_path)
    assert export.folds == ("0",) and export.largest_difference == 0
    assert export.trainer == "FineTuneTrainer_scratch_1epochs_3iterations_seed1"
    saved = torch.load(export.folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert saved["trainer_name"] == "nnUNetTrainer" and "optimizer_state" not in saved
    source = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert saved["inference_allowed_mirroring_axes"] == source["inference_allowed_mirroring_axes"]
    assert all(torch.equal(value, source["network_weights"][key]) for key, value in saved["network_weights"].items())
    assert json.loads((export.folder / "plans.json").read_text()) == json.loads((model / "plans.json").read_text())
    assert (export.folder / "dataset_fingerprint.json").is_file()
    export_model(model, tmp_path)  # again, over the first


def test_another_network_is_not_exported(trained, tmp_path, monkeypatch):
    model, _ = trained

    class Scaled(finetuning.FineTuneTrainer_scratch):
        @staticmethod
        def build_network_architecture(plans_manager, *args, **kwargs):
            network = finetuning.FineTuneTrainer.build_network_architecture(plans_manager, *args, **kwargs)
            network.register_forward_hook(lambda module, inputs, output: output * 1.001)
            return network

    real = exporting.find_trainer
    monkeypatch.setattr(exporting, "find_trainer", lambda name: real(name) if name == "nnUNetTrainer" else Scaled)
    with refused(CheckpointError, path="fold_0/checkpoint_final.pth"):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_finished_model_is_refused(trained, tmp_path, capsys):
    model, _ = trained
    with refused(MissingFileError, path="fold_0"):
        export_model(model / "fold_0", tmp_path)
    with refused(MissingFileError, path="fold_3/checkpoint_final.pth", option="-f", value="3"):
        export_model(model, tmp_path, folds=["3"])
    assert main(["export", "-i", str(model), "-o", str(tmp_path), "-chk", "nothing.pth"]) == 1
    assert "No fold in" in capsys.readouterr().err


def copied(model: Path, target: Path, **changes) -> Path:
    """The model with other entries in its checkpoint; None removes one."""
    for name in ("plans.json", "dataset.json"):
        target.mkdir(exist_ok=True)
        (target / name).write_bytes((model / name).read_bytes())
    content = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False) | changes
    (target / "fold_0").mkdir()
    torch.save({k: v for k, v in content.items() if v is not None}, target / "fold_0" / "checkpoint_final.pth")
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"pretraining": {"method": "Alice"}}, {"path": "checkpoint_final.pth", "value": None}),
        ({"targets": {}}, {"path": "checkpoint_final.pth", "value": None}),
        ({"init_args": None}, {"value": "init_args"}),
        ({"trainer_name": "NoSuchTrainer"}, {"value": "NoSuchTrainer", "command": "nnunet_alice trainers --list"}),
        ({"network_weights": {"encoder.x": torch.zeros(1)}}, {"path": "checkpoint_final.pth", "command": None}),
    ],
)
def test_wrong_checkpoints_are_refused(trained, tmp_path, changes, fields):
    with refused(CheckpointError, **fields):
        export_model(copied(trained[0], tmp_path / "model", **changes), tmp_path / "out")


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_export_replaces_an_export_with_all_its_folds(trained, tmp_path):
    """nnU-Net's predictor would ensemble a fold that stayed."""
    model, out = trained[0], tmp_path / "out"
    export = export_model(model, out)
    expected = names_below(out)
    shutil.copytree(export.folder / "fold_0", export.folder / "fold_1")
    export_model(model, out)
    assert names_below(out) == expected and len(expected) == 4


def test_a_killed_export_leaves_no_model_and_is_repeated(trained, tmp_path, monkeypatch):
    """Killed inside its last file, the first time and over an export."""
    model, out = trained[0], tmp_path / "out"
    target = out / "nnUNetTrainer__nnUNetPlans__3d_fullres"

    def killed(path, content):
        raise KeyboardInterrupt

    def left_as_by_a_kill(folder, **options):
        assert not folder.exists() or folder.name.startswith(".")

    for before in ([], ["dataset.json", "dataset_fingerprint.json", "fold_0/checkpoint_final.pth", "plans.json"]):
        with monkeypatch.context() as patch:
            patch.setattr(exporting, "write_json", killed)
            patch.setattr(shutil, "rmtree", left_as_by_a_kill)
            with pytest.raises(KeyboardInterrupt):
                export_model(model, out)
        assert names_below(target) == before
        assert len(list(out.iterdir())) == 1 + bool(before), "nothing was left: the test proves nothing"
        export_model(model, out)
        assert [path.name for path in out.iterdir()] == [target.name]


def test_an_export_that_cannot_be_put_in_place_leaves_the_old_one(trained, tmp_path, monkeypatch):
    export = export_model(trained[0], tmp_path)
    before, real = names_below(tmp_path), os.replace

    def fails(source, target):
        if str(source).endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(exporting.os, "replace", fails)
        with refused(InputError, path=export.folder.name):
            export_model(trained[0], tmp_path)
    assert names_below(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == [export.folder.name]


def test_what_was_put_into_an_export_is_not_lost(trained, tmp_path):
    export = export_model(trained[0], tmp_path)
    for name in ("postprocessing.pkl", "fold_0/validation/summary.json"):
        path = export.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        with refused(OccupiedError, path=path):
            export_model(trained[0], tmp_path)
        path.unlink()
    export_model(trained[0], tmp_path)


def test_plans_that_call_something_else_are_refused(trained, tmp_path):
    model = copied(trained[0], tmp_path / "m")
    text = (model / "plans.json").read_text()
    (model / "plans.json").write_text(text.replace("torch.nn.LeakyReLU", "subprocess.Popen"))
    with refused(UnsafeCheckpointError, option="nonlin", value="subprocess.Popen"):
        export_model(model, tmp_path / "out")


def test_an_export_of_another_model_is_not_replaced(trained, tmp_path):
    """Datasets and trainers with equal plans' names share the folder's name."""
    export_model(trained[0], tmp_path / "out")
    other_trainer = copied(trained[0], tmp_path / "FineTuneTrainer__nnUNetPlans__3d_fullres")
    other_dataset = copied(trained[0], tmp_path / trained[0].name)
    plans = json.loads((other_dataset / "plans.json").read_text())
    (other_dataset / "plans.json").write_text(json.dumps(plans | {"dataset_name": "Dataset077_Other"}))
    for other in (other_trainer, other_dataset):
        with refused(OccupiedError, path="nnUNetTrainer__nnUNetPlans__3d_fullres", option="-o"):
            export_model(other, tmp_path / "out")
    export_model(trained[0], tmp_path / "out")


def test_a_trainer_with_nnunets_old_signature_is_exported(trained, tmp_path, monkeypatch):
    class Older(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(
            architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, channels, heads, **options
        ):
            return get_network_from_plans(
                architecture_class_name,
                arch_init_kwargs,
                arch_init_kwargs_req_import,
                channels,
                heads,
                deep_supervision=options["enable_deep_supervision"],
            )

    real = exporting.find_trainer
    monkeypatch.setattr(exporting, "find_trainer", lambda name: real(name) if name == "nnUNetTrainer" else Older)
    assert export_model(trained[0], tmp_path).largest_difference == 0


def test_nothing_but_an_export_is_replaced(trained, tmp_path):
    target = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    target.mkdir()
    (target / "dataset.json").write_text("{}")
    with refused(OccupiedError, path=target, option="-o"):
        export_model(trained[0], tmp_path)
    shutil.rmtree(target)
    target.touch()
    with refused(OccupiedError, path=target, option="-o"):
        export_model(trained[0], tmp_path)
