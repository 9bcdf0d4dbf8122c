"""Datasets and folders with coordinate channels, for DrasCLRFineTuneTrainer.

`locate_dataset` leaves the dataset it is given as it is and writes a new one beside it, in which each case has four
more channels: ``dataset.json`` names the original images and labels where they lie, only coordinates are new files.
The plans are those that the pretrained encoder fits: the dataset's own, where the pretraining used them (``plan
--target``), otherwise the pretraining's. They are written with the coordinate channels as ``NoNormalization`` and
otherwise unchanged, beside a copy of the fingerprint and of the splits. So stock ``nnUNetv2_preprocess`` and
``nnUNetv2_train`` go on from there with the same network, voxels and folds.

`locate_folder` makes a folder that stock ``nnUNetv2_predict`` takes: links to the images, and coordinates.
"""

import copy
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_alice.anatomy.orientation import ORIENTATION, reader_that_gives
from nnunet_alice.coordinates.atlas_file import PortableAtlas
from nnunet_alice.coordinates.locating import REPORT_FILE, LocationReport, RawCase, locate_cases
from nnunet_alice.errors import InputError, MissingFileError, OccupiedError, named
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.importing.endings import ENDINGS, ENDINGS_OF_IMPORT, volume_ending
from nnunet_alice.importing.scan import passed_over, scan_folder
from nnunet_alice.methods.drasclr.located import COORDINATE_CHANNELS
from nnunet_alice.nnunet_folders import (
    channel_names,
    dataset_name,
    dataset_number,
    dataset_title,
    datasets_by_number,
    nnunet_folder,
    plain_name,
)
from nnunet_alice.planning.moved_plans import moved_name, reader_of, rename_plans
from nnunet_alice.planning.plans import MOVED_FROM
from nnunet_alice.planning.preprocessing import raw_cases
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: Key of ``dataset.json`` that says which dataset was located, and in which atlas.
LOCATED = "located"
#: Name of a channel that nnU-Net does not normalise, and of that normalisation in plans.
_CHANNEL, _SCHEME = "noNorm", "NoNormalization"
#: The atlas in a located dataset.
ATLAS_FILE = "atlas.npz"


@dataclass(frozen=True)
class LocatedDataset:
    """What was written.

    Attributes:
        name: full name of the new dataset.
        plans_name: its plans.
        has_fingerprint: whether a fingerprint could be copied; training needs one.
        report: outcome of every case.
    """

    name: str
    plans_name: str
    has_fingerprint: bool
    report: LocationReport


def locate_dataset(
    dataset: int | str, atlas: PortableAtlas, number: int | None = None, num_processes: int = 1
) -> LocatedDataset:
    """Write the located counterpart of a raw dataset, or bring it up to date.

    Args:
        dataset: number or name.
        atlas: atlas of the pretraining.
        number: of the new dataset; None takes the one that was made before, or the first free number above.
        num_processes: see `locate_cases`.

    Raises:
        InputError: the channels are not the atlas's, the dataset has coordinates already, the number is taken, or no
            case could be located.
    """
    source = dataset_name(dataset)
    cases = raw_cases(source)
    content = read_json(nnunet_folder("nnUNet_raw") / source / "dataset.json")
    if LOCATED in content:
        raise InputError(
            f"{source} holds coordinate channels already; locate {content[LOCATED]['from']} instead."
        ).about(value=source)
    _check_channels(source, channel_names(content), atlas)
    name = _new_name(source, number)
    folder, preprocessed = nnunet_folder("nnUNet_raw") / name, nnunet_folder("nnUNet_preprocessed") / name
    plans = located_plans(source, name, content, atlas)  # before the work, as they may be refused
    work = [
        RawCase(case, tuple(map(Path, files["images"])), _problem(files), Path(files["label"]))
        for case, files in cases.items()
    ]
    replace(atlas, predicts=content["file_ending"]).save(folder / ATLAS_FILE)
    report = locate_cases(atlas, work, folder / "imagesTr", folder / REPORT_FILE, num_processes)
    described = _described(source, content, cases, report)
    described["overwrite_image_reader_writer"] = plans["image_reader_writer"]
    for path in (folder / "dataset.json", preprocessed / "dataset.json"):
        write_json(path, described)
    write_json(preprocessed / f"{plans['plans_name']}.json", plans)
    _copy_splits(source, preprocessed, report)
    # The copy knows the image channels only; nnU-Net's training wants the file, planning is done.
    fingerprint = nnunet_folder("nnUNet_preprocessed") / source / "dataset_fingerprint.json"
    if fingerprint.is_file():
        with atomic_write(preprocessed / fingerprint.name) as temporary:
            shutil.copyfile(fingerprint, temporary)
    there = (preprocessed / fingerprint.name).is_file()
    return LocatedDataset(name, plans["plans_name"], there, report)


