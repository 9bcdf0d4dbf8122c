"""A BIDS folder: one case a subject, session and run, its channels by the suffix of the file names."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nnunet_alice.errors import InputError
from nnunet_alice.importing.endings import is_pipe_or_device
from nnunet_alice.importing.scan import Candidate

#: Names of channels that BIDS writes otherwise.
_SUFFIXES = {"t1": "t1w", "t2": "t2w", "pd": "pdw"}
#: Folders of one subject or session whose images are single volumes.
_DATATYPES = ("anat", "ct", "pet")
_NAME = re.compile(r"(sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9+]+)*)_([A-Za-z0-9]+)\.(?i:nii(?:\.gz)?)")
#: Parts of a name that make channels one case; others, such as acq-mprage, may differ between channels.
_SHARED = ("sub", "ses", "run")


def is_bids(folder: Path) -> bool:
    """Return whether a folder is laid out as BIDS: ``sub-*/anat``, with or without sessions."""
    return any(next(folder.glob(f"sub-*/{way}anat"), None) is not None for way in ("", "ses-*/"))


def bids_cases(folder: Path, channels: Sequence[str]) -> list[Candidate]:
    """Return the cases of a BIDS folder. Derivatives, masks, series over time and source data are passed over.

    Args:
        folder: holds ``sub-*/[ses-*/]anat/*.nii.gz``.
        channels: suffixes, e.g. ``T1w``; ``T1``, ``T2``, ``PD`` stand for ``T1w``, ``T2w``, ``PDw``; case does not
            matter.

    Raises:
        InputError: no file has one of the suffixes; the message names those that are there.
    """
    found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for kind in _DATATYPES:
        for way in ("", "ses-*/"):
            for path in sorted(folder.glob(f"sub-*/{way}{kind}/*")):
                if (match := _NAME.fullmatch(path.name)) and not is_pipe_or_device(path):
                    found[match[2].casefold()].append((match[1], path))
    cases: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for number, channel in enumerate(channels):
        name = channel.casefold()
        files = found.get(name) or found.get(_SUFFIXES.get(name, name))
        if not files:
            there = ", ".join(
                f"{paths[0][1].name.split('.')[0].rsplit('_')[-1]} ({len(paths)})" for paths in found.values()
            )
            raise InputError(
                f"No file of the BIDS folder {folder} is a {channel}; name one with --channel: {there}."
            ).about(path=folder, option="--channel", value=channel)
        for entities, path in files:
            cases[entities if len(channels) == 1 else _shared(entities)][number].append(path)
    return [_candidate(name, files, channels) for name, files in sorted(cases.items())]


def _shared(entities: str) -> str:
    return "_".join(part for part in entities.split("_") if part.partition("-")[0] in _SHARED)


def _candidate(name: str, files: dict[int, list[Path]], channels: Sequence[str]) -> Candidate:
    everything = tuple(path for number in sorted(files) for path in files[number])
    missing = [channel for number, channel in enumerate(channels) if number not in files]
    twice = [paths for paths in files.values() if len(paths) > 1]
    problem = None
    if missing:
        problem = f"missing channel: no {' and no '.join(missing)}."
    elif twice:
        problem = f"duplicate case: {' and '.join(path.name for path in twice[0])} claim the same channel; keep one."
    elif any("$" in str(path) for path in everything):
        problem = "nnU-Net reads $ in a path as an environment variable; rename the file or folder."
    return Candidate(name, everything, problem)
