"""PretrainingTrainer with a toy method: what it does with steps whose gradients are not finite."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.labelled_runs import stay_in_process
from support.pretraining_runs import (
    kill_at,
    make_trainer,
    phantom_images,
    run,
    training_log,
    with_method,
    with_settings,
    write_run,
)
from support.refused import refused

from nnunet_alice.errors import InputError, NonFiniteLossError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.pretraining.method import Method, StepResult
from nnunet_alice.pretraining.settings import PretrainingSettings, RunSettings
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.views.batch import Batch


@dataclass(frozen=True)
class NoSettings:
    """The toy has none."""


class Square(Method):
    """Mean square of the network's output."""

    name = "Square"

    def make_model(self, network):
        return network

    def batches(self, cases, training):
        shape = (self.batch_size, 1, *self.context.patch_size)
        return lambda number, rng: Batch(torch.from_numpy(rng.normal(size=shape)).float(), sorted(cases))

    def compute(self, batch, progress, training):
        loss = self.module_for(training)(batch.views).square().mean()
        return StepResult(loss, {"loss": loss.detach()})

    def validation_batches(self, rank_batch_sizes):
        return 1


class SquareTrainer(PretrainingTrainer):
    """Trains it for one epoch."""

    method_class = Square
    settings = PretrainingSettings(NoSettings(), run=RunSettings(epochs=1, iterations=12))


def with_infinite_gradients(count: int) -> type:
    """The trainer, the gradients of whose first ``count`` steps are infinite while the loss is not."""

    def after_backward(self, progress):
        if progress.step < count:
            next(self.model.parameters()).grad.fill_(math.inf)

    return with_method(SquareTrainer, after_backward=after_backward)


@pytest.fixture
def small_run(folders):
    """One phantom, preprocessed."""
    write_run(folders / "preprocessed", phantom_images(1))
    return folders / "preprocessed"


