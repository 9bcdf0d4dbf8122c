"""Whose volumes a demo runs on, and torso phantoms as the first answer."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nnunet_alice.files import write_json
from nnunet_alice.phantoms import label_table, make_population, write_subjects

#: organs of the labelled dataset: none of them paired, which nnU-Net's mirroring makes hard to learn in minutes
ORGANS = ("heart", "liver", "stomach", "spine", "pelvis")


class Source(Protocol):
    """Volumes of a demo: some with labels, some to test on, and those that pretraining sees.

    Attributes:
        name: of the labelled dataset, without its number.
        channels: a name a channel, by which nnU-Net normalises.
        has_true_points: whether ``truth.json`` beside the unlabelled volumes knows where points lie in other cases.
        prepare: name of the step that writes.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def channels(self) -> Sequence[str]:
        """See the class."""
        ...

    @property
    def has_true_points(self) -> bool:
        """See the class."""
        ...

    @property
    def prepare(self) -> str:
        """See the class."""
        ...

    def write(self, unlabelled: Path, labelled: Path) -> None:
        """Write what the steps begin with.

        Args:
            unlabelled: new folder for the volumes that pretraining sees.
            labelled: new folder for nnU-Net's raw dataset: ``dataset.json``, ``imagesTr``, ``labelsTr``, and the test
                cases in ``imagesTs``, ``labelsTs``.
        """
        ...


@dataclass(frozen=True)
class Phantoms:
    """Torso phantoms from many scanners: contrast agent and dose differ, as between the hospitals of a real pool.

    Attributes:
        unlabelled, training, test: numbers of phantoms.
        spacing_mm: voxel size.
        seed: of all; no two demos of this size share a phantom.
    """

    unlabelled: int = 24
    training: int = 1
    test: int = 8
    spacing_mm: float = 8.0
    seed: int = 0

    name = "PhantomOrgans"
    channels = ("CT",)
    has_true_points = True
    prepare = "make phantoms"

    def write(self, unlabelled: Path, labelled: Path) -> None:
        """Render all phantoms, each from a seed of its own."""
        counts = (self.unlabelled, self.training, self.test)
        first = self.seed * sum(counts)
        seeds = iter(range(first, first + sum(counts)))
        pool, training, test = ([next(seeds) for _ in range(count)] for count in counts)
        options: dict[str, Any] = {"spacing_mm": self.spacing_mm, "num_processes": os.cpu_count() or 1}
        people = make_population(pool, cut_share=0.1, many_scanners=True)
        write_subjects(unlabelled, people, images_folder=".", labels_folder=None, **options)
        for numbers, kind in ((training, "Tr"), (test, "Ts")):
            write_subjects(
                labelled,
                make_population(numbers, cut_share=0, many_scanners=True),
                images_folder=f"images{kind}",
                labels_folder=f"labels{kind}",
                image_suffix="_0000",
                organs=ORGANS,
                **options,
            )
        write_json(
            labelled / "dataset.json",
            {
                "channel_names": {"0": "CT"},
                "labels": label_table(ORGANS),
                "numTraining": self.training,
                "file_ending": ".nii.gz",
            },
        )
