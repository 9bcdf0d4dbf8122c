"""A benchmark's checkpoints: fitted to its plans by ``nnunet_alice transfer``, known by their content."""

from pathlib import Path

from nnunet_alice.benchmark.plan import Cell
from nnunet_alice.benchmark.settings import Settings
from nnunet_alice.benchmark.workspace import Workspace
from nnunet_alice.checkpoints.weights_folder import content_file
from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.files import read_json, sha256_of, write_json


class Weights:
    """Transferred checkpoints of all arms.

    Their checksums are part of the results' paths: when a checkpoint is replaced by a better one of the same name, its
    cells are new cells.

    Args:
        workspace: of the benchmark.
        settings: of the benchmark.
    """

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self.workspace = workspace
        self.settings = settings
        self._checksums: dict[tuple[str, int], str] = {}

    def check(self) -> None:
        """Record the checkpoints' checksums, of those that changed again, and look for some that are the same.

        Raises:
            InputError: one arm has a checkpoint twice, which would count as two pretraining seeds; or a file is gone
                and was never transferred.
        """
        self._checksums.clear()
        for arm in self.settings.arms:
            seen: dict[str, Path] = {}
            for number in range(len(arm.checkpoints)):
                self._record_checksum(arm.name, number)
                source, checksum = self.source(arm.name, number), self.checksum(arm.name, number)
                if checksum in seen:
                    raise InputError(
                        f"Arm '{arm.name}' has the same weights twice ({seen[checksum]}, {source}); leave one out."
                    ).about(path=source, option=arm.name)
                seen[checksum] = source

    def source(self, arm: str, checkpoint: int) -> Path:
        """Return the checkpoint as the settings name it."""
        return Path(self.settings.arm(arm).checkpoints[checkpoint])

    def checksum(self, arm: str, checkpoint: int) -> str:
        """Return eight hexadecimal digits of the checkpoint's content, as :meth:`check` recorded them."""
        key = (arm, checkpoint)
        if key not in self._checksums:
            self._checksums[key] = read_json(self._record(arm, checkpoint))["checksum"]
        return self._checksums[key]

    def _record_checksum(self, arm: str, checkpoint: int) -> None:
        source, record = self.source(arm, checkpoint), self._record(arm, checkpoint)
        known = read_json(record) if record.is_file() else {}
        if source.exists():
            stat = content_file(source).stat()
            state = [str(source), stat.st_size, stat.st_mtime_ns]
            if known.get("state") != state:
                write_json(record, {"state": state, "checksum": sha256_of(content_file(source))[:8]})
        elif known.get("state", [None])[0] != str(source):
            raise MissingFileError(f"The checkpoint {source} of arm '{arm}' does not exist.").about(
                path=source, option=arm
            )

    def start_of(self, cell: Cell) -> str:
        """Return what a cell starts from, as a folder's name."""
        if cell.checkpoint is None:
            return "scratch"
        parts = self.settings.arm(cell.arm).parts
        return self.checksum(cell.arm, cell.checkpoint) + ("" if parts == "all" else f"_{parts}")

    def file(self, arm: str, checkpoint: int) -> Path:
        """Return the transferred checkpoint; of an arm with a dataset of its own the checkpoint itself."""
        if self.settings.arm(arm).dataset is not None:
            return self.source(arm, checkpoint)
        start = self.start_of(Cell("test", arm, checkpoint, "", 0, 0, 0))
        return self.workspace.folder / "weights" / f"{arm}_{start}.pth"

    def missing(self) -> list[tuple[str, int]]:
        """Return arms and numbers of the checkpoints that are still to be transferred; none of arms with a dataset."""
        return [(arm, number) for arm, number in self._transferred() if not self.file(arm, number).is_file()]

    def forget(self) -> None:
        """Delete transferred checkpoints, which may have been fitted to other plans."""
        for arm, number in self._transferred():
            self.file(arm, number).unlink(missing_ok=True)

    def _transferred(self) -> list[tuple[str, int]]:
        """Return arms and numbers of the checkpoints that are transferred, now or later."""
        arms = [arm for arm in self.settings.arms if arm.dataset is None]
        return [(arm.name, number) for arm in arms for number in range(len(arm.checkpoints))]

    def transfer(self, arm: str, checkpoint: int) -> tuple[tuple[str, ...], Path]:
        """Return words of the command that transfers a checkpoint, and its log."""
        target = self.file(arm, checkpoint)
        words = ["nnunet_alice", "transfer", "-i", str(self.source(arm, checkpoint)), "-d", self.workspace.dataset]
        words += ["-p", self.settings.plans, "-c", self.settings.configuration, "-o", str(target)]
        words += ["--parts", self.settings.arm(arm).parts]
        return tuple(words), self.workspace.folder / "logs" / f"transfer.{target.stem}.log"

    def _record(self, arm: str, checkpoint: int) -> Path:
        return self.workspace.folder / "weights" / f"{arm}_checkpoint{checkpoint}.json"
