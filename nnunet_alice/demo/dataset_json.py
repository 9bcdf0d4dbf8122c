"""``dataset.json`` of a user's dataset, refused in one sentence where its form is not nnU-Net's."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.importing.endings import ENDINGS

#: key -> what its form has to be
_FORMS = {
    "labels": 'names to numbers, such as {"background": 0, "liver": 1}',
    "channel_names": 'numbers to names, such as {"0": "CT"}',
    "dataset": 'cases to files, such as {"case1": {"images": ["case1_0000.nii.gz"], "label": "case1.nii.gz"}}',
}


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Return a dataset's description, with all that nnU-Net needs of it.

    Args:
        folder: of the dataset.

    Raises:
        InputError: it is missing or not in nnU-Net's format.
    """
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder.").about(path=folder)
    if not path.is_file():
        raise InputError(
            f"{folder} is no dataset in nnU-Net's format: it has no dataset.json (beside imagesTr and labelsTr)."
        ).about(path=folder, value="dataset.json")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); mend it.").about(path=path) from None
    content: dict[str, Any] = read if isinstance(read, dict) else {}
    if "training" in content and "background" not in (content.get("labels") or {}):
        raise InputError(
            f"{folder} is in the Decathlon's format; run nnUNetv2_convert_MSD_dataset -i {folder} and give the dataset "
            "that it writes into nnUNet_raw."
        ).about(path=folder, command=f"nnUNetv2_convert_MSD_dataset -i {folder}")
    if missing := [key for key in ("labels", "channel_names", "file_ending") if key not in content]:
        raise InputError(f"{path} is not in nnU-Net's format: it lacks {', '.join(missing)}.").about(
            path=path, value=missing[0]
        )
    if content["file_ending"] not in ENDINGS:
        raise InputError(
            f"Volumes of {folder} end in {content['file_ending']}; the demo takes {', '.join(ENDINGS)}."
        ).about(path=folder, value=content["file_ending"])
    _check_forms(path, content)
    return content


def _check_forms(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse mappings that are lists, or the other way round."""
    fit = {"labels": _names_labels, "channel_names": _names_channels, "dataset": _lists_cases}
    for key, fits in fit.items():
        if key in content and not fits(content[key]):
            raise InputError(f"'{key}' in {path} has to map {_FORMS[key]}; mend it.").about(path=path, value=key)
    if "background" not in content["labels"]:
        raise InputError(f"'labels' in {path} lack \"background\": 0, which nnU-Net needs; add it.").about(
            path=path, value="labels"
        )


def _names_labels(labels: Any) -> bool:
    """Return whether each name has a number, or those of a region."""
    if not isinstance(labels, dict):
        return False
    values = [value if isinstance(value, list) else [value] for value in labels.values()]
    return all(value and all(map(_is_number, value)) for value in values)


def _names_channels(channels: Any) -> bool:
    """Return whether each number has a name."""
    return (
        isinstance(channels, dict)
        and len(channels) > 0
        and all(_is_number(key) and isinstance(name, str) and name.strip() for key, name in channels.items())
    )


def _lists_cases(cases: Any) -> bool:
    """Return whether each case has a list of images, and a label or none."""
    return isinstance(cases, dict) and all(
        isinstance(files, dict)
        and isinstance(files.get("images"), list)
        and all(isinstance(file, str) for file in [*files["images"], files.get("label", "")])
        for files in cases.values()
    )


def _is_number(value: Any) -> bool:
    return re.fullmatch(r"[0-9]+", str(value)) is not None
