"""An atlas with all that registering a new image to it needs: from a checkpoint, from ``anatomy``, or a small file.

- ``checkpoint_final.pth`` of DrasCLRTrainer: the atlas of its pretraining, the plans it was preprocessed with.
- ``atlas.json`` that ``nnunet_alice anatomy`` wrote beside the preprocessed cases of a dataset (which must be there).
- ``atlas.npz`` that ``nnunet_alice locate -d`` leaves in the dataset it writes: the same in about a megabyte.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_alice.anatomy.atlas import ARRAYS, Atlas, PreparedAtlas
from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.anatomy.orientation import (
    ORIENTATION,
    UNKNOWN,
    is_orientation,
    orientation_as_read,
    reader_that_gives,
)
from nnunet_alice.anatomy.registration import BODY
from nnunet_alice.anatomy.world import dataset_orientation
from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.pretraining import pretrained_orientation
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError, MissingFileError, NotPreparedError, StaleError
from nnunet_alice.files import atomic_write, read_json
from nnunet_alice.nnunet_folders import channel_names

#: Raised when the stored form changes.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PortableAtlas(Atlas):
    """An atlas with all that preparing a raw image for it needs.

    Attributes:
        plans: plans that cases are preprocessed with before they are registered.
        configuration: e.g. ``3d_fullres``.
        dataset_json: of the dataset that the atlas case belongs to, without its list of cases.
        predicts: ending of the files that models of the located dataset predict; empty where there is none yet.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    predicts: str = ""

    @property
    def orientation(self) -> str:
        """How images lie that are registered to it, e.g. ``LPS``; empty where the pretraining did not say."""
        plans = self.plans
        letters = orientation_as_read(plans.get(ORIENTATION, UNKNOWN), plans["image_reader_writer"])
        return letters if is_orientation(letters) else UNKNOWN

    @property
    def reader(self) -> str:
        """Reader of nnU-Net that gives images in this orientation, of whatever format."""
        own = self.plans["image_reader_writer"]
        return reader_that_gives(self.orientation, own.replace("Nibabel", "SimpleITK"))

    @property
    def channels(self) -> list[str]:
        """Names of the image channels, in their order."""
        return channel_names(self.dataset_json)

    def save(self, path: str | os.PathLike) -> None:
        """Write ``atlas.npz``."""
        described = {name: value for name, value in asdict(self.geometry).items() if name not in ARRAYS}
        content = {"version": VERSION, "geometry": described, "plans": self.plans, "dataset_json": self.dataset_json}
        content |= {"configuration": self.configuration, "registered_by": self.registered_by}
        content["predicts"] = self.predicts
        text = json.dumps(content)
        arrays = {name: getattr(self.geometry, name) for name in ARRAYS}
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, description=np.array(text), **arrays)


