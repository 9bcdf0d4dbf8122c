"""How a pool of unlabelled images and the target lie, and how the pool can be made to lie like the target.

nnU-Net reads images as they lie in their files, or turns all of them to RAS; plans speak of the axes that result. A
target's plans on a pool that lies differently would put spacing and patch on wrong axes, and left and right on wrong
sides.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nnunet_alice.anatomy.orientation import (
    MIXED,
    TURNED,
    TURNING_READERS,
    UNKNOWN,
    axes_after_turning,
    differ,
    file_orientation,
)
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import read_json
from nnunet_alice.importing.report import orientations_of_import, turning_command
from nnunet_alice.nnunet_folders import nnunet_folder
from nnunet_alice.planning.moved_plans import reader_of
from nnunet_alice.planning.preprocessing import raw_cases

#: Reader that keeps images as they lie -> the same that turns them.
_TURNING = dict(zip(("SimpleITKIO", "NibabelIO"), TURNING_READERS, strict=True))
#: Headers that are read at the same time.
_THREADS = 8


@dataclass(frozen=True)
class Fit:
    """How a pool is read so that it lies like a target.

    Attributes:
        reader: nnU-Net's reader for the pool.
        orientation: letters of the arrays that it gives; ``mixed`` or empty where they are not known.
        axes: axis of the fingerprint's arrays that becomes the first, second and third.
        note: what a user has to know; empty if nothing.
    """

    reader: str
    orientation: str
    axes: tuple[int, ...] = (0, 1, 2)
    note: str = ""


def array_orientation(dataset: str, reader: str) -> str:
    """Return the letters of the arrays that a reader gives of a raw dataset's images, from their headers alone.

    Args:
        dataset: full name.
        reader: name of nnU-Net's reader.

    Returns:
        letters, ``mixed``, or empty where there are no headers (2D pictures, no raw folder).
    """
    if reader in TURNING_READERS:
        return TURNED
    if reader not in _TURNING:
        return UNKNOWN
    found = _file_orientations(dataset)
    if len(found) > 1:
        return MIXED
    return next(iter(found), UNKNOWN)


def fit_orientation(dataset: str, target: str, target_plans: dict) -> Fit:
    """Return how a pool is to be read so that it lies like the target.

    Args:
        dataset: full name of the pool.
        target: full name of the target.
        target_plans: its plans.

    Raises:
        InputError: nnU-Net has no reader that would make it lie so; the message names the command that does.
    """
    reader = reader_of(dataset, read_json(nnunet_folder("nnUNet_raw") / dataset / "dataset.json"))
    ours, theirs = array_orientation(dataset, reader), array_orientation(target, target_plans["image_reader_writer"])
    if MIXED in (ours, theirs) or UNKNOWN in (ours, theirs):
        return Fit(reader, ours, note=_incomparable(dataset, target, ours, theirs))
    if ours == theirs:
        return Fit(reader, ours)
    if theirs == TURNED and reader in _TURNING:
        return Fit(
            _TURNING[reader], TURNED, tuple(axes_after_turning(ours, TURNED)),
            f"{dataset} lies {ours} and {target} {TURNED}: nnU-Net will turn the pool when reading it.",
        )  # fmt: skip
    command = turning_command(nnunet_folder("nnUNet_raw") / dataset, theirs)
    raise InputError(
        f"{dataset} lies {ours} when nnU-Net reads it, but {target} lies {theirs}: the target's spacing and patch, and "
        f'left and right, would be on other axes. {command} (or write "overwrite_image_reader_writer": '
        f'"{TURNING_READERS[0]}" into dataset.json of {target} and plan it again with nnU-Net: then both are turned)'
    ).about(value=dataset)


def unlike_pretraining(trained: str, target: str, reader: str) -> str:
    """Return what a user has to know where a target lies unlike the images of a pretraining; empty if nothing.

    Args:
        trained: letters of the images that were pretrained on, or empty.
        target: full name of the target.
        reader: name of nnU-Net's reader for the target.
    """
    try:
        lies = array_orientation(target, reader)
    except InputError:  # its raw images are not here
        return ""
    if not differ(trained, lies):
        return ""
    return (
        f"The pretraining saw images that lie {trained}, and those of {target} lie {lies}: to the network bodies are "
        f"turned round or mirrored. Better weights come from a pool that lies like {target}: import it with "
        f"--orient {lies} and pretrain on that."
    )


def _incomparable(dataset: str, target: str, ours: str, theirs: str) -> str:
    named = {MIXED: "lies in several orientations that nnU-Net does not turn", UNKNOWN: "does not say how it lies"}
    parts = [f"{name} {named.get(letters, f'lies {letters}')}" for name, letters in ((dataset, ours), (target, theirs))]
    return f"{parts[0]}, and {parts[1]}: the two cannot be compared; see to it that they lie alike."


def _file_orientations(dataset: str) -> Counter[str]:
    """Return letters -> images of a raw dataset that lie so; those without letters are not counted."""
    try:
        cases = raw_cases(dataset)
    except NotPreparedError:  # its raw images are not here
        return Counter()
    known = orientations_of_import(nnunet_folder("nnUNet_raw") / dataset)
    asked = [Path(files["images"][0]) for case, files in cases.items() if case not in known]
    with ThreadPoolExecutor(_THREADS) as threads:
        read = list(threads.map(file_orientation, asked))
    return Counter(letters for letters in (*(known[case] for case in cases if case in known), *read) if letters)
