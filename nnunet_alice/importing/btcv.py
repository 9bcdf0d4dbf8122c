"""BTCV ("Beyond the Cranial Vault", MICCAI 2015, Synapse syn3193805): 30 labelled abdominal CTs as an nnU-Net dataset.

Where the facts below come from (public sources, read in stored copies, not from the data set itself):

- Organs and their numbers: the table in Project-MONAI/model-zoo, models/swin_unetr_btcv_segmentation/docs/README.md.
- The 30 case numbers (1-10, 21-40) and the 24/6 split: ``dataset_0.json`` of MONAI's UNETR / Swin UNETR tutorials on
  BTCV, which trains on 1-10 and 21-34 and validates on 35-40.
- The 18/12 "Synapse" split: Beckschen/TransUNet, lists/lists_Synapse/test_vol.txt, has the 12 test cases; the 18
  others train. A checkpoint that was chosen on those 12 has no test figure.
- The 8 organs of that split and their new numbers: OpenMMLab's conversion script for Synapse, which cites TransUNet.
  TransUNet's own files are given out preprocessed; their numbers were not seen.
- nnU-Net's 5 folds are those that nnU-Net itself would draw (its function, its seed) from these case names.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_alice.anatomy.orientation import orientation
from nnunet_alice.errors import InputError, OccupiedError
from nnunet_alice.files import atomic_write, read_json, refusals_told, write_json
from nnunet_alice.importing.nifti import check_nifti
from nnunet_alice.nnunet_folders import new_dataset_name, nnunet_folder
from nnunet_alice.parallel import for_each_case

logger = logging.getLogger(__name__)

#: numbers of the labelled cases, as in img0001.nii.gz
CASE_NUMBERS = (*range(1, 11), *range(21, 41))
ORGANS = {
    "background": 0,
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
    "portal_and_splenic_veins": 10,
    "pancreas": 11,
    "right_adrenal_gland": 12,
    "left_adrenal_gland": 13,
}
#: the organs that papers with the 18/12 split report, in the order of their new numbers 1 to 8
SYNAPSE_ORGANS = ("aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach")
_PREFIX = "BTCV_"
SPLITS = ("nnunet", "monai", "synapse")
_MONAI_VALIDATION = range(35, 41)
_SYNAPSE_TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
_EIGHT_ORGANS = {"background": 0} | {organ: new for new, organ in enumerate(SYNAPSE_ORGANS, start=1)}
_MARK = "nnunet_alice convert_btcv"
#: images and labels below the folder that the user names: as downloaded, and as MONAI's tutorials rename them
_LAYOUTS = (("Training/img", "Training/label"), ("imagesTr", "labelsTr"))


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` did.

    Attributes:
        folder: the new dataset in ``nnUNet_raw``.
        cases: names of the converted cases.
        left_out: case name -> why it was left out (only if the user asked for that).
        test_images: number of unlabelled images found beside the labelled ones (20 in BTCV): good for pretraining.
    """

    folder: Path
    cases: list[str]
    left_out: dict[str, str]
    test_images: int


def case_name(number: int) -> str:
    """Return the name of a case in the nnU-Net dataset, e.g. ``BTCV_0001`` for img0001."""
    return f"{_PREFIX}{number:04d}"


def splits(name: str, cases: Sequence[str] | None = None) -> list[dict[str, list[str]]]:
    """Return one of the common splits, in the form of nnU-Net's ``splits_final.json``.

    Args:
        name: ``nnunet`` (5 folds), ``monai`` (one fold, 24/6) or ``synapse`` (one fold, 18/12).
        cases: names of the cases that exist; others are left out of the split. All 30 by default.

    Raises:
        InputError: unknown split.
    """
    cases = sorted([case_name(number) for number in CASE_NUMBERS] if cases is None else cases)
    if name == "nnunet":
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        folds = generate_crossval_split(cases, seed=12345, n_splits=5)
        return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in folds]
    if name not in SPLITS:
        raise InputError(f"'{name}' is no split of BTCV; there are: {', '.join(SPLITS)}.").about(value=name)
    held_out = {case_name(number) for number in (_MONAI_VALIDATION if name == "monai" else _SYNAPSE_TEST)}
    return [{"train": [c for c in cases if c not in held_out], "val": [c for c in cases if c in held_out]}]


