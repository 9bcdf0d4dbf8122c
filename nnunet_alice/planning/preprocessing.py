"""nnU-Net's preprocessing, case by case: what is done is kept, and a bad case stops no other.

nnU-Net's own loop empties the folder first, ends with the first case that fails, and sends ``dataset.json`` to its
workers once a case. This one runs the same preprocessor on each case and writes the same files, and copies labels into
``gt_segmentations``. What ``anatomy`` knows of an image goes with it. Several runs may share the work on one folder.
"""

import contextlib
import functools
import logging
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunet_alice.dataset import MODALITIES, MODALITIES_FILE, PreprocessedDataset, preprocessing_recipe
from nnunet_alice.errors import AliceError, InputError, NotPreparedError, named
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.importing.checks import read_case
from nnunet_alice.importing.report import changed_since_import
from nnunet_alice.locks import held
from nnunet_alice.matching.invalidation import invalidate_all, invalidate_case
from nnunet_alice.nnunet_folders import dataset_number, dataset_title, nnunet_folder, plain_name
from nnunet_alice.parallel import Outcomes, for_each_case
from nnunet_alice.parts import Part
from nnunet_alice.planning.compact import store_compactly
from nnunet_alice.words import counted, telling

logger = logging.getLogger(__name__)

#: In the order of writing: a case counts as there once its image is.
_SUFFIXES = (".pkl", "_seg.b2nd", ".b2nd")
#: Folder for cases in work and their locks; nnU-Net looks at files only, not at folders beside them.
_PARTIAL = ".partial"
#: A channel that spans no more than this is constant: normalisation brings good ones to a spread of about 1.
_FLAT = 1e-3


@dataclass(frozen=True)
class _Job:
    """What a worker needs to find everything else; ``started`` is different in every run.

    It holds the plans themselves: their file may be written again meanwhile.
    """

    dataset: str
    plans_name: str
    plans: dict[str, Any] = field(compare=False)
    configuration: str
    folder: Path
    compact: bool
    started: float = field(default_factory=time.time)


