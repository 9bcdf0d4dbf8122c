"""Did pretraining see the images of the test cases? Told from what the checkpoint says about its data set."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_alice.benchmark.settings import Arm
from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.errors import AliceError
from nnunet_alice.importing.endings import ENDINGS_OF_IMPORT, volume_ending
from nnunet_alice.words import counted


def exposure(arm: Arm, tests: Mapping[str, Sequence[str]]) -> str:
    """One sentence on whether an arm's pretraining saw test images.

    What is compared: names of cases, paths of images, and the names of their files and folders (of ``s0001/ct.nii.gz``
    both; what several cases share, like ``ct``, names none of them).

    Args:
        arm: of the benchmark.
        tests: test case -> its image files, where they are known.
    """
    if not arm.checkpoints:
        return "no pretraining"
    if arm.saw_test_images is not None:
        return f"pretraining {'SAW' if arm.saw_test_images else 'did not see'} the test images (as the settings say)"
    wanted = names_of_cases(tests)
    found: set[str] = set()
    for path in arm.checkpoints:
        dataset = pretraining_cases(path)
        if dataset is None:
            return f"unknown: {Path(path).name} does not say which images it saw"
        seen = set().union(*names_of_cases(dataset).values())
        found |= {case for case, names in wanted.items() if names & seen}
    if not found:
        return (
            "pretraining did not see the test images, as far as the names of cases, files and folders tell "
            "(saw_test_images in the settings if you know better)"
        )
    return (
        f"pretraining SAW images of {len(found)} of {counted(len(tests), 'test case')}, without their labels "
        f"(e.g. {sorted(found)[0]})"
    )


def pretraining_cases(path: str) -> dict[str, list[str]] | None:
    """Case -> image files of the dataset that a checkpoint was pretrained on; None if it does not say."""
    try:
        run = load_checkpoint(path).get("pretraining")
    except AliceError:
        return None
    dataset = (run or {}).get("dataset_json", {}).get("dataset")
    return {case: entry["images"] for case, entry in dataset.items()} if dataset else None


def names_of_cases(cases: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """All names by which each case may be known elsewhere; none that several cases share.

    Args:
        cases: case -> its image files, one a channel.
    """
    names = {case: _names(images, folders=len(cases) > 1) for case, images in cases.items()}
    times = Counter(name for own in names.values() for name in own)
    return {case: {case} | {name for name in own if times[name] == 1} for case, own in names.items()}


def _names(images: Sequence[str], folders: bool) -> set[str]:
    """Names of one case's files without ending and channel, of their folders, and their paths."""
    names = set()
    for channel, image in enumerate(images):
        path = Path(image)
        stem = path.name.removesuffix(volume_ending(path, ENDINGS_OF_IMPORT) or path.suffix)
        # only the channel's own number is one: the 0507 of amos_0507 belongs to the name
        names |= {stem, stem.removesuffix(f"_{channel:04d}")}
        names |= {os.path.realpath(path)} if path.is_absolute() else set()
        names |= {parent.name for parent in path.parents if parent.name and folders}
    return names
