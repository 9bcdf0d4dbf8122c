"""Images as nnU-Net is to read them: in a format that it knows, lying as its plans expect."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from nnunet_alice.anatomy.orientation import orientation
from nnunet_alice.importing.checks import read_case
from nnunet_alice.importing.mending import read_another_way, straighten, write_image
from nnunet_alice.importing.nifti import keeps_orientation

NO_ORIENTATION = "its format or header keeps no orientation, and LPS is assumed"


@dataclass(frozen=True)
class Turned:
    """Channels of a case as nnU-Net is to read them.

    Attributes:
        images: the channels.
        lay: letters of the files' orientation.
        done: what had to be done, a few words a file; empty where nnU-Net can read the files as they are.
        assumed: what was assumed of a file that does not say how it lies; empty if all say it.
    """

    images: list[sitk.Image]
    lay: str
    done: tuple[str, ...]
    assumed: str = ""

    def files(self, originals: Sequence[Path], copy: Callable[[int], Path], inside: Path | None = None) -> list[Path]:
        """Return the files for nnU-Net: the originals, or copies of all channels, as it compares their grids.

        Args:
            originals: the files that were read.
            copy: number of a channel -> where its copy is written.
            inside: folder of what is not whole yet; see ``files.atomic_write``.
        """
        if not self.done:
            return list(originals)
        paths = [copy(number) for number in range(len(self.images))]
        for image, path in zip(self.images, paths, strict=True):
            write_image(image, path, inside)
        return paths


def read_turned(files: Sequence[Path], letters: str) -> Turned:
    """Read and check the channels of a case, and turn them.

    Args:
        files: one a channel.
        letters: the orientation wanted, e.g. ``LPS``; empty to leave them as they lie.

    Raises:
        InputError: see :func:`nnunet_alice.importing.checks.read_case`.
    """
    ways: dict[str, str] = {}

    def another_way(path: Path) -> sitk.Image | None:
        found = read_another_way(path)
        if found is None:
            return None
        image, ways[path.name] = found
        return image

    images = read_case(files, another_way)
    for file, image in zip(files, images, strict=True):
        if skew_degrees := straighten(image):
            ways[file.name] = f"its axes were skewed by {skew_degrees:.2g} degrees and were straightened"
    lay = orientation(images[0])
    if letters and lay != letters:
        images = [sitk.DICOMOrient(image, letters) for image in images]
        ways[files[0].name] = f"turned from {lay} to {letters}"
    assumed = "" if all(map(keeps_orientation, files)) else NO_ORIENTATION
    return Turned(images, lay, tuple(f"{name}: {way}" for name, way in ways.items()), assumed)