def trained(trainer) -> dict[str, str]:
    """Row of the only epoch."""
    trainer.run_training()
    with Path(trainer.output_folder, "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def test_infinite_gradients_are_left_out_counted_and_warned_of(small_run):
    trainer = make_trainer(with_infinite_gradients(3), small_run)
    row = trained(trainer)
    assert float(row["skipped_steps"]) == 3 and "grad_scale" not in row
    assert all(weight.isfinite().all() for weight in trainer.network.state_dict().values())
    log = training_log(trainer.output_folder)
    assert log.count("WARNING: the gradients are not finite on the cases case0: this step is left out") == 3
    assert "(3 in a row; 10 end the run)" in log


def test_too_many_of_them_end_the_run(small_run):
    trainer = make_trainer(with_infinite_gradients(12), small_run)
    with refused(NonFiniteLossError, steps=10, what="gradients", cases=["case0"]):
        trainer.run_training()


def after_scaled_backward(count: int) -> type:
    """The same in half precision: the scaler looks at the gradients before the method does, so the loss explodes."""

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    def compute(self, batch, progress, training):
        result = Square.compute(self, batch, progress, training)
        bad = training and progress.step < count
        return StepResult(Explode.apply(result.loss) if bad else result.loss, result.metrics)

    return with_method(SquareTrainer, compute=compute)


def test_a_scaler_may_look_for_its_scale_in_silence(small_run):
    trainer = make_trainer(after_scaled_backward(11), small_run)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    row = trained(trainer)
    assert float(row["skipped_steps"]) == 11 and float(row["grad_scale"]) == 2.0**5
    assert "WARNING: the gradients" not in training_log(trainer.output_folder)


def test_a_scale_below_one_is_no_longer_a_search(small_run):
    trainer = make_trainer(after_scaled_backward(12), small_run)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with refused(NonFiniteLossError, steps=10, what="gradients"):
        trainer.run_training()
    log = training_log(trainer.output_folder)
    assert "(2 in a row" not in log and "(3 in a row" in log and "(9 in a row" in log


def test_pictures_come_as_often_as_asked_and_hold_nothing_back(small_run):
    drawn = []

    def draw(self, batch, result, folder):
        drawn.append(folder)

    kind = with_method(SquareTrainer, draw=draw)
    kind = with_settings(kind, {"run.epochs": 6, "run.iterations": 1, "run.pictures_every": 4})
    trainer = make_trainer(kind, small_run)
    trainer.run_training()
    assert drawn == [Path(trainer.output_folder)] * 3  # epochs 0, 4 and the last
    assert trainer._first_validation is None


def test_the_second_stage_of_a_cascade_is_refused_at_once(folders):
    folder = write_run(folders / "preprocessed", phantom_images(2))
    plans = read_json(folder / "nnUNetPlans.json")
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    write_json(folder / "nnUNetPlans.json", plans)
    with refused(InputError, value="3d_cascade_fullres", command="nnunet_alice transfer"):
        make_trainer(SquareTrainer, folders / "preprocessed", configuration="3d_cascade_fullres")


def test_cases_of_a_split_that_nobody_preprocessed_are_left_out_by_name(folders):
    folder = write_run(folders / "preprocessed", phantom_images(2))
    write_json(folder / "splits_final.json", [{"train": ["case0", "gone"], "val": ["case1"]}])
    trainer = make_trainer(SquareTrainer, folders / "preprocessed", fold=0)
    assert trainer.do_split() == (["case0"], ["case1"])
    assert re.search(r"fold 0 of .*splits_final.json names 1 case .*\(gone\): left out", log_of(trainer))


def test_ctrl_c_ends_with_one_sentence(folders, monkeypatch):
    write_run(folders / "preprocessed", phantom_images(2))
    trainer = make_trainer(SquareTrainer, folders / "preprocessed")

    def interrupt(batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_step", interrupt)
    with pytest.raises(SystemExit) as caught:
        trainer.run_training()
    assert caught.value.code == 130
    assert "Interrupted. The same command with --c begins again" in log_of(trainer)


def test_whoever_asks_for_more_epochs_is_told_how(folders):
    """A longer run has a folder of its own, in which --c finds nothing; a finished one has nothing left to do."""
    write_run(folders / "preprocessed", phantom_images(2))
    short, longer = (
        with_settings(SquareTrainer, {"run.epochs": n, "run.iterations": 1}, f"SquareTrainer_{n}epochs") for n in (1, 2)
    )
    trainer = make_trainer(short, folders / "preprocessed")
    trainer.run_training()
    final = str(Path(trainer.output_folder) / "checkpoint_final.pth")
    trainer = make_trainer(longer, folders / "preprocessed", continue_training=True)
    trainer.on_train_start()
    assert f"nnunet_alice extend -i {Path(final).parent} --epochs" in log_of(trainer)
    trainer = make_trainer(short, folders / "preprocessed", continue_training=True)
    trainer.load_checkpoint(final)
    trainer.on_train_start()
    assert "has all of its 1 epochs" in log_of(trainer)


def log_of(trainer) -> str:
    return training_log(trainer.output_folder)


def test_a_run_that_begins_again_does_not_pass_off_an_older_checkpoint(folders, monkeypatch):
    """Killed in its first epoch, it would leave the older run's, which the next command or --c would take."""
    stay_in_process(monkeypatch)
    write_run(folders / "preprocessed", phantom_images(2))
    folder = run(make_trainer(SquareTrainer, folders / "preprocessed"))
    (folder / "checkpoint_latest.pth").write_bytes(b"of a run that was killed")
    before = (folder / "checkpoint_final.pth").read_bytes()
    kill_at(make_trainer(SquareTrainer, folders / "preprocessed"), 0)
    assert {path.name: path.read_bytes() for path in folder.glob("checkpoint_*")} == {
        "checkpoint_final_old1.pth": before,
        "checkpoint_latest_old1.pth": b"of a run that was killed",
    }
    assert "WARNING: " in training_log(folder) and "is checkpoint_final_old1.pth now" in training_log(folder)


def test_what_is_continued_or_writes_no_checkpoint_leaves_those_that_are_there(folders, monkeypatch):
    stay_in_process(monkeypatch)
    write_run(folders / "preprocessed", phantom_images(2))
    folder = run(make_trainer(SquareTrainer, folders / "preprocessed"))
    continued = make_trainer(SquareTrainer, folders / "preprocessed", continue_training=True)
    continued.load_checkpoint(str(folder / "checkpoint_final.pth"))
    continued.on_train_start()
    trial = make_trainer(SquareTrainer, folders / "preprocessed")
    trial.disable_checkpointing = True
    run(trial)
    assert [path.name for path in folder.glob("checkpoint_*")] == ["checkpoint_final.pth"]
