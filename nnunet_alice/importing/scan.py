"""Which files of a folder make which case: nnU-Net's channel suffix, or one plain file a case."""

import contextlib
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_alice.errors import named
from nnunet_alice.importing.endings import ENDINGS, data_files, ending_of, is_pipe_or_device, volume_ending, what_it_is
from nnunet_alice.words import counted

#: Folders of labels in nnU-Net's and the Decathlon's layout; their files are no unlabelled volumes.
LABEL_FOLDERS = ("labelsTr", "labelsTs", "labelsPr")
#: With one channel, `x_0000`, `x_0001`, ... are channels that were not named if there are at most so many of them, and
#: a numbered series of cases if there are more.
MAX_CHANNELS = 10
#: Files of an ending that are named as examples.
_EXAMPLES = 3


@dataclass(frozen=True)
class Candidate:
    """Files that make one case.

    Attributes:
        name: name of the case: the path below the folder without ending and suffix, ``/`` written as ``__``.
        files: one per channel, or all that belong to the name if there is a problem.
        problem: why the case cannot be imported, found without reading a voxel; None if nothing was found.
        data_files: files that hold the voxels of ``files``, where those are headers.
    """

    name: str
    files: tuple[Path, ...]
    problem: str | None = None
    data_files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return self.name


@dataclass
class OtherFiles:
    """Files of one ending that are no volumes.

    Attributes:
        count: how many there are.
        what: what they are and how to mend it; empty if nothing says that they are images.
        examples: the first of them, below the folder.
    """

    count: int = 0
    what: str = ""
    examples: list[str] = field(default_factory=list)


@dataclass
class Scan:
    """What a folder holds.

    Attributes:
        cases: sorted by name, those with a problem included.
        unlistable: folder -> why its files could not be listed.
        others: ending -> files that were passed over; labels and hidden files are not counted.
        other_paths: all these files.
    """

    cases: list[Candidate] = field(default_factory=list)
    unlistable: dict[str, str] = field(default_factory=dict)
    others: dict[str, OtherFiles] = field(default_factory=dict)
    other_paths: list[Path] = field(default_factory=list)


def passed_over(scan: Scan) -> str:
    """Return which files and folders were passed over, and why, for a message; empty if none.

    Args:
        scan: of a folder.
    """
    parts = [f"{folder} cannot be listed ({reason})" for folder, reason in scan.unlistable.items()]
    for ending, entry in scan.others.items():
        what = f": {entry.what}" if entry.what else ""
        parts.append(f"{counted(entry.count, f'{ending} file')} ({named(entry.examples)}){what}")
    return "; ".join(parts)


def scan_folder(folder: Path, num_channels: int, endings: tuple[str, ...] = ENDINGS, more: str = "") -> Scan:
    """Group the volumes of a folder and its sub-folders into cases.

    Hidden files and folders, folders of labels, pipes and devices are passed over, files of other endings are counted.

    Args:
        folder: where to look; links are followed.
        num_channels: channels of a case. With one, a name may be plain or end in ``_0000``; with more, it has to end in
            ``_0000``, ``_0001``, ...
        endings: what counts as a volume.
        more: what can be done about a case that has more channels, for the message.
    """
    found = Scan()
    volumes, others = _list_files(folder, endings, found.unlistable)
    data = {path: _data_of(path) for path in volumes}
    found.other_paths = sorted(set(others).difference(*data.values()))
    _count(found.others, found.other_paths, folder)
    named = [(_case_name(path, folder, endings), path) for path in volumes]
    numbers = defaultdict(set)
    for name, _ in named:
        base, number = _split(name)
        if number is not None:
            numbers[base].add(number)
    suffixed = {path.parent for name, path in named if _are_channels(numbers[_split(name)[0]])}
    channels: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for name, path in named:
        base, number = _split(name)
        # where others have channel suffixes, x_0001 without x_0000 is half a case and no case called x_0001
        lone = path.parent in suffixed and max(numbers[base], default=0) < MAX_CHANNELS
        if number is not None and (num_channels > 1 or _are_channels(numbers[base]) or lone):
            channels[base][number].append(path)
        else:
            channels[name][0 if num_channels == 1 else -1].append(path)
    found.cases = [_candidate(name, files, num_channels, data, more) for name, files in sorted(channels.items())]
    return found


