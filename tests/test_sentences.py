"""What errors say, word for word: the one place where their wording is tested. All others go by class and fields."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.refused import check_sentence
from support.sentences import COMMANDS, ROWS
from support.small_datasets import write_preprocessed

from nnunet_alice.cli.main import COMMANDS as COMMAND_TABLE
from nnunet_alice.cli.main import main
from nnunet_alice.errors import AliceError, NonFiniteLossError, StaleError, UnknownTrainerError
from nnunet_alice.trainers import drasclr
from nnunet_alice.training.variants import named_trainer


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    """A small dataset and files of all sorts; paths in the sentences are relative to it."""
    base = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, name)
            Path(name).mkdir()
        write_preprocessed(Path("nnUNet_preprocessed"), {"c0": np.zeros((1, 8, 8, 8), np.float32)}, (1.0, 1.0, 1.0))
        Path("cut.json").write_text("{")
        Path("empty").mkdir()
        Path("scans").mkdir()
        Path("cut.pth").write_bytes(b"half")
        Path("one.csv").write_text("case\n")
        Path("labels.csv").write_text("case,age\nc0,3\n")
        Path("semicolons.csv").write_text("case;age\nc0;3,5\n")
        torch.save(torch.ones(2), "tensor.pth")
        torch.save({"state_dict": {}, "epoch": 3}, "other.pth")
        torch.save({"network_weights": {"encoder.w": torch.tensor([1.0, torch.nan])}}, "nan.pth")
        torch.save({"network_weights": torch.nn.Linear(2, 2)}, "code.pth")
        Path("pickled").mkdir()
        torch.save({}, "pickled/pytorch_model.bin")
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("provoke", "sentence"), ROWS, ids=[sentence[:50] for _, sentence in ROWS])
def test_functions(provoke, sentence):
    with pytest.raises(AliceError) as caught:
        provoke()
    assert str(caught.value).replace(f"{Path.cwd()}/", "") == sentence
    check_sentence(caught.value)
    check_style(sentence)


@pytest.mark.parametrize(("arguments", "sentence"), COMMANDS, ids=[arguments[:40] for arguments, _ in COMMANDS])
def test_commands(arguments, sentence, capsys):
    assert main(arguments.split()) == 1
    told = capsys.readouterr().err.replace(f"{Path.cwd()}/", "")
    assert told == f"nnunet_alice {arguments.split()[0]}: {sentence}\n"
    check_style(sentence)


def check_style(sentence):
    """One sentence of at most 45 words that begins with a capital or with what it is about, and is finished."""
    assert not re.search(r"[.?!] [A-Z]", sentence) and len(sentence.split()) <= 45
    assert sentence.endswith((".", "?")) or "run: " in sentence


def test_every_command_has_its_sentence():
    assert {arguments.split()[0] for arguments, _ in COMMANDS} == set(COMMAND_TABLE) - {"trainers"}


def test_errors_keep_sentence_and_fields_between_processes():
    errors = [
        StaleError("c0.npz is stale.").about(case="c0", path="x/c0.npz", value=[1], command="run", column="age"),
        NonFiniteLossError(3, 7, ["c0"], "AliceTrainer_lr0.001"),
        named_error("DrasCLRTrainer_9expert"),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


def named_error(name):
    with pytest.raises(UnknownTrainerError) as caught:
        named_trainer(name, vars(drasclr))
    return caught.value
