"""The demo's commands: processes of this installation, each with its output in a log file."""

import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from nnunet_alice.discovery import trainer_folders
from nnunet_alice.errors import SOME_FAILED, AliceError

#: How commands start. A server imports these once and forks, which saves each command some eight seconds. nnunetv2 is
#: not among them: it reads its folders from the environment when it is imported.
_START = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")
_IMPORTED_ONCE = ["torch", "torch._dynamo", "scipy.ndimage", "SimpleITK", "skimage.registration", "pandas", "seaborn"]


@dataclass
class Commands:
    """Runs steps one after the other, and remembers what ran and how long it took.

    Attributes:
        folder: nnU-Net's folders and ``logs`` lie in it.
        announce: called with every step's name before it starts.
        environment: beside nnU-Net's folders.
        seconds: step -> seconds.
        typed: every command that ran, as typed.
    """

    folder: Path
    announce: Callable[[str], None]
    environment: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)

    def timed(self, name: str, work: Callable[[], None]) -> None:
        """Do a step that is no command."""
        self.announce(name)
        start = time.time()
        work()
        self.seconds[name] = time.time() - start

    def run(self, name: str, command: Sequence[str], results: Path, whole: bool) -> None:
        """Run one command with its output in a log.

        Args:
            name: of the step.
            command: program and arguments.
            results: ``nnUNet_results``.
            whole: whether a command that left out single cases (``SOME_FAILED``; its log names them) counts as failed.

        Raises:
            AliceError: it is not installed, or failed; the message names the log.
        """
        self.typed.append(shlex.join(command))
        log = self.folder / "logs" / f"{len(self.typed):02d}_{name.replace(',', '').replace(' ', '_')}.txt"
        self.timed(name, lambda: _run(command, self._whole_environment(results), log, whole))

    def _whole_environment(self, results: Path) -> Mapping[str, str]:
        own = {
            "nnUNet_raw": str(self.folder / "nnUNet_raw"),
            "nnUNet_preprocessed": str(self.folder / "nnUNet_preprocessed"),
            "nnUNet_results": str(results),
            "nnUNet_extTrainer": trainer_folders(),
        }
        return {**os.environ, **own, **self.environment}


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> BaseProcess:
    """Start an installed command as it would be typed.

    Args:
        command: program and arguments.
        environment: all of it.
        log: what the command prints is added there.

    Raises:
        AliceError: it is not installed.
    """
    program = next(iter(entry_points(group="console_scripts", name=command[0])), None)
    if program is None:
        raise AliceError(f"The command {command[0]} was not found; install this package together with nnunetv2.").about(
            value=command[0]
        )
    _START.set_forkserver_preload(_IMPORTED_ONCE)
    process = _START.Process(target=_be, args=(program, command, environment, log))
    process.start()
    return process


def _be(program: EntryPoint, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Let this process be an installed command."""
    with log.open("a", encoding="utf-8") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # nnU-Net's pools start as in any other process
    np.random.seed()  # noqa: NPY002  nnU-Net draws from it, and forks of one process would all draw the same
    sys.argv = list(command)
    raise SystemExit(program.load()())


def _run(command: Sequence[str], environment: Mapping[str, str], log: Path, whole: bool) -> None:
    log.write_text(f"$ {shlex.join(command)}\n", encoding="utf-8")
    process = start(command, environment, log)
    process.join()
    if process.exitcode != 0 and (whole or process.exitcode != SOME_FAILED):
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
        raise AliceError(f"'{shlex.join(command[:2])} ...' failed ({''.join(last).strip()}); see {log}.").about(
            path=log
        )
