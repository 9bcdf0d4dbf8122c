"""The compact index of a case: its descriptors on a grid of body points, in one small file.

A file is an uncompressed ``.npz``: zip's checksums tell damage, numpy reads it everywhere, and reading all of it
takes as long as reading the disk. With 128 + 128 numbers in half precision a point takes 518 bytes, so 10 MB hold
19,300 points. The grid step follows from the body's volume: 12.8 mm for 40 litres (chest to pelvis), 8 mm for
10 litres, and the descriptors' own 2 mm stride for a hippocampus crop (7,700 points, 4 MB).
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from nnunet_alice.anatomy.geometry import UNREADABLE, CaseGeometry
from nnunet_alice.anatomy.grid import BodyGrid, body_grid
from nnunet_alice.checkpoints.weights_folder import content_file
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError, NotPreparedError, StaleError
from nnunet_alice.files import atomic_write, read_json, sha256_of, write_json

logger = logging.getLogger(__name__)

#: Raised when the stored form changes: older indices are refused.
VERSION = 1
#: Bytes an index file may take.
MAX_BYTES = 10_000_000
#: zip directory, array headers, fingerprint
_OVERHEAD_BYTES = 8_192


@dataclass(frozen=True)
class Fingerprint:
    """What an index was made from; indices of a different fingerprint are never used.

    Attributes:
        checkpoint: SHA-256 of the checkpoint file (``checkpoint_checksum``).
        dataset: full dataset name.
        plans: plans identifier.
        configuration: e.g. ``3d_fullres``.
        dimension: length of one descriptor.
        version: of the stored form.
    """

    checkpoint: str
    dataset: str
    plans: str
    configuration: str
    dimension: int
    version: int = VERSION

    @classmethod
    def of(cls, dataset: PreprocessedDataset, checkpoint: str, dimension: int) -> "Fingerprint":
        """Return the fingerprint of indices of ``dataset`` made by a checkpoint with this SHA-256."""
        return cls(checkpoint, dataset.name, dataset.plans_name, dataset.configuration, dimension)


@dataclass(frozen=True)
class CaseIndex:
    """Descriptors of one case at its grid points.

    Attributes:
        shape: (3,) shape of the preprocessed array.
        spacing: (3,) voxel size in mm.
        grid: the N points.
        fine: (N, D) float16, unit length.
        coarse: (N, D) float16, unit length.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    grid: BodyGrid
    fine: np.ndarray
    coarse: np.ndarray


