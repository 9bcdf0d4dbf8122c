"""ClassificationTrainer and RegressionTrainer on a small dataset: train, continue, freeze, validate, predict."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from support.finetuning_runs import changed, copy_of, log_of
from support.labelled_runs import make_finetuner, stay_in_process, write_splits
from support.pretraining_runs import with_settings
from support.refused import refused
from support.small_datasets import set_folders
from support.target_runs import bright_volume, start, store, write_raw, write_target_dataset

from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main
from nnunet_alice.discovery import package_folder
from nnunet_alice.errors import CheckpointError, InputError, NotPreparedError
from nnunet_alice.trainers import classification


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Twelve cases with values of several kinds, two folds."""
    set_folders(monkeypatch, tmp_path)
    stay_in_process(monkeypatch)
    return write_target_dataset(tmp_path / "preprocessed")


@pytest.fixture
def values(dataset):
    """The dataset, once its values are to be predicted."""
    assert store(dataset, "--target", "value", "--task", "regression", "--folds", 3) == 0
    return dataset


def short(name="RegressionTrainer", epochs=1, iterations=2, endings="_seed1", pictures=0, **optimisation) -> type:
    """A trainer of a few steps."""
    base = getattr(classification, f"{name}_{epochs}epochs_{iterations}iterations{endings}")
    changes = {f"optimisation.{key}": value for key, value in optimisation.items()}
    return with_settings(base, {"target.pictures": pictures, "run.save_every": 2, **changes})


def weights_file(trainer, path: Path) -> Path:
    """Pretrained weights of the whole U-Net of a trainer's plans; returns their file."""
    torch.manual_seed(77)
    network = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    save_checkpoint({"network_weights": network.state_dict()}, path)
    return path


@pytest.mark.slow
def test_a_run_writes_what_it_promises_and_predicts_new_images_alike(values, tmp_path, capsys, real_figures):
    """The trainer's validation and ``predict_targets`` say the same; bad cases are named, and the others go on."""
    trainer = start(short("RegressionTrainer_scratch", epochs=2, pictures=1), values)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    predictions = pd.read_csv(folder / "validation" / "predictions.csv")
    assert predictions["case"].tolist() == sorted(trainer.splits[1].index) and (predictions["windows"] > 1).all()
    truth = pd.read_csv(tmp_path / "labels.csv").set_index("id")["value"]
    np.testing.assert_allclose(predictions["true_value"], truth[predictions["case"]])
    metrics = pd.read_csv(folder / "validation" / "metrics.csv").set_index("metric")
    error = np.abs(predictions["true_value"] - predictions["predicted_value"]).mean()
    assert metrics.loc["mae", "value"] == pytest.approx(error) and metrics.loc["mae", "low"] <= error
    assert {"predictions.png", f"{predictions['case'][0]}_occlusion.png"} <= {p.name for p in folder.rglob("*.png")}
    history = pd.read_csv(folder / "metrics.csv")
    assert {"epoch", "loss", "val_loss", "val_r2", "lr"} <= set(history) and len(history) == 2
    assert json.loads((folder / "start.json").read_text())["target"]["name"] == "value"
    capsys.readouterr()

    images, chosen = tmp_path / "images", predictions["case"].tolist()
    for case, orientation in zip(chosen, ("LPS", "RAS", "PIR", "LPS"), strict=True):
        write_raw(images, case, bright_volume(int(case[4:]))[0], orientation)
    write_raw(images, "flat", np.ones((1, 20, 20, 20), np.float32))
    write_raw(images, "two", np.concatenate([bright_volume(0)[0]] * 2))
    (images / "cut_0000.nii.gz").write_bytes((images / f"{chosen[0]}_0000.nii.gz").read_bytes()[:300])
    (images / "second_0001.nii.gz").write_bytes((images / f"{chosen[0]}_0000.nii.gz").read_bytes())
    model = folder.parent
    words = ["predict_targets", "-i", str(images), "-o", str(tmp_path / "out.csv"), "-m", str(model)]
    assert main([*words, "--explain", str(tmp_path / "why")]) == SOME_FAILED
    said = capsys.readouterr().out
    for case, why in (
        ("flat", "constant"), ("two", "_0001 besides"), ("cut", "truncated"), ("second", "second_0000"),
    ):  # fmt: skip
        assert any(line.startswith(f"  failed: {case}:") and why in line for line in said.splitlines()), case
    new = pd.read_csv(tmp_path / "out.csv")
    assert new["case"].tolist() == chosen and f"4 of {len(chosen) + 4} cases" in said
    np.testing.assert_allclose(new["predicted_value"], predictions["predicted_value"], rtol=2e-4)
    assert (tmp_path / "why" / f"{chosen[0]}.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "trainer", "columns", "score"),
    [
        (("--target", "kind", "--task", "classification"), "ClassificationTrainer_scratch",
         {"true_kind", "predicted", "probability_coarse", "probability_fine"}, "auc"),
        (("--target", "left", "right", "--task", "multilabel"), "ClassificationTrainer_scratch",
         {"true_left", "true_right", "predicted_left", "probability_right"}, "auc_left"),
        (("--target", "time", "--event", "event", "--task", "survival"), "RegressionTrainer_survival_scratch",
         {"true_time", "true_event", "risk"}, "c_index"),
    ],
    ids=["classes", "labels", "survival"],
)  # fmt: skip
def test_every_task_trains_and_validates(dataset, words, trainer, columns, score):
    assert store(dataset, *words, "--folds", 2) == 0
    trainer = start(short(trainer, endings="_probeFirst_seed1"), dataset)
    trainer.run_training()
    trainer.perform_actual_validation()
    assert f"a linear probe of {len(trainer.splits[0])} cases" in log_of(trainer)
    folder = Path(trainer.output_folder) / "validation"
    assert columns <= set(pd.read_csv(folder / "predictions.csv"))
    assert score in set(pd.read_csv(folder / "metrics.csv")["metric"])
    checkpoint = torch.load(folder.parent / "checkpoint_final.pth", weights_only=True)  # plain data
    assert checkpoint["targets"]["task"]["definition"]["task"] == words[words.index("--task") + 1]


