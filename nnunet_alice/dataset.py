"""A preprocessed dataset of nnU-Net: its plans, its folders and the images of its cases, read when asked for."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import blosc2

from nnunet_alice.errors import InputError, NotPreparedError, StaleError
from nnunet_alice.files import file_checksum, read_json
from nnunet_alice.nnunet_folders import dataset_name, dataset_number, nnunet_folder, plain_name

if TYPE_CHECKING:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

#: memory-mapped files crash on Windows, says nnU-Net
_MMAP_MODE = None if os.name == "nt" else "r"
#: What of a configuration decides the preprocessed voxels.
_RECIPE_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
#: Normalisations that look at nothing but the image itself.
SELF_CONTAINED = {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}
#: Key of a configuration that was planned for several GPUs.
_GPUS = "num_gpus"
#: Key of plans that says how the cases of each modality are normalised, where a dataset holds several.
MODALITIES = "modalities"
#: Which case is of which modality, beside the plans.
MODALITIES_FILE = "modalities.json"
#: Describes the labelled crops of the online probe, beside them.
PROBE_FILE = "probe.json"
#: Stands in their labels where the labelled dataset says "ignore".
PROBE_IGNORED = 255
#: Stands for all modalities of a dataset taken as one.
TOGETHER = "together"


def preprocessing_recipe(plans: dict, configuration: dict) -> dict:
    """Return what of plans decides the preprocessed voxels; statistics only where they are used."""
    recipe = {key: configuration[key] for key in _RECIPE_KEYS}
    recipe |= {key: plans[key] for key in ("image_reader_writer", "transpose_forward")}
    if not SELF_CONTAINED.issuperset(configuration["normalization_schemes"]):
        recipe["intensities"] = plans["foreground_intensity_properties_per_channel"]
    if MODALITIES in plans:
        recipe[MODALITIES] = plans[MODALITIES]
    return recipe


def note_gpus(configuration: dict, gpus: int) -> None:
    """Write into a configuration for how many GPUs its batch was planned; nothing for one, as in nnU-Net's plans."""
    configuration.pop(_GPUS, None)
    if gpus > 1:
        configuration[_GPUS] = gpus


def planned_gpus(configuration: dict) -> int:
    """Return GPUs that a configuration's batch was planned for."""
    return configuration.get(_GPUS, 1)


class LazyImage(Protocol):
    """An image (C, z, y, x) that is read where it is sliced: an array, or a blosc2 file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Read a part."""
        ...


