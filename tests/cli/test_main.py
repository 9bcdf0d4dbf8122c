"""How every command ends: good, not for all cases, interrupted, unread, refused by the system."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import pytest

from nnunet_alice.cli import main as entry
from nnunet_alice.cli.common import NO_READER, name_some
from nnunet_alice.errors import INTERRUPTED, InputError

#: a command that works on cases in two processes, each of which takes for ever
SLOW = """
import signal, sys, time
from functools import partial
from types import ModuleType
from nnunet_alice.cli import main as entry
from nnunet_alice.parallel import map_cases

def work(shared, case):
    open(f"{shared}/{case}", "w").close()
    time.sleep(600)

def run(args):
    list(map_cases(partial(work, args.folder), ["a", "b", "c"], 2, "Working"))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    slow = ModuleType("nnunet_alice.cli.slow")
    slow.run, slow.EXAMPLE, slow.RESUMES = run, "", True
    slow.add_arguments = lambda parser: parser.add_argument("folder")
    sys.modules[slow.__name__] = slow
    entry.COMMANDS["slow"] = ("slow", "")
    sys.exit(entry.main())
"""


@pytest.fixture
def command(monkeypatch):
    """Registers a command that does what it is given."""

    def register(run, **attributes):
        module = ModuleType("nnunet_alice.cli.tried")
        module.add_arguments, module.run, module.EXAMPLE = lambda parser: None, run, ""
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(entry.COMMANDS, "tried", ("tried", ""))
        return ["tried"]

    return register


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_parent_and_workers_with_one_sentence(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    words = [sys.executable, str(script), "slow", str(tmp_path)]
    with subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        limit = time.time() + 60
        while not ((tmp_path / "a").exists() and (tmp_path / "b").exists()) and time.time() < limit:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: to all of them
        _, printed = process.communicate(timeout=20)  # workers hold the pipe as well: it ends when all have
    assert process.returncode == INTERRUPTED
    lines = [line for line in printed.splitlines() if line.strip() and not line.startswith("Working")]
    assert lines == ["nnunet_alice slow: interrupted; run it again: what is done is kept."]


def test_ctrl_c_promises_only_what_the_command_keeps(command, capsys):
    assert entry.main(command(raising(KeyboardInterrupt()))) == INTERRUPTED
    assert "nothing is left half-written; run it again" in capsys.readouterr().err
    assert entry.main(command(raising(KeyboardInterrupt()), RESUMES=True)) == INTERRUPTED
    assert "what is done is kept" in capsys.readouterr().err


@pytest.mark.parametrize("say", ["print", "logging.getLogger('x').info"])
def test_a_reader_that_leaves_gets_no_traceback(tmp_path, say):
    script = tmp_path / "talk.py"
    script.write_text(
        SLOW.replace("    list(map_cases", f"    import logging\n    for n in range(100000): {say}(str(n))\n    list(")
    )
    words = [sys.executable, str(script), "slow", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        printed = process.stderr.read()
    assert (process.returncode, printed) == (NO_READER, "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("Case a is bad; mend it."), "nnunet_alice tried: Case a is bad; mend it."),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free space"),
        (OSError(errno.EROFS, "Read-only file system", "/cd/x"), "/cd/x: Read-only file system; choose a folder"),
        (OSError(errno.EACCES, "Permission denied", "/etc/x"), "/etc/x: Permission denied; look at the permissions"),
    ],
)
def test_what_can_be_mended_is_one_sentence(command, capsys, error, said):
    assert entry.main(command(raising(error))) == 1
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


@pytest.mark.parametrize("error", [OSError("no number: not the system's"), KeyError("a fault of ours")])
def test_faults_of_ours_are_not_hidden(command, error):
    with pytest.raises(type(error)):
        entry.main(command(raising(error)))


def test_long_lists_of_cases_are_cut(capsys):
    name_some("failed", ((f"case{number}", "bad") for number in range(25)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21 and lines[0] == "  failed: case0: bad" and lines[-1] == "  ... and 5 more"
