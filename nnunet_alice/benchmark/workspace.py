"""A benchmark's folder: a copy of the dataset made of links, with splits of its own. The original is only read.

``preprocessed/`` and ``results/`` are nnU-Net's folders for all runs, ``weights/`` holds the transferred checkpoints,
``logs/`` what each run printed, ``settings.json`` what was asked for.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_alice.benchmark.measures import Predictions, Segmentations, measure_of
from nnunet_alice.benchmark.settings import Arm, Settings
from nnunet_alice.benchmark.splits import Partition, partitions
from nnunet_alice.benchmark.truth import check_truth
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, MissingFileError, OccupiedError, named
from nnunet_alice.files import atomic_write, file_checksum, link_file, read_json, write_json
from nnunet_alice.locks import held
from nnunet_alice.nnunet_folders import dataset_number
from nnunet_alice.targets.definitions import DEFINITIONS, load_targets
from nnunet_alice.targets.splits import check_no_leak
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: how the cases are divided; the names of the splits, in the order of their folds
_DIVISIONS, _NAMES = "divisions.json", "splits_names.json"
#: settings that may not change within a folder: they decide which cases a split's name stands for
_FIXED = ("dataset", "plans", "configuration", "seed", "test", "target")


class Workspace:
    """Folder of a benchmark.

    Args:
        folder: is made if missing.
        settings: of the benchmark.
    """

    def __init__(self, folder: str | os.PathLike, settings: Settings) -> None:
        self.folder = Path(folder).absolute()
        self.settings = settings
        self.preprocessed = self.folder / "preprocessed"

    @property
    def begun(self) -> bool:
        """Whether runs may have been started here. What a refused benchmark left may be written over."""
        return (self.folder / "settings.json").is_file() or (self.folder / "results").is_dir()

    def prepare(self) -> list[Partition]:
        """Link the dataset; may be called again at any time.

        Returns:
            the divisions of the cases.

        Raises:
            InputError: the folder belongs to a different benchmark, or the settings do not fit the dataset.
            NotPreparedError: the dataset is not preprocessed.
        """
        source = PreprocessedDataset.find(self.settings.dataset, self.settings.plans, self.settings.configuration)
        if source.base.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"nnUNet_preprocessed points into {self.folder}; set it to your own folder again.").about(
                path=self.folder, option="nnUNet_preprocessed"
            )
        self._check_settings()
        manager = source.configuration_manager
        if manager.previous_stage_name or manager.next_stage_names:
            raise InputError(
                f"{self.settings.configuration} of {self.settings.plans} is a stage of a cascade, which a benchmark "
                "cannot run; choose a different configuration, e.g. 3d_fullres."
            ).about(value=self.settings.configuration)
        divisions = self._divide(source)
        target = self.preprocessed / source.name
        files = (f"{self.settings.plans}.json", "dataset.json", "dataset_fingerprint.json")
        for name in files:
            if not (source.base / name).is_file():
                raise MissingFileError(f"{source.base} has no {name}; run nnUNetv2_plan_and_preprocess for it.").about(
                    path=source.base, value=name, command="nnUNetv2_plan_and_preprocess"
                )
        self._check_unchanged(source.base, target)
        self._link(source, files)
        if not self.settings.predicts:
            self._check_truth(source)
        for arm in self.settings.arms:
            if arm.dataset is not None:
                self._link_located(source, arm)
        return divisions

    def remember(self, divisions: Sequence[Partition]) -> None:
        """Write down settings and divisions, which reports read: of a benchmark that nothing is wrong with."""
        write_json(self.folder / "settings.json", self.settings.plain())
        write_json(self.folder / _DIVISIONS, [asdict(division) for division in divisions])

    @cached_property
    def measure(self) -> Segmentations | Predictions:
        """What the runs leave, as the folder's own copies of dataset and targets say."""
        return measure_of(self.settings, self.dataset_folder)

    def divisions(self) -> list[Partition]:
        """Return the divisions of the cases, as :meth:`remember` wrote them down.

        Raises:
            InputError: it did not, or an earlier version did.
        """
        path = self.folder / _DIVISIONS
        if not path.is_file():
            raise MissingFileError(
                f"{path} does not exist; run nnunet_alice benchmark with --dry_run, which writes it."
            ).about(path=path, command="nnunet_alice benchmark")
        return [
            Partition(one["name"], tuple(one["pool"]), tuple(one["test"]), one.get("strata", {}), one.get("groups", {}))
            for one in read_json(path)
        ]

    def folds(self) -> dict[str, int]:
        """Return name -> fold of the splits that were written."""
        names = self.dataset_folder / _NAMES
        return {name: fold for fold, name in enumerate(read_json(names) if names.is_file() else [])}

    def _divide(self, source: PreprocessedDataset) -> list[Partition]:
        """Return the divisions of the cases; of a target those of cases that have it, by strata, without leaks."""
        own = source.base / "splits_final.json"
        split, cases = read_json(own) if own.is_file() else None, source.cases()
        if not self.settings.predicts:
            return partitions(self.settings, cases, split)
        self._copy_targets(load_targets(source.name).path, self.preprocessed / source.name)
        measure = self.measure
        assert isinstance(measure, Predictions), "arms predict"
        known = [case for case in cases if case in measure.values.index]
        usable = set(known)
        without = set(cases) - usable
        if without:
            logger.warning(
                "%d of %s have no value of '%s' and are left out: %s.",
                len(without), counted(len(cases), "case"), measure.target.name, named(sorted(without)),
            )  # fmt: skip
        if split is not None:
            split = [{side: [case for case in fold[side] if case in usable] for side in fold} for fold in split]
        groups = dict(zip(known, measure.targets.groups(known), strict=True))
        divisions = partitions(self.settings, known, split, groups, without)
        for division in divisions:
            check_no_leak(measure.targets, {"train": division.pool, "val": division.test}, measure.targets.path)
        return [replace(division, strata=measure.strata(division.pool)) for division in divisions]

    def _copy_targets(self, table: Path, folder: Path) -> None:
        """Put the targets beside the links, where the runs and the report find them.

        Raises:
            InputError: they changed since the benchmark began: finished runs learned others.
        """
        for path in (table, table.with_name(DEFINITIONS)):
            copy = folder / path.name
            if self.begun and copy.is_file() and copy.read_bytes() != path.read_bytes():
                raise OccupiedError(
                    f"{path} changed since the benchmark in {self.folder} began; use a new folder for it."
                ).about(path=path)
            with atomic_write(copy) as temporary:
                shutil.copyfile(path, temporary)

    def _link(self, source: PreprocessedDataset, files: Sequence[str]) -> None:
        """Link preprocessed cases and truth of a dataset, and copy its small files."""
        target = self.preprocessed / source.name
        again = not self.begun
        link_files(source.folder, target / source.folder.name, again)
        if not self.settings.predicts:
            link_files(source.base / "gt_segmentations", target / "gt_segmentations", again)
        for name in files:
            write_json(target / name, read_json(source.base / name))

    def _link_located(self, source: PreprocessedDataset, arm: Arm) -> None:
        """Link the dataset with coordinates that an arm trains on.

        Raises:
            InputError: it lacks cases of the benchmark's dataset.
        """
        plans = arm.plans or self.settings.plans
        if arm.dataset is None:
            raise InputError(
                f"The arm '{arm.name}' names no dataset with coordinates; add its dataset to the settings."
            ).about(option=arm.name)
        located = PreprocessedDataset.find(arm.dataset, plans, self.settings.configuration)
        missing = sorted(set(source.cases()) - set(located.cases()))
        if missing:
            raise InputError(
                f"{located.name} of arm '{arm.name}' lacks {counted(len(missing), 'case')} of {source.name} "
                f"({named(missing)}); run nnunet_alice locate -d {source.number} and preprocess what it writes."
            ).about(case=missing[0], option=arm.name, command=f"nnunet_alice locate -d {source.number}")
        self._link(located, (f"{plans}.json", "dataset.json", "dataset_fingerprint.json"))
        self._check_truth(located, f"truth_{located.name}.json")

    @property
    def dataset(self) -> str:
        """Full name of the dataset."""
        return self._linked(self.settings.dataset)

    def dataset_of(self, arm: Arm) -> str:
        """Return the full name of the dataset that an arm trains on."""
        return self._linked(self.settings.dataset if arm.dataset is None else arm.dataset)

    def _linked(self, dataset: str) -> str:
        """Return the full name of a linked dataset, given by number or name."""
        names = sorted(path.name for path in self.preprocessed.glob("Dataset*"))
        number = int(dataset) if dataset.isdigit() else None
        return next(name for name in names if name == dataset or dataset_number(name) == number)

    @property
    def dataset_folder(self) -> Path:
        """Folder of the linked dataset."""
        return self.preprocessed / self.dataset

    @property
    def file_ending(self) -> str:
        """Ending of the dataset's files, e.g. ``.nii.gz``."""
        return read_json(self.dataset_folder / "dataset.json")["file_ending"]

    def write_splits(self, wanted: Iterable[tuple[str, dict]]) -> dict[str, int]:
        """Add splits to ``splits_final.json``; those of a begun benchmark keep their fold.

        Args:
            wanted: name and cases of each split.

        Returns:
            name -> fold.

        Raises:
            InputError: a split of this name has other cases.
        """
        names_file, splits_file = self.dataset_folder / _NAMES, self.dataset_folder / "splits_final.json"
        with held(self.folder / "locks" / "splits.lock", wait=True):  # two that add at once would lose a fold
            names = read_json(names_file) if self.begun and names_file.is_file() else []
            splits = read_json(splits_file)[: len(names)] if names else []
            known = len(names)
            for name, cases in wanted:
                if name not in names:
                    names.append(name)
                    splits.append(cases)
                elif splits[names.index(name)] != cases:
                    raise OccupiedError(
                        f"{splits_file} has other cases for {name}: the data or settings changed; use a new folder."
                    ).about(path=splits_file, value=name)
            if not self.begun:
                names_file.unlink(missing_ok=True)
            # splits first: a kill in between leaves a split without a name, which the next call writes again
            for folder in self.preprocessed.glob("Dataset*"):  # that of an arm may have come later
                path = folder / splits_file.name
                if not path.is_file() or read_json(path) != splits:
                    write_json(path, splits)
            if len(names) > known:
                write_json(names_file, names)
        return {name: fold for fold, name in enumerate(names)}

    def _check_settings(self) -> None:
        path = self.folder / "settings.json"
        if not path.is_file():
            return
        old, new = read_json(path), self.settings.plain()
        for key in _FIXED:
            if _comparable(old.get(key)) != _comparable(new[key]):
                raise OccupiedError(
                    f"{self.folder} holds a benchmark with {key} {old.get(key)}, not {new[key]}; use a new folder."
                ).about(path=self.folder, option=key, value=new[key])

    def _check_unchanged(self, source: Path, target: Path) -> None:
        """Refuse plans and labels other than those of the finished runs, which would be counted beside them."""
        if not self.begun:
            return
        plans = f"{self.settings.plans}.json"
        for name, relevant in ((plans, self._plan), ("dataset.json", _labels)):
            if (target / name).is_file() and relevant(target / name) != relevant(source / name):
                raise OccupiedError(
                    f"{source / name} changed since the benchmark in {self.folder} began; use a new folder for it."
                ).about(path=source / name)

    def _check_truth(self, source: PreprocessedDataset, file: str = "truth.json") -> None:
        """Refuse segmentations other than those that the finished runs were trained and measured on."""
        folder = self.preprocessed / source.name / "gt_segmentations"
        record, ending, cases = self.folder / file, self.file_ending, source.cases()
        known = read_json(record) if self.begun and record.is_file() else {}
        found = {case: file_checksum(folder / f"{case}{ending}") for case in cases}
        changed = sorted(case for case in known.keys() & found.keys() if known[case] != found[case])
        if changed:
            raise OccupiedError(
                f"{folder / changed[0]}{ending} (of {len(changed)} such files) changed since the benchmark in "
                f"{self.folder} began; use a new folder for the new truth."
            ).about(case=changed[0], path=self.folder, value=len(changed))
        if found.keys() - known.keys():
            check_truth(source, folder, ending, sorted(found.keys() - known.keys()))
            write_json(record, known | found)

    def _plan(self, path: Path) -> dict:
        """Return what of a plans file this benchmark's runs depend on: other configurations may come and go."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        content = read_json(path)
        resolved = PlansManager(content).get_configuration(self.settings.configuration).configuration
        return {key: value for key, value in content.items() if key != "configurations"} | {"configuration": resolved}


def link_files(source: Path, target: Path, again: bool = False) -> None:
    """Link every file of a folder into a different one: symbolic links, or hard links where those are not allowed.

    Links that lead nowhere are made again.

    Args:
        source: folder of the files.
        target: folder of the links.
        again: make all links again.

    Raises:
        InputError: there is no such folder.
    """
    if not source.is_dir():
        raise MissingFileError(f"{source} does not exist; run nnUNetv2_preprocess for this dataset.").about(
            path=source, command="nnUNetv2_preprocess"
        )
    target.mkdir(parents=True, exist_ok=True)
    there = {entry.name: Path(entry.path).exists() for entry in os.scandir(target)}
    for entry in os.scandir(source):
        if (there.get(entry.name) and not again) or not entry.is_file() or entry.name.startswith("."):
            continue
        original = Path(entry.path).resolve()
        if entry.name in there:  # the data moved, or were others
            (target / entry.name).unlink(missing_ok=True)
        link_file(original, target / entry.name)  # or a different part of this benchmark was faster


def _labels(path: Path) -> dict:
    content = read_json(path)
    return {key: content.get(key) for key in ("labels", "regions_class_order", "channel_names", "file_ending")}


def _comparable(value: Any) -> Any:
    """Return settings as they look after a trip through JSON."""
    if isinstance(value, dict):
        return {key: _comparable(entry) for key, entry in value.items()}
    return [_comparable(entry) for entry in value] if isinstance(value, list | tuple) else value
