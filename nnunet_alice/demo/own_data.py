"""A user's labelled dataset in nnU-Net's format, of which the demo hides most labels; its files are only read."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_alice.demo.dataset_json import read_dataset_json
from nnunet_alice.errors import InputError, named
from nnunet_alice.files import link_file, write_json
from nnunet_alice.nnunet_folders import channel_names, label_values
from nnunet_alice.words import counted

#: most test cases where their number is not asked for
MAX_TEST = 20
#: fewest images beside the labelled ones that pretraining sees
MIN_UNLABELLED = 2


@dataclass(frozen=True)
class Case:
    """Files of a case.

    Attributes:
        images: one a channel.
        label: None where there is none.
    """

    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class OwnData:
    """Cases of a user's dataset in their parts.

    Attributes:
        name: of the dataset, without its number.
        content: ``dataset.json``.
        cases: by name.
        labelled, test: names.
    """

    name: str
    content: Mapping[str, Any]
    cases: Mapping[str, Case]
    labelled: tuple[str, ...]
    test: tuple[str, ...]

    has_true_points = False
    prepare = "link your images"

    @property
    def channels(self) -> tuple[str, ...]:
        """A name a channel."""
        return tuple(channel_names(self.content))

    @property
    def has_regions(self) -> bool:
        """Whether a label is a region of several values, which nnU-Net learns one by one."""
        return any(len(label_values(value)) > 1 for value in self.content["labels"].values())

    @property
    def pool(self) -> tuple[str, ...]:
        """Cases that pretraining sees, without their labels: all but the test cases."""
        return tuple(case for case in self.cases if case not in self.test)

    @property
    def without_label(self) -> tuple[str, ...]:
        """Cases that never had a label."""
        return tuple(case for case, files in self.cases.items() if files.label is None)

    def write(self, unlabelled: Path, labelled: Path) -> None:
        """Link the images of all parts, and the labels of those that have to have them."""
        self._link(self.pool, unlabelled, None)
        for cases, part in ((self.labelled, "Tr"), (self.test, "Ts")):
            self._link(cases, labelled / f"images{part}", labelled / f"labels{part}")
        content = {key: value for key, value in self.content.items() if key != "dataset"}
        write_json(labelled / "dataset.json", content | {"numTraining": len(self.labelled)})

    def _link(self, cases: Sequence[str], images: Path, labels: Path | None) -> None:
        ending = self.content["file_ending"]
        for folder in (images, labels):
            if folder is not None:
                folder.mkdir(parents=True)
        for case in cases:
            files = self.cases[case]
            for channel, file in enumerate(files.images):
                # import takes a file a case where there is one channel, whatever it is called
                suffix = "" if labels is None and len(self.channels) == 1 else f"_{channel:04d}"
                link_file(file, images / f"{case}{suffix}{ending}")
            if labels is not None and files.label is not None:
                link_file(files.label, labels / f"{case}{ending}")


def read_own_data(folder: str | os.PathLike, labelled: int, test: int | None, seed: int) -> OwnData:
    """Find the cases of a dataset and draw which keep their labels.

    Args:
        folder: ``DatasetXXX_NAME`` with ``dataset.json``, ``imagesTr`` and ``labelsTr``.
        labelled: cases that keep their labels for training.
        test: cases to test on; a third of those with labels, at most ``MAX_TEST``, if None.
        seed: of the draw.

    Raises:
        InputError: this is no such dataset, a file is missing, or there are too few cases.
    """
    folder = Path(os.path.abspath(Path(folder).expanduser()))  # noqa: PTH100  links stay as they are
    content = read_dataset_json(folder)
    cases = _listed(folder, content) if "dataset" in content else _found(folder, content)
    _check_files(folder, content, cases)
    known = sorted(case for case, files in cases.items() if files.label is not None)
    if not known:
        raise InputError(
            f"None of {counted(len(cases), 'image')} of {folder} has a label; the demo has to test on some."
        ).about(path=folder, value=len(cases))
    if len(known) < 2 or len(cases) < 2 + MIN_UNLABELLED:
        raise InputError(
            f"{folder} has too few cases for the demo: {len(cases)}, {len(known)} of them with labels; it needs "
            f"{2 + MIN_UNLABELLED}, 2 of them with labels, or more."
        ).about(path=folder, value=len(cases))
    if test is None:
        test = min(MAX_TEST, max(1, round(len(known) / 3)))
    if labelled + test > len(known) or len(cases) - test < labelled + MIN_UNLABELLED:
        raise InputError(
            f"{folder} has too few cases: {len(cases)}, {len(known)} of them with labels, for {labelled} with labels, "
            f"{counted(test, 'test case')} and {MIN_UNLABELLED} others; ask for fewer with --labelled or --test."
        ).about(path=folder, option="--labelled", value=len(cases))
    drawn = [known[index] for index in np.random.default_rng(seed).permutation(len(known))]
    name = re.sub(r"^Dataset\d+_", "", folder.name)
    return OwnData(
        re.sub(r"[^A-Za-z0-9_-]", "_", name).strip("_-") or "Own",
        content,
        dict(sorted(cases.items())),
        tuple(sorted(drawn[test : test + labelled])),
        tuple(sorted(drawn[:test])),
    )


def _listed(folder: Path, content: Mapping[str, Any]) -> dict[str, Case]:
    """Return cases that ``dataset.json`` lists with their files."""

    def path(text: str) -> Path:
        return folder / os.path.expandvars(text)

    cases = {}
    for case, files in content["dataset"].items():
        label = path(files["label"]) if "label" in files else None
        images = tuple(path(image) for image in files.get("images", ()))
        cases[case] = Case(images, label if label is not None and label.is_file() else None)
    return cases


def _found(folder: Path, content: Mapping[str, Any]) -> dict[str, Case]:
    """Return cases by the names of the files in ``imagesTr`` and ``labelsTr``."""
    images, labels = folder / "imagesTr", folder / "labelsTr"
    for part in (images, labels):
        if not part.is_dir():
            raise InputError(f"{folder} is no dataset in nnU-Net's format: it has no folder {part.name}.").about(
                path=folder, value=part.name
            )
    ending = re.escape(content["file_ending"])
    files: dict[str, list[Path]] = {}
    for path in sorted(images.iterdir()):
        if match := re.fullmatch(rf"(.+)_\d{{4}}{ending}", path.name):
            files.setdefault(match[1], []).append(path)
    if not files:
        raise InputError(
            f"{images} has no image that ends in _0000{content['file_ending']}, as nnU-Net names them."
        ).about(path=images, value=f"_0000{content['file_ending']}")
    found = {}
    for case, channels in files.items():
        label = labels / f"{case}{content['file_ending']}"
        found[case] = Case(tuple(channels), label if label.is_file() else None)
    used = {case.label for case in found.values()}
    if lost := [path.name for path in sorted(labels.glob(f"*{content['file_ending']}")) if path not in used]:
        raise InputError(
            f"A label in {labels} belongs to no image in imagesTr ({named(lost)}); remove it from there."
        ).about(path=labels, value=lost[0])
    return found


def _check_files(folder: Path, content: Mapping[str, Any], cases: Mapping[str, Case]) -> None:
    channels: Sequence[str] = channel_names(content)
    for case, files in sorted(cases.items()):
        if len(files.images) != len(channels):
            raise InputError(
                f"Case {case} of {folder} has {counted(len(files.images), 'image')} for {len(channels)} channels "
                f"({', '.join(channels)})."
            ).about(case=case, path=folder, value=len(files.images))
        if gone := [str(image) for image in files.images if not image.is_file()]:
            raise InputError(f"Case {case} of {folder}: {gone[0]} is missing.").about(case=case, path=gone[0])
