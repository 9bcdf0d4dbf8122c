"""Carry a pretrained U-Net over to other plans, and say for every tensor what became of it.

The result holds every tensor of the target network under its own name and shape, so that nnU-Net's
``-pretrained_weights`` accepts it. Encoder stages are matched by number (from the input), decoder stages by the
resolution that they work at: a deeper target gets fresh stages at the bottom, a shallower one leaves the lowest out.
Segmentation layers stay fresh (nnU-Net would not load them anyway).
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from nnunet_alice.checkpoints.adapting import Adapted, adapt
from nnunet_alice.checkpoints.loading import WEIGHTS_KEY, load_checkpoint
from nnunet_alice.checkpoints.nnssl import PLAN_KEY, adaptation_plan, unet_weights
from nnunet_alice.checkpoints.pretraining import pretrained_orientation
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.checkpoints.teacher import STUDENT, TEACHER, teacher_weights
from nnunet_alice.errors import CheckpointError, InputError, NotPreparedError
from nnunet_alice.files import read_json, refusals_told, write_csv
from nnunet_alice.nnunet_folders import dataset_name, dataset_number, nnunet_folder, plain_name

logger = logging.getLogger(__name__)

PARTS = ("all", "encoder")

_DECODER = re.compile(r"decoder\.(stages|transpconvs|seg_layers)\.(\d+)\.(.*)")
_HEAD = ".seg_layers."
#: first convolution of a residual and of a plain encoder
_INPUT_CONVOLUTIONS = ("encoder.stem.convs.0.conv.weight", "encoder.stages.0.0.convs.0.conv.weight")


@dataclass(frozen=True)
class Transfer:
    """What became of every tensor of the target network.

    Attributes:
        table: one row a tensor (a tensor with several names once) with the columns ``tensor``, ``part`` (encoder,
            decoder, head), ``source_tensor``, ``source_shape``, ``target_shape``, ``status`` (loaded, adapted, fresh),
            ``how`` (rules, or why fresh), ``parameters``, ``carried`` (elements that stem from the source).
    """

    table: pd.DataFrame

    def share(self, part: str | None = None) -> float:
        """Return the share of the parameters of a part (all parts by default) that stem from the source, 0 to 1."""
        rows = self.table if part is None else self.table[self.table["part"] == part]
        total = int(rows["parameters"].sum())
        return int(rows["carried"].sum()) / total if total else 0.0


def transfer_weights(
    source: Mapping[str, torch.Tensor],
    target: nn.Module,
    *,
    image_channels: int | None = None,
    parts: str = "all",
    source_image_channels: int | None = None,
    untrained: Collection[str] = (),
) -> Transfer:
    """Put the pretrained tensors into a freshly built network, in place, wherever they fit or can be made to fit.

    >>> import nnunet_alice, torch
    >>> from dynamic_network_architectures.architectures.unet import PlainConvUNet
    >>> weights = torch.load("checkpoint_final.pth", weights_only=True)["network_weights"]
    >>> target = PlainConvUNet(2, 3, (4, 6, 8), torch.nn.Conv3d, 3, (1, 2, 2), 1, 5, 1, conv_bias=True)
    >>> transfer = nnunet_alice.transfer_weights(weights, target)
    >>> transfer.table["status"].value_counts().to_dict()
    {'loaded': 13, 'fresh': 4, 'adapted': 1}

    Args:
        source: name -> tensor of one of nnU-Net's U-Nets, each tensor once or more often.
        target: one of nnU-Net's U-Nets, as initialised.
        image_channels: how many of the target's input channels are images (all by default; fewer in a cascade).
        parts: ``all``, or ``encoder`` to leave the decoder fresh.
        source_image_channels: how many of the source's input channels are images, likewise.
        untrained: names in the source of what pretraining left at its initial values: they are taken over, and
            counted as fresh.

    Raises:
        CheckpointError: the encoders are of different families, the source holds NaN or infinity, or nothing of the
            encoder fits. The network is then unchanged.
        InputError: unknown ``parts``, or the target is not a U-Net.
    """
    if parts not in PARTS:
        raise InputError(f"--parts {parts} is not one of {', '.join(PARTS)}.").about(option="--parts", value=parts)
    tensors = dict(target.named_parameters()) | dict(target.named_buffers())  # each tensor under its first name only
    _check_families(source, tensors)
    depths = _stages(source), _stages(tensors)
    rows, results = [], {}
    for name, fresh in tensors.items():
        source_name = _source_name(name, source, *depths)
        channels = (image_channels or fresh.shape[1], source_image_channels) if name in _INPUT_CONVOLUTIONS else None
        adapted = _adapt_one(name, source.get(source_name or ""), fresh.detach(), channels, parts)
        if adapted.tensor is not None:
            results[name] = adapted.tensor
            if source_name in untrained:
                adapted = Adapted(None, 0, "not trained in the source (its initial values)")
        rows.append(_row(name, source_name, source, fresh, adapted))
    result = Transfer(pd.DataFrame(rows))
    if not result.table.loc[result.table["part"] == "encoder", "carried"].sum():
        why = result.table.loc[result.table["part"] == "encoder", "how"].mode().iloc[0]
        raise CheckpointError(f"Nothing of the checkpoint's encoder fits these plans ({why}).").about(value=why)
    with torch.no_grad():
        for name, tensor in results.items():
            tensors[name].copy_(tensor)
    if result.share("encoder") < 0.5:
        logger.warning(
            "Only %.0f %% of the encoder's parameters are carried; see the table.", 100 * result.share("encoder")
        )
    return result


def transfer_checkpoint(
    checkpoint: str | os.PathLike,
    dataset: int | str,
    *,
    output: str | os.PathLike,
    plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    parts: str = "all",
    trust: bool = False,
    seed: int = 0,
    weights: str = STUDENT,
) -> Transfer:
    """Make of a checkpoint one that ``nnUNetv2_train -pretrained_weights`` accepts for the given plans.

    >>> import nnunet_alice
    >>> transfer = nnunet_alice.transfer_checkpoint("checkpoint_final.pth", 900, output="adapted.pth", parts="encoder")
    >>> transfer.share("encoder"), transfer.share("decoder")
    (1.0, 0.0)

    Writes ``output`` and, beside it, the table as ``.csv``.

    Args:
        checkpoint: of ours, nnU-Net or nnssl.
        dataset: target dataset, number or name; it needs plans, not preprocessed cases.
        output: file to write.
        plans_name: identifier of the target's plans.
        configuration: of these plans.
        parts: ``all`` or ``encoder``.
        trust: see ``load_checkpoint``.
        seed: for what stays fresh.
        weights: ``student``, or ``teacher`` for the moving average that the pretraining learned from.

    Raises:
        CheckpointError: unreadable, without a teacher that was asked for, of a different family, nothing fits, or
            ``output`` cannot be written.
        InputError: unknown configuration, ``output`` would overwrite ``checkpoint``, or the table cannot be written.
        NotPreparedError: the target dataset has no plans.
    """
    output = Path(output)
    if output.suffix == ".csv" or output.resolve() == Path(checkpoint).resolve():
        raise InputError(f"{output} cannot be the output; name a new .pth file.").about(path=output)
    plans, dataset_json = _target(dataset, plans_name, configuration)
    loaded = load_checkpoint(checkpoint, trust)
    if weights == TEACHER:
        loaded[WEIGHTS_KEY] = teacher_weights(loaded, checkpoint)
    source = unet_weights(loaded, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, channels = build_network(plans, configuration, dataset_json)
    try:
        result = transfer_weights(
            source,
            network,
            image_channels=_images(dataset_json),
            parts=parts,
            source_image_channels=_images(_dataset_of(loaded)),
            untrained=_untrained(loaded, source),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} cannot go to {plans_name} {configuration}: {error}").about(
            path=checkpoint, value=error.value
        ) from None
    content = {
        WEIGHTS_KEY: network.state_dict(),
        PLAN_KEY: adaptation_plan(plans, configuration, channels),
        "citations": loaded.get("citations", []),
        "transferred_from": {
            "file": Path(checkpoint).name,
            "trainer_name": loaded.get("trainer_name"),
            "weights": weights,
            "share": result.share(),
            "share_of_encoder": result.share("encoder"),
            "orientation": pretrained_orientation(loaded),
        },
    }
    _write(output, content, result)
    return result


def _write(output: Path, content: dict, result: Transfer) -> None:
    """Write the checkpoint, and its table beside it."""
    table = output.with_suffix(".csv")
    with refusals_told(table):  # no table beside weights that it does not tell of, whenever this is killed
        table.unlink(missing_ok=True)
    save_checkpoint(content, output)
    with refusals_told(table):
        write_csv(table, result.table)


def build_network(
    plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> tuple[nn.Module, int]:
    """Return the fresh network that stock nnU-Net trains for plans, and its number of input channels."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dict(plans))
    settings = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, settings, dataset_json)
    network = get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        channels,
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        deep_supervision=True,
    )
    return network, channels