def _are_channels(numbers: set[int]) -> bool:
    """Return whether the numbers of a name are its channels and no series of cases."""
    return 0 in numbers and len(numbers) <= MAX_CHANNELS


def _candidate(
    name: str, files: dict[int, list[Path]], num_channels: int, data: dict[Path, tuple[Path, ...]], more: str
) -> Candidate:
    everything = tuple(path for number in sorted(files) for path in sorted(files[number]))
    behind = tuple(voxels for path in everything for voxels in data[path])
    problem = None
    missing = [f"_{number:04d}" for number in range(num_channels) if number not in files]
    extra = [f"_{number:04d}" for number in sorted(files) if number >= num_channels]
    twice = [paths for paths in files.values() if len(paths) > 1]
    gone = [path.name for path in behind if not path.is_file()]
    if -1 in files:
        problem = f"has no channel suffix (_0000 to _{num_channels - 1:04d}), but {num_channels} channels were named."
    elif twice:
        problem = f"duplicate case: {' and '.join(path.name for path in twice[0])} claim the same name; keep one."
    elif missing:
        problem = f"missing channel: no file {', '.join(name + suffix for suffix in missing)}."
    elif extra:
        wanted = counted(num_channels, "channel")
        problem = f"has channels {', '.join(extra)} besides the {wanted} wanted{more and f'; {more}'}."
    elif gone:
        problem = f"its header points to {gone[0]}, which is missing."
    elif name.endswith("_seg"):
        problem = "nnU-Net takes names that end in _seg for segmentations; rename it if it is an image."
    elif not name.isprintable():
        problem = "its name holds a line break or a different sign that cannot be printed; rename the file or folder."
    elif any("$" in str(path) for path in everything):
        problem = "nnU-Net reads $ in a path as an environment variable; rename the file or folder."
    return Candidate(name, everything, problem, behind)


def _data_of(path: Path) -> tuple[Path, ...]:
    try:
        return data_files(path)
    except OSError:  # whoever reads it will say so
        return ()


def _count(others: dict[str, OtherFiles], paths: list[Path], folder: Path) -> None:
    """Count files by ending; of those in one folder with one ending, the first that can be read tells what they are."""
    known: dict[tuple[Path, str], str] = {}
    for path in paths:
        ending = ending_of(path)
        if (path.parent, ending) not in known:
            with contextlib.suppress(OSError):
                known[path.parent, ending] = what_it_is(path)
        what = known.get((path.parent, ending), "")
        name = f"{ending or 'no ending'}{' (DICOM)' if what and not ending else ''}"
        entry = others.setdefault(name, OtherFiles(what=what))
        entry.count += 1
        entry.what = entry.what or what
        if len(entry.examples) < _EXAMPLES:
            entry.examples.append(str(path.relative_to(folder)))


def _split(name: str) -> tuple[str, int | None]:
    """Name without channel suffix, and the channel; (name, None) if there is no suffix."""
    match = re.fullmatch(r"(.+)_(\d{4})", name)
    return (match[1], int(match[2])) if match else (name, None)


def _case_name(path: Path, folder: Path, endings: tuple[str, ...]) -> str:
    relative = path.relative_to(folder)
    stem = relative.name.removesuffix(volume_ending(path, endings) or "")
    return "__".join([*relative.parts[:-1], stem])


def _list_files(folder: Path, endings: tuple[str, ...], unlistable: dict[str, str]) -> tuple[list[Path], list[Path]]:
    """Return volumes and other files of a folder and those in it, in a fixed order; what cannot be listed is noted."""
    volumes, others = [], []
    seen = {os.path.realpath(folder)}

    def note(error: OSError) -> None:
        unlistable[str(error.filename)] = error.strerror or str(error)

    for root, folders, files in os.walk(folder, onerror=note, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(Path(root, name))
            # A link back up would be walked for ever.
            if not name.startswith(".") and name not in LABEL_FOLDERS and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path = Path(root, name)
            if name.startswith(".") or is_pipe_or_device(path):
                continue
            if volume_ending(path, endings):
                volumes.append(path)
            elif path.is_symlink() and not path.exists():
                unlistable[str(path)] = "a link to nowhere"  # to a folder on a disk that is away, perhaps
            else:
                others.append(path)
    return volumes, others
