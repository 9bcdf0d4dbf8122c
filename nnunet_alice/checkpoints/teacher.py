"""The moving average that a pretraining learns from, as weights of the plans' network: Alice's teacher, DrasCLR's key.

It changes more slowly than what is trained, and averages over many steps; which of the two serves fine-tuning better is
for each dataset to say.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch

from nnunet_alice.checkpoints.loading import network_weights
from nnunet_alice.errors import CheckpointError
from nnunet_alice.methods.drasclr.conversion import plain_state

#: What can be carried on: the network that is trained, or its moving average.
STUDENT, TEACHER = WEIGHTS = ("student", "teacher")
#: Where the moving average of the network lies in ``model_state``: all of it (Alice), or its encoder (DrasCLR).
_ALICE, _DRASCLR = "teacher.backbone.network.", "key.encoder.encoder."


def teacher_weights(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return weights of the network with those of the teacher in their place; what has no teacher stays as it is.

    Args:
        checkpoint: from ``load_checkpoint``.
        path: its file, for messages.

    Raises:
        CheckpointError: it is of no pretraining with a teacher.
    """
    state = checkpoint.get("model_state") or {}
    weights = network_weights(checkpoint, path)
    teacher = _part(state, _ALICE)
    if not teacher:
        encoder = _part(state, _DRASCLR)
        own = checkpoint.get("drasclr")
        if encoder and own and own["settings"]["conditional"]:
            encoder = plain_state(encoder, own["training_locations"])
        # nnU-Net's decoder knows its encoder, whose tensors have a second name there.
        teacher = {f"{place}encoder.{name}": value for name, value in encoder.items() for place in ("", "decoder.")}
    known = {name: value for name, value in teacher.items() if name in weights}
    if not known:
        run = checkpoint.get("pretraining") or {}
        raise CheckpointError(
            f"{path} holds no teacher (it is of {run.get('trainer', 'a different kind')}); checkpoints of AliceTrainer "
            "and DrasCLRTrainer do."
        ).about(path=path, value=run.get("trainer"))
    return weights | known


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return tensors below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