def _target(dataset: int | str, plans_name: str, configuration: str) -> tuple[dict, dict]:
    """Return plans and dataset.json of the target dataset."""
    name, plans_name = dataset_name(dataset), plain_name(plans_name, "-p")
    folder = nnunet_folder("nnUNet_preprocessed") / name
    if not (folder / f"{plans_name}.json").is_file():
        raise NotPreparedError(
            f"{folder} has no plans {plans_name}.json; run: nnUNetv2_plan_and_preprocess -d {dataset_number(name)}"
        ).about(path=folder, value=plans_name, command=f"nnUNetv2_plan_and_preprocess -d {dataset_number(name)}")
    plans = read_json(folder / f"{plans_name}.json")
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise InputError(f"{plans_name}.json has no configuration '{configuration}'; it has: {known}.").about(
            value=configuration
        )
    dataset_json = folder / "dataset.json"
    if not dataset_json.is_file():
        dataset_json = nnunet_folder("nnUNet_raw") / name / "dataset.json"
    return plans, read_json(dataset_json)


def _untrained(checkpoint: Mapping[str, Any], source: Iterable[str]) -> set[str]:
    """Return tensors that one of our pretrainings did not train, as its checkpoint says."""
    run = checkpoint.get("pretraining") or {}
    if run.get("trained", {}).get("decoder", True):
        return set()
    aligned = run.get("hyper_parameters", {}).get("alignment")  # which trains the decoder's first stage
    kept = ("decoder.stages.0.", "decoder.transpconvs.0.") if aligned else ()
    return {name for name in source if name.startswith("decoder.") and not name.startswith(kept)}


