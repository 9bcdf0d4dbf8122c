"""Write a fine-tuned model so that stock nnU-Net predicts with it where this package is not installed.

nnU-Net looks up the trainer's class by the name in the checkpoint to build the network. Our fine-tuning trainers build
stock nnU-Net's network, so naming ``nnUNetTrainer`` gives the same predictions; this is checked on each fold before
anything is written.
"""

import importlib
import inspect
import logging
import os
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from nnunet_alice.checkpoints.loading import WEIGHTS_KEY, finite_weights, load_checkpoint
from nnunet_alice.checkpoints.networks import check_architecture
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.discovery import package_folder
from nnunet_alice.errors import CheckpointError, InputError, MissingFileError, OccupiedError
from nnunet_alice.files import read_json, refusals_told, whole_folder, write_json
from nnunet_alice.nnunet_folders import plain_name

logger = logging.getLogger(__name__)

STOCK_TRAINER = "nnUNetTrainer"
#: logits of equal networks may differ by rounding, where a library picks a different way of adding
TOLERANCE = 1e-5
_TRAINERS = "nnunet_alice.trainers"
#: in ``dataset.json`` of an export: whence it came, and that it may be written again
_MARK = "exported_by_nnunet_alice_from"
_CHECKPOINT = "checkpoint_final.pth"
#: files beside the folds; nnU-Net needs the first two for predicting
_NEEDED, _USEFUL = ("plans.json", "dataset.json"), ("dataset_fingerprint.json",)


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: model folder for ``nnUNetv2_predict_from_modelfolder -m``.
        folds: names of the folds in it, e.g. ``("0", "1")`` or ``("all",)``.
        trainer: name of the trainer that trained.
        largest_difference: of the logits of both networks over all folds.
    """

    folder: Path
    folds: tuple[str, ...]
    trainer: str
    largest_difference: float


def export_model(
    model: str | os.PathLike,
    output: str | os.PathLike,
    folds: Sequence[str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    trust: bool = False,
) -> Export:
    """Write ``<output>/nnUNetTrainer__<plans>__<configuration>`` after checking that both trainers' logits agree.

    The folder is whole or absent: a killed export is simply run again. An export that is already there is replaced
    with all its folds (nnU-Net would add the logits of what stayed).

    Args:
        model: model folder ``<trainer>__<plans>__<configuration>`` with ``plans.json``, ``dataset.json`` and folds.
        output: folder to write into; ``nnUNet_results/<dataset>`` makes it known to ``nnUNetv2_predict``.
        folds: names of the folds; all that have the checkpoint by default.
        checkpoint_name: file in each fold.
        trust: see ``load_checkpoint``.

    Raises:
        InputError: the folder is no model folder, a fold lacks the checkpoint; something else than an export lies in
            the way, or the output cannot be written.
        CheckpointError: a checkpoint is damaged, is of pretraining, or would predict otherwise with stock nnU-Net.
    """
    model, output = Path(model), Path(output)
    plans, dataset_json = _read_model(model)
    files = _checkpoints(model, folds, checkpoint_name)
    found, trainer, largest = {}, "", 0.0
    for fold, path in tqdm(files.items(), "Checking", unit="fold", disable=None):
        checkpoint = load_checkpoint(path, trust)
        content, difference = _stock_checkpoint(checkpoint, path, plans, dataset_json)
        trainer, largest = str(checkpoint["trainer_name"]), max(largest, difference)
        found[fold] = content
        _same_configuration(found, path)
    configuration = next(iter(found.values()))["init_args"]["configuration"]
    for name, what in ((plans["plans_name"], "plans_name"), (configuration, "configuration")):
        plain_name(name, f"{what} in {model}")  # the files are somebody's, perhaps
    target = output / f"{STOCK_TRAINER}__{plans['plans_name']}__{configuration}"
    _check_free(target, model, plans["dataset_name"])
    descriptions = {"plans.json": plans, "dataset.json": dataset_json | {_MARK: f"{model.name}, {checkpoint_name}"}}
    descriptions |= {name: read_json(model / name) for name in _USEFUL if (model / name).is_file()}
    with refusals_told(target), whole_folder(target) as folder:
        for fold, content in found.items():
            save_checkpoint(content, folder / f"fold_{fold}" / _CHECKPOINT)
        for name, content in descriptions.items():
            write_json(folder / name, content)
    return Export(target, tuple(found), trainer, largest)


def _read_model(model: Path) -> tuple[dict, dict]:
    missing = [name for name in _NEEDED if not (model / name).is_file()]
    if missing:
        raise MissingFileError(
            f"{model} has no {' and no '.join(missing)}: give the folder <trainer>__<plans>__<configuration> that "
            "holds the folds."
        ).about(path=model)
    plans, dataset_json = (read_json(model / name) for name in _NEEDED)
    return plans, dataset_json


def _checkpoints(model: Path, folds: Sequence[str] | None, name: str) -> dict[str, Path]:
    """Return fold -> its checkpoint."""
    if folds is None:
        names = [match[1] for path in model.iterdir() if (match := re.fullmatch(r"fold_(\d+|all)", path.name))]
        folds = sorted(fold for fold in names if (model / f"fold_{fold}" / name).is_file())
        if not folds:
            raise MissingFileError(
                f"No fold in {model} has a {name}; finish a training first, or name a different one with -chk."
            ).about(path=model, option="-chk")
    files = {plain_name(str(fold), "-f"): model / f"fold_{fold}" / name for fold in folds}
    for fold, path in files.items():
        if not path.is_file():
            raise MissingFileError(
                f"{path} does not exist: fold {fold} has not finished; choose others with -f."
            ).about(path=path, option="-f", value=fold)
    return files


def _stock_checkpoint(
    checkpoint: dict[str, Any], path: Path, plans: dict, dataset_json: dict
) -> tuple[dict[str, Any], float]:
    """Return what stock nnU-Net needs of a checkpoint, and how far its logits are from those of its own trainer."""
    if "pretraining" in checkpoint:
        raise CheckpointError(
            f"{path} is a pretraining checkpoint and segments nothing; fine-tune from it first."
        ).about(path=path)
    if "targets" in checkpoint:
        raise CheckpointError(
            f"{path} predicts targets of whole cases and segments nothing; predict with nnunet_alice predict_targets."
        ).about(path=path)
    missing = [key for key in ("trainer_name", "init_args") if key not in checkpoint]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}; give a checkpoint of a finished nnU-Net training."
        ).about(path=path, value=missing[0])
    weights = finite_weights(checkpoint, path)
    configuration = checkpoint["init_args"]["configuration"]
    trainers = find_trainer(str(checkpoint["trainer_name"])), find_trainer(STOCK_TRAINER)
    own, stock = (_network(trainer, weights, path, plans, configuration, dataset_json) for trainer in trainers)
    difference = _largest_difference(own, stock, plans["configurations"], configuration)
    if difference > TOLERANCE:
        raise CheckpointError(
            f"{path} was trained with {checkpoint['trainer_name']}, whose logits differ from stock nnU-Net's by up to "
            f"{difference:.3g}; it cannot be exported."
        ).about(path=path, value=checkpoint["trainer_name"])
    content = {
        WEIGHTS_KEY: weights,
        "trainer_name": STOCK_TRAINER,
        "init_args": {**checkpoint["init_args"], "plans": plans, "dataset_json": dataset_json, "device": "cpu"},
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
        "current_epoch": checkpoint.get("current_epoch"),
        "trained_with": str(checkpoint["trainer_name"]),
    }
    return content, difference


def find_trainer(name: str) -> type:
    """Return the class of a trainer: of this package, of stock nnU-Net or of the folders in ``nnUNet_extTrainer``.

    Raises:
        CheckpointError: there is none of this name.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    if name != STOCK_TRAINER:
        for module_info in pkgutil.iter_modules([str(package_folder(_TRAINERS))]):
            module = importlib.import_module(f"{_TRAINERS}.{module_info.name}")
            if hasattr(module, name):
                return getattr(module, name)
    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        raise CheckpointError(
            f"No trainer '{name}' is known here; look for a slip (nnunet_alice trainers --list), or set "
            "nnUNet_extTrainer to the folder that has it."
        ).about(value=name, command="nnunet_alice trainers --list") from None


