"""FineTuneTrainer on a small labelled dataset: trains, continues, freezes, and never hides where it started."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from support.labelled_runs import make_finetuner, stay_in_process, write_labelled, write_splits
from support.pretraining_runs import with_settings
from support.refused import refused
from support.small_datasets import set_folders

from nnunet_alice.checkpoints.saving import STALE_AFTER_SECONDS, save_checkpoint
from nnunet_alice.discovery import package_folder
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError, InputError, UnsafeCheckpointError
from nnunet_alice.trainers import finetuning

TRAIN, TEST = ["case00", "case01"], ["case02"]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Three labelled cases, one of them held out."""
    set_folders(monkeypatch, tmp_path)
    stay_in_process(monkeypatch)
    folder = write_labelled(tmp_path / "preprocessed", 3)
    write_splits(folder, (TRAIN, TEST))
    return folder


def variant(name: str, **optimisation) -> type:
    """A short trainer by its name, as nnU-Net asks for it."""
    return with_settings(getattr(finetuning, name), {f"optimisation.{k}": v for k, v in optimisation.items()}, name)


def short(name="FineTuneTrainer", epochs=2, iterations=2, endings="_seed1", **optimisation) -> type:
    """A trainer of a few steps."""
    return variant(f"{name}_{epochs}epochs_{iterations}iterations{endings}", **optimisation)


def weights_file(dataset, path: Path) -> Path:
    """Pretrained weights for the dataset's network."""
    trainer = make_finetuner(short(endings="_seed77"), dataset)
    trainer.initialize()
    save_checkpoint({"network_weights": trainer.network.state_dict()}, path)
    return path


def start(trainer, weights: Path | None = None):
    """What nnUNetv2_train does before training."""
    if not trainer.was_initialized:
        trainer.initialize()
    if weights is not None:
        run_training.load_pretrained_weights(trainer.network, str(weights), verbose=True)
    return trainer


def copy_of(trainer) -> dict:
    return {name: value.detach().clone() for name, value in trainer.bare_network.named_parameters()}


def changed(trainer, before: dict) -> set[str]:
    return {name for name, value in trainer.bare_network.named_parameters() if not torch.equal(value, before[name])}


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


def test_everything_but_the_schedule_is_stock(dataset):
    ours, stock = make_finetuner(finetuning.FineTuneTrainer, dataset), make_finetuner(nnUNetTrainer, dataset)
    for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "enable_deep_supervision"):
        assert getattr(ours, name) == getattr(stock, name), name
    ours.initialize()
    stock.initialize()
    (group,) = ours.optimizer.param_groups
    for name in ("momentum", "nesterov", "weight_decay"):
        assert group[name] == stock.optimizer.param_groups[0][name]
    assert type(ours.loss) is type(stock.loss)
    assert finetuning.FineTuneTrainer_scratch.settings.optimisation.learning_rate == stock.initial_lr
    own = vars(finetuning.FineTuneTrainer)
    # augmentation, too, but for a seed's blur: tests/finetuning/test_repeatable.py
    stock_parts = ("_build_loss", "get_dataloaders", "build_network_architecture")
    assert not any(name in own for name in stock_parts)