def _dataset_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the dataset.json of a checkpoint's training; empty if it does not say."""
    for key in ("pretraining", "init_args"):  # ours, nnU-Net's
        entry = checkpoint.get(key)
        if isinstance(entry, Mapping) and isinstance(entry.get("dataset_json"), Mapping):
            return entry["dataset_json"]
    return {}


def _images(dataset_json: Mapping[str, Any]) -> int | None:
    """Return the number of image channels; None if the dataset.json does not say."""
    return len(dataset_json.get("channel_names", dataset_json.get("modality", ()))) or None


def _check_families(source: Iterable[str], target: Iterable[str]) -> None:
    has, wants = _family(source), _family(target)
    if wants is None:
        raise InputError("The plans' network is not one of nnU-Net's U-Nets; transfer knows only those.")
    if has != wants:
        raise CheckpointError(
            f"it holds a {has or 'network of a different kind'} and the plans want a {wants}; "
            f"pretrain with plans of the same family, or plan this dataset with the planner of the checkpoint's."
        ).about(value=has)


def _family(names: Iterable[str]) -> str | None:
    """Return the kind of encoder, by the names of its tensors."""
    names = [name for name in names if name.startswith("encoder.stages.")]
    if any(re.match(r"encoder\.stages\.\d+\.blocks\.\d+\.conv3\.", name) for name in names):
        return "residual encoder with bottleneck blocks"
    if any(re.match(r"encoder\.stages\.\d+\.blocks\.\d+\.conv2\.", name) for name in names):
        return "residual encoder"
    if any(re.match(r"encoder\.stages\.\d+\.\d+\.convs\.\d+\.", name) for name in names):
        return "plain encoder"
    return None


def _stages(names: Iterable[str]) -> int:
    """Return the number of encoder stages."""
    found = (re.match(r"encoder\.stages\.(\d+)\.", name) for name in names)
    return 1 + max(int(match.group(1)) for match in found if match)


def _source_name(name: str, source: Mapping[str, torch.Tensor], source_stages: int, target_stages: int) -> str | None:
    """Name in the source of what the target calls ``name``; None if it is not there.

    nnU-Net counts decoder stages from the bottleneck: stage j of n-1 works at the resolution of encoder stage n-2-j.
    """
    decoder = _DECODER.fullmatch(name)
    if decoder:
        kind, index, rest = decoder.groups()
        name = f"decoder.{kind}.{int(index) + source_stages - target_stages}.{rest}"
    if name in source:
        return name
    # a residual block's projection stands behind the pooling, if there is pooling
    other = re.sub(r"\.skip\.([01])\.", lambda match: f".skip.{1 - int(match.group(1))}.", name)
    return other if other in source else None


def _adapt_one(
    name: str, source: torch.Tensor | None, fresh: torch.Tensor, channels: tuple[int, int | None] | None, parts: str
) -> Adapted:
    """Return a source tensor made to fit; ``channels``: images among target's and source's input channels."""
    if _HEAD in name:
        return Adapted(None, 0, "segmentation layers always start fresh")
    if parts == "encoder" and not name.startswith("encoder."):
        return Adapted(None, 0, "only the encoder was asked for")
    if source is None:
        return Adapted(None, 0, "not in the source")
    if not torch.isfinite(source).all():
        raise CheckpointError(f"'{name}' holds NaN or infinity: its training diverged.").about(value=name)
    return adapt(
        source.to(fresh),
        fresh,
        transposed=".transpconvs." in name and name.endswith("weight") and fresh.ndim > 1,
        image_channels=channels[0] if channels else None,
        source_image_channels=channels[1] if channels else None,
        concatenated=bool(re.fullmatch(r"decoder\.stages\.\d+\.convs\.0\.conv\.weight", name)),
    )


def _row(name: str, source_name: str | None, source: Mapping, fresh: torch.Tensor, adapted: Adapted) -> dict[str, Any]:
    def shape(tensor: torch.Tensor) -> str:
        return "x".join(map(str, tensor.shape)) or "scalar"

    status = "fresh" if adapted.tensor is None else "adapted" if adapted.how else "loaded"
    return {
        "tensor": name,
        "part": "head" if _HEAD in name else name.split(".")[0],
        "source_tensor": source_name or "",
        "source_shape": shape(source[source_name]) if source_name else "",
        "target_shape": shape(fresh),
        "status": status,
        "how": adapted.how,
        "parameters": fresh.numel(),
        "carried": adapted.carried,
    }
