"""Atlas coordinates of raw images, as four more channels beside them that nnU-Net reads like any image.

A case is preprocessed in memory as the pretraining's plans say and registered to the atlas; the affine map is carried
back through nnU-Net's resampling, cropping and transposing to the voxels of the file. The channels have the grid of
the case's first channel, whatever its orientation, so every reader of nnU-Net turns them with the image. What they
hold is said in `nnunet_alice.methods.drasclr.located`.

- The values pass nnU-Net's ``noNorm`` unchanged, and resampling keeps an affine function what it is.
- They are 0 where nnU-Net's crop to non-zero takes the image for background. Thus image channels are cropped, masked
  and normalised with coordinates exactly as without.
- Images that lie otherwise than those of the pretraining, or that nnU-Net cannot read, are turned: by nnU-Net's reader
  where it can, else by copies beside the coordinates. A mirrored image is known by its header, not by how well it
  registers.
- A case that cannot be registered well gets the middle of the atlas everywhere: one kernel for the whole case, which
  claims no wrong place. The report names it. A guess from the position in the array would be right only where fields
  of view agree, and that is where registration works. A case that cannot be read or preprocessed is left out.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR
from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.orientation import TURNED, axial_axis_of_plans, orientation
from nnunet_alice.anatomy.world import image_grid, world_affine
from nnunet_alice.coordinates.atlas_file import PortableAtlas
from nnunet_alice.errors import AliceError, InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.importing.endings import ENDINGS, ENDINGS_OF_IMPORT, volume_ending
from nnunet_alice.importing.mending import COPY_ENDING, write_image
from nnunet_alice.importing.report import file_states
from nnunet_alice.importing.turning import read_turned
from nnunet_alice.methods.drasclr.located import COORDINATE_CHANNELS, encode_locations, location_weights
from nnunet_alice.parallel import Outcomes, for_each_case
from nnunet_alice.words import counted

#: Raised when channels or report change: older ones are made again.
VERSION = 4
#: The report beside the channels.
REPORT_FILE = "locations.json"
#: Folder, beside the channels, for those that are being written.
_UNFINISHED = ".unfinished"
#: Record of a case for which nothing was written.
_NOTHING: dict[str, Any] = {"coordinates": []}


@dataclass(frozen=True)
class RawCase:
    """A case to locate.

    Attributes:
        name: its name.
        files: image channels in their order.
        problem: why it cannot be located, known without opening a file.
        label: its segmentation, which is turned with the image.
    """

    name: str
    files: tuple[Path, ...]
    problem: str | None = None
    label: Path | None = None

    @property
    def all_files(self) -> tuple[Path, ...]:
        """All files that what is written depends on."""
        return self.files if self.label is None else (*self.files, self.label)

    def __str__(self) -> str:
        return self.name


@dataclass
class LocationReport:
    """Outcome of all cases.

    Attributes:
        folder: where the channels lie.
        atlas: checksum of the atlas.
        image_channels: number of image channels before the coordinates.
        files: name -> image channels, of all cases.
        outcomes: name -> ``status`` (``ok``; ``poor``: the middle of the atlas everywhere), ``reason``, ``quality``,
            ``voxel_to_location`` ((3, 4), file voxel (z, y, x, 1) -> location; None unless ok), ``files`` (what tells
            whether they changed), ``coordinates`` (names of the channels' files), ``images`` (names of copies, where
            nnU-Net reads those), ``label`` (name of the turned segmentation, or None), ``done`` (what was done to the
            images), ``assumed`` (of images that do not say how they lie).
    """

    folder: Path
    atlas: str
    image_channels: int
    files: dict[str, tuple[Path, ...]]
    outcomes: Outcomes[dict[str, Any]] = field(default_factory=Outcomes)

    def named(self, status: str) -> dict[str, str]:
        """Return cases of a status, with the reasons."""
        if status == FAILED:
            return dict(sorted(self.outcomes.failed.items()))
        records = sorted(self.outcomes.results.items())
        return {case: record["reason"] for case, record in records if record["status"] == status}

    @property
    def located(self) -> list[str]:
        """Cases that have channels."""
        return sorted(self.outcomes.results)

    @property
    def turned(self) -> dict[str, str]:
        """Cases of which nnU-Net reads copies, with what was done."""
        return {case: record["done"] for case, record in sorted(self.outcomes.results.items()) if record["images"]}

    @property
    def assumed(self) -> dict[str, str]:
        """Cases whose images do not say how they lie, with what was assumed."""
        return {case: r["assumed"] for case, r in sorted(self.outcomes.results.items()) if r["assumed"]}

    def images(self, case: str) -> list[Path]:
        """Return copies of a case's images; empty where nnU-Net reads the originals."""
        return [self.folder / name for name in self.outcomes.results[case]["images"]]

    def label(self, case: str) -> Path | None:
        """Return turned segmentation of a case, where there is one."""
        name = self.outcomes.results[case]["label"]
        return None if name is None else self.folder / name

    def coordinates(self, case: str) -> list[Path]:
        """Return the channels' files of a case."""
        return [self.folder / name for name in self.outcomes.results[case]["coordinates"]]

    def save(self, path: Path) -> None:
        """Write the report."""
        counts = {status: len(self.named(status)) for status in (OK, POOR, FAILED)}
        content = {"version": VERSION, "atlas": self.atlas, "image_channels": self.image_channels, "counts": counts}
        failed = {case: _failed(self.files[case], reason) for case, reason in self.outcomes.failed.items()}
        write_json(path, content | {"cases": dict(sorted((self.outcomes.results | failed).items()))})


