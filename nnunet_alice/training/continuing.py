"""Runs that stop before their end, and runs that are to become longer: what to type next."""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_alice.errors import INTERRUPTED
from nnunet_alice.parallel import end_processes
from nnunet_alice.words import pasteable

#: where nnU-Net continues from, whichever is there first
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
#: endings of trainers' names that say how long a run is
_LENGTH = re.compile(r"_\d+(?:epochs?|iterations?)(?=_|$)")


@contextmanager
def told_when_interrupted(folder: str, log: Callable[[str], None]) -> Iterator[None]:
    """Let Ctrl-C end a training with one sentence that says how it goes on.

    Args:
        folder: of the run.
        log: takes the sentence.

    Raises:
        SystemExit: in place of ``KeyboardInterrupt``.
    """
    try:
        yield
    except KeyboardInterrupt:
        end_processes()
        there = (Path(folder) / "checkpoint_latest.pth").is_file()
        kept = "goes on from checkpoint_latest.pth" if there else "begins again, as no checkpoint was written yet"
        log(f"Interrupted. The same command with --c {kept}.")
        raise SystemExit(INTERRUPTED) from None


def advice_without_checkpoint(folder: str) -> str:
    """Return what to know where ``--c`` found nothing to go on from.

    A trainer's name says how long it trains, and every name has its own folder: whoever asks for more epochs and
    ``--c`` finds nothing there.

    Args:
        folder: of the run, ``.../<trainer>__<plans>__<configuration>/fold_<N>``.
    """
    fold = Path(folder)
    said = f"--c found no checkpoint in {folder}: the run begins again."
    trainer, *rest = fold.parent.name.split("__")
    others = [
        path
        for path in sorted(fold.parent.parent.glob(f"*/{fold.name}/checkpoint_final.pth"))
        if _kind(path.parent.parent.name) == (_LENGTH.sub("", trainer), rest)
    ]
    if not others:
        return said
    return f"{said} {longer_run(max(others, key=lambda path: path.stat().st_mtime))}"


def longer_run(checkpoint: Path) -> str:
    """Return how a finished pretraining is made longer.

    Args:
        checkpoint: its last one.
    """
    command = pasteable("nnunet_alice", "extend", "-i", checkpoint.parent, "--epochs", "N")
    return f"To make a finished pretraining longer, run: {command}"


def set_aside_checkpoints(folder: str, log: Callable[[str], None]) -> None:
    """Rename checkpoints of an older run, which a later step or ``--c`` would take for those of the run that begins.

    Args:
        folder: of both runs.
        log: takes a sentence that names the files.
    """
    found = [path for path in (Path(folder, name) for name in CHECKPOINTS) if path.is_file()]
    if not found:
        return
    for number in itertools.count(1):
        renamed = [path.with_name(f"{path.stem}_old{number}{path.suffix}") for path in found]
        if not any(path.exists() for path in renamed):
            break
    for path, new in zip(found, renamed, strict=True):
        path.rename(new)
    names = ", ".join(f"{path.name} is {new.name} now" for path, new in zip(found, renamed, strict=True))
    log(f"WARNING: {folder} holds an older run, which --c would have continued; this one begins again: {names}.")


def _kind(model: str) -> tuple[str, list[str]]:
    """Return trainer without its length, plans and configuration, of the name of a model's folder."""
    trainer, *rest = model.split("__")
    return _LENGTH.sub("", trainer), rest
