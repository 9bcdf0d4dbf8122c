"""Settings that all pretraining trainers have, and the tree in which a trainer's settings stand."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nnunet_alice.pretraining.optimisation import Optimisation
from nnunet_alice.training.settings import unrecorded

MethodSettingsT = TypeVar("MethodSettingsT")


@dataclass(frozen=True)
class RunSettings:
    """Length, seed and records of a run.

    Attributes:
        epochs: number of epochs.
        iterations: training iterations an epoch.
        seed: of weights, views and dropout. The same command gives the same run on the CPU.
        save_every: epochs between two writings of ``checkpoint_latest.pth``, at most a tenth of the run.
        pictures_every: epochs between two sets of pictures of what the network sees.
        probe_every: epochs between two online probes, where ``plan --probe`` prepared one; the last epoch has one, too.
        restart: epoch at which all schedules begin again, in a run that ``nnunet_alice extend`` made longer; 0: none.
        max_skipped_steps: this many skipped steps in a row (or an epoch of them) end the run.
    """

    epochs: int = 1000
    iterations: int = 250
    seed: int = 12345
    save_every: int = unrecorded(10)
    pictures_every: int = unrecorded(5)
    probe_every: int = unrecorded(5)
    restart: int = unrecorded(0)
    max_skipped_steps: int = unrecorded(10)


@dataclass(frozen=True)
class PretrainingSettings(Generic[MethodSettingsT]):
    """All settings of a pretraining trainer; variants are copies (:func:`nnunet_alice.training.settings.changed`).

    Attributes:
        method: settings of the method, a frozen dataclass.
        run: length, seed and records.
        optimisation: optimiser and schedules.
    """

    method: MethodSettingsT
    run: RunSettings = field(default_factory=RunSettings)
    optimisation: Optimisation = field(default_factory=Optimisation)
