"""nnU-Net's folders and names, asked for when needed: importing this package sets and demands nothing."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_alice.errors import InputError, OccupiedError


def nnunet_folder(variable: str) -> Path:
    """Return folder named by one of nnU-Net's environment variables.

    Args:
        variable: ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.

    Raises:
        InputError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(
            f"The environment variable {variable} is not set; run: export {variable}=/path/to/{variable}"
        ).about(option=variable, command=f"export {variable}=")
    return Path(value)


def plain_name(name: str, what: str) -> str:
    """Return a name that becomes part of paths, if whatever is written under it stays in its folder.

    Args:
        name: somebody's choice: an argument, or what a file of somebody else says.
        what: what it names, for the message: ``-overwrite_plans_name``.

    Raises:
        InputError: it is empty or hidden, or holds a slash, a backslash or a control character.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*", name):
        raise InputError(
            f"{what} is {name!r}, which is no plain name: choose letters, digits, - and _, no slash."
        ).about(option=what, value=name)
    return name


def plans_identifier(name: str, what: str) -> str:
    """Return a name for plans, if nnU-Net can find what is trained with them.

    Args:
        name: the name.
        what: what it names, for the message.

    Raises:
        InputError: it is no plain name, or holds two underscores, at which nnU-Net splits names of models.
    """
    if "__" in plain_name(name, what):
        raise InputError(f"{what} is '{name}': nnU-Net splits names of models at two underscores; use one.").about(
            option=what, value=name
        )
    return name


def dataset_name(dataset: int | str) -> str:
    """Return full name (``Dataset900_NAME``) of a dataset given by its number or name, looked up in nnU-Net's folders.

    Raises:
        InputError: no dataset, or more than one, has this number, or nnU-Net's folders are not set.
    """
    if isinstance(dataset, str) and not dataset.isdigit():
        if not re.fullmatch(r"Dataset\d{3}_[^/\\]+", dataset):
            raise InputError(f"'{dataset}' is neither a dataset number nor a name like Dataset900_NAME.").about(
                value=dataset
            )
        return dataset
    if not os.environ.get("nnUNet_raw"):
        nnunet_folder("nnUNet_preprocessed")  # one of them has to be set
    names = datasets_by_number().get(int(dataset), set())
    if not names:
        raise InputError(f"No dataset with number {int(dataset)} in nnUNet_raw or nnUNet_preprocessed.").about(
            value=int(dataset)
        )
    if len(names) > 1:
        raise InputError(
            f"Dataset number {int(dataset)} is ambiguous: {', '.join(sorted(names))}; rename all but one."
        ).about(value=int(dataset))
    return names.pop()


def new_dataset_name(number: int, title: str) -> str:
    """Return the full name of a dataset to be made, which may be there already.

    Args:
        number: 1 to 999.
        title: what follows the number.

    Raises:
        InputError: number or title are not usable, or a different dataset has the number.
    """
    if not 1 <= number <= 999:
        raise InputError(f"Dataset number {number} is not between 1 and 999; choose a different one with -d.").about(
            option="-d", value=number
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", title):
        raise InputError(f"Dataset name '{title}' may hold only letters, digits, _ and -.").about(value=title)
    name = f"Dataset{number:03d}_{title}"
    others = datasets_by_number().get(number, set()) - {name}
    if others:
        raise OccupiedError(
            f"Dataset number {number} is taken by {', '.join(sorted(others))}; choose a different one with -d."
        ).about(option="-d", value=number)
    return name


def dataset_number(name: str) -> int:
    """Return the number in a dataset's full name: 900 of ``Dataset900_NAME``."""
    return int(name[7:10])


def dataset_title(name: str) -> str:
    """Return what follows the number in a dataset's full name: ``NAME`` of ``Dataset900_NAME``."""
    return name[11:]


def datasets_by_number() -> dict[int, set[str]]:
    """Return number -> full names of the datasets that any of nnU-Net's folders holds; folders not set hold none."""
    found: dict[int, set[str]] = {}
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        place = os.environ.get(variable)
        if place and Path(place).is_dir():
            for entry in Path(place).glob("Dataset[0-9][0-9][0-9]_*"):
                if entry.is_dir():
                    found.setdefault(dataset_number(entry.name), set()).add(entry.name)
    return found


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Return names of a dataset's channels, in the order of their numbers."""
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return [channels[key] for key in sorted(channels, key=int)]


def label_values(label: Any) -> tuple[int, ...]:
    """Return the values of a label of ``dataset.json``: one, or those of a region, which may be a list of one."""
    return tuple(map(int, label)) if isinstance(label, list | tuple) else (int(label),)