def checkpoint_checksum(path: str | os.PathLike) -> str:
    """Return SHA-256 of a checkpoint file, by which indices remember what made them.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return sha256_of(content_file(Path(path)))
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read ({error.strerror}); name a different one.").about(
            path=path
        ) from None


def _checksum_now(path: Path) -> str:
    """Return SHA-256 of a checkpoint; read once for as long as size and time of the file stay the same."""
    state = content_file(path).stat()
    return _remembered_checksum(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _remembered_checksum(path: Path, _size: int, _time: int) -> str:
    return checkpoint_checksum(path)


def max_points(dimension: int, max_bytes: int = MAX_BYTES) -> int:
    """Return how many points fit into an index file: two descriptors (half precision), three int16 each."""
    return (max_bytes - _OVERHEAD_BYTES) // (2 * dimension * 2 + 3 * 2)


def index_grid(geometry: CaseGeometry, dimension: int, finest_mm: float) -> BodyGrid:
    """Return the points at which descriptors of a case have to be computed.

    Args:
        geometry: body of the case.
        dimension: length of one descriptor.
        finest_mm: spacing of the fine descriptor map in mm, the smallest of its axes.
    """
    return body_grid(geometry, max_points(dimension), finest_mm)


class IndexStore:
    """The folder with the indices of one preprocessed dataset.

    Args:
        dataset: the preprocessed dataset.
    """

    def __init__(self, dataset: PreprocessedDataset) -> None:
        self.dataset = dataset
        self.folder = dataset.anatomy_folder / "embedding"

    @property
    def command(self) -> str:
        """Command that makes these indices (again)."""
        return f"{self.dataset.anatomy_command} --method embedding"

    @property
    def description_file(self) -> Path:
        """JSON file that says what the indices were made from."""
        return self.folder / "index.json"

    @property
    def calibration_file(self) -> Path:
        """JSON file with the scores to trust (``matching.calibration``); written last, when all is finished."""
        return self.folder / "trust.json"

    @property
    def checkpoint_file(self) -> Path | None:
        """The checkpoint that made the indices, as named then; None where the description does not say."""
        try:
            return Path(read_json(self.description_file)["checkpoint_file"])
        except (InputError, KeyError, TypeError):
            return None

    def file(self, case: str) -> Path:
        """Return where the index of a case is kept."""
        return self.folder / f"{case}.npz"

    def cases(self) -> list[str]:
        """Return cases that have an index file, sorted."""
        return sorted(path.stem for path in self._files())

    def begin(self, fingerprint: Fingerprint, checkpoint_file: str | os.PathLike) -> None:
        """Start or continue to index with one checkpoint.

        Indices of a different fingerprint, and what was measured with them, are deleted before the new description is
        written. So the folder never mixes two, whenever the process is killed.

        Args:
            fingerprint: of what will be written.
            checkpoint_file: named in the description for the reader.
        """
        described, made_by = self._described(), Path(checkpoint_file).resolve()
        if described != fingerprint:
            stale = list(self._files())
            if stale:
                logger.info("%d indices of a different checkpoint, plans or version are deleted.", len(stale))
            for path in stale:
                path.unlink(missing_ok=True)  # a different process may begin at the same time
            self.calibration_file.unlink(missing_ok=True)
        if described != fingerprint or self.checkpoint_file != made_by:
            write_json(self.description_file, {**asdict(fingerprint), "checkpoint_file": str(made_by)})

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the indices in the folder, checked against the dataset.

        Raises:
            NotPreparedError: there are no indices, or they were made from something else, or the checkpoint file that
                made them has other content now (trained again).
        """
        found = self._described()
        if found is None:
            raise NotPreparedError(f"{self.folder} holds no usable index of descriptors; run: {self.command}").about(
                path=self.folder, command=self.command
            )
        made_by = self.checkpoint_file
        if made_by is not None and made_by.is_file() and _checksum_now(made_by) != found.checkpoint:
            raise StaleError(
                f"The indices in {self.folder} are stale ({made_by} was trained again since); run: {self.command}"
            ).about(path=made_by, command=self.command)
        expected = Fingerprint.of(self.dataset, found.checkpoint, found.dimension)
        if found != expected:
            changed = [name for name, value in asdict(expected).items() if getattr(found, name) != value]
            raise StaleError(
                f"The indices in {self.folder} are stale (made with a different {' and '.join(changed)}); "
                f"run: {self.command}"
            ).about(path=self.folder, value=" and ".join(changed), command=self.command)
        return found

    def write(self, case: str, index: CaseIndex, fingerprint: Fingerprint, checksum: str | None = None) -> None:
        """Store the index of a case, whole or not at all.

        Args:
            case: name of the case.
            index: its descriptors.
            fingerprint: of what made them.
            checksum: of the image that was described (``PreprocessedDataset.image_checksum``); None if not known.

        Raises:
            InputError: descriptors are not finite, not of unit length, not as many as points, or too many.
        """
        count = len(index.grid.cells)
        for name, descriptors in (("fine", index.fine), ("coarse", index.coarse)):
            if descriptors.shape != (count, fingerprint.dimension):
                raise InputError(
                    f"Case {case}: {name} descriptors have shape {descriptors.shape} instead of "
                    f"{(count, fingerprint.dimension)}."
                ).about(case=case, value=descriptors.shape)
            lengths = np.linalg.norm(descriptors.astype(np.float32), axis=1)
            if not np.all(np.abs(lengths - 1) < 0.01):  # also False for NaN
                raise InputError(
                    f"Case {case}: {name} descriptors are not finite unit vectors; look at the image, or train longer."
                ).about(case=case, value=name)
        if count > max_points(fingerprint.dimension):
            raise InputError(f"Case {case}: {count} points are more than fit into {MAX_BYTES} bytes.").about(
                case=case, value=count
            )
        with atomic_write(self.file(case)) as temporary:
            np.savez(
                temporary,
                fingerprint=json.dumps({**asdict(fingerprint), "case": case}),
                checksum=checksum or "",
                shape=np.asarray(index.shape, dtype=np.int64),
                spacing=np.asarray(index.spacing, dtype=np.float64),
                origin_vox=np.asarray(index.grid.origin_vox, dtype=np.float64),
                step_vox=np.asarray(index.grid.step_vox, dtype=np.float64),
                grid_shape=np.asarray(index.grid.shape, dtype=np.int64),
                cells=index.grid.cells.astype(np.int16),
                fine=index.fine.astype(np.float16),
                coarse=index.coarse.astype(np.float16),
            )

    def is_usable(self, case: str, expected: Fingerprint) -> bool:
        """Return whether the index of a case is there, whole and current; its descriptors are not read."""
        try:
            with np.load(self.file(case), allow_pickle=False) as file:
                fresh = json.loads(str(file["fingerprint"])) == {**asdict(expected), "case": case}
                return fresh and self._is_of_image(case, file)
        except UNREADABLE:
            return False

    def read(self, case: str, expected: Fingerprint) -> CaseIndex:
        """Read the index of a case and check that it is whole and made from what is expected.

        Args:
            case: name of the case.
            expected: from :meth:`fingerprint`.

        Raises:
            NotPreparedError: it is missing, damaged or stale; the message names the command that makes it.
        """
        path = self.file(case)
        try:
            with np.load(path, allow_pickle=False) as file:
                if json.loads(str(file["fingerprint"])) != {**asdict(expected), "case": case}:
                    raise StaleError(
                        f"{path} is stale (a different checkpoint, plans, dataset or version); "
                        f"delete it and run: {self.command}"
                    ).about(path=path, command=self.command)
                stored = {name: file[name] for name in file.files if name != "fingerprint"}
            index = _case_index(stored, expected.dimension)
        except FileNotFoundError:
            raise NotPreparedError(f"Case {case} has no index ({path}); run: {self.command}").about(
                case=case, path=path, command=self.command
            ) from None
        except NotPreparedError:
            raise
        except UNREADABLE as error:
            raise NotPreparedError(f"{path} is damaged ({error}); delete it and run: {self.command}").about(
                path=path, command=self.command
            ) from None
        if not self._is_of_image(case, stored):
            raise StaleError(
                f"{path} is stale: case {case} was preprocessed again since; delete it and run: {self.command}"
            ).about(case=case, path=path, command=self.command)
        return index

    def _is_of_image(self, case: str, stored: Mapping[str, np.ndarray]) -> bool:
        """Return whether a stored index is of the image as it is now.

        Raises:
            OSError, RuntimeError: the image cannot be opened.
        """
        if str(stored.get("checksum")) not in ("", self.dataset.image_checksum(case)):
            return False
        fits = tuple(stored["shape"].tolist()) == self.dataset.shape(case)
        return fits and np.allclose(stored["spacing"], self.dataset.spacing)

    def _files(self) -> Iterator[Path]:
        # Files that start with a dot are being written, or left by a kill.
        return (path for path in self.folder.glob("*.npz") if not path.name.startswith("."))

    def _described(self) -> Fingerprint | None:
        """Return the fingerprint in the description; None where there is none that can be read."""
        if not self.description_file.is_file():
            return None
        try:
            content = read_json(self.description_file)
            return Fingerprint(**{name: content[name] for name in Fingerprint.__dataclass_fields__})
        except (InputError, KeyError, TypeError) as error:
            logger.warning("%s is not usable (%s).", self.description_file, error)
            return None


def _case_index(stored: dict[str, np.ndarray], dimension: int) -> CaseIndex:
    """Return the index of the arrays of a file.

    Raises:
        ValueError, KeyError: arrays are missing or do not fit each other.
    """
    cells, fine, coarse = stored["cells"], stored["fine"], stored["coarse"]
    grid_shape = tuple(stored["grid_shape"].tolist())
    if not len(cells) or fine.shape != (len(cells), dimension) or coarse.shape != fine.shape or cells.shape[1:] != (3,):
        raise ValueError(f"{len(cells)} points, fine descriptors {fine.shape}, coarse descriptors {coarse.shape}")
    if cells.min() < 0 or (cells.max(axis=0) >= grid_shape).any():
        raise ValueError("points outside the grid")
    grid = BodyGrid(tuple(stored["origin_vox"].tolist()), tuple(stored["step_vox"].tolist()), grid_shape, cells)
    return CaseIndex(tuple(stored["shape"].tolist()), tuple(stored["spacing"].tolist()), grid, fine, coarse)
