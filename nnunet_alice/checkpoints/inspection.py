"""What a checkpoint holds, in words and numbers that a user can act on."""

import os
from pathlib import Path
from typing import Any

from nnunet_alice.checkpoints.loading import load_checkpoint, not_finite
from nnunet_alice.checkpoints.nnssl import unet_weights
from nnunet_alice.checkpoints.pretraining import pretrained_configuration, pretrained_orientation
from nnunet_alice.checkpoints.weights_folder import is_weights_folder
from nnunet_alice.dataset import MODALITIES
from nnunet_alice.errors import CheckpointError
from nnunet_alice.nnunet_folders import dataset_number
from nnunet_alice.words import counted, pasteable


def describe_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Return the description of one of our pretraining checkpoints: name -> text, number or list of lines.

    >>> import nnunet_alice
    >>> nnunet_alice.describe_checkpoint("checkpoint_final.pth")["spacing"]
    '16 x 16 x 16 mm (z, y, x)'

    Raises:
        CheckpointError: the file is damaged or was not written by a pretraining trainer of this package.
    """
    checkpoint = load_checkpoint(path)
    run = checkpoint.get("pretraining")
    if run is None:
        raise CheckpointError(
            f"{path} was not written by a pretraining trainer of nnunet_alice; "
            "its weights may still fit: nnunet_alice transfer adapts other nnU-Net and nnssl checkpoints."
        ).about(path=path, command="nnunet_alice transfer")
    configuration = pretrained_configuration(run)
    settings = run["hyper_parameters"]
    weights = unet_weights(checkpoint, path)  # each tensor under one name
    parameters = {
        part: sum(tensor.numel() for name, tensor in weights.items() if name.startswith(f"{part}."))
        for part in ("encoder", "decoder")
    }
    trained = [
        f"{part} ({count:,} parameters): "
        + ("trained; seg_layers are not carried on" if part == "decoder" else "trained")
        if run["trained"][part]
        else f"{part} ({count:,} parameters): NOT trained, at its initial values"
        + (" but for the first stage, which alignment trains" if settings.get("alignment") else "")
        for part, count in parameters.items()
    ]
    everything, bad = run["fold"] == "all", not_finite(weights)
    diverged = f"NaN or infinity in {len(bad)} of {counted(len(weights), 'tensor')}: nothing can start from them"
    return ({"weights": diverged} if bad else {}) | {
        "method": f"{run['method']} ({run['trainer']}, nnunet_alice {run['version']})",
        "epochs": f"{run['epochs_done']} of {settings['epochs']}, {settings['iterations']} iterations each",
        "dataset": f"{run['dataset_name']} ({run['dataset_json'].get('numTraining', '?')} cases), fold {run['fold']}: "
        + ("every case was seen" if everything else "the fold's validation cases were not seen"),
        **_modalities(run.get("views") or {}),
        "views matched by": run["matching"] or "nothing",
        "plans": f"{run['plans_name']}, configuration {run['configuration']}",
        "network": configuration["architecture"]["network_class_name"].rsplit(".", 1)[-1],
        "patch size": " x ".join(map(str, configuration["patch_size"])) + " voxels (z, y, x)",
        "spacing": " x ".join(f"{mm:g}" for mm in configuration["spacing"]) + " mm (z, y, x)",
        "orientation": pretrained_orientation(checkpoint) or "not recorded",
        "normalisation": _normalisation(run["plans"], configuration),
        "channels": ", ".join(map(str, run["dataset_json"].get("channel_names", {}).values())),
        "trained": trained,
        "fine-tune": _fine_tuning(path, run) + _with_locations(path, checkpoint),
    }


def _modalities(views: dict) -> dict[str, str]:
    """Return how many cases of each modality were seen, where there were several."""
    counts = views.get(MODALITIES, {})
    return {MODALITIES: ", ".join(f"{count} {modality}" for modality, count in counts.items())} if counts else {}


def _normalisation(plans: dict, configuration: dict) -> str:
    """Return how images were normalised; of several modalities how those of each."""
    own = plans.get(MODALITIES)
    if own is None:
        return ", ".join(configuration["normalization_schemes"])
    return ", ".join(f"{modality} by {how['normalization_scheme']}" for modality, how in own.items())


def _fine_tuning(path: str | os.PathLike, run: dict) -> list[str]:
    """Return commands that fine-tune from this checkpoint."""
    if is_weights_folder(Path(path)):  # its dataset need not be here
        return [pasteable("nnunet_alice", "fetch", Path(path).resolve(), "-d", "TARGET")]
    origin = run["plans"].get("moved_from")
    file = Path(path).resolve()
    weights = pasteable("-pretrained_weights", file)
    if origin is not None:
        target = dataset_number(origin["dataset"])
        return [f"nnUNetv2_train {target} {run['configuration']} 0 -p {origin['plans_name']} {weights}"]
    number = dataset_number(run["dataset_name"])
    moved = f"{run['plans_name']}_from{number:03d}"
    words = ["nnunet_alice", "transfer", "-i", file, "-d", "TARGET", "-p", "nnUNetPlans", "-c", run["configuration"]]
    return [
        "with the plans of this checkpoint on your labelled dataset TARGET (its number):",
        "nnUNetv2_extract_fingerprint -d TARGET",
        f"nnUNetv2_move_plans_between_datasets -s {number} -t TARGET -sp {run['plans_name']} -tp {moved}",
        f"nnUNetv2_preprocess -d TARGET -plans_name {moved} -c {run['configuration']}",
        f"nnUNetv2_train TARGET {run['configuration']} 0 -p {moved} {weights}",
        "or with other plans:",
        pasteable(*words, "-o", "adapted.pth"),
    ]


def _with_locations(path: str | os.PathLike, checkpoint: dict) -> list[str]:
    """Return the command that starts fine-tuning with a location-conditioned encoder, if there is one."""
    own = checkpoint.get("drasclr")
    if own is None or not own["settings"]["conditional"]:
        return []
    target = checkpoint["pretraining"]["plans"].get("moved_from", {}).get("dataset")
    number = "TARGET" if target is None else dataset_number(target)
    return [
        "or with the location-conditioned encoder kept (it prints the commands that follow):",
        pasteable("nnunet_alice", "locate", "-d", number, "--atlas", Path(path).resolve()),
    ]
