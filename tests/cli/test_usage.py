"""Every command: its help, wrong words in one sentence and status 2, and a file of tests of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_alice.cli.main import COMMANDS, main

#: command -> words that it cannot understand, and what it says
WRONG: dict[str, tuple[str, str]] = {
    "trainers": ("--all", "unrecognized arguments: --all"),
    "import": ("-i scans -d 900 -n New", "the following arguments are required: --channel"),
    "convert_btcv": ("-i RawData -d 17 --organs 12", "argument --organs: invalid choice: 12"),
    "plan": ("-d 900 -np 0", "argument -np: 0 is not above 0"),
    "anatomy": ("-d 900 --part 3/2", "argument --part"),
    "train": ("900", "the following arguments are required: configuration, fold"),
    "match": ("-d 900 --from a --point 1 2", "argument --point: expected 3 arguments"),
    "evaluate_matching": ("-d 900 --methods registration", "argument --methods: invalid choice: 'registration'"),
    "inspect": ("", "the following arguments are required: checkpoint"),
    "transfer": ("-i a.pth -d 4 -o b.pth --weights both", "argument --weights: invalid choice: 'both'"),
    "extend": ("-i fold_all --epochs 9 --learning_rate 0", "argument --learning_rate: 0 is not above 0"),
    "publish": ("-i a.pth -o model", "the following arguments are required: --licence"),
    "fetch": ("", "the following arguments are required: source"),
    "export": ("-i model", "the following arguments are required: -o/--output"),
    "benchmark": ("-o bench -device tpu", "argument -device: invalid choice: 'tpu'"),
    "report": ("-i bench -np -1", "argument -np: -1 is not above 0"),
    "features": ("-d 900 -i scans --checkpoint c.pth -o f.npz", "argument -i: not allowed with argument -d"),
    "probe": ("--features f.npz --task clustering", "argument --task: invalid choice: 'clustering'"),
    "targets": ("-d 900 --table t.csv --task regression", "the following arguments are required: --target"),
    "predict_targets": ("-i scans -o out.csv", "the following arguments are required: -m"),
    "locate": ("--atlas atlas.npz", "one of the arguments -d -i is required"),
    "demo": ("--labelled none", "argument --labelled: invalid"),
}

HELP = """
import contextlib, io, sys
from nnunet_alice.cli.main import COMMANDS, main

for name in COMMANDS:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([name, "-h"])
    assert f"nnunet_alice {name}" in text.getvalue() and "Example: " in text.getvalue(), name
    assert "torch" not in sys.modules, name  # takes seconds
"""


@pytest.mark.slow
def test_commands_answer_help_at_once_with_an_example():
    subprocess.run([sys.executable, "-c", HELP], check=True)
    installed = Path(sys.executable).parent / "nnunet_alice"
    result = subprocess.run([installed, "plan", "-h"], capture_output=True, text=True, check=True)
    assert "nnunet_alice plan" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_words_are_one_sentence_and_status_2(command, capsys):
    words, said = WRONG[command]
    with pytest.raises(SystemExit) as caught:
        main([command, *words.split()])
    *_, last = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and "error: " in last and said in last


@pytest.mark.parametrize("module", [module for module, _ in COMMANDS.values()])
def test_every_command_has_a_file_of_tests(module):
    assert "def test_" in (Path(__file__).parent / f"test_{module}.py").read_text()
