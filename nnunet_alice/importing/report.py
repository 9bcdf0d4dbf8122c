"""What an import did: every case with its verdict, what the verdict was based on, and what was passed over."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_alice.errors import InputError, OccupiedError, named
from nnunet_alice.files import read_json, write_json
from nnunet_alice.importing.mending import COPY_FOLDER
from nnunet_alice.nnunet_folders import dataset_number, dataset_title, datasets_by_number
from nnunet_alice.parallel import Outcomes
from nnunet_alice.parts import Part
from nnunet_alice.words import counted, pasteable

REPORT_FILE = "import_report.json"
#: What the parts of an array job leave, until an import of the whole folder takes it over.
PART_FILES = "import_report_part*.json"
IMPORTED, LEFT_OUT = "imported", "left out"
#: Unlike cases that are named one by one; the report has all.
_NAMED = 20
_STORED = ("dataset", "source", "channels", "orient", "outliers", "unlistable", "other_files")


@dataclass
class ImportReport:
    """What an import did, as kept in ``import_report.json``.

    Attributes:
        dataset: full name, ``Dataset900_NAME``.
        source: the folder that was imported.
        channels: names of the channels.
        orient: letters that all images are turned to by copies, e.g. ``LPS``; empty if all stay as they are.
        cases: case -> record. Every one has a ``status`` (``imported`` or ``left out``), the ``files`` that it was made
            from (path, bytes, modification time; those with voxels behind headers too) and the ``basis`` of the verdict
            (version of the checks, number of channels). A case left out has a ``reason``, and ``retry`` where the
            failure may not be the file's. An imported one has ``images`` (what nnU-Net reads), ``copied`` (why copies
            are read, or empty), ``turned_from`` (orientation before, or empty), ``orientation``, ``shape`` and
            ``spacing_mm`` (z, y, x), ``body_share`` (share of voxels in the body), ``intensities`` (of each channel)
            and ``hints`` (what is suspicious). ``kept`` is the folder that could
            not be listed, or the reason, where an earlier verdict could not be checked.
        outliers: case -> how its intensities differ from those of all others.
        unlistable: folder -> why its files could not be listed.
        other_files: ending -> files that were passed over.
        folder: folder of the dataset; not stored.
        read: cases that this run read, all others being known already; not stored.
        gone: imported cases whose files are no more; not stored.
        part: the share of the cases that this run imports; None for all; not stored.
    """

    dataset: str
    source: str
    channels: list[str]
    orient: str = ""
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    outliers: dict[str, str] = field(default_factory=dict)
    unlistable: dict[str, str] = field(default_factory=dict)
    other_files: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: Path = Path()
    read: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    part: Part | None = None

    @property
    def imported(self) -> list[str]:
        """Names of the imported cases, sorted."""
        return sorted(case for case, record in self.cases.items() if record["status"] == IMPORTED)

    @property
    def left_out(self) -> dict[str, str]:
        """Reason of each case that was left out, sorted by case."""
        return {case: r["reason"] for case, r in sorted(self.cases.items()) if r["status"] == LEFT_OUT}

    @property
    def outcomes(self) -> Outcomes[dict[str, Any]]:
        """What became of every case; what was left out failed."""
        imported = {case: self.cases[case] for case in self.imported}
        return Outcomes(imported, [case for case in imported if case not in self.read], self.left_out)

    @property
    def kept(self) -> dict[str, str]:
        """Why the verdict on an imported case could not be checked, sorted by case."""
        return {case: r["kept"] for case, r in sorted(self.cases.items()) if "kept" in r}

    @property
    def hints(self) -> dict[str, list[str]]:
        """What is suspicious -> imported cases of which it is true."""
        found: dict[str, list[str]] = {}
        for case in self.imported:
            for hint in self.cases[case].get("hints", ()):
                found.setdefault(hint, []).append(case)
        return found

    @property
    def links(self) -> dict[str, str]:
        """Imported case -> a case before it of the very same files, by links."""
        first: dict[tuple, str] = {}
        found = {}
        for case in self.imported:
            files = tuple(map(_place, (file["path"] for file in self.cases[case]["files"])))
            if first.setdefault(files, case) != case:
                found[case] = first[files]
        return found

    @property
    def file(self) -> Path:
        """Where the report is kept."""
        name = REPORT_FILE if self.part is None else PART_FILES.replace("*", str(self.part).replace("/", "of"))
        return self.folder / name

    def drop_parts(self) -> None:
        """Remove the reports of parts, whose records this one holds."""
        for path in self.folder.glob(PART_FILES):
            path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the report, whole or not at all."""
        content = {name: getattr(self, name) for name in _STORED}
        write_json(self.file, content | {"cases": dict(sorted(self.cases.items()))})

    def warnings(self) -> Iterator[str]:
        """Yield what a user has to know, a sentence each."""
        total = counted(len(self.imported), "case")
        blocked = {case: reason for case, reason in self.kept.items() if reason in self.unlistable}
        for folder, reason in self.unlistable.items():
            stay = counted(list(blocked.values()).count(folder), "case")
            yield f"{folder} could not be listed ({reason}); {stay} imported from it before: kept."
        unread = {case: reason for case, reason in self.kept.items() if case not in blocked}
        for case in list(unread)[:1]:
            yield f"{len(unread)} of {total} could not be read now: kept as imported before ({case}: {unread[case]})."
        copied = {case: self.cases[case]["copied"] for case in self.imported if self.cases[case].get("copied")}
        for case in list(copied)[:1]:
            yield f"{len(copied)} of {total}: nnU-Net reads a copy in {COPY_FOLDER} ({copied[case]})."
        for hint, cases in self.hints.items():
            yield f"{len(cases)} of {total} ({named(cases)}): {hint}."
        if links := [f"{case} is {other}" for case, other in self.links.items()]:
            yield f"{len(links)} of {total} are links to the files of others ({named(links)}); each counts twice."
        for case, reason in list(self.outliers.items())[:_NAMED]:
            yield f"Case {case}: {reason}; look at it, and mend or remove it. Plans leave it out of their statistics."
        if len(self.outliers) > _NAMED:
            yield f"... and {len(self.outliers) - _NAMED} more cases like these, in {self.file}."
        for ending, entry in self.other_files.items():
            if entry["what"]:
                files = counted(entry["count"], f"{ending} file")
                yield f"Not taken: {files} ({named(entry['examples'])}): {entry['what']}."
        harmless = [f"{entry['count']} {ending}" for ending, entry in self.other_files.items() if not entry["what"]]
        if harmless:
            yield f"Not taken, no volumes by their names: {', '.join(harmless)}."