def test_omp_num_threads_limits_training_on_the_cpu(dataset, two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_finetuner(short(), dataset)
    assert torch.get_num_threads() == 1


def test_adamw_is_torchs_with_the_same_groups(dataset):
    kind = short("FineTuneTrainer_layerDecay", endings="_AdamW_lr3e-3")
    sgd, adamw = (make_finetuner(k, dataset) for k in (short("FineTuneTrainer_layerDecay"), kind))
    for trainer in (sgd, adamw):
        trainer.initialize()
    assert type(sgd.optimizer) is torch.optim.SGD and type(adamw.optimizer) is torch.optim.AdamW
    assert adamw.optimizer.defaults["lr"] == 3e-3
    scales = [[group["scale"] for group in trainer.optimizer.param_groups] for trainer in (sgd, adamw)]
    assert scales[0] == scales[1] and len(scales[0]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("endings", ["_seed1", "_AdamW_seed1"])
def test_rates_of_every_step_follow_the_formula(dataset, monkeypatch, endings):
    trainer = start(make_finetuner(short(endings=endings, epochs=4, iterations=5, warmup_share=0.2), dataset))
    seen = []
    real = nnUNetTrainer.train_step
    monkeypatch.setattr(
        nnUNetTrainer,
        "train_step",
        lambda self, batch: seen.append(self.optimizer.param_groups[0]["lr"]) or real(self, batch),
    )
    trainer.run_training()
    expected = [1e-3 * (step + 1) / 4 for step in range(4)] + [1e-3 * (1 - step / 16) ** 0.9 for step in range(16)]
    assert seen == pytest.approx(expected)


@pytest.mark.slow
def test_a_run_validates_the_kept_checkpoints_too(dataset, tmp_path):
    trainer = start(
        make_finetuner(short(epochs=4, endings="_keep25-50_seed1"), dataset), weights_file(dataset, tmp_path / "w.pth")
    )
    trainer.run_training()
    final = copy_of(trainer)
    trainer.perform_actual_validation()
    assert not changed(trainer, final)
    folder = Path(trainer.output_folder)
    epochs = {}
    for name in ("25", "50", "final"):
        epochs[name] = torch.load(folder / f"checkpoint_{name}.pth", weights_only=False)["current_epoch"]
    assert epochs == {"25": 1, "50": 2, "final": 4}
    for part in ("at_25", "at_50", "."):
        summary = json.loads((folder / part / "validation" / "summary.json").read_text())
        assert [Path(case["prediction_file"]).name for case in summary["metric_per_case"]] == ["case02.nii.gz"]
    record = json.loads((folder / "start.json").read_text())
    assert record["pretrained"] is True and record["settings"]["keep_at"] == [25, 50]
    assert record["training_cases"] == sorted(trainer.do_split()[0]) and "case02" not in record["training_cases"]
    assert "Starts from pretrained weights" in log_of(trainer) and "WARNING" not in log_of(trainer)


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


def test_kept_weights_are_the_checkpoints_and_go_back(dataset):
    trainer = start(make_finetuner(short(epochs=2, endings="_keep50"), dataset))
    trainer.run_training()
    final = copy_of(trainer)
    kept = torch.load(Path(trainer.output_folder) / "checkpoint_50.pth", weights_only=False)["network_weights"]
    with trainer._kept_weights(50):
        assert all(torch.equal(value, kept[name]) for name, value in trainer.network.state_dict().items())
        assert changed(trainer, final) and trainer.output_folder.endswith("at_50")
    assert not changed(trainer, final)


@pytest.mark.parametrize(
    ("name", "with_weights", "expected"),
    [
        ("FineTuneTrainer", False, "WARNING: no pretrained weights were loaded"),
        ("FineTuneTrainer", True, "Starts from pretrained weights"),
        ("FineTuneTrainer_scratch", False, "Starts from random weights"),
        ("FineTuneTrainer_scratch", True, "WARNING: FineTuneTrainer_scratch"),
    ],
)
def test_the_log_says_where_the_run_starts(dataset, tmp_path, name, with_weights, expected):
    weights = weights_file(dataset, tmp_path / "w.pth") if with_weights else None
    trainer = start(make_finetuner(short(name), dataset), weights)
    record = trainer._describe_start()
    assert expected in log_of(trainer) and record["pretrained"] is with_weights
    assert ("WARNING" in log_of(trainer)) == ("WARNING" in expected)


def test_pretrained_weights_are_loaded_as_stock_does_it(dataset, tmp_path):
    weights = weights_file(dataset, tmp_path / "w.pth")
    ours, stock = (make_finetuner(short(), dataset) for _ in range(2))
    for trainer in (stock, ours):
        trainer.initialize()
    load_pretrained_weights(stock.network, str(weights))
    assert not torch.equal(*(trainer.network.encoder.stages[0][0].convs[0].conv.weight for trainer in (ours, stock)))
    start(ours, weights)
    for name, value in ours.network.state_dict().items():
        assert torch.equal(value, stock.network.state_dict()[name]), name
    assert log_of(ours).count(f"the weights of {weights}") == 1  # in the log of both


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_pretrained_weights_is_refused_and_does_not_run(dataset, tmp_path):
    weights = torch.load(weights_file(dataset, tmp_path / "w.pth"), weights_only=True)
    torch.save(weights | {"more": Touch(tmp_path / "was here")}, tmp_path / "harmful.pth")
    with refused(UnsafeCheckpointError, path="harmful.pth", option="--trust"):
        start(make_finetuner(short(), dataset), tmp_path / "harmful.pth")
    assert not (tmp_path / "was here").exists()
    torch.load(tmp_path / "harmful.pth", weights_only=False)
    assert (tmp_path / "was here").exists()  # it would have


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_diverged_are_refused(dataset, tmp_path, bad):
    weights = weights_file(dataset, tmp_path / "w.pth")
    content = torch.load(weights)
    content["network_weights"]["encoder.stages.0.0.convs.0.conv.bias"][0] = bad
    torch.save(content, weights)
    trainer = start(make_finetuner(short(), dataset))
    before = copy_of(trainer)
    with refused(CheckpointError, path=weights):
        start(trainer, weights)
    assert not changed(trainer, before)


@pytest.mark.parametrize(("lay", "warned"), [("RAS", True), ("LPS", False), ("", False), ("mixed", False)])
def test_images_of_the_pretraining_that_lay_otherwise_are_told(dataset, tmp_path, lay, warned):
    content = torch.load(weights_file(dataset, tmp_path / "w.pth")) | {"pretraining": {"orientation": lay, "plans": {}}}
    torch.save(content, tmp_path / "w.pth")
    trainer = start(make_finetuner(short(), dataset), tmp_path / "w.pth")
    assert ("saw images that lie RAS, and those of Dataset901_Labelled lie LPS" in log_of(trainer)) == warned


def test_a_split_that_names_absent_cases_is_refused(dataset):
    write_splits(dataset, (["case00", "gone1"], ["case02", "gone2"]))
    trainer = make_finetuner(short(), dataset)
    with refused(InputError, case="gone1"):
        trainer.get_dataloaders()


def test_ctrl_c_ends_with_one_sentence(dataset, monkeypatch):
    trainer = make_finetuner(short(), dataset)

    def interrupt(batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_step", interrupt)
    with pytest.raises(SystemExit) as caught:
        trainer.run_training()
    assert caught.value.code == 130
    assert "Interrupted. The same command with --c begins again" in log_of(trainer)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop(next(iter(state))),
        lambda state: state.update({next(iter(state)): torch.zeros(4, 2, 3, 3, 3)}),
    ],
)
def test_weights_of_another_network_change_nothing_and_get_the_command_that_adapts_them(dataset, tmp_path, change):
    checkpoint = torch.load(weights_file(dataset, tmp_path / "w.pth"), weights_only=True)
    first = next(iter(checkpoint["network_weights"]))
    change(checkpoint["network_weights"])
    save_checkpoint(checkpoint, tmp_path / "other.pth")
    trainer = start(make_finetuner(short(), dataset))
    before = copy_of(trainer)
    command = f"nnunet_alice transfer -i {tmp_path / 'other.pth'} -d 901 -p nnUNetPlans -c 3d_fullres -o adapted.pth"
    with refused(CheckpointError, path="other.pth", value=first) as caught:
        trainer.load_pretrained_weights(str(tmp_path / "other.pth"))
    assert command in str(caught.value)
    assert not changed(trainer, before)


def test_a_frozen_encoder_stays_and_the_decoder_learns(dataset, tmp_path):
    trainer = start(
        make_finetuner(short("FineTuneTrainer_freezeEncoder"), dataset), weights_file(dataset, tmp_path / "w")
    )
    before = copy_of(trainer)
    trainer.run_training()
    moved = changed(trainer, before)
    assert moved and all(name.startswith("decoder.") for name in moved)
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in trainer.bare_network.encoder.parameters()}


