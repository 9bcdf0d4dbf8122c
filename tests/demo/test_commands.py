"""Commands of the demo are processes as a shell would start them, but for what one server has imported for all."""

import json
import multiprocessing
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from support.refused import refused

from nnunet_alice.demo import commands
from nnunet_alice.errors import AliceError


def say() -> int:
    """The command of these tests."""
    import os

    own = {"words": sys.argv, "environment": dict(os.environ), "start": multiprocessing.get_start_method()}
    print(json.dumps(own | {"drawn": np.random.random()}))  # noqa: NPY002
    print("the last word", file=sys.stderr)
    return int(sys.argv[1])


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(commands, "_IMPORTED_ONCE", [])
    found = EntryPoint("say", f"{__name__}:say", "console_scripts")
    monkeypatch.setattr(commands, "entry_points", lambda group, name: [found] if name == found.name else [])


def test_a_command_gets_words_environment_and_nnunets_workers(installed, tmp_path):
    said = []
    for name in "ab":
        command = commands.start(["say", "3"], {"ONLY": "this"}, tmp_path / name)
        command.join()
        first, last = (tmp_path / name).read_text().splitlines()
        assert command.exitcode == 3 and last == "the last word"
        said.append(json.loads(first))
    for own in said:
        assert own["words"] == ["say", "3"]
        assert own["environment"]["ONLY"] == "this" and "PATH" not in own["environment"]
        assert own["start"] == multiprocessing.get_start_method()
    assert said[0]["drawn"] != said[1]["drawn"], "forks of one process draw the same numbers"


def test_a_failed_command_ends_the_demo_with_its_last_line_and_log(installed, tmp_path):
    (tmp_path / "logs").mkdir()
    demo = commands.Commands(tmp_path, lambda step: None, {})
    demo.run("well", ["say", "0"], tmp_path, whole=True)
    with refused(AliceError, path=tmp_path / "logs" / "02_not_well.txt"):
        demo.run("not well", ["say", "1"], tmp_path, whole=True)
    with refused(AliceError, value="nobody"):
        demo.run("not there", ["nobody"], tmp_path, whole=True)
    assert demo.typed == ["say 0", "say 1", "nobody"] and list(demo.seconds) == ["well"]