def _place(path: str) -> tuple[int, int] | str:
    """Return where a file lies on its disk, whatever it is called."""
    try:
        status = os.stat(path)  # noqa: PTH116  a path as text, many times
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def open_report(folder: Path, source: Path, channels: list[str], part: Part | None = None) -> ImportReport:
    """Return the report of an earlier import into a dataset's folder and of its parts, or an empty one.

    Raises:
        InputError: the folder was not made by import, or from a different source, or with other channels.
    """
    report = ImportReport(folder.name, str(source), channels, folder=folder, part=part)
    there = [path for path in (folder / REPORT_FILE, *sorted(folder.glob(PART_FILES), key=_age)) if path.is_file()]
    if not there and ((folder / "dataset.json").exists() or (folder / "labelsTr").exists()):
        raise OccupiedError(f"{folder} exists and was not made by import; choose a different number with -d.").about(
            path=folder, option="-d"
        )
    for path in there:
        _take_over(report, path)
    return report


def _age(path: Path) -> float:
    """Return when a file was written; one that a different run has just removed comes first."""
    return path.stat().st_mtime if path.exists() else 0.0


def _take_over(report: ImportReport, path: Path) -> None:
    """Put the records of an earlier import or part into a report; later ones win.

    Raises:
        InputError: it is of a different source, or of other channels.
    """
    earlier, folder = read_json(path), report.folder
    try:
        if earlier["source"] != report.source:
            raise OccupiedError(
                f"{folder} was imported from {earlier['source']}; choose a different number with -d, or delete "
                "the folder."
            ).about(path=folder, option="-d", value=earlier["source"])
        report.cases |= {case: dict(record) for case, record in earlier["cases"].items()}
        report.orient = earlier.get("orient", "")
        before = list(earlier["channels"])
        there = report.imported
    except (TypeError, KeyError, AttributeError, ValueError):
        raise InputError(f"{path} is not a report of import; delete it with its folder.").about(path=path) from None
    if there and before != report.channels:
        number = dataset_number(folder.name)
        taken = datasets_by_number()
        free = next((n for n in (*range(number + 1, 1000), *range(1, number)) if n not in taken), "ID")
        command = pasteable("nnunet_alice", "import", "-i", report.source, "-d", free, "-n", dataset_title(folder.name))
        raise OccupiedError(
            f"{folder} was imported with --channel {pasteable(*before)} and stays as it is; for other channels make a "
            f"new dataset: {command} --channel {pasteable(*report.channels)}"
        ).about(path=folder, option="--channel", command=command)


def orientations_of_import(folder: Path) -> dict[str, str]:
    """Return case -> letters of what nnU-Net reads, as the report in a dataset's folder has it; empty without one."""
    try:
        cases = read_json(folder / REPORT_FILE)["cases"]
        return {case: record["orientation"] for case, record in cases.items() if record["status"] == IMPORTED}
    except (InputError, KeyError, TypeError, AttributeError):
        return {}


def changed_since_import(folder: Path) -> list[str]:
    """Return the imported cases whose files are not those that were checked; empty for what was not imported by us."""
    try:
        cases = read_json(folder / REPORT_FILE)["cases"]
        return sorted(
            case
            for case, record in cases.items()
            if record["status"] == IMPORTED
            and record["files"] != file_states([file["path"] for file in record["files"]])
        )
    except (InputError, KeyError, TypeError, AttributeError):
        return []


def file_states(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return what tells whether files changed: path, bytes and time of modification, None where they cannot be had."""
    found = []
    for path in map(Path, files):
        try:
            status = path.stat()
            found.append({"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns})
        except OSError:  # a dangling link, or no permission
            found.append({"path": str(path), "bytes": None, "modified_ns": None})
    return found


def turning_command(folder: Path, letters: str) -> str:
    """Return a sentence that says how to import a dataset again so that its images lie as these letters say."""
    number: int | str = dataset_number(folder.name)
    name = dataset_title(folder.name)
    try:
        report = read_json(folder / REPORT_FILE)
        source, channels = report["source"], report["channels"]
    except (InputError, KeyError, TypeError):
        source, channels, number = "FOLDER", ["CHANNEL"], "ID"
    command = pasteable("nnunet_alice", "import", "-i", source, "-d", number, "-n", name, "--channel", *channels)
    return f"Import it turned: {command} --orient {letters}"
