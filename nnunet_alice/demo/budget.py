"""How much the demo computes, and on what."""

import os
import re
from dataclasses import dataclass

from nnunet_alice.errors import InputError

#: the two networks that are compared
RUNS = ("pretrained", "from scratch")
#: how both train on labels: briefly, as pretraining pays off early; never mirrored, as in pretraining
ON_LABELS = "8epochs_20iterations_AdamW_lr1e-2_noMirroring_seed1"
#: what a user's own data can be pretrained with: everything, without the contrast between people, or the baseline
TRAINERS = ("AliceTrainer", "AliceTrainer_regionsOnly", "MIMTrainer")
#: the one of them that pairs no views and learns no regions
WITHOUT_ANATOMY = "MIMTrainer"
#: trainer of the embedding, where the demo is asked for it
EMBEDDING = "AnatomicalEmbeddingTrainer_6epochs_50iterations"


def both_starts(endings: str) -> tuple[str, str]:
    """Return the trainers from pretrained and from random weights with the same endings."""
    return f"FineTuneTrainer_{endings}", f"FineTuneTrainer_scratch_{endings}"


@dataclass(frozen=True)
class Budget:
    """How much the demo computes, and on what.

    Attributes:
        pretraining: trainer of the pretraining; the contrast between people would take more than half of the time.
        finetuning: trainer that starts from the pretrained weights.
        scratch: trainer that starts from random weights, with the same budget.
        embedding: trainer of the anatomical embedding, which then matches the views; None leaves that to the atlas.
        pairs: ordered pairs of unlabelled phantoms on which matching is measured.
        device: for nnU-Net.
        processes: for planning, preprocessing and prediction.
        planner: of ours, on a CPU.
    """

    pretraining: str = "AliceTrainer_regionsOnly_4epochs_200iterations_lr3e-3"
    finetuning: str = both_starts(ON_LABELS)[0]
    scratch: str = both_starts(ON_LABELS)[1]
    embedding: str | None = None
    pairs: int = 100
    device: str = "cpu"
    processes: int = 1  # phantoms are small: starting a different process takes longer than the work
    planner: str = "AlicePlannerSmall"

    def trainer(self, run: str) -> str:
        """Return the trainer of one of the two runs on labels."""
        return self.finetuning if run == RUNS[0] else self.scratch

    @property
    def needs_anatomy(self) -> bool:
        """Whether the pretraining pairs views or learns regions, for which cases are registered first."""
        return self.pretraining.partition("_")[0] != WITHOUT_ANATOMY

    @property
    def plans(self) -> str:
        """Plans of the labelled dataset: nnU-Net's own on a GPU, small ones on a CPU."""
        return f"{self.planner.replace('Planner', '')}Plans" if self.device == "cpu" else "nnUNetPlans"


def own_budget(
    epochs: int,
    finetuning_epochs: int,
    seed: int,
    device: str,
    embedding: str | None = None,
    regions: bool = False,
    trainer: str | None = None,
) -> Budget:
    """Return the budget for a user's own data.

    On a CPU time is short: voxels are coarse, the contrast between people is left out, and rare classes weigh more.

    Args:
        epochs: of the pretraining, of nnU-Net's 250 iterations.
        finetuning_epochs: of both runs on labels.
        seed: of all runs.
        device: for nnU-Net.
        embedding: see :class:`Budget`.
        regions: whether labels are regions, whose classes cannot be weighted.
        trainer: of the pretraining, one of ``TRAINERS``; None chooses by the device.

    Raises:
        InputError: an embedding is asked for, whose matches the trainer would not use.
    """
    if embedding is not None and trainer == WITHOUT_ANATOMY:
        raise InputError(f"{trainer} matches no views; leave out --embedding.").about(
            option="--embedding", value=trainer
        )
    on_cpu = device == "cpu"
    weighted = "_weightedClasses" if on_cpu and not regions else ""
    ending = f"{finetuning_epochs}epochs_AdamW_lr3e-3_noMirroring{weighted}_seed{seed}"
    trainer = trainer or ("AliceTrainer_regionsOnly" if on_cpu else "AliceTrainer")
    rate = "_lr3e-3" if on_cpu else ""  # small networks learn at a higher rate
    return Budget(
        f"{trainer}_{epochs}epochs{rate}_seed{seed}",
        *both_starts(ending),
        embedding,
        device=device,
        processes=min(8, os.cpu_count() or 1),
        planner="AlicePlannerCoarse",
    )


def length(trainer: str) -> tuple[int, int]:
    """Return epochs and iterations an epoch by a trainer's name."""
    found = {kind: int(number) for number, kind in re.findall(r"_(\d+)(epochs|iterations)", trainer)}
    return found["epochs"], found.get("iterations", 250)
