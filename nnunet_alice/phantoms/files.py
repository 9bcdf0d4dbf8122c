"""Phantoms on disk: NIfTI volumes, and the truth about them in one JSON file beside."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunet_alice.errors import AliceError, InputError
from nnunet_alice.files import atomic_write, read_json
from nnunet_alice.parallel import for_each_case
from nnunet_alice.phantoms.anatomy import LABELS
from nnunet_alice.phantoms.rendering import Phantom, render
from nnunet_alice.phantoms.subject import Subject, make_population

TRUTH_FILE = "truth.json"


def label_table(organs: Sequence[str] | None = None) -> dict[str, int]:
    """Return names and consecutive values of labels, background first: what ``dataset.json`` wants.

    Args:
        organs: the organs to keep, in this order; all if not given.

    Raises:
        InputError: a name that is not in ``LABELS``.
    """
    organs = [name for name in LABELS if name != "background"] if organs is None else list(organs)
    unknown = [name for name in organs if name not in LABELS or name == "background"]
    if unknown:
        raise InputError(f"The phantom has no organ '{unknown[0]}'; choose among {', '.join(list(LABELS)[1:])}.").about(
            value=unknown[0]
        )
    return {"background": 0} | {name: value for value, name in enumerate(organs, start=1)}


def write_dataset(
    folder: str | Path, seeds: Iterable[int], *, cut_share: float = 0.25, disease_share: float = 0.0, **options: Any
) -> dict[str, Subject]:
    """Draw a population (see :func:`make_population`) and write it (see :func:`write_subjects`).

    Returns:
        the subjects by case name.
    """
    subjects = make_population(seeds, cut_share=cut_share, disease_share=disease_share)
    write_subjects(folder, subjects, **options)
    return subjects


def write_subjects(
    folder: str | Path,
    subjects: Mapping[str, Subject],
    *,
    spacing_mm: float | tuple[float, float, float] = 4.0,
    images_folder: str = "images",
    labels_folder: str | None = "labels",
    image_suffix: str = "",
    organs: Sequence[str] | None = None,
    num_processes: int = 1,
) -> None:
    """Render subjects into ``images/CASE.nii.gz`` and ``labels/CASE.nii.gz``, and write ``truth.json``.

    A dataset for nnU-Net: ``images_folder="imagesTr", labels_folder="labelsTr", image_suffix="_0000"`` and the
    labels of :func:`label_table`. Writing into a folder that has a ``truth.json`` adds to it.

    Args:
        folder: where to write; made if missing.
        subjects: by case name.
        spacing_mm: voxel size.
        images_folder, labels_folder: their folders; no labels are written when the latter is None.
        image_suffix: put between the case name and ``.nii.gz`` of images.
        organs: label these organs only, renumbered as in :func:`label_table`.
        num_processes: worker processes.

    Raises:
        InputError: an unknown organ.
        AliceError: a phantom could not be written.
    """
    folder = Path(folder)
    table = label_table(organs)
    values = np.zeros(max(LABELS.values()) + 1, dtype=np.uint8)
    for name, value in table.items():
        values[LABELS[name]] = value
    work = partial(
        _write_case,
        spacing_mm=spacing_mm,
        images=folder / images_folder,
        labels=None if labels_folder is None else folder / labels_folder,
        image_suffix=image_suffix,
        values=values,
    )
    items = [_Item(*item) for item in subjects.items()]
    outcomes = for_each_case(work, items, doing="Phantoms", num_processes=num_processes)
    for case, reason in outcomes.failed.items():
        raise AliceError(f"Phantom {case} could not be written: {reason}.").about(case=case)
    known = read_json(folder / TRUTH_FILE)["cases"] if (folder / TRUTH_FILE).exists() else {}
    known |= {case: subject.to_dict() for case, subject in subjects.items()}
    # One line a case: the many numbers of a deformation would otherwise take a line each.
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(content)}" for case, content in known.items())
    with atomic_write(folder / TRUTH_FILE) as temporary:
        temporary.write_text(f'{{"cases": {{\n{lines}\n}}}}\n', encoding="utf-8")


def load_subjects(path: str | Path) -> dict[str, Subject]:
    """Return all subjects of a truth file by case name.

    Args:
        path: ``truth.json`` or the folder that holds it.

    Raises:
        InputError: no truth file, or a case that it describes incompletely.
    """
    return {case: _subject_of(content, path, case) for case, content in read_truth(path).items()}


def read_truth(path: str | Path) -> dict[str, Any]:
    """Return the content of a truth file by case name.

    It holds seed, field of view, deformation, appearance, and ``disease`` with ``kind``, ``severity`` and ``lesions``.

    Args:
        path: ``truth.json`` or the folder that holds it.

    Raises:
        InputError: it is missing or not a truth file.
    """
    path = Path(path)
    path = path / TRUTH_FILE if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
        raise InputError(f"{path} is not a truth file of phantoms; write the phantoms again.").about(path=path)
    return content["cases"]


def _subject_of(content: dict[str, Any], path: str | Path, case: str) -> Subject:
    try:
        return Subject.from_dict(content)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} describes case '{case}' incompletely ({error}); write the phantoms again.").about(
            case=case, path=path, value=str(error)
        ) from None


class _Item(NamedTuple):
    case: str
    subject: Subject

    def __str__(self) -> str:
        return self.case


def _write_case(
    item: _Item,
    spacing_mm: float | tuple[float, float, float],
    images: Path,
    labels: Path | None,
    image_suffix: str,
    values: np.ndarray,
) -> bool:
    """Render one subject and write its files; HU are whole numbers on disk, as a scanner stores them."""
    case, subject = item
    phantom = render(subject, spacing_mm)
    _write_nifti(images / f"{case}{image_suffix}.nii.gz", np.rint(phantom.image).astype(np.int16), phantom)
    if labels is not None:
        _write_nifti(labels / f"{case}.nii.gz", values[phantom.labels], phantom)
    return True


def _write_nifti(path: Path, array: np.ndarray, phantom: Phantom) -> None:
    """Write a NIfTI with identity direction: x runs to the patient's left, y to the back, z up."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(phantom.spacing_mm[::-1])
    image.SetOrigin(phantom.origin_mm[::-1])
    with atomic_write(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)
