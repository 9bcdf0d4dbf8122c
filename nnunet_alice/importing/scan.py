"""Which files of a folder make which case: nnU-Net's channel suffix, or one plain file a case."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_alice.importing.checks import volume_ending

#: Folders of labels in nnU-Net's and the Decathlon's layout; their files are no unlabelled volumes.
LABEL_FOLDERS = ("labelsTr", "labelsTs", "labelsPr")
#: With one channel, `x_0000`, `x_0001`, ... are channels that were not named if there are at most so many of them, and
#: a numbered series of cases if there are more.
MAX_CHANNELS = 10


@dataclass(frozen=True)
class Candidate:
    """Files that make one case.

    Attributes:
        name: name of the case: the path below the folder without ending and suffix, ``/`` written as ``__``.
        files: one per channel, or all that belong to the name if there is a problem.
        problem: why the case cannot be imported, found without opening a file; None if nothing was found.
    """

    name: str
    files: tuple[Path, ...]
    problem: str | None = None

    def __str__(self) -> str:
        return self.name


def find_cases(folder: Path, num_channels: int) -> list[Candidate]:
    """Group the volumes of a folder and its sub-folders into cases.

    Hidden files and folders, folders of labels and files of other endings are passed over.

    Args:
        folder: where to look; links are followed.
        num_channels: channels of a case. With one, a name may be plain or end in ``_0000``; with more, it has to end in
            ``_0000``, ``_0001``, ...

    Returns:
        cases sorted by name, those with a problem included.
    """
    named = [(_case_name(path, folder), path) for path in _volumes(folder)]
    numbers = defaultdict(set)
    for name, _ in named:
        base, number = _split(name)
        if number is not None:
            numbers[base].add(number)
    channels: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for name, path in named:
        base, number = _split(name)
        if number is not None and (num_channels > 1 or (0 in numbers[base] and len(numbers[base]) <= MAX_CHANNELS)):
            channels[base][number].append(path)
        else:
            channels[name][0 if num_channels == 1 else -1].append(path)
    return [_candidate(name, files, num_channels) for name, files in sorted(channels.items())]


def _candidate(name: str, files: dict[int, list[Path]], num_channels: int) -> Candidate:
    everything = tuple(path for number in sorted(files) for path in sorted(files[number]))
    problem = None
    missing = [f"_{number:04d}" for number in range(num_channels) if number not in files]
    extra = [f"_{number:04d}" for number in sorted(files) if number >= num_channels]
    twice = [paths for paths in files.values() if len(paths) > 1]
    if -1 in files:
        problem = f"has no channel suffix (_0000 to _{num_channels - 1:04d}), but {num_channels} channels were named."
    elif twice:
        problem = f"duplicate case: {' and '.join(path.name for path in twice[0])} claim the same name; keep one."
    elif missing:
        problem = f"missing channel: no file {', '.join(name + suffix for suffix in missing)}."
    elif extra:
        problem = f"has channels {', '.join(extra)} that were not named; name every channel with --channel."
    elif name.endswith("_seg"):
        problem = "nnU-Net takes names that end in _seg for segmentations; rename it if it is an image."
    elif any("$" in str(path) for path in everything):
        problem = "nnU-Net reads $ in a path as an environment variable; rename the file or folder."
    return Candidate(name, everything, problem)


def _split(name: str) -> tuple[str, int | None]:
    """Name without channel suffix, and the channel; (name, None) if there is no suffix."""
    match = re.fullmatch(r"(.+)_(\d{4})", name)
    return (match[1], int(match[2])) if match else (name, None)


def _case_name(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder)
    stem = relative.name[: -len(volume_ending(path))]
    return "__".join([*relative.parts[:-1], stem])


def _volumes(folder: Path) -> Iterator[Path]:
    seen = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(root, name))
            # A link back up would be walked for ever.
            if not name.startswith(".") and name not in LABEL_FOLDERS and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path = Path(root, name)
            if not name.startswith(".") and volume_ending(path):
                yield path
