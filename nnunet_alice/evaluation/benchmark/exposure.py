"""Did pretraining see the images of the test cases? Told from what the checkpoint says about its data set."""

import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.errors import AliceError
from nnunet_alice.evaluation.benchmark.settings import Arm

_CHANNEL = re.compile(r"_\d{4}$")


def exposure(arm: Arm, test_cases: Sequence[str], test_images: Sequence[str] = ()) -> str:
    """One sentence on whether an arm's pretraining saw test images.

    Names are compared: of cases, and of image files without folder, channel and ending.

    Args:
        arm: of the benchmark.
        test_cases: names of the test cases.
        test_images: image files of the test cases, where they are known.
    """
    if not arm.checkpoints:
        return "no pretraining"
    if arm.saw_test_images is not None:
        return f"pretraining {'SAW' if arm.saw_test_images else 'did not see'} the test images (as the settings say)"
    wanted = {*test_cases, *map(image_name, test_images)}
    found: set[str] = set()
    for path in arm.checkpoints:
        seen = pretraining_images(path)
        if seen is None:
            return f"unknown: {Path(path).name} does not say which images it saw"
        found |= wanted & seen
    if not found:
        return "pretraining did not see the test images (no image of these names in its dataset)"
    count = len({case for case in test_cases if case in found}) or len(found)
    return (
        f"pretraining SAW images of {count} of {len(test_cases)} test cases, without their labels "
        f"(e.g. {sorted(found)[0]})"
    )


def pretraining_images(path: str) -> set[str] | None:
    """Names of cases and images in the dataset that a checkpoint was pretrained on; None if it does not say."""
    try:
        run = load_checkpoint(path).get("pretraining")
    except AliceError:
        return None
    dataset = (run or {}).get("dataset_json", {}).get("dataset")
    if not dataset:
        return None
    return {*dataset, *(image_name(image) for entry in dataset.values() for image in entry["images"])}


def image_name(path: str) -> str:
    """Name of an image's case: the file's, without folder, ending and channel."""
    return _CHANNEL.sub("", Path(path).name.split(".")[0])