@pytest.mark.slow
def test_something_is_learned(values):
    """In 80 steps, from what the image shows: the order of the training cases."""
    trainer = start(short("RegressionTrainer_scratch", epochs=4, iterations=20, endings="_seed1_lr1e-2"), values)
    trainer.run_training()
    trainer.splits = (trainer.splits[0], trainer.splits[0])
    trainer._validate(False)
    metrics = pd.read_csv(Path(trainer.output_folder) / "validation" / "metrics.csv").set_index("metric")
    assert metrics.loc["spearman", "value"] > 0.8


def test_the_encoder_comes_from_a_pretrained_unet_and_the_head_starts_fresh(values, tmp_path):
    trainer = start(short(), values)
    before = copy_of(trainer)
    weights = weights_file(trainer, tmp_path / "w.pth")
    trainer.load_pretrained_weights(str(weights))
    moved = changed(trainer, before)
    assert moved and all(name.startswith("encoder.") for name in moved)
    stored = torch.load(weights, weights_only=True)["network_weights"]
    for name, value in trainer.bare_network.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, stored[name]), name
    record = trainer._describe_start()
    assert record["pretrained"] is True and "the head starts fresh" in log_of(trainer)
    stored.pop("encoder.stages.0.0.convs.0.conv.weight")
    save_checkpoint({"network_weights": stored}, tmp_path / "other.pth")
    with refused(CheckpointError, path="other.pth") as caught:
        trainer.load_pretrained_weights(str(tmp_path / "other.pth"))
    assert "nnunet_alice transfer -i" in str(caught.value)


def test_without_weights_the_log_names_the_twin_from_scratch(values):
    trainer = start(short(), values)
    trainer._describe_start()
    assert "WARNING: no pretrained weights" in log_of(trainer) and "RegressionTrainer_scratch" in log_of(trainer)


def test_head_first_frees_the_encoder_in_time(values, tmp_path, monkeypatch):
    kind = short("RegressionTrainer_headFirst", epochs=3, decoder_first_share=0.4)
    trainer = start(kind, values)
    trainer.load_pretrained_weights(str(weights_file(trainer, tmp_path / "w.pth")))
    before, moved, end = copy_of(trainer), [], trainer.on_epoch_end
    monkeypatch.setattr(trainer, "on_epoch_end", lambda: moved.append(changed(trainer, before)) or end())
    trainer.run_training()
    assert moved[0] and all(name.startswith("head.") for name in moved[0])
    assert any(name.startswith("encoder.") for name in moved[1])


@pytest.mark.slow
def test_probe_first_begins_with_the_best_linear_head_of_fresh_runs_alone(values, monkeypatch):
    trainer = start(short("RegressionTrainer_scratch", endings="_probeFirst_seed1"), values)
    chance = start(short("RegressionTrainer_scratch"), values)
    before = copy_of(trainer)
    for each in (trainer, chance):
        each.on_train_start()
        each.splits = (each.splits[0], each.splits[0])
        each._validate(False)
    assert changed(trainer, before) == {f"head.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    errors = [pd.read_csv(Path(t.output_folder) / "validation" / "metrics.csv").set_index("metric") for t in
              (trainer, chance)]  # fmt: skip
    assert errors[0].loc["mae", "value"] < 0.7 * errors[1].loc["mae", "value"]
    monkeypatch.setattr(trainer, "_probed_head", lambda: pytest.fail("a run that goes on has its head"))
    trainer.current_epoch = 1
    trainer.on_train_start()