def test_a_random_encoder_is_not_frozen(dataset):
    trainer = start(make_finetuner(short("FineTuneTrainer_freezeEncoder"), dataset))
    with refused(InputError, option="-pretrained_weights"):
        trainer.run_training()


def test_decoder_first_frees_the_encoder_in_time(dataset, tmp_path, monkeypatch):
    short_phase = short("FineTuneTrainer_decoderFirst", epochs=4, decoder_first_share=0.5)
    trainer = start(make_finetuner(short_phase, dataset), weights_file(dataset, tmp_path / "w.pth"))
    encoder = {name for name, _ in trainer.bare_network.named_parameters() if name.startswith("encoder.")}
    before, moved = copy_of(trainer), {}
    end = trainer.on_epoch_end

    def look():
        moved[trainer.current_epoch] = changed(trainer, before)
        end()

    monkeypatch.setattr(trainer, "on_epoch_end", look)
    trainer.run_training()
    assert moved[0] and not moved[0] & encoder and not moved[1] & encoder
    assert encoder <= moved[2]


@pytest.mark.slow
@pytest.mark.parametrize("endings", ["_seed1", "_AdamW_seed1"])
def test_continuing_equals_running_through(dataset, monkeypatch, endings):
    """Killed in the third of four epochs, inside the phase after the decoder's own."""
    kind = short("FineTuneTrainer_decoderFirst", epochs=4, endings=endings, decoder_first_share=0.25)
    kind = with_settings(kind, {"run.save_every": 2})
    whole = start(make_finetuner(kind, dataset))
    whole.run_training()
    expected = copy_of(whole)
    (Path(whole.output_folder) / "checkpoint_final.pth").unlink()

    killed = start(make_finetuner(kind, dataset))
    real = killed.on_train_epoch_start

    def kill():
        if killed.current_epoch == 2:
            raise KeyboardInterrupt
        real()

    monkeypatch.setattr(killed, "on_train_epoch_start", kill)
    with pytest.raises(SystemExit):  # Ctrl-C ends with one sentence
        killed.run_training()
    continued = make_finetuner(kind, dataset, continue_training=True)
    continued.load_checkpoint(str(Path(killed.output_folder) / "checkpoint_latest.pth"))
    assert continued.current_epoch == 2
    continued.run_training()
    assert not changed(continued, expected)
    assert "Continues a run that started with pretrained weights: False" in log_of(continued)


