"""One call of a public command, and how a benchmark makes it: its output in a log, ended with the benchmark."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
        """A line for a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, *map(shlex.quote, self.words)])


def run_command(command: Command, keep_open: Sequence[int] = ()) -> int:
    """Run a command, its output appended to its log; ends it when this process is interrupted.

    Args:
        command: what to run.
        keep_open: file descriptors that it inherits.

    Returns:
        its exit status.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    scripts = str(Path(sys.executable).parent)  # where pip put the commands, on the PATH or not
    environment = {**os.environ, **command.environment, "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"}
    with open(command.log, "ab") as log:
        log.write(f"$ {command}\n".encode())
        log.flush()
        with subprocess.Popen(
            command.words, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=tuple(keep_open)
        ) as process:
            try:
                return process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