@dataclass(frozen=True)
class PreprocessedDataset:
    """One configuration of one preprocessed dataset, as nnU-Net left it on disk.

    Coordinates of a case are those of its preprocessed array: axes (z, y, x) after nnU-Net's transposition, voxel
    (0, 0, 0) at the origin, millimetres = voxels * ``spacing``.

    Attributes:
        name: full dataset name, e.g. ``Dataset900_NAME``.
        plans_name: plans identifier, e.g. ``nnUNetPlans``.
        configuration: e.g. ``3d_fullres``.
        modality: take the cases of this modality alone; ``TOGETHER`` takes all as if they were of one, and None all,
            apart in ``parts``.
    """

    name: str
    plans_name: str
    configuration: str
    modality: str | None = None

    @classmethod
    def find(cls, dataset: int | str, plans_name: str, configuration: str) -> "PreprocessedDataset":
        """Open the dataset and check that plans, configuration and preprocessed cases are there.

        Raises:
            NotPreparedError: plans or preprocessed cases are missing; the message names the command to run.
            InputError: the configuration is not in the plans, or their name is a path.
        """
        found = cls(dataset_name(dataset), plain_name(plans_name, "-p"), configuration)
        if not (found.base / f"{plans_name}.json").is_file():
            others = [path.stem for path in sorted(found.base.glob("*Plans*.json"))]
            there = f" but {', '.join(others)}; name those with -p, or" if others else ";"
            raise NotPreparedError(
                f"{found.base} has no plans {plans_name}.json{there} run: nnunet_alice plan -d {found.number}"
            ).about(path=found.base, value=plans_name, command=f"nnunet_alice plan -d {found.number}")
        if configuration not in found.plans["configurations"]:
            known = ", ".join(found.plans["configurations"])
            raise InputError(f"{plans_name}.json has no configuration '{configuration}'; it has: {known}.").about(
                value=configuration
            )
        plain_name(found.configuration_manager.data_identifier, f"data_identifier in {plans_name}.json")
        command = f"nnUNetv2_preprocess -d {found.number} -plans_name {plans_name} -c {configuration}"
        if found.preprocessing_report.is_file():  # ours; nnU-Net leaves none
            command = f"nnunet_alice plan -d {found.number} ... as before"
            recipe = preprocessing_recipe(found.plans, found.configuration_manager.configuration)
            if read_json(found.preprocessing_report).get("recipe") != recipe:
                raise StaleError(
                    f"{found.folder} was preprocessed with other plans than {plans_name}; run: {command}"
                ).about(path=found.folder, command=command)
        if not any(found.folder.glob("*.b2nd")) and not any(found.folder.glob("*.npz")):
            raise NotPreparedError(f"{found.folder} holds no preprocessed case; run: {command}").about(
                path=found.folder, command=command
            )
        found.cases()
        return found

    def __reduce__(self) -> tuple:
        """Pickle the names only, not the list of all cases."""
        return type(self), (self.name, self.plans_name, self.configuration, self.modality)

    @property
    def number(self) -> int:
        """Dataset number, e.g. 900."""
        return dataset_number(self.name)

    @property
    def base(self) -> Path:
        """Folder with plans, fingerprint, splits: ``nnUNet_preprocessed/DatasetXXX_NAME``."""
        return nnunet_folder("nnUNet_preprocessed") / self.name

    @cached_property
    def plans(self) -> dict:
        """The plans file as nnU-Net wrote it; never change it in place."""
        return read_json(self.base / f"{self.plans_name}.json")

    @cached_property
    def configuration_manager(self) -> "ConfigurationManager":
        """nnU-Net's ``ConfigurationManager`` (resolves ``inherits_from``)."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans).get_configuration(self.configuration)

    def pretraining_command(self, trainer: str) -> str:
        """Return the command that pretrains on all cases, on as many GPUs as the plans were made for."""
        gpus = planned_gpus(self.configuration_manager.configuration)
        flag = f" -num_gpus {gpus}" if gpus > 1 else ""
        return f"nnUNetv2_train {self.number} {self.configuration} all -tr {trainer} -p {self.plans_name}{flag}"

    @property
    def anatomy_command(self) -> str:
        """The command that prepares its anatomy."""
        return f"nnunet_alice anatomy -d {self.number} -p {self.plans_name} -c {self.configuration}"

    @property
    def folder(self) -> Path:
        """Folder of the preprocessed cases."""
        return self.base / self.configuration_manager.data_identifier

    @property
    def preprocessing_report(self) -> Path:
        """Where ``nnunet_alice plan`` keeps the recipe of what it preprocessed, and the cases that failed."""
        return self.base / f"{self.configuration_manager.data_identifier}_preprocessing.json"

    @property
    def anatomy_folder(self) -> Path:
        """Folder of what ``nnunet_alice anatomy`` stores about these cases, beside ``folder``."""
        return self.base / f"{self.configuration_manager.data_identifier}_anatomy"

    @property
    def probe_folder(self) -> Path:
        """Folder of the labelled crops of the online probe, beside ``folder``."""
        return self.base / f"{self.configuration_manager.data_identifier}_probe"

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm, (z, y, x) of the preprocessed arrays."""
        return tuple(float(s) for s in self.configuration_manager.spacing)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Patch size of the plans in voxels, (z, y, x)."""
        return tuple(int(p) for p in self.configuration_manager.patch_size)

    @cached_property
    def _dataset(self) -> "nnUNetBaseDataset":
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        try:
            return infer_dataset_class(str(self.folder))(str(self.folder))
        except AssertionError:  # by its files' endings
            raise InputError(
                f"{self.folder} holds files of several kinds; remove what nnU-Net did not write (e.g. .DS_Store)."
            ).about(path=self.folder) from None

    def cases(self) -> list[str]:
        """Return names of all preprocessed cases, sorted; of its modality alone where it has one."""
        cases = list(self._dataset.identifiers)
        if self.modality in (None, TOGETHER):
            return cases
        return [case for case in cases if self.modalities.get(case) == self.modality]

    @cached_property
    def modalities(self) -> dict[str, str]:
        """Case -> modality; empty where the plans know of one only."""
        return read_json(self.base / MODALITIES_FILE) if MODALITIES in self.plans else {}

    @property
    def parts(self) -> list["PreprocessedDataset"]:
        """The dataset itself; one for each of its modalities where it holds several."""
        if self.modality is not None or not self.modalities:
            return [self]
        return [replace(self, modality=modality) for modality in self.plans[MODALITIES]]

    def together(self) -> "PreprocessedDataset":
        """Return all cases as if they were of one modality."""
        return replace(self, modality=TOGETHER)

    def image(self, case: str) -> LazyImage:
        """Return the image of a case, (C, z, y, x) float32, opened lazily: slice it (``[...]``) to read only that part.

        Raises:
            InputError: the file is no image, or the beginning of one only.
        """
        path = self.folder / f"{case}.b2nd"
        if path.is_file():  # not through nnU-Net's loader, which opens the labels and reads all properties as well
            try:
                return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, mmap_mode=_MMAP_MODE)
            except RuntimeError as error:
                raise InputError(f"{path} cannot be read ({error}); delete it and preprocess again.").about(
                    path=path
                ) from error
        return self._dataset.load_case(case)[0]

    def image_checksum(self, case: str) -> str | None:
        """Return a cheap checksum of the preprocessed image of a case; None without a file.

        See :func:`file_checksum`; a blosc2 file says at its ends how long each of its chunks is.
        """
        checksums = (file_checksum(self.folder / f"{case}{suffix}") for suffix in (".b2nd", ".npz"))
        return next(filter(None, checksums), None)

    def shape(self, case: str) -> tuple[int, ...]:
        """Return the shape of a case's preprocessed array without channels, (z, y, x) voxels."""
        return tuple(self.image(case).shape[1:])


def open_dataset(
    dataset: int | str, plans_name: str = "nnUNetPlans", *, configuration: str = "3d_fullres"
) -> PreprocessedDataset:
    """Return a preprocessed dataset, once plans, configuration and cases are found.

    >>> import nnunet_alice
    >>> dataset = nnunet_alice.open_dataset(900)
    >>> dataset.cases()
    ['case0', 'case1', 'case2']
    >>> dataset.image("case0")[:].shape  # channels, z, y, x
    (1, 25, 14, 21)
    >>> dataset.spacing
    (16.0, 16.0, 16.0)

    Args:
        dataset: number, or name such as ``Dataset900_NAME``.
        plans_name: identifier of the plans.
        configuration: a 3D configuration of the plans.

    Raises:
        NotPreparedError: plans or preprocessed cases are missing; the message names the command to run.
        InputError: the configuration is not in the plans, or their name is a path.
    """
    return PreprocessedDataset.find(dataset, plans_name, configuration)
