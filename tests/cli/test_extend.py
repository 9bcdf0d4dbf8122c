"""A longer run goes on where a finished one ended, and is what it would have been with that schedule all along."""

import pytest
import torch
from support.pretraining_runs import make_trainer, phantom_images, run, same_content, without_times, write_run
from support.refused import refused
from support.small_datasets import set_folders

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.checkpoints.extending import extend_run
from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.cli.main import main
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError, OccupiedError
from nnunet_alice.publishing.card import CardText
from nnunet_alice.publishing.publish import publish
from nnunet_alice.trainers import alice
from nnunet_alice.training.variants import named_trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A pretraining of two epochs of two steps: folder of nnU-Net's folders, and of the run."""
    base = tmp_path_factory.mktemp("extending")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, base)
        write_run(base / "preprocessed", phantom_images(4))
        prepare_atlas(PreprocessedDataset("Dataset900_Small", "nnUNetPlans", "3d_fullres"), 1)
        folder = run(make_trainer(trainer("AliceTrainer_2epochs_2iterations"), base / "preprocessed"))
    return base, folder


@pytest.fixture
def folders(finished, monkeypatch):
    set_folders(monkeypatch, finished[0])
    return finished


def trainer(name: str) -> type:
    return named_trainer(name, vars(alice))


def test_it_is_the_run_that_it_would_have_been(folders, capsys):
    """To the bit: finished, extended and continued against one run whose schedules begin again on the way."""
    base, folder = folders
    assert main(["extend", "-i", str(folder), "--epochs", "4"]) == 0
    name = "AliceTrainer_2iterations_4epochs_restart2"
    printed = capsys.readouterr().out
    assert f"nnUNetv2_train 900 3d_fullres all -tr {name} -p nnUNetPlans --c" in printed and "rises to 0.001" in printed
    longer = make_trainer(trainer(name), base / "preprocessed", continue_training=True)
    longer.load_checkpoint(
        str(folder.parent.parent / f"{name}__nnUNetPlans__3d_fullres/fold_all/checkpoint_latest.pth")
    )
    assert longer.current_epoch == 2
    checkpoints = []
    for one in (longer, make_trainer(trainer(name), base / "preprocessed")):
        final = run(one) / "checkpoint_final.pth"
        checkpoints.append(torch.load(final, weights_only=True))
        final.unlink()
    for entry in ("network_weights", "model_state", "optimizer_state"):
        assert same_content(checkpoints[0][entry], checkpoints[1][entry]), entry
    histories = [without_times(checkpoint["history"]) for checkpoint in checkpoints]
    assert same_content(*histories) and len(histories[0]) == 4
    assert checkpoints[0]["pretraining"]["hyper_parameters"]["restart"] == 2


def test_the_learning_rate_rises_and_sinks_twice(folders):
    base, _ = folders
    one = make_trainer(trainer("AliceTrainer_40epochs_2iterations_restart20"), base / "preprocessed")
    rates = []
    for one.step in range(80):
        one.current_epoch = one.step // 2
        progress = one.progress
        rates.append(one.settings.optimisation.learning_rate_at(progress.step, progress.total_steps))
    plain = make_trainer(trainer("AliceTrainer_20epochs_2iterations"), base / "preprocessed")
    half = [plain.settings.optimisation.learning_rate_at(step, 40) for step in range(40)]
    assert rates == half + half and max(rates) == rates[2] == rates[42] > 100 * rates[39]


def test_a_lower_peak_and_other_endings(folders, tmp_path):
    _, folder = folders
    extended = extend_run(folder, 6, learning_rate=3e-4)
    assert extended.trainer == "AliceTrainer_2iterations_6epochs_restart2_lr0.0003"
    assert trainer(extended.trainer).settings.optimisation.learning_rate == 3e-4
    saved = torch.load(extended.folder / "checkpoint_latest.pth", weights_only=True)
    assert saved["pretraining"]["hyper_parameters"]["learning_rate"] == 3e-4
    with refused(OccupiedError, path=extended.folder):
        extend_run(folder, 6, learning_rate=3e-4)


def test_a_rate_is_what_its_name_says(folders):
    extended = extend_run(folders[1], 8, learning_rate=1 / 3000)
    saved = torch.load(extended.folder / "checkpoint_latest.pth", weights_only=True)
    rate = trainer(extended.trainer).settings.optimisation.learning_rate
    assert saved["pretraining"]["hyper_parameters"]["learning_rate"] == rate == extended.learning_rate == 0.000333333


def test_what_cannot_be_extended(folders, tmp_path):
    _, folder = folders
    with refused(InputError, path=folder, option="--epochs", value=2):
        extend_run(folder, 2)
    with refused(CheckpointError, path=tmp_path / "checkpoint_final.pth"):
        extend_run(tmp_path, 4)
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    for changes, fields in (({"optimizer_state": None}, {"path": "checkpoint_final.pth"}), ({}, {"value": 1})):
        run_entry = content["pretraining"] | {"epochs_done": 1}
        other = {k: v for k, v in content.items() if k not in changes} | {"pretraining": run_entry}
        save_checkpoint(other, tmp_path / "fold_all" / "checkpoint_final.pth")
        with refused(CheckpointError, **fields):
            extend_run(tmp_path / "fold_all", 4)


def test_a_restart_after_the_end_is_refused(folders):
    with refused(InputError, option=None):
        make_trainer(trainer("AliceTrainer_2epochs_restart2"), folders[0] / "preprocessed")


def test_pretraining_starts_from_weights_of_a_folder(folders, tmp_path):
    """As nnUNetv2_train -pretrained_weights does it; the teacher starts there, too, and nothing is half loaded."""
    from nnunetv2.run import run_training

    base, folder = folders
    published = publish(folder / "checkpoint_final.pth", tmp_path / "model", CardText("x", "mit")).folder
    one = make_trainer(trainer("AliceTrainer_2epochs_2iterations_seed7"), base / "preprocessed")
    one.initialize()
    run_training.load_pretrained_weights(one.network, str(published), verbose=True)
    one.method.before_training()
    weights = load_checkpoint(published)["network_weights"]
    for network in (one.network, one.model.teacher.backbone.network):
        for name, value in network.state_dict().items():
            assert ".seg_layers." in name or torch.equal(value, weights[name]), name
    before = {name: value.clone() for name, value in one.network.state_dict().items()}
    del weights["encoder.stages.0.0.convs.0.conv.weight"]
    save_checkpoint({"network_weights": weights}, tmp_path / "other.pth")
    with refused(CheckpointError, path="other.pth") as caught:
        run_training.load_pretrained_weights(one.network, str(tmp_path / "other.pth"), verbose=True)
    assert "-d 900 -p nnUNetPlans" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in one.network.state_dict().items())