def convert(
    folder: str | os.PathLike,
    dataset_id: int,
    name: str = "BTCV",
    organs: int = 13,
    split: str | None = None,
    skip_bad: bool = False,
    num_workers: int = 4,
) -> Conversion:
    """Check all 30 cases and make a dataset in ``nnUNet_raw`` that refers to the files where they are.

    Writes ``dataset.json`` and ``splits_<name>.json`` for each of ``SPLITS``; with ``organs=8`` also new label files.
    Running it again does the same again.

    Args:
        folder: ``RawData`` as downloaded (holding ``Training/img``), or with MONAI's names (``imagesTr``).
        dataset_id: number of the new dataset.
        name: its name.
        organs: 13, or 8 for ``SYNAPSE_ORGANS`` with all others set to background.
        split: one of ``SPLITS``, to be the dataset's ``splits_final.json`` in ``nnUNet_preprocessed`` as well.
        skip_bad: leave bad cases out instead of stopping; figures are then not comparable with published ones.
        num_workers: cases that are read at the same time.

    Raises:
        InputError: folder, split or number of organs is wrong, the dataset number is taken (by these images with the
            other organs, too); a different ``splits_final.json`` is there, or some cases are missing or bad (all are
            named; nothing is written).
    """
    if organs not in (13, 8):
        raise InputError(f"BTCV has 13 organs, or the 8 of the Synapse split, not {organs}.").about(value=organs)
    if split is not None:
        splits(split)
    root, images, labels = _layout(Path(folder))
    classes = ORGANS if organs == 13 else _EIGHT_ORGANS
    output = _output_folder(dataset_id, name, classes)
    files, problems = _check_all(images, labels, num_workers)
    if problems and not (skip_bad and files):
        listed = "; ".join(f"{case}: {why}" for case, why in problems.items())
        raise InputError(f"{len(problems)} of {len(CASE_NUMBERS)} cases of {root} are not usable: {listed}.").about(
            case=next(iter(problems)), path=root, value=len(problems)
        )
    _warn_of_shifts(files)
    cases = sorted(files)
    with refusals_told(output):
        if split is not None:
            _write_final_split(output.name, splits(split, cases))
        if organs == 8:
            _write_eight_organs(files, output / "labelsTr")
        write_json(output / "dataset.json", _dataset_json(name, files, problems, classes, root))
        for known in SPLITS:
            if known != "nnunet" or len(cases) >= 5:
                write_json(output / f"splits_{known}.json", splits(known, cases))
    test_images = [path for part in ("Testing/img", "imagesTs") for path in (root / part).glob("*.nii*")]
    return Conversion(output, cases, problems, len(test_images))


@dataclass
class _Case:
    """Files of a case that passed all checks; ``shift_vox``: between the origins of image and label."""

    image: Path
    label: Path
    orientation: str
    shift_vox: float


def _layout(folder: Path) -> tuple[Path, Path, Path]:
    """Return root, image folder and label folder of the download."""
    for root in (folder, folder / "RawData", folder / "Abdomen" / "RawData"):
        for images, labels in _LAYOUTS:
            if (root / images).is_dir() and (root / labels).is_dir():
                return root, root / images, root / labels
    raise InputError(
        f"{folder} has no folders Training/img and Training/label; give the RawData folder of Abdomen/RawData.zip."
    ).about(path=folder)


def _output_folder(dataset_id: int, name: str, classes: dict[str, int]) -> Path:
    """Return the folder of the new dataset; refuse one that belongs to a different dataset or labels."""
    output = nnunet_folder("nnUNet_raw") / new_dataset_name(dataset_id, name)
    if (output / "dataset.json").is_file():
        existing = read_json(output / "dataset.json")
        if existing.get("converted_by") != _MARK:
            raise OccupiedError(
                f"{output} is a different dataset; choose a different number with -d or name with -n."
            ).about(path=output, option="-d")
        # nnU-Net copies the true segmentations only over older ones, so it would go on scoring against the old labels
        if existing.get("labels") != classes:
            raise OccupiedError(
                f"{output / 'dataset.json'} has {len(existing.get('labels', {})) - 1} organs, not {len(classes) - 1}; "
                f"choose a different number with -d and name with -n, e.g. -d {dataset_id + 1} "
                f"-n BTCV{len(classes) - 1}."
            ).about(path=output / "dataset.json", option="-d")
    return output


def _check_all(images: Path, labels: Path, num_workers: int) -> tuple[dict[str, _Case], dict[str, str]]:
    """Return usable cases, and why the others are not."""
    outcomes = for_each_case(
        partial(_check_case, images, labels),
        [case_name(number) for number in CASE_NUMBERS],
        doing="Checking",
        num_processes=num_workers,
    )
    files, problems = dict(sorted(outcomes.results.items())), dict(sorted(outcomes.failed.items()))
    endings = {_ending(case.image) for case in files.values()} | {_ending(case.label) for case in files.values()}
    if len(endings) > 1:
        raise InputError(
            f"{images.parent} mixes .nii and .nii.gz files; nnU-Net needs one kind: compress the others."
        ).about(path=images.parent)
    return files, problems


