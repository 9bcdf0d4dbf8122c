"""nnU-Net's fingerprint of a dataset, made so that one bad case ends nothing and one dirty scan spoils nothing.

nnU-Net extracts it from all cases at once, gives up when a single one cannot be read. It pools the intensities of all
for the statistics that CT is normalised by. Here each case is analysed by nnU-Net's own function; what cannot be read
is left out by name, and cases whose CT values are unlike those of all others give no intensities. Of clean data the
figures are nnU-Net's own, digit by digit.
"""

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_alice.dataset import MODALITIES
from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.importing.intensities import PERCENTILES, WRAPPED, is_ct, is_wrapped, outliers
from nnunet_alice.nnunet_folders import nnunet_folder
from nnunet_alice.parallel import for_each_case
from nnunet_alice.planning.modalities import check_modalities, modalities_of
from nnunet_alice.planning.preprocessing import raw_cases

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "dataset_fingerprint.json"
#: Raised when fingerprints change: older ones of ours are made again.
VERSION = 1
#: Voxels that enter the intensity statistics: nnU-Net's number in all, but from one case no more than this. nnU-Net
#: draws all of them however few cases there are (with replacement: half a minute and gigabytes for three small
#: volumes); from 1000 cases on, the two are the same.
SAMPLES, SAMPLES_PER_CASE = 100_000_000, 100_000
#: Keys of ours in a fingerprint: what it was made from, cases that it does not cover, cases that gave no intensities.
MADE_FROM, LEFT_OUT, OUTLIERS = "made_from", "left_out", "intensity_outliers"
#: Statistics are spoiled where the standard deviation is beyond this share of the range that values are clipped to.
_SPOILED = 3.0

Statistics = dict[str, float]


