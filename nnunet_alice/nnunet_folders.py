"""nnU-Net's folders and names, asked for when needed: importing this package sets and demands nothing."""

import os
import re
from pathlib import Path

from nnunet_alice.errors import InputError


def nnunet_folder(variable: str) -> Path:
    """Folder named by one of nnU-Net's environment variables.

    Args:
        variable: ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.

    Raises:
        InputError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(f"The environment variable {variable} is not set; run: export {variable}=/path/to/{variable}")
    return Path(value)


def dataset_name(dataset: int | str) -> str:
    """Full name (``Dataset900_NAME``) of a dataset given by its number or name, looked up in nnU-Net's folders.

    Raises:
        InputError: no dataset, or more than one, has this number, or nnU-Net's folders are not set.
    """
    if isinstance(dataset, str) and not dataset.isdigit():
        if not re.fullmatch(r"Dataset\d{3}_.+", dataset):
            raise InputError(f"'{dataset}' is neither a dataset number nor a name like Dataset900_NAME.")
        return dataset
    if not os.environ.get("nnUNet_raw"):
        nnunet_folder("nnUNet_preprocessed")  # one of them has to be set
    names = datasets_by_number().get(int(dataset), set())
    if not names:
        raise InputError(f"No dataset with number {int(dataset)} in nnUNet_raw or nnUNet_preprocessed.")
    if len(names) > 1:
        raise InputError(f"Dataset number {int(dataset)} is ambiguous: {', '.join(sorted(names))}; rename all but one.")
    return names.pop()


def datasets_by_number() -> dict[int, set[str]]:
    """Return number -> full names of the datasets that any of nnU-Net's folders holds; folders not set hold none."""
    found: dict[int, set[str]] = {}
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        place = os.environ.get(variable)
        if place and Path(place).is_dir():
            for entry in Path(place).glob("Dataset[0-9][0-9][0-9]_*"):
                if entry.is_dir():
                    found.setdefault(int(entry.name[7:10]), set()).add(entry.name)
    return found
