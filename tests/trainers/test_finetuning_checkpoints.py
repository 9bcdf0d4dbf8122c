"""Checkpoints of FineTuneTrainer: kept, continued, whole or the old one, and never wrongly called deletable."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.finetuning_runs import changed, copy_of, log_of, short, start, weights_file
from support.labelled_runs import make_finetuner
from support.pretraining_runs import with_settings
from support.refused import refused

from nnunet_alice.checkpoints.saving import STALE_AFTER_SECONDS
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError, InputError


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


def test_kept_weights_are_the_checkpoints_and_go_back(dataset):
    trainer = start(make_finetuner(short(epochs=2, endings="_keep50"), dataset))
    trainer.run_training()
    final = copy_of(trainer)
    kept = torch.load(Path(trainer.output_folder) / "checkpoint_50.pth", weights_only=False)["network_weights"]
    with trainer._kept_weights(50):
        assert all(torch.equal(value, kept[name]) for name, value in trainer.network.state_dict().items())
        assert changed(trainer, final) and trainer.output_folder.endswith("at_50")
    assert not changed(trainer, final)


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


def test_parts_that_killed_savers_left_are_removed(dataset):
    trainer = start(make_finetuner(short(), dataset))
    folder = Path(trainer.output_folder)
    part = folder / ".checkpoint_latest.pth.aaaa.pth"
    part.write_bytes(b"half")
    os.utime(part, (time.time() - STALE_AFTER_SECONDS - 10,) * 2)
    trainer.save_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert [path.name for path in folder.rglob("*.pth")] == ["checkpoint_latest.pth"]
