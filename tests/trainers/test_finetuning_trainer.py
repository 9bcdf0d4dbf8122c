"""FineTuneTrainer on a small labelled dataset: trains, continues, freezes, and never hides where it started."""

import re
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from support.finetuning_runs import changed, copy_of, log_of, short, start, variant, weights_file
from support.labelled_runs import make_finetuner, write_splits
from support.refused import refused

from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.discovery import package_folder
from nnunet_alice.errors import CheckpointError, InputError, UnsafeCheckpointError
from nnunet_alice.trainers import finetuning


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


def test_equal_seeds_give_equal_weights_and_batches(dataset):
    ends = []
    for endings in ("_seed1", "_seed1", "_seed2"):
        trainer = start(make_finetuner(short(endings=endings), dataset))
        trainer.run_training()
        ends.append(copy_of(trainer))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("epochs", "share", "expected"),
    [(1000, 0.1, 100), (5, 0.1, 1), (2, 0.1, 1), (1, 0.1, 0), (5, 0.0, 0), (3, 0.9, 2)],
)
def test_both_phases_get_an_epoch_where_there_are_two(dataset, epochs, share, expected):
    kind = variant(f"FineTuneTrainer_decoderFirst_{epochs}epochs", decoder_first_share=share)
    assert make_finetuner(kind, dataset).decoder_epochs == expected


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