def _check_case(images: Path, labels: Path, case: str) -> _Case:
    """Return the files of a case.

    Raises:
        InputError: something is wrong with them.
    """
    number = case.removeprefix(_PREFIX)
    image_file, label_file = _find(images, f"img{number}"), _find(labels, f"label{number}")
    if image_file is None or label_file is None:
        raise InputError(f"{'img' if image_file is None else 'label'}{number}.nii.gz is missing")
    for file in (image_file, label_file):
        try:  # SimpleITK fills what is missing of a file with whatever was in memory
            check_nifti(file)
        except InputError as error:
            raise InputError(f"it cannot be read ({file.name}: {str(error).rstrip('.')})") from None
    try:
        image, label = sitk.ReadImage(str(image_file)), sitk.ReadImage(str(label_file))
    except RuntimeError:
        raise InputError("it cannot be read (damaged or incomplete download)") from None
    if image.GetDimension() != 3 or image.GetSize() != label.GetSize():
        raise InputError(f"image of {_shape(image)} voxels but label of {_shape(label)}")
    if not np.allclose(image.GetSpacing(), label.GetSpacing(), rtol=1e-3):
        raise InputError(f"image spacing {image.GetSpacing()} mm but label spacing {label.GetSpacing()} mm")
    codes = [orientation(image), orientation(label)]
    if not np.allclose(image.GetDirection(), label.GetDirection(), atol=1e-3):  # headers keep them rounded
        raise InputError(f"its header turns the label ({codes[1]}) a different way than the image ({codes[0]})")
    found = np.unique(sitk.GetArrayViewFromImage(label))
    unknown = [f"{value:g}" for value in found if value not in ORGANS.values()]
    if unknown:
        raise InputError(f"unknown label {', '.join(unknown[:5])}")
    if not found.any():
        raise InputError("its label is empty")
    shift_vox = np.subtract(image.GetOrigin(), label.GetOrigin()) / image.GetSpacing()
    return _Case(image_file.resolve(), label_file.resolve(), codes[0], float(np.abs(shift_vox).max()))


def _warn_of_shifts(files: dict[str, _Case]) -> None:
    """Name the cases whose label begins elsewhere than its image.

    No error: nnU-Net ignores origins, and nothing that we could read says whether all real files agree.
    """
    shifted = [case for case in sorted(files) if files[case].shift_vox > 0.5]
    if shifted:
        logger.warning(
            "Headers put the label half a voxel or more beside the image in %s: nnU-Net ignores this; see whether they "
            "match with nnUNetv2_plot_overlay_pngs.",
            ", ".join(shifted),
        )


def _find(folder: Path, stem: str) -> Path | None:
    return next((path for ending in (".nii.gz", ".nii") if (path := folder / f"{stem}{ending}").is_file()), None)


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"


def _shape(image: sitk.Image) -> str:
    """Return the size in voxels, (z, y, x)."""
    return "x".join(map(str, image.GetSize()[::-1]))


def _write_eight_organs(files: dict[str, _Case], folder: Path) -> None:
    """Write label files with ``SYNAPSE_ORGANS`` as 1 to 8 and the rest as background, and point the cases to them."""
    numbers = np.zeros(max(ORGANS.values()) + 1, dtype=np.uint8)
    for organ, new in _EIGHT_ORGANS.items():
        numbers[ORGANS[organ]] = new
    for case in tqdm(sorted(files), "Writing labels", unit="case", disable=None):
        source = sitk.ReadImage(str(files[case].label))
        label = sitk.GetImageFromArray(numbers[sitk.GetArrayViewFromImage(source).astype(np.uint8)])
        label.CopyInformation(source)
        path = folder / f"{case}{_ending(files[case].label)}"
        with atomic_write(path) as temporary:
            try:
                sitk.WriteImage(label, str(temporary))
            except RuntimeError:
                raise InputError(f"{path} could not be written; free space or choose a different folder.").about(
                    path=path
                ) from None
        files[case].label = path.resolve()


def _dataset_json(name: str, files: dict[str, _Case], problems: dict[str, str], classes: dict, root: Path) -> dict:
    content = {
        "name": name,
        "description": "BTCV abdominal CT, Synapse syn3193805",
        "channel_names": {"0": "CT"},
        "labels": classes,
        "numTraining": len(files),
        "file_ending": _ending(next(iter(files.values())).image),
        "dataset": {
            case: {"images": [str(files[case].image)], "label": str(files[case].label)} for case in sorted(files)
        },
        "converted_by": _MARK,
        "converted_from": str(root.resolve()),
        "left_out": problems,
    }
    orientations = {case.orientation for case in files.values()}
    if len(orientations) > 1:  # nnU-Net's usual reader ignores the direction
        logger.info("Orientations differ (%s): nnU-Net will reorient.", ", ".join(sorted(orientations)))
        content["overwrite_image_reader_writer"] = "SimpleITKIOWithReorient"
    return content


def _write_final_split(dataset: str, folds: list[dict]) -> None:
    path = nnunet_folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    if path.is_file() and read_json(path) != folds:
        raise OccupiedError(
            f"{path} holds a different split; delete it, with the results that belong to it, to use this one."
        ).about(path=path)
    write_json(path, folds)
