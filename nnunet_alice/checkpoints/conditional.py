"""The location-conditioned encoder in a checkpoint of DrasCLRTrainer, and putting it into a network."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnunet_alice.checkpoints.loading import check_finite, first_misfit
from nnunet_alice.errors import CheckpointError

#: Where the query encoder lies in ``model_state``.
_QUERY = "query.encoder."


@dataclass(frozen=True)
class ConditionalWeights:
    """A location-conditioned encoder as a checkpoint holds it.

    Attributes:
        state: of a `ConditionalEncoder`.
        num_experts: E.
        own: what DrasCLRTrainer put beside it (``drasclr``): settings, landmarks, atlas.
        run: what the checkpoint says about itself (``pretraining``).
    """

    state: dict[str, torch.Tensor]
    num_experts: int
    own: Mapping[str, Any]
    run: Mapping[str, Any]


def query_encoder_state(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state of the `ConditionalEncoder` in a loaded checkpoint of a DrasCLRTrainer with locations."""
    state = checkpoint["model_state"]
    return {name.removeprefix(_QUERY): value for name, value in state.items() if name.startswith(_QUERY)}


def conditional_weights(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> ConditionalWeights:
    """Return the location-conditioned encoder of a loaded checkpoint.

    Args:
        checkpoint: from ``load_checkpoint``.
        path: its file, for messages.

    Raises:
        CheckpointError: it holds none, or one with NaN or infinity.
    """
    own, run = checkpoint.get("drasclr"), checkpoint.get("pretraining") or {}
    if own is None:
        raise CheckpointError(
            f"{path} holds no location-conditioned encoder (it is of {run.get('method', 'a different kind')}); give a "
            "checkpoint of DrasCLRTrainer, or fine-tune with FineTuneTrainer on the dataset without coordinates."
        ).about(path=path, value=run.get("method"))
    if not own["settings"]["conditional"]:
        raise CheckpointError(
            f"{path} was pretrained without locations ({run.get('trainer')}); fine-tune with FineTuneTrainer on the "
            "dataset without coordinates."
        ).about(path=path, value=run.get("trainer"))
    state = query_encoder_state(checkpoint)
    check_finite(state, path)
    return ConditionalWeights(state, own["settings"]["num_experts"], own, run)


def load_conditional_encoder(encoder: nn.Module, weights: ConditionalWeights, path: str | os.PathLike) -> None:
    """Put a checkpoint's encoder into a `ConditionalEncoder`, all of it or nothing.

    Raises:
        CheckpointError: it does not fit; the message names what differs, and the fix.
    """
    target = encoder.state_dict()
    experts = next((value.shape[0] for name, value in target.items() if name.endswith(".experts")), None)
    if experts != weights.num_experts:
        raise CheckpointError(
            f"{path} has {weights.num_experts} experts and this network {experts}: name the trainer with the ending "
            f"_{weights.num_experts}experts."
        ).about(path=path, value=weights.num_experts)
    misfit = first_misfit(weights.state, target, sorted(target.keys() | weights.state.keys()))
    if misfit is not None:
        name, there, here = misfit
        raise CheckpointError(
            f"{path} does not fit these plans: encoder tensor '{name}' is {there} there and {here} here; "
            "train with the plans of the pretraining, which nnunet_alice locate gives to the dataset it writes."
        ).about(path=path, value=name)
    encoder.load_state_dict(weights.state)