@pytest.mark.slow
@pytest.mark.parametrize("survival", [False, True])
def test_continuing_equals_running_through(dataset, monkeypatch, survival):
    task = ("time", "--event", "event", "--task", "survival") if survival else ("value", "--task", "regression")
    assert store(dataset, "--target", *task, "--folds", 2) == 0
    name = f"RegressionTrainer{'_survival' if survival else ''}_scratch"
    kind = short(name, epochs=3)
    whole = start(kind, dataset)
    whole.run_training()
    expected = copy_of(whole)
    (Path(whole.output_folder) / "checkpoint_final.pth").unlink()
    killed = start(kind, dataset)
    real = killed.on_train_epoch_start

    def kill():
        if killed.current_epoch == 2:
            raise KeyboardInterrupt
        real()

    monkeypatch.setattr(killed, "on_train_epoch_start", kill)
    with pytest.raises(SystemExit):  # Ctrl-C ends with one sentence
        killed.run_training()
    latest = str(Path(killed.output_folder) / "checkpoint_latest.pth")
    stored = (dataset / "targets.csv").read_text()
    table = pd.read_csv(dataset / "targets.csv")  # somebody corrects a value
    table.loc[table["case"] == whole.splits[0].index[0], table.columns[-1 - survival]] += 1
    table.to_csv(dataset / "targets.csv", index=False)
    with refused(CheckpointError, path="targets.csv", option="--c"):
        make_finetuner(kind, dataset, continue_training=True).load_checkpoint(latest)
    (dataset / "targets.csv").write_text(stored)

    continued = make_finetuner(kind, dataset, continue_training=True)
    continued.load_checkpoint(latest)
    continued.run_training()
    assert not changed(continued, expected)
    assert continued.history.column("epoch") == [0, 1, 2]
    assert continued.history.column("loss") == whole.history.column("loss")


def test_folds_that_put_a_patient_on_both_sides_are_refused(dataset):
    assert store(dataset, "--target", "value", "--task", "regression", "--group", "patient", "--folds", 2) == 0
    cases = [f"case{n:02d}" for n in range(12)]
    write_splits(dataset, (cases[1:], cases[:1]))
    with refused(InputError, case="case01 and case00", option="--new_splits"):
        start(short(), dataset)


def test_cases_without_the_target_take_no_part_and_folds_are_made_where_there_are_none(dataset, tmp_path):
    table = pd.read_csv(tmp_path / "labels.csv")
    table.iloc[:8].to_csv(tmp_path / "labels.csv", index=False)
    assert store(dataset, "--target", "value", "--task", "regression") == 0
    (dataset / "splits_final.json").unlink()
    trainer = start(short(), dataset)
    assert len(json.loads((dataset / "splits_final.json").read_text())) == 5
    there = sorted([*trainer.splits[0].index, *trainer.splits[1].index])
    assert there == [f"case{n:02d}" for n in range(8)] and trainer._training_cases == trainer.splits[0].index.tolist()


def test_validation_in_training_shows_every_class_also_where_names_sort_by_it(dataset, tmp_path):
    table = pd.read_csv(tmp_path / "labels.csv").assign(kind=["control"] * 6 + ["patient"] * 6)
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert store(dataset, "--target", "kind", "--task", "classification", "--folds", 2) == 0
    trainer = start(short("ClassificationTrainer_scratch"), dataset)
    trainer.batch_size = 2  # of six cases, in one step
    _, batches = trainer.get_dataloaders()
    assert next(batches).target.flatten().tolist() == [0, 1]


def test_a_dataset_without_targets_names_the_command(dataset):
    with refused(NotPreparedError, command="nnunet_alice targets -d 901"):
        start(short(), dataset)


def test_mirroring_is_asked_for(values):
    for mirror, axes in ((False, None), (True, (0, 1, 2))):
        trainer = start(short(endings="_mirror_seed1" if mirror else "_seed1"), values)
        trainer.get_dataloaders()
        assert trainer.inference_allowed_mirroring_axes == axes


def test_nnunet_finds_the_trainers_by_name(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(package_folder("nnunet_alice.trainers")))
    for name in ("ClassificationTrainer_scratch", "RegressionTrainer_survival_headFirst_8epochs_lr3e-4_seed1"):
        assert recursive_find_trainer_class_by_name(name).__name__ == name


def test_nnunets_own_function_still_loads_other_networks(values, tmp_path):
    """The hook that loads an encoder is for the trainer's network alone."""
    trainer = start(short(), values)
    weights = weights_file(trainer, tmp_path / "w.pth")
    network = nnUNetTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, False
    )
    load_pretrained_weights(network, str(weights))
    stored = torch.load(weights, weights_only=True)["network_weights"]
    assert torch.equal(network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"],
                       stored["encoder.stages.0.0.convs.0.conv.weight"])  # fmt: skip