def test_equal_seeds_give_equal_weights_and_batches(dataset):
    ends = []
    for endings in ("_seed1", "_seed1", "_seed2"):
        trainer = start(make_finetuner(short(endings=endings), dataset))
        trainer.run_training()
        ends.append(copy_of(trainer))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_a_checkpoint_is_whole_or_the_old_one(dataset, monkeypatch):
    trainer = start(make_finetuner(short(), dataset))
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    old = path.read_bytes()

    def half(content, filename):
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == old
    path.write_bytes(old[: len(old) // 2])
    with refused(DamagedCheckpointError, path=path, option="--c"):
        make_finetuner(short(), dataset).load_checkpoint(str(path))
    trainer.disable_checkpointing = True
    path.unlink()
    trainer.save_checkpoint(str(path))
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"text\n", b"\x80\x02no pickle", b"PK\x03\x04 no zip"])
def test_a_file_that_cannot_be_read_may_be_deleted(dataset, tmp_path, content):
    path = tmp_path / "latest.pth"
    path.write_bytes(content)
    with refused(DamagedCheckpointError, path=path, option="--c"):
        make_finetuner(short(), dataset).load_checkpoint(str(path))


def test_a_sound_checkpoint_is_never_called_deletable(dataset, monkeypatch):
    trainer = start(make_finetuner(short(), dataset))
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))

    def no_memory(self, filename):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainer, "load_checkpoint", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            make_finetuner(short(), dataset).load_checkpoint(str(path))
    with refused(InputError, value=2.0):
        make_finetuner(short(encoder_decay=2.0), dataset).load_checkpoint(str(path))

    content = torch.load(path, weights_only=False)
    weights = content["network_weights"]
    for other, value in (
        ({key: value for key, value in content.items() if key != "optimizer_state"}, "optimizer_state"),
        (content | {"network_weights": dict([*weights.items()][1:])}, next(iter(weights))),
        (content | {"network_weights": weights | {"more": torch.ones(1)}}, "more"),
    ):
        torch.save(other, path)
        with refused(CheckpointError, path=path, option="--c", value=value) as caught:
            make_finetuner(short(), dataset).load_checkpoint(str(path))
        assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("epochs", "share", "expected"),
    [(1000, 0.1, 100), (5, 0.1, 1), (2, 0.1, 1), (1, 0.1, 0), (5, 0.0, 0), (3, 0.9, 2)],
)
def test_both_phases_get_an_epoch_where_there_are_two(dataset, epochs, share, expected):
    kind = variant(f"FineTuneTrainer_decoderFirst_{epochs}epochs", decoder_first_share=share)
    assert make_finetuner(kind, dataset).decoder_epochs == expected


def test_parts_that_killed_savers_left_are_removed(dataset):
    trainer = start(make_finetuner(short(), dataset))
    folder = Path(trainer.output_folder)
    part = folder / ".checkpoint_latest.pth.aaaa.pth"
    part.write_bytes(b"half")
    os.utime(part, (time.time() - STALE_AFTER_SECONDS - 10,) * 2)
    trainer.save_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert [path.name for path in folder.rglob("*.pth")] == ["checkpoint_latest.pth"]


def test_senseless_settings_are_refused(dataset):
    with refused(InputError, value=(25, 100)):
        make_finetuner(short(endings="_keep25-100"), dataset)
    with refused(InputError, option="optimizer_name", value="Lion"):
        make_finetuner(short(optimizer_name="Lion"), dataset)


@pytest.mark.slow
def test_nnunet_finds_every_variant_by_name(monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_extTrainer", str(package_folder("nnunet_alice.trainers")))
    for name in ("FineTuneTrainer_scratch", "FineTuneTrainer_freezeEncoder_8epochs_lr3e-4_keep25-50_seed1"):
        assert recursive_find_trainer_class_by_name(name).__name__ == name
    names = [name for name in vars(finetuning) if re.fullmatch("FineTuneTrainer.*", name)]
    assert len(names) == 5