@dataclass(frozen=True)
class _Job:
    """What every case needs.

    Attributes:
        atlas: the atlas.
        folder: where files are written.
        ending: of the images that nnU-Net will look for; None where ``dataset.json`` names them.
    """

    atlas: PortableAtlas
    folder: Path
    ending: str | None


def locate_cases(
    atlas: PortableAtlas,
    cases: Sequence[RawCase],
    folder: Path,
    report_file: Path,
    num_processes: int,
    ending: str | None = None,
    remove_others: bool = True,
) -> LocationReport:
    """Write coordinate channels of all cases and the report. What is there already is kept.

    A case is done again when its files, the atlas or its channels changed, and when it failed before. Channels of cases
    that are not asked for any more are removed. A case that fails stops no other.

    Args:
        atlas: the atlas.
        cases: what to locate.
        folder: where ``CASE_<channel>`` files are written.
        report_file: read and written.
        num_processes: processes, each holding one case in memory; 1 works in this process.
        ending: images of other endings are copied with this one; None leaves them.
        remove_others: whether cases that are not asked for any more are removed.

    Raises:
        InputError: no case can be used.
    """
    report = LocationReport(folder, atlas.checksum, len(atlas.channels), {case.name: case.files for case in cases})
    known = _read_known(report_file, report)

    def keep(case: RawCase) -> dict[str, Any] | None:
        record = known.get(case.name)
        return record if not case.problem and record is not None and _is_current(record, case, folder, ending) else None

    def save(outcomes: Outcomes[dict[str, Any]]) -> None:
        report.outcomes = outcomes
        for case in () if remove_others else sorted(known.keys() - report.files.keys() - outcomes.results.keys()):
            if known[case]["files"] is not None and known[case]["status"] != FAILED:
                outcomes.results[case] = known[case]
                outcomes.kept.append(case)
        report.save(report_file)

    for_each_case(
        partial(_locate_one, _Job(atlas, folder, ending)),
        cases,
        doing="Locating",
        num_processes=num_processes,
        keep=keep,
        report=save,
    )
    with contextlib.suppress(OSError):  # a different run is writing into it, or a killed one was
        (folder / _UNFINISHED).rmdir()
    # what nnU-Net would take for channels of a case that has others, or none
    for name, record in known.items():
        for file in set(_written(record)).difference(_written(report.outcomes.results.get(name, _NOTHING))):
            (folder / file).unlink(missing_ok=True)
    report.outcomes.check_some("located", report_file)
    return report


def case_to_locations(atlas: PortableAtlas, files: Sequence[Path]) -> tuple[np.ndarray | None, float, str]:
    """Register a raw case to the atlas.

    Args:
        atlas: the atlas.
        files: the case's image channels, which lie like the atlas when its reader reads them.

    Returns:
        (3, 4) map from voxels (z, y, x, 1) of the first file to locations, or None; the registration's quality; why
        there is no map, else empty.

    Raises:
        InputError: the files have no geometry that nnU-Net's reader keeps.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager({**atlas.plans, "image_reader_writer": atlas.reader})
    configuration = plans.get_configuration(atlas.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        [str(path) for path in files], None, plans, configuration, atlas.dataset_json
    )
    forward, shape = list(plans.transpose_forward), data.shape[1:]
    try:
        geometry = compute_geometry(files[0].name, data, tuple(configuration.spacing), axial_axis_of_plans(atlas.plans))
        found = atlas.register(geometry)
    except AliceError as error:
        return None, 0.0, str(error)
    if found.problem:
        return None, found.quality, f"registration {found.problem}"
    file_to_array = world_affine(properties, forward, shape).inverse() @ _file_to_world(files[0])
    to_atlas_mm = Affine(found.affine) @ Affine.scaling(configuration.spacing) @ file_to_array
    return _location_map(to_atlas_mm, atlas), found.quality, ""


def coordinate_channels(
    voxel_to_location: np.ndarray | None, shape: Sequence[int], inside: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Yield the channels one after the other, weight first, (z, y, x) int16 each.

    Args:
        voxel_to_location: (3, 4), see `case_to_locations`; None is the middle of the atlas everywhere.
        shape: (3,) voxels.
        inside: bool of that shape, where nnU-Net takes the image for non-zero; None is everywhere.
    """
    matrix = np.zeros((3, 4)) if voxel_to_location is None else voxel_to_location
    weights = location_weights(np.ones(tuple(shape), dtype=bool) if inside is None else inside)
    yield weights
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    for row in matrix.astype(np.float32):
        yield encode_locations((row[3] + row[0] * z) + (row[1] * y + row[2] * x), weights)