def open_atlas(
    path: str | os.PathLike, plans_name: str | None = None, configuration: str | None = None
) -> PortableAtlas:
    """Open an atlas; see the module for the kinds of files.

    Args:
        path: one of these files.
        plans_name, configuration: for an ``atlas.json`` that several plans share, those of the pretraining.

    Raises:
        InputError: the file is missing, damaged or of a different kind.
        CheckpointError: a checkpoint without an atlas.
        NotPreparedError: ``atlas.json`` of a dataset that was removed, or not finished.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist; give the pretraining's checkpoint_final.pth, atlas.json or atlas.npz."
        ).about(path=path)
    if path.suffix == ".npz":
        return _open_file(path)
    if path.suffix == ".json":
        return _open_anatomy(path, plans_name, configuration)
    return atlas_of_checkpoint(load_checkpoint(path), path)


def atlas_of_dataset(dataset: PreprocessedDataset) -> PortableAtlas:
    """Return the atlas that ``anatomy`` prepared for a dataset.

    Raises:
        NotPreparedError: there is none, or its preparation did not finish.
    """
    atlas = PreparedAtlas.find(dataset)
    if atlas is None:
        raise NotPreparedError(
            f"{dataset.name} has no atlas of its own for {dataset.plans_name} {dataset.configuration}; name that of "
            "the pretraining with --atlas (its checkpoint_final.pth)."
        ).about(option="--atlas", value=dataset.name)
    described = read_json(dataset.base / "dataset.json")
    plans = {**dataset.plans, ORIENTATION: dataset_orientation(dataset)}
    return _portable(atlas, plans, dataset.configuration, described)


def atlas_of_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> PortableAtlas:
    """Return the atlas in a loaded checkpoint of DrasCLRTrainer.

    Args:
        checkpoint: from ``load_checkpoint``.
        path: its file, for messages.

    Raises:
        CheckpointError: it holds none.
    """
    own, run = checkpoint.get("drasclr"), checkpoint.get("pretraining")
    if own is None or run is None:
        raise CheckpointError(
            f"{path} holds no atlas; give a checkpoint of DrasCLRTrainer, atlas.json or atlas.npz."
        ).about(path=path)
    plans = {**run["plans"], ORIENTATION: pretrained_orientation(checkpoint)}
    return _portable(Atlas.of_stored(own), plans, run["configuration"], run["dataset_json"])


def _portable(atlas: Atlas, plans: dict, configuration: str, dataset_json: dict) -> PortableAtlas:
    described = {k: v for k, v in dataset_json.items() if k != "dataset"}
    return PortableAtlas(
        atlas.geometry, atlas.registered_by, plans=plans, configuration=configuration, dataset_json=described
    )


def _open_anatomy(path: Path, plans_name: str | None, configuration: str | None) -> PortableAtlas:
    """Open the atlas of ``<dataset>/<data identifier>_anatomy/atlas/atlas.json``, which plans may share."""
    try:
        identifier = read_json(path)["fingerprint"]["preprocessed"]
        base = path.resolve().parents[2]
    except (KeyError, TypeError, IndexError):
        raise InputError(f"{path} is not the atlas.json that nnunet_alice anatomy writes.").about(
            path=path, command="nnunet_alice anatomy"
        ) from None
    found = [
        (plans, name)
        for plans, name in _preprocessed_by(base, identifier)
        if plans_name in (None, plans) and configuration in (None, name)
    ]
    if not found:
        asked = " ".join(name for name in (plans_name, configuration) if name)
        raise InputError(f"No plans {asked} in {base} preprocess to {identifier}, which {path} was made of.").about(
            path=path, value=asked
        )
    if len(found) > 1:
        known = "; ".join(f"-p {plans} -c {name}" for plans, name in found)
        raise InputError(f"Several plans share {path}; name those of the pretraining: {known}.").about(path=path)
    dataset = PreprocessedDataset.find(base.name, *found[0])
    if AtlasFiles(dataset).atlas_file.resolve() != path.resolve():
        raise InputError(
            f"{path} does not lie in {dataset.anatomy_folder}, where anatomy wrote it; give that one."
        ).about(path=path)
    return atlas_of_dataset(dataset)


def _preprocessed_by(base: Path, identifier: str) -> list[tuple[str, str]]:
    """Return (plans, 3D configuration) of a dataset that preprocess into the folder ``identifier``."""
    found = []
    for path in sorted(base.glob("*.json")):
        content = read_json(path)
        configurations = content.get("configurations", {}) if isinstance(content, dict) else {}
        for name, settings in configurations.items():
            if settings.get("data_identifier") == identifier and len(settings.get("patch_size", ())) == 3:
                found.append((path.stem, name))
    return found


def _open_file(path: Path) -> PortableAtlas:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = json.loads(str(file["description"]))
            arrays = {name: file[name] for name in ARRAYS}
        if content["version"] != VERSION:
            raise StaleError(
                f"{path} is of a different version; run nnunet_alice locate -d again, which writes it."
            ).about(path=path, command="nnunet_alice locate -d")
        described: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["geometry"].items()}
        geometry = CaseGeometry(**described, **arrays)
        return PortableAtlas(
            geometry,
            content.get("registered_by", BODY),
            predicts=content.get("predicts", ""),
            **{name: content[name] for name in ("plans", "configuration", "dataset_json")},
        )
    except (KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no atlas file or damaged ({type(error).__name__}).").about(path=path) from None