def raw_cases(dataset: str) -> dict[str, dict[str, Any]]:
    """Return files of every case of a raw dataset: ``{case: {"images": [...], "label": ...}}`` with absolute paths.

    Raises:
        NotPreparedError: the raw dataset does not exist.
        InputError: it holds no case.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = nnunet_folder("nnUNet_raw") / dataset
    if not (folder / "dataset.json").is_file():
        command = f"nnunet_alice import -i FOLDER -d {dataset_number(dataset)} -n {dataset_title(dataset)} --channel CT"
        raise NotPreparedError(f"{folder} holds no dataset.json; run: {command}").about(path=folder, command=command)
    cases = get_filenames_of_train_images_and_targets(str(folder), read_json(folder / "dataset.json"))
    if not cases:
        raise InputError(f"{folder / 'dataset.json'} names no case; import volumes into it first.").about(
            path=folder / "dataset.json"
        )
    for case in cases:
        plain_name(case, f"a case in {folder / 'dataset.json'}")
    return cases


def preprocess_cases(
    dataset: str,
    plans_name: str,
    configuration: str,
    num_processes: int,
    part: Part | None = None,
    compact: bool = False,
) -> Outcomes[bool]:
    """Preprocess the cases that are missing, with nnU-Net's own preprocessor.

    Cases that are there stay when the stored recipe (spacing, normalisation, resampling...) equals that of the plans
    and no raw file is newer; with a different or unknown recipe the folder is emptied first, as nnU-Net does. Cases
    that the dataset no longer names are removed, because fold ``all`` would train on them. The outcome is kept in
    ``<data identifier>_preprocessing.json`` beside the folder.

    Args:
        dataset: full name of the dataset.
        plans_name: identifier of its plans.
        configuration: configuration of the plans.
        num_processes: processes to use; 1 works in this process.
        part: preprocess this share of the cases only; a run without tries failed ones again and names them all.
        compact: store images as :mod:`nnunet_alice.planning.compact` does; cases that are there stay as they are.

    Raises:
        AliceError: no case could be preprocessed.
    """
    prepared = PreprocessedDataset(dataset, plans_name, configuration)
    folder, report = prepared.folder, prepared.preprocessing_report
    cases = raw_cases(dataset)
    if changed := changed_since_import(nnunet_folder("nnUNet_raw") / dataset):
        logger.warning(
            "%s changed since import (%s): import again, so that checks and body masks are those of the files.",
            counted(len(changed), "case"), named(changed),
        )  # fmt: skip
    _copy_labels(dataset, cases, prepared.base / "gt_segmentations")
    recipe = preprocessing_recipe(prepared.plans, prepared.configuration_manager.configuration)
    with held(report.with_suffix(".lock"), wait=True):  # runs that start together empty the folder once
        _clear_if_different(prepared, report, recipe)
        _remove_unnamed(prepared, cases)
        record = {"recipe": recipe} | _sort_modalities(prepared, report, cases)
        write_json(report, {**record, "failed": {}})
    if part is not None:
        cases = {case: cases[case] for case in part.share(cases)}
    names = random.sample(list(cases), len(cases))  # several runs then seldom meet at a case
    job = _Job(dataset, plans_name, prepared.plans, configuration, folder, compact)

    def rescue(case: str, error: Exception) -> bool:
        stays = "; it stays as it was preprocessed before" if _stays(prepared, case, cases[case], error) else ""
        raise AliceError(f"{_why(error, cases[case])}{stays}")

    outcomes = for_each_case(
        functools.partial(_preprocess_case, job),
        names,
        doing="Preprocessing",
        num_processes=num_processes,
        keep=lambda case: _is_current(folder, case, cases[case]) or None,
        rescue=rescue,
        report=lambda so_far: write_json(report, {**record, "failed": so_far.failed}),
    )
    _remove_leftovers(folder)
    if outcomes.failed:  # a part may have no case
        outcomes.check_some("preprocessed", report)
    return outcomes


def _why(error: Exception, files: dict[str, Any]) -> str:
    """Return what an error tells; nnU-Net raises some without a word, where files do not fit together."""
    if str(error).strip():
        return telling(error)
    try:
        read_case([*map(Path, files["images"])])
    except (InputError, OSError) as found:
        return telling(found)
    return f"{telling(error)} in nnU-Net; compare the grids of its files"


def _copy_labels(dataset: str, cases: dict[str, dict[str, Any]], folder: Path) -> None:
    """Copy the labels beside the preprocessed cases, where nnU-Net's trainers look for them."""
    ending = read_json(nnunet_folder("nnUNet_raw") / dataset / "dataset.json")["file_ending"]
    for case, files in cases.items():
        label, copy = Path(files["label"]), folder / f"{case}{ending}"
        if not Path(label).is_file():
            continue  # preprocessing will say so
        try:
            if not copy.is_file() or copy.stat().st_mtime < label.stat().st_mtime:
                with atomic_write(copy) as temporary:
                    shutil.copyfile(label, temporary)
        except OSError as error:  # preprocessing will say so, too, if it cannot be read
            logger.warning("The label of case %s could not be copied (%s).", case, error)


