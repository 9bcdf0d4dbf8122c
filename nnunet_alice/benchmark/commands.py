"""One call of a public command, and how a benchmark makes it: its output in a log, ended with the benchmark."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_alice.benchmark import alone


@dataclass(frozen=True)
class Command:
    """One call of a public command.

    Attributes:
        words: program and arguments.
        environment: variables to set on top of the present ones.
        log: file that gets what it prints.
    """

    words: tuple[str, ...]
    environment: dict[str, str]
    log: Path

    def __str__(self) -> str:
        """Return a line for a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, *map(shlex.quote, self.words)])


def run_command(command: Command, locks: Sequence[int] = ()) -> int:
    """Run a command, its output appended to its log; ends it when this process is interrupted.

    Args:
        command: what to run.
        locks: descriptors of locks. The command holds them, too, and none of the processes that it starts does. It has
            to be a Python script then.

    Returns:
        its exit status.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    scripts = str(Path(sys.executable).parent)  # where pip put the commands, on the PATH or not
    environment = {**os.environ, **command.environment, "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"}
    words = command.words
    if locks:
        words = (sys.executable, alone.__file__, ",".join(map(str, locks)), *words)
    with command.log.open("ab") as log:
        log.write(f"$ {command}\n".encode())
        log.flush()
        with subprocess.Popen(
            words, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=tuple(locks)
        ) as process:
            try:
                return process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
