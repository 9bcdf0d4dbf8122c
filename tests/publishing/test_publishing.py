"""A published folder: nothing private in it, a card that the hub reads, and the same weights to the bit."""

import json
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
import torch
from support.publications import CASES, HOME
from support.refused import refused

from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.errors import CheckpointError, InputError, OccupiedError
from nnunet_alice.publishing.card import CardText
from nnunet_alice.publishing.publish import publish

TEXT = CardText("Chest CT", "cc-by-4.0")


def everything(folder) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_weights_and_settings_are_those_of_the_checkpoint(published, checkpoint):
    there, here = load_checkpoint(checkpoint), load_checkpoint(published.folder)
    assert here["network_weights"].keys() == there["network_weights"].keys()
    for name, tensor in there["network_weights"].items():
        assert torch.equal(here["network_weights"][name], tensor), name
    for name in ("plans", "configuration", "method", "num_input_channels", "epochs_done", "trained"):
        assert here["pretraining"][name] == there["pretraining"][name]
    assert here["pretraining"]["hyper_parameters"]["range"] == (0.04, 0.4)
    assert here["nnssl_adaptation_plan"] == there["nnssl_adaptation_plan"]


def test_tensors_with_two_names_are_written_once(published, checkpoint):
    weights = load_checkpoint(checkpoint)["network_weights"]
    once = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in weights.values()}
    size = (published.folder / "model.safetensors").stat().st_size
    assert len(once) < len(weights) and sum(once.values()) < size < sum(once.values()) + 20_000


def test_nothing_private_is_in_it(published, home):
    content = everything(published.folder)
    for secret in (*CASES, HOME, str(home), "somebody"):
        assert secret.encode() not in content, secret
    assert set(load_checkpoint(published.folder)) == {
        *("network_weights", "pretraining", "nnssl_adaptation_plan", "citations", "trainer_name"),
    }
    told = " ".join(published.left_out)
    assert "2 cases" in told and "2 paths or names" in told and "optimizer_state" in told
    assert all(line in (published.folder / "README.md").read_text() for line in published.left_out)


def test_names_of_cases_stay_if_asked_for_and_paths_do_not(checkpoint, tmp_path):
    folder = publish(checkpoint, tmp_path / "out", TEXT, case_names=True).folder
    assert (folder / "training_cases.txt").read_text().split() == sorted(CASES)
    dataset = load_checkpoint(folder)["pretraining"]["dataset_json"]["dataset"]
    assert dataset.keys() == set(CASES) and HOME.encode() not in everything(folder)


def test_checksums_are_those_of_sha256sum(published):
    result = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=published.folder, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.count("OK") == len(published.files) - 2
    own = subprocess.run(["sha256sum", published.folder / "SHA256SUMS"], capture_output=True, text=True)
    assert own.stdout.split()[0] == published.checksum


def test_the_hub_reads_the_card(checkpoint, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    text = replace(TEXT, data=("LIDC-IDRI: 1010 CT",), citation="Doe, Ümlaut: 2026", limits="Adults only.")
    folder = publish(checkpoint, tmp_path / "out", text).folder
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "nnunet_alice"
    assert {"alice", "self-supervised", "nonorm"} <= set(card.data.tags)
    for words in ("# Chest CT", "LIDC-IDRI: 1010 CT", "Doe, Ümlaut: 2026", "Adults only.", "ICCV 2023", "3 of 3"):
        assert words in card.text, words


def test_inspect_tells_how_to_go_on_without_the_dataset(published):
    described = describe_checkpoint(published.folder)
    assert described["fine-tune"] == [f"nnunet_alice fetch {published.folder.resolve()} -d TARGET"]
    assert described["method"].startswith("Alice")


def test_the_evaluation_comes_from_a_report(checkpoint, tmp_path):
    rows = [(3, 100, "mean", "dice", arm, 0.7, 0.65, 0.75, gain) for arm, gain in (("scratch", None), ("alice", 0.02))]
    names = ["labels", "percent", "class", "metric", "arm", "mean", "low", "high", "difference"]
    table = pd.DataFrame(rows, columns=names).assign(difference_low=0.01, difference_high=0.03)
    (tmp_path / "report").mkdir()
    table.to_csv(tmp_path / "report" / "summary.csv", index=False)
    folder = publish(checkpoint, tmp_path / "out", TEXT, report=tmp_path / "report").folder
    assert "| 3 | 100 | alice | 0.7 [0.65, 0.75] | 0.02 [0.01, 0.03] |" in (folder / "README.md").read_text()
    assert (folder / "evaluation.csv").read_text() == (tmp_path / "report" / "summary.csv").read_text()


def test_the_fingerprint_comes_without_what_we_put_beside_it(published):
    fingerprint = json.loads((published.folder / "dataset_fingerprint.json").read_text())
    assert fingerprint == {"spacings": [[2.0, 1.0, 1.5]], "shapes_after_crop": [[18, 20, 16]]}


def test_only_a_publication_is_replaced(checkpoint, tmp_path):
    publish(checkpoint, tmp_path / "out", TEXT)
    again = publish(checkpoint, tmp_path / "out", replace(TEXT, name="Second")).folder
    assert "# Second" in (again / "README.md").read_text()
    (again / "mine.txt").write_text("keep")
    with refused(OccupiedError, value="mine.txt", option="-o"):
        publish(checkpoint, tmp_path / "out", TEXT)
    assert (again / "mine.txt").read_text() == "keep"


def test_the_folder_that_one_is_in_is_not_replaced(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(InputError, path=tmp_path, option="-o"):
        publish(checkpoint, ".", TEXT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("licence", "fields"), [("Apache 2.0!", {"value": "Apache 2.0!"}), ("other", {"option": "--licence_file"})]
)
def test_licences_that_nobody_can_look_up_are_refused(checkpoint, tmp_path, licence, fields):
    with refused(InputError, **fields):
        publish(checkpoint, tmp_path / "out", replace(TEXT, licence=licence))
    assert not (tmp_path / "out").exists()


def test_a_licence_of_ones_own_needs_its_text(checkpoint, tmp_path):
    (tmp_path / "terms.txt").write_text("Be kind.")
    text = replace(TEXT, licence="other")
    folder = publish(checkpoint, tmp_path / "out", text, licence_file=tmp_path / "terms.txt").folder
    assert (folder / "LICENSE").read_text() == "Be kind." and "license_link: LICENSE" in (
        folder / "README.md"
    ).read_text()


def test_other_checkpoints_are_refused(tmp_path):
    save_checkpoint({"network_weights": {"a": torch.ones(1)}, "trainer_name": "nnUNetTrainer"}, tmp_path / "c.pth")
    with refused(CheckpointError, path="c.pth", command="nnunet_alice export"):
        publish(tmp_path / "c.pth", tmp_path / "out", TEXT)


def test_weights_that_diverged_are_not_published(checkpoint, tmp_path):
    content = load_checkpoint(checkpoint)
    next(iter(content["network_weights"].values()))[:] = float("nan")
    save_checkpoint(content, tmp_path / "c.pth")
    with refused(CheckpointError, path="c.pth", value=4):
        publish(tmp_path / "c.pth", tmp_path / "out", TEXT)
    assert not (tmp_path / "out").exists()
