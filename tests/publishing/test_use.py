"""What was fetched is used like the checkpoint itself, on a machine that never saw its dataset."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from support.labelled_runs import make_finetuner, stay_in_process, write_labelled, write_splits
from support.small_datasets import set_folders
from support.upstream_reader import network_with_weights

from nnunet_alice.benchmark.leakage import pretraining_cases
from nnunet_alice.benchmark.weights import Weights
from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.transfer import transfer_checkpoint
from nnunet_alice.checkpoints.weights_folder import write_sums
from nnunet_alice.cli.main import main
from nnunet_alice.matching.index import checkpoint_checksum
from nnunet_alice.publishing.card import CardText
from nnunet_alice.publishing.fetch import fetch
from nnunet_alice.publishing.publish import publish
from nnunet_alice.publishing.target_plans import give_plans
from nnunet_alice.trainers import finetuning


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A machine with a labelled dataset and nothing else: folder of the preprocessed dataset."""
    set_folders(monkeypatch, tmp_path)
    stay_in_process(monkeypatch)
    folder = write_labelled(tmp_path / "preprocessed", 2)
    write_splits(folder, (["case00"], ["case01"]))
    raw = tmp_path / "raw" / folder.name
    raw.mkdir()
    content = json.loads((folder / "dataset.json").read_text())
    content["dataset"] = {"case00": {"images": ["case00_0000.nii.gz"], "label": "case00.nii.gz"}}
    (raw / "dataset.json").write_text(json.dumps(content | {"overwrite_image_reader_writer": "SimpleITKIO"}))
    return folder


def fine_tuned(folder, weights) -> dict[str, torch.Tensor]:
    """Weights after a short training from ``weights``."""
    trainer = make_finetuner(finetuning.FineTuneTrainer_1epochs_2iterations_seed1, folder)
    trainer.initialize()
    trainer.load_pretrained_weights(str(weights))
    trainer.run_training()
    state = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    shutil.rmtree(trainer.output_folder)
    return state


def test_fine_tuning_is_that_of_the_original_to_the_bit(published, checkpoint, serve, elsewhere, tmp_path):
    folder = fetch(f"{serve(published.folder).address}/files", published.checksum, tmp_path / "cache")
    given = give_plans(folder, 901, "3d_fullres")
    shutil.copytree(elsewhere / "nnUNetPlans_3d_fullres", elsewhere / f"{given.plans_name}_3d_fullres")
    shutil.copy(given.file, elsewhere / "nnUNetPlans.json")  # where make_finetuner looks
    ours, theirs = fine_tuned(elsewhere, folder), fine_tuned(elsewhere, checkpoint)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    start = load_checkpoint(folder)["network_weights"]
    assert not torch.equal(
        ours["encoder.stages.0.0.convs.0.conv.weight"], start["encoder.stages.0.0.convs.0.conv.weight"]
    )


def test_plans_whose_configuration_inherits_are_given(published, elsewhere, tmp_path):
    folder = shutil.copytree(published.folder, tmp_path / "copy")
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["small"] = {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    (folder / "plans.json").write_text(json.dumps(plans))
    write_sums(folder)
    given = json.loads(give_plans(folder, 901, "small").file.read_text())["configurations"]
    assert given["small"] == plans["configurations"]["small"] | {"batch_size": 2}
    assert given["3d_fullres"]["batch_size"] == 1


def test_transfer_takes_the_folder(published, checkpoint, elsewhere, tmp_path):
    tables = [
        transfer_checkpoint(source, 901, output=tmp_path / f"{number}.pth")
        for number, source in enumerate((published.folder, checkpoint))
    ]
    assert tables[0].share("encoder") == tables[1].share("encoder") == 1
    one, two = (load_checkpoint(tmp_path / f"{number}.pth")["network_weights"] for number in range(2))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_upstream_reads_what_fetch_writes_as_pth(published, checkpoint, tmp_path):
    """nnUNetv2_preprocess_like_nnssl and nnUNetv2_train_pretrained of nnU-Net's development branch."""
    assert main(["fetch", str(published.folder), "--pth", str(tmp_path / "upstream.pth")]) == 0
    network = network_with_weights(tmp_path / "upstream.pth", channels=1, classes=3)
    for name, weight in load_checkpoint(checkpoint)["network_weights"].items():
        if name.startswith("encoder."):
            assert torch.equal(network.state_dict()[name], weight), name


def test_a_benchmark_knows_whether_it_saw_the_test_images(published, checkpoint, tmp_path):
    assert pretraining_cases(str(published.folder)) is None, "names were left out"
    named = publish(checkpoint, tmp_path / "named", CardText("x", "mit"), case_names=True).folder
    assert set(pretraining_cases(str(named))) == {"smith_john", "doe_jane"}


def test_a_benchmark_knows_the_folder_by_its_content(published, checkpoint, tmp_path):
    arms = {"ours": SimpleNamespace(name="ours", checkpoints=(str(published.folder), str(checkpoint)), parts="all")}
    settings = SimpleNamespace(arms=list(arms.values()), arm=arms.get)
    weights = Weights(SimpleNamespace(folder=tmp_path), settings)
    weights.check()
    assert weights.checksum("ours", 0) == published.checksum[:8] != weights.checksum("ours", 1)


def test_a_folder_has_a_checksum(published, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(published.folder, changed)
    assert checkpoint_checksum(changed) == checkpoint_checksum(published.folder) == published.checksum