def locate_folder(
    folder: str | os.PathLike, output: str | os.PathLike, atlas: PortableAtlas, num_processes: int = 1
) -> LocationReport:
    """Make a folder of new images with coordinates, ready for ``nnUNetv2_predict -i``.

    Args:
        folder: images, named as for nnU-Net; with one channel, ``_0000`` may be missing.
        output: a different folder; images become links there (copies where links are not possible).
        atlas: the atlas that the training cases were located in.
        num_processes: see `locate_cases`.

    Raises:
        InputError: ``folder`` holds no image, ``output`` lies in it, or no case could be located.
    """
    source, output = Path(folder).resolve(), Path(output).resolve()
    if not source.is_dir():
        raise MissingFileError(f"{folder} is not a folder.").about(path=folder)
    if output == source or source in output.parents:
        raise InputError(
            f"-o {output} lies in -i {source}; name a folder elsewhere, so that the input stays clean."
        ).about(path=output, option="-o")
    found = scan_folder(source, len(atlas.channels), ENDINGS_OF_IMPORT)
    passed = passed_over(found)
    if passed:
        logger.warning("Passed over: %s.", passed)
    work = [RawCase(case.name, case.files, case.problem) for case in found.cases]
    if not work:
        holds = f" ({passed})" if passed else ""
        raise InputError(
            f"{folder} holds no volume{holds}; names have to end in {', '.join(ENDINGS_OF_IMPORT)}."
        ).about(path=folder)
    before = {path for path in output.glob("*") if path.is_symlink()} if output.is_dir() else set()
    ending = _ending_to_predict(atlas, work)
    whole = not found.unlistable  # what was located of a folder that cannot be listed now stays
    report = locate_cases(atlas, work, output, output / REPORT_FILE, num_processes, ending, remove_others=whole)
    located = set(report.located) - set(report.turned)
    for case in work:
        if case.name not in located:
            continue
        for channel, path in enumerate(case.files):
            target = output / f"{case.name}_{channel:04d}{ending}"
            _link(path.resolve(), target)
            before.discard(target)
    # of cases that are gone, or failed this time: nnU-Net would miss their coordinates
    for stale in before if whole else ():
        stale.unlink()
    return report


def _ending_to_predict(atlas: PortableAtlas, cases: Sequence[RawCase]) -> str:
    """Return the one ending of images that nnU-Net will look for."""
    endings = sorted({(volume_ending(case.files[0], ENDINGS_OF_IMPORT) or "").lower() for case in cases})
    if atlas.predicts:
        return atlas.predicts
    if len(endings) == 1 and endings[0] in ENDINGS:
        return endings[0]
    ending = str(atlas.dataset_json["file_ending"])
    logger.warning(
        "The images are of several kinds (%s), and nnU-Net predicts one: others than %s are copied. If your model was "
        "trained on a different kind, give the atlas.npz of its dataset with --atlas.", ", ".join(endings), ending,
    )  # fmt: skip
    return ending


def located_plans(source: str, name: str, dataset_json: dict, atlas: PortableAtlas) -> dict[str, Any]:
    """Return plans of the located dataset ``name``: those that the pretrained encoder fits, with coordinate channels.

    Args:
        source: the dataset that was located.
        name: the new one.
        dataset_json: of ``source``.
        atlas: the atlas, with the pretraining's plans.
    """
    plans = copy.deepcopy(atlas.plans)
    origin = plans.pop(MOVED_FROM, None)
    if origin is not None and origin["dataset"] == source:
        own = nnunet_folder("nnUNet_preprocessed") / source / f"{origin['plans_name']}.json"
        if not own.is_file():
            raise MissingFileError(
                f"{own} is missing: the pretraining used these plans; plan {source} again, or restore it."
            ).about(path=own)
        plans = read_json(own)
    elif plans["dataset_name"] != source:
        rename_plans(plans, moved_name(plans["dataset_name"], plans["plans_name"]))
        plans["image_reader_writer"] = reader_of(source, dataset_json)
    plain_name(plans["plans_name"], "plans_name of the pretraining")  # the file may be somebody's
    plans["image_reader_writer"] = reader_that_gives(atlas.orientation, plans["image_reader_writer"])
    if atlas.orientation:
        plans[ORIENTATION] = atlas.orientation
    plans["dataset_name"] = name
    channels = len(atlas.channels)
    for configuration in plans["configurations"].values():
        if "normalization_schemes" in configuration:
            configuration["normalization_schemes"] = [
                *configuration["normalization_schemes"],
                *[_SCHEME] * COORDINATE_CHANNELS,
            ]
            configuration["use_mask_for_norm"] = [*configuration["use_mask_for_norm"], *[False] * COORDINATE_CHANNELS]
    statistics = plans.setdefault("foreground_intensity_properties_per_channel", {})
    statistics |= {str(channels + axis): {} for axis in range(COORDINATE_CHANNELS)}
    return plans