def _network(
    trainer: type[Any], weights: dict, path: Path, plans: dict, configuration: str, dataset_json: dict
) -> nn.Module:
    """Return the network that a predictor would build by this trainer's class, with the weights."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    check_architecture(path, settings)
    build = trainer.build_network_architecture
    described: tuple[Any, ...] = (manager, settings)
    if "plans_manager" not in inspect.signature(build).parameters:  # nnU-Net's predictor takes older trainers, too
        described = (
            settings.network_arch_class_name,
            settings.network_arch_init_kwargs,
            settings.network_arch_init_kwargs_req_import,
        )
    channels = determine_num_input_channels(manager, settings, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    network = build(*described, channels, heads, enable_deep_supervision=False)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = ": ".join(line.strip(" .:\t") for line in str(error).splitlines()[:2])
        raise CheckpointError(
            f"{path} does not fit the network that {trainer.__name__} builds and cannot be exported ({reason})."
        ).about(path=path, value=trainer.__name__) from None
    return network.eval()


def _largest_difference(one: nn.Module, other: nn.Module, configurations: dict, configuration: str) -> float:
    """Return the largest difference of logits of a random patch; infinite for other shapes or values."""
    settings = configurations[configuration]
    while "patch_size" not in settings:
        settings = configurations[settings["inherits_from"]]
    first = next(module for module in one.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    generator = torch.Generator().manual_seed(0)
    patch = torch.randn((1, first.in_channels, *settings["patch_size"]), generator=generator)
    with torch.inference_mode():
        logits = [network(patch) for network in (one, other)]
    if logits[0].shape != logits[1].shape or not all(torch.isfinite(values).all() for values in logits):
        return float("inf")
    return float((logits[0] - logits[1]).abs().max())


def _same_configuration(found: dict[str, dict], path: Path) -> None:
    configurations = {content["init_args"]["configuration"] for content in found.values()}
    if len(configurations) > 1:
        raise CheckpointError(f"{path} is of a different configuration than the folds before it.").about(path=path)


def _check_free(target: Path, model: Path, dataset: str) -> None:
    """Refuse to replace anything but an untouched export of the same model."""
    if target.resolve() == model.resolve():
        raise InputError(
            f"{target} is the model itself, and predicts with stock nnU-Net already; name a different output."
        ).about(path=target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    plans, description = target / "plans.json", target / "dataset.json"
    exported = read_json(description).get(_MARK) if description.is_file() and plans.is_file() else None
    same = exported and exported.startswith(f"{model.name}, ") and read_json(plans).get("dataset_name") == dataset
    if not same:
        raise OccupiedError(f"{target} holds a different model; name a different output folder with -o.").about(
            path=target, option="-o"
        )
    for path in target.rglob("*"):
        if path.is_file() and not _is_ours(path.relative_to(target)):
            raise OccupiedError(
                f"{path} is of no export and would be lost; move it, or name a different output with -o."
            ).about(path=path, option="-o")


def _is_ours(path: Path) -> bool:
    """Return whether a file of this path inside a model folder may be an export's."""
    if len(path.parts) == 1:
        return path.name in _NEEDED + _USEFUL or path.name.startswith(".")
    return (
        len(path.parts) == 2
        and path.parts[0].startswith("fold_")
        and (path.name == _CHECKPOINT or path.name.startswith("."))
    )