def _locate_one(job: _Job, case: RawCase) -> dict[str, Any]:
    """Locate one case and write its channels; runs in a worker process."""
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

    if case.problem:
        raise InputError(case.problem)
    if len(case.files) != len(job.atlas.channels):
        raise InputError(f"has {counted(len(case.files), 'channel')} instead of {len(job.atlas.channels)}.").about(
            value=len(case.files)
        )
    files = file_states(case.all_files)
    letters = job.atlas.orientation
    turned = read_turned(case.files, "" if letters == TURNED else letters)  # nnU-Net's reader turns all to RAS
    ending = (volume_ending(case.files[0], ENDINGS_OF_IMPORT) or "").lower()
    if job.ending is not None and ending != job.ending:
        turned = replace(turned, done=(*turned.done, f"{case.files[0].name}: written as {job.ending}"))
    if turned.done or ending not in ENDINGS:
        ending = job.ending or COPY_ENDING
    # nnU-Net takes hidden files for images, too, but looks into no folder
    unfinished = job.folder / _UNFINISHED
    used = turned.files(case.files, lambda channel: job.folder / f"{case.name}_{channel:04d}{ending}", unfinished)
    matrix, quality, reason = case_to_locations(job.atlas, used)
    images = turned.images
    inside = create_nonzero_mask(np.stack([sitk.GetArrayViewFromImage(image) != 0 for image in images]))
    names = [f"{case.name}_{len(case.files) + axis:04d}{ending}" for axis in range(COORDINATE_CHANNELS)]
    channels = coordinate_channels(matrix, inside.shape, None if inside.all() else inside)
    for name, channel in zip(names, channels, strict=True):
        image = sitk.GetImageFromArray(channel)
        image.CopyInformation(images[0])
        write_image(image, job.folder / name, unfinished)
    label = None
    if case.label is not None and orientation(images[0]) != turned.lay:
        label = f"../labelsTr/{case.name}{COPY_ENDING}"
        write_image(sitk.DICOMOrient(sitk.ReadImage(str(case.label)), letters), job.folder / label)
    return {
        "status": POOR if matrix is None else OK,
        "reason": reason,
        "quality": round(quality, 4),
        "voxel_to_location": None if matrix is None else matrix.tolist(),
        "files": files,
        "coordinates": names,
        "images": [path.name for path in used] if turned.done else [],
        "label": label,
        "done": "; ".join(turned.done),
        "assumed": turned.assumed,
    }


def _written(record: dict[str, Any]) -> list[str]:
    """Return names of all files that were written for a case."""
    label = record.get("label")
    return [*record["coordinates"], *record.get("images", ()), *([] if label is None else [label])]


def _file_to_world(path: Path) -> Affine:
    """Return the map from (z, y, x) voxels of a file to (x, y, z) world mm, LPS."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return image_grid(reader)[0]


def _location_map(to_atlas_mm: Affine, atlas: PortableAtlas) -> np.ndarray:
    """Return (3, 4) map to locations, of a map to mm of the atlas."""
    corners = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    origin, *steps = atlas.locations(to_atlas_mm.points(corners))
    return np.column_stack([*(step - origin for step in steps), origin])


def _is_current(record: dict, case: RawCase, folder: Path, ending: str | None) -> bool:
    """Return whether a case was located from these very files, for this ending, and has its channels."""
    if record["status"] == FAILED or record["files"] != file_states(case.all_files):
        return False
    fits = ending is None or all(name.endswith(ending) for name in record["coordinates"])
    return fits and all((folder / name).is_file() for name in _written(record))


def _read_known(path: Path, report: LocationReport) -> dict[str, dict]:
    """Return records of an earlier run with this atlas; records of a different one only to remove their channels."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
        same = (content["version"], content["atlas"], content["image_channels"]) == (
            VERSION,
            report.atlas,
            report.image_channels,
        )
        records = {case: dict(record) for case, record in content["cases"].items()}
        return {case: record if same else record | {"files": None} for case, record in records.items()}
    except (InputError, KeyError, TypeError, AttributeError, ValueError):
        return {}


def _failed(files: Sequence[Path], reason: str) -> dict[str, Any]:
    return {
        "status": FAILED,
        "reason": reason,
        "quality": 0.0,
        "voxel_to_location": None,
        "files": [{"path": str(path)} for path in files],
        "coordinates": [],
        "images": [],
        "label": None,
        "done": "",
    }