def _clear_if_different(dataset: PreprocessedDataset, report: Path, recipe: dict) -> None:
    """Empty the folder unless it was made by this recipe; leftovers of killed runs go in any case."""
    folder = dataset.folder
    _remove_leftovers(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        known = read_json(report).get("recipe")
    except InputError:
        known = None
    if known != recipe:
        reason = "there is no record of how it was made" if known is None else "it was made by other plans"
        logger.info("%s is preprocessed again: %s.", folder, reason)
        invalidate_all(dataset)  # first: a kill in between costs work, but leaves nothing that is wrong
        shutil.rmtree(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed and failed runs were writing; what a different run is at has a lock."""
    partial = folder / _PARTIAL
    if not partial.is_dir():
        return
    folders: dict[str, list[Path]] = {}
    for path in partial.iterdir():  # listed once: a lock stays of every case
        folders.setdefault(path.stem, []).extend([path] if path.is_dir() else [])
    for case, left in folders.items():
        with held(partial / f"{case}.lock") as lock:
            if lock is not None and lock >= 0:
                for path in left:
                    shutil.rmtree(path, ignore_errors=True)
                (partial / f"{case}.lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a different run is at something
        partial.rmdir()


def _remove_unnamed(dataset: PreprocessedDataset, cases: dict) -> None:
    """Remove preprocessed cases that the dataset does not name (any more)."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = dataset.folder
    if not folder.is_dir():
        return
    for case in sorted(set(nnUNetDatasetBlosc2.get_identifiers(str(folder))) - set(cases)):
        logger.info("Case %s is no longer in dataset.json; its preprocessed files are removed.", case)
        _remove_case(dataset, case)


def _sort_modalities(dataset: PreprocessedDataset, report: Path, cases: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what the report is to say of modalities; cases that were preprocessed as of a different one are removed.

    Raises:
        InputError: cases have no modality.
    """
    modalities = dataset.modalities
    if not modalities:
        return {}
    nameless = [case for case in cases if case not in modalities]
    if nameless:
        raise InputError(f"{named(nameless)} of {dataset.name} have no modality; plan again with --modalities.").about(
            case=nameless[0], option="--modalities"
        )
    known = read_json(report).get(MODALITIES, {}) if report.is_file() else {}
    for case in sorted(case for case, modality in known.items() if modalities.get(case) != modality):
        _remove_case(dataset, case)
    return {MODALITIES: modalities}


def _stays(dataset: PreprocessedDataset, case: str, files: dict, error: Exception) -> bool:
    """Return whether a failed case is there from before; remove what was made of files that are bad now."""
    if not (dataset.folder / f"{case}{_SUFFIXES[-1]}").is_file():
        return False
    of_the_moment = isinstance(error, OSError | MemoryError | AliceError) and not isinstance(error, InputError)
    if of_the_moment or not all(Path(path).is_file() for path in (*files["images"], files["label"])):
        return True
    _remove_case(dataset, case)
    return False


def _remove_case(dataset: PreprocessedDataset, case: str) -> None:
    invalidate_case(dataset, case)
    for suffix in reversed(_SUFFIXES):
        (dataset.folder / f"{case}{suffix}").unlink(missing_ok=True)


def _is_current(folder: Path, case: str, files: dict) -> bool:
    """Return whether a case is whole and none of its raw files is newer."""
    try:
        made = min((folder / f"{case}{suffix}").stat().st_mtime for suffix in _SUFFIXES)
        return made >= max(Path(path).stat().st_mtime for path in (*files["images"], files["label"]))
    except OSError:
        # A raw file that is missing or out of reach is reported by the attempt to read it.
        return False


def _preprocess_case(job: _Job, case: str) -> bool:
    """Preprocess one case and move its files to their place, the image last; other runs wait for it."""
    cases, dataset_json, plans, configuration, preprocessors, modality_of = _tools(job)
    folder = job.folder / _PARTIAL
    with held(folder / f"{case}.lock", wait=True):
        if _is_current(job.folder, case, cases[case]):
            return True  # a different run did it meanwhile; what is known of it stays
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{case}.", dir=folder))  # its own, where nothing can be locked
        preprocessors[modality_of.get(case)].run_case_save(
            str(partial / case), cases[case]["images"], cases[case]["label"], plans, configuration, dataset_json
        )
        _check_not_flat(partial / f"{case}.b2nd", configuration.normalization_schemes)
        if job.compact:
            store_compactly(partial / f"{case}.b2nd")
        invalidate_case(PreprocessedDataset(job.dataset, job.plans_name, job.configuration), case)
        for suffix in _SUFFIXES:
            (partial / f"{case}{suffix}").replace(job.folder / f"{case}{suffix}")
        shutil.rmtree(partial)
    return True


def _check_not_flat(file: Path, schemes: Sequence[str]) -> None:
    """Make sure that an image shows something after its normalisation.

    Args:
        file: preprocessed image, (C, z, y, x).
        schemes: nnU-Net's normalisation of each channel; what is not normalised may span anything.

    Raises:
        InputError: a channel is constant.
    """
    image = blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1})
    for number, scheme in enumerate(schemes):
        if scheme != "NoNormalization" and float(np.ptp(image[number])) <= _FLAT:
            raise InputError(
                f"its channel {number} is constant after {scheme}: its values lie outside of those that the plans were "
                "made from; look at their unit."
            )


@functools.lru_cache(maxsize=1)
def _tools(job: _Job) -> tuple:
    """Return plans, files, and the preprocessor of each modality (of None without any); once a process and run."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_alice.planning.modality_preprocessor import ModalityPreprocessor

    dataset_json = read_json(nnunet_folder("nnUNet_raw") / job.dataset / "dataset.json")
    dataset_json.pop("dataset", None)
    plans = PlansManager(job.plans)
    configuration = plans.get_configuration(job.configuration)
    preprocessors = {None: configuration.preprocessor_class(verbose=False)}
    for modality, own in job.plans.get(MODALITIES, {}).items():
        statistics = own.get("foreground_intensity_properties_per_channel", {})
        preprocessors[modality] = ModalityPreprocessor(own["normalization_scheme"], statistics)
    modality_of = read_json(job.folder.parent / MODALITIES_FILE) if len(preprocessors) > 1 else {}
    return raw_cases(job.dataset), dataset_json, plans, configuration, preprocessors, modality_of