def _check_channels(source: str, channels: list[str], atlas: PortableAtlas) -> None:
    if len(channels) != len(atlas.channels):
        raise InputError(
            f"{source} has {counted(len(channels), 'channel')} ({', '.join(channels)}), but the pretraining had "
            f"{len(atlas.channels)} ({', '.join(atlas.channels)}): its location-conditioned encoder does not fit. The "
            "plain network can be fitted with nnunet_alice transfer, and fine-tuned with FineTuneTrainer."
        ).about(value=len(channels), command="nnunet_alice transfer")
    if [name.casefold() for name in channels] != [name.casefold() for name in atlas.channels]:
        logger.warning(
            "%s has the channels %s, the pretraining had %s.", source, ", ".join(channels), ", ".join(atlas.channels)
        )


def _new_name(source: str, number: int | None) -> str:
    """Return the full name of the located dataset: the one that was made before, or a new one."""
    taken = datasets_by_number()
    ending = f"{dataset_title(source)}_located"
    if number is None:
        before = [n for n, names in taken.items() if _name(n, ending) in names and _is_of(_name(n, ending), source)]
        number = min(before, default=None)
    if number is None:
        free = (n for n in range(dataset_number(source) + 1, 1000) if n not in taken)
        number = next(free, None)
        if number is None:
            raise InputError(f"No dataset number above that of {source} is free; name one with -o.").about(
                option="-o", value=source
            )
    if not 1 <= number <= 999:
        raise InputError(f"Dataset number {number} is not between 1 and 999.").about(value=number)
    name = _name(number, ending)
    others = taken.get(number, set()) - {name}
    if others or (name in taken.get(number, ()) and not _is_of(name, source)):
        raise OccupiedError(
            f"Dataset number {number} is taken by {min(others, default=name)}; choose a different one with -o."
        ).about(option="-o", value=number)
    return name


def _name(number: int, ending: str) -> str:
    return f"Dataset{number:03d}_{ending}"


def _is_of(name: str, source: str) -> bool:
    """Return whether a dataset was made by locating ``source``, perhaps not to its end."""
    folder = nnunet_folder("nnUNet_raw") / name
    if not (folder / "dataset.json").is_file():
        return not folder.is_dir() or (folder / ATLAS_FILE).is_file()
    return read_json(folder / "dataset.json").get(LOCATED, {}).get("from") == source


def _problem(files: dict) -> str | None:
    if not all(volume_ending(Path(path), ENDINGS_OF_IMPORT) for path in files["images"]):
        return f"{Path(files['images'][0]).name} is none of {', '.join(ENDINGS_OF_IMPORT)}."
    return None


def _described(source: str, content: dict, cases: dict[str, dict], report: LocationReport) -> dict[str, Any]:
    """Return ``dataset.json`` of the located dataset."""
    channels = [*channel_names(content), *[_CHANNEL] * COORDINATE_CHANNELS]
    kept = {key: value for key, value in content.items() if key not in ("modality", "name")}
    return kept | {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "numTraining": len(report.located),
        LOCATED: {"from": source, "atlas": report.atlas, "image_channels": report.image_channels},
        "dataset": {
            case: {
                "images": [
                    *([f"imagesTr/{path.name}" for path in report.images(case)] or cases[case]["images"]),
                    *(f"imagesTr/{path.name}" for path in report.coordinates(case)),
                ],
                "label": cases[case]["label"] if (turned := report.label(case)) is None else f"labelsTr/{turned.name}",
            }
            for case in report.located
        },
    }


def _copy_splits(source: str, preprocessed: Path, report: LocationReport) -> None:
    """Write the same folds without the cases that were left out or are missing."""
    splits = nnunet_folder("nnUNet_preprocessed") / source / "splits_final.json"
    if not splits.is_file():
        return
    located, content = set(report.located), read_json(splits)
    absent = sorted({case for fold in content for names in fold.values() for case in names} - report.files.keys())
    if absent:
        logger.warning(
            "%s names %s that the dataset does not have (%s): left out of the folds.",
            splits, counted(len(absent), "case"), named(absent),
        )  # fmt: skip
    folds = [{part: [case for case in names if case in located] for part, names in fold.items()} for fold in content]
    write_json(preprocessed / splits.name, folds)


def _link(source: Path, target: Path) -> None:
    """Link to a file, or copy it where the file system has no links."""
    if target.is_symlink() and target.readlink() == source:
        return
    try:
        target.unlink(missing_ok=True)
        target.symlink_to(source)
    except OSError:
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