def ensure_fingerprint(dataset: str, num_processes: int) -> dict[str, str]:
    """Extract the fingerprint unless there is one of these very files.

    One of stock nnU-Net counts as well, if it has as many cases and is newer than all files. Cases that it does not
    cover are tried each time: where one can be read now, the fingerprint is made again.

    Returns:
        reason for each case that it does not cover.

    Raises:
        InputError: no case can be read, or one of several.
    """
    cases = raw_cases(dataset)
    if len(cases) < 2:
        logger.warning("%s has one case only: there are no views of different people to match.", dataset)
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / dataset / "dataset.json")
    path = nnunet_folder("nnUNet_preprocessed") / dataset / FINGERPRINT_FILE
    modalities = modalities_of(dataset)
    if modalities:
        check_modalities(modalities, list(cases), f"nnunet_alice plan --modalities of {dataset}")
    made_from = _basis(cases, dataset_json) | ({MODALITIES: modalities} if modalities else {})
    shared = (dataset, time.time_ns(), min(SAMPLES // len(cases), SAMPLES_PER_CASE))
    analyse = functools.partial(
        for_each_case,
        functools.partial(_analyse_case, shared),
        doing="Extracting the fingerprint",
        num_processes=num_processes,
    )
    if _is_current(path, cases, made_from):
        left_out = analyse(list(read_json(path).get(LEFT_OUT, ())))
        if not left_out.results:
            logger.info("Fingerprint of %d cases found: %s.", len(cases), path)
            return left_out.failed
    outcomes = analyse(list(cases))
    failed = outcomes.failed
    analysed = {case: outcomes.results[case] for case in cases if case in outcomes.results}  # in nnU-Net's order
    if len(analysed) < min(2, len(cases)):
        few = "; ".join(f"{case}: {reason}" for case, reason in list(failed.items())[:3])
        raise InputError(f"Fewer than two cases of {dataset} can be read ({few}).").about(value=dataset)
    names = list(dataset_json.get("channel_names", dataset_json.get("modality")).values())
    intensities = {case: found[2] for case, found in analysed.items()}
    own: dict[str, dict[str, Statistics]] = {}
    unlike: dict[str, str] = {}
    for modality in sorted(set(modalities.values())):
        of_modality = {case: found for case, found in intensities.items() if modalities[case] == modality}
        if not of_modality:
            raise InputError(
                f"No case of the modality {modality} in {dataset} can be read; leave it out of the pool."
            ).about(value=modality)
        own[modality], strange = _statistics(of_modality, [modality])
        unlike |= strange
    statistics, strange = _statistics(intensities, [MODALITIES] if modalities else names)
    unlike |= strange
    for case, reason in unlike.items():
        logger.warning("Case %s is left out of the intensity statistics: %s.", case, reason)
    fingerprint = {
        "spacings": [list(found[1]) for found in analysed.values()],
        "shapes_after_crop": [list(found[0]) for found in analysed.values()],
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": float(np.median([found[3] for found in analysed.values()])),
    }
    fingerprint |= {MODALITIES: own} if own else {}
    write_json(path, fingerprint | {MADE_FROM: made_from, LEFT_OUT: failed, OUTLIERS: unlike})
    return failed


def _basis(cases: dict[str, dict], dataset_json: dict) -> dict[str, Any]:
    """Return what a fingerprint depends on."""
    checksum = hashlib.sha256()
    for case, files in cases.items():
        states = [(path, *_size_and_time(path)) for path in (*files["images"], files["label"])]
        checksum.update(json.dumps([case, states]).encode())
    reader = dataset_json.get("overwrite_image_reader_writer")
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    return {"version": VERSION, "reader": reader, "channels": channels, "files": checksum.hexdigest()}


def _size_and_time(path: str) -> tuple[int, int]:
    """Return the size in bytes and time of modification in ns; zeros for a file that is missing."""
    try:
        status = Path(path).stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _is_current(path: Path, cases: dict[str, dict], made_from: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    with contextlib.suppress(InputError, KeyError, TypeError, AttributeError):
        known = read_json(path)
        if MADE_FROM in known:
            return known[MADE_FROM] == made_from
        if MODALITIES in made_from:
            return False
        # nnU-Net's own, or one from before it was noted what they are made from
        covered = len(known["spacings"]) + len(known.get(LEFT_OUT, ()))
        newest = max(_size_and_time(file)[1] for files in cases.values() for file in (*files["images"], files["label"]))
        statistics = known["foreground_intensity_properties_per_channel"]
        if any(is_ct(name) and _spoiled(statistics[key]) for key, name in made_from["channels"].items()):
            logger.info("The intensity statistics in %s are spoiled by outliers and are made again.", path)
            return False
        return covered == len(cases) and path.stat().st_mtime_ns >= newest
    return False


def _spoiled(statistics: Statistics) -> bool:
    return statistics["std"] > _SPOILED * (statistics["percentile_99_5"] - statistics["percentile_00_5"])


def _analyse_case(shared: tuple[str, int, int], case: str) -> tuple:
    """Return shape after cropping, spacing, intensities of each channel, share of the volume that cropping leaves."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    dataset, run, samples = shared
    cases, reader = _files_and_reader(dataset, run)
    shape, spacing, intensities, _, relative_size = DatasetFingerprintExtractor.analyze_case(
        cases[case]["images"], cases[case]["label"], reader, num_samples=samples
    )
    plain = [np.asarray(values, dtype=np.float32) for values in intensities]
    return tuple(map(int, shape)), tuple(map(float, spacing)), plain, float(relative_size)


@functools.lru_cache(maxsize=1)
def _files_and_reader(
    dataset: str,
    run: int,  # noqa: ARG001  a new run looks again
) -> tuple[dict[str, dict], type]:
    """Return files of all cases and their reader, found once a process and ``run``."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    cases = raw_cases(dataset)
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / dataset / "dataset.json")
    example = next(iter(cases.values()))["images"][0]
    return cases, determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)


def _statistics(
    intensities: dict[str, list[np.ndarray]], channels: Sequence[str]
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Return nnU-Net's statistics of each channel, and the cases whose CT values are unlike the others'."""
    unlike: dict[str, str] = {}
    for number, channel in enumerate(channels):
        if is_ct(channel):
            values = {case: found[number] for case, found in intensities.items() if len(found[number])}
            unlike |= {case: WRAPPED for case, sample in values.items() if is_wrapped(sample, channel)}
            figures = {
                case: np.percentile(sample, PERCENTILES) for case, sample in values.items() if case not in unlike
            }
            unlike |= outliers(figures)
    if len(unlike) == len(intensities):
        unlike = {}
    statistics = {}
    for number, channel in enumerate(channels):
        pooled = np.concatenate([found[number] for case, found in intensities.items() if case not in unlike])
        statistics[str(number)] = _of_channel(pooled, robust=is_ct(channel))
    return statistics, unlike


def _of_channel(values: np.ndarray, robust: bool) -> Statistics:
    low, median, high = np.percentile(values, np.array(PERCENTILES))
    found = {
        "mean": float(np.mean(values)),
        "median": float(median),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }
    if robust and high > low and _spoiled(found):
        clipped = np.clip(values.astype(np.float64), low, high)
        found |= {"mean": float(np.mean(clipped)), "std": float(np.std(clipped))}
        logger.warning(
            "A few voxels lie far beyond all others (%g to %g); mean and deviation are those of clipped values.",
            found["min"], found["max"],
        )  # fmt: skip
    return found
