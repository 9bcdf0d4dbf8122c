"""Fine-tuning for whole cases: ``ClassificationTrainer`` and ``RegressionTrainer`` on nnU-Net's preprocessed data.

What is to be predicted is stored by ``nnunet_alice targets``; no segmentation is read. Weights come from
``-pretrained_weights`` as for ``FineTuneTrainer``, of which the encoder is taken. Names take the endings of
:mod:`nnunet_alice.training.variants`.
"""

import copy
import os
import secrets
from abc import ABC, abstractmethod
from dataclasses import asdict
from time import time
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed as dist
from torch import nn

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.anatomy.world import dataset_orientation
from nnunet_alice.checkpoints.loading import finite_weights, load_checkpoint
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError
from nnunet_alice.files import write_json
from nnunet_alice.finetuning.parts import is_encoder, load_tensors
from nnunet_alice.pictures.progress import draw_progress
from nnunet_alice.targets.batches import TargetBatch, TargetCrops
from nnunet_alice.targets.definitions import load_targets
from nnunet_alice.targets.head_start import case_features, start_head
from nnunet_alice.targets.network import PooledEncoder, pooled_encoder
from nnunet_alice.targets.occlusion import draw_case
from nnunet_alice.targets.settings import TargetTrainerSettings
from nnunet_alice.targets.splits import SPLITS, check_no_leak, check_training_cases, make_splits
from nnunet_alice.targets.tasks import learn_task
from nnunet_alice.targets.validation import Validated, validate_cases, write_results
from nnunet_alice.targets.windows import CasePredictor
from nnunet_alice.trainers.finetuning import FineTuneTrainer
from nnunet_alice.training.history import MetricsHistory
from nnunet_alice.training.ranks import of_all_ranks, on_one_rank, on_one_rank_first
from nnunet_alice.training.settings import changed
from nnunet_alice.training.variants import trainer_names
from nnunet_alice.views.loader import Loader, NumberedBatches, start_loader


class TargetTrainer(FineTuneTrainer, ABC):
    """What trainers share that predict something of a whole case.

    The network is the plans' encoder with a small head on its pooled features. Schedule, seeds, phases, checkpoints and
    several GPUs are ``FineTuneTrainer``'s; "decoder" there is the head here. Batches are numbered: a run with a seed is
    the same with any number of workers.

    Attributes:
        tasks: that the trainer can learn, of ``targets.definitions.TASKS``.
        settings: of the trainer.
    """

    settings: ClassVar[TargetTrainerSettings] = TargetTrainerSettings()
    _best_ema: float | None  # nnU-Net's, which declares no types

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Tasks of ``targets.definitions.TASKS``."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's exact signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if len(self.configuration_manager.patch_size) != 3 or self.is_cascaded:
            raise InputError(
                f"{type(self).__name__} needs a 3D configuration that is no second stage: 3d_fullres."
            ).about(option="-c")
        self.enable_deep_supervision = False
        self.history = MetricsHistory()
        self._epoch_metrics: dict[str, float] = {}
        seed = self.settings.run.seed
        self._batch_seed = secrets.randbits(31) if seed is None else seed

    # --------------------------------------------------------------------------------------------- building

    def initialize(self) -> None:
        """Initialise as FineTuneTrainer does, once the task is learned from the training cases."""
        self.dataset = PreprocessedDataset.find(
            self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name
        )
        self.targets = load_targets(self.dataset.name)
        name = type(self).__name__
        self.definition = self.targets.choose(self.settings.target.target_name, self.tasks, name)
        values = self.definition.values(self.targets.table)
        self.splits = tuple(values.loc[[case for case in cases if case in values.index]] for cases in self.do_split())
        where = f"{self.dataset.base / SPLITS}, fold {self.fold}"
        check_training_cases(self.definition, self.splits[0], where)
        if not len(self.splits[1]):
            raise InputError(f"No validation case of {where} has the target '{self.definition.name}'.").about(
                value=self.definition.name
            )
        self._training_cases = self.splits[0].index.tolist()
        self.task = learn_task(self.definition, self.splits[0], self.settings.target)
        self.orientation = dataset_orientation(self.dataset)
        self.print_to_log_file(
            f"{self.definition.task} of '{self.definition.name}': {len(self.splits[0])} training and "
            f"{len(self.splits[1])} validation cases have it."
        )
        super().initialize()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split, or one that is stratified by the target where there is none yet.

        Raises:
            InputError: the split puts cases of one patient on both sides.
        """
        path = self.dataset.base / SPLITS
        if self.fold == "all":
            return super().do_split()

        def write() -> None:
            if not path.is_file():
                write_json(path, make_splits(self.targets, self.definition, self.dataset.cases(), 5, seed=12345))

        on_one_rank_first(write)
        training, validation = super().do_split()
        check_no_leak(self.targets, {"train": training, "val": validation}, path)
        return training, validation

    @property
    def bare_network(self) -> PooledEncoder:
        """As FineTuneTrainer's."""
        return cast(PooledEncoder, super().bare_network)

    def build_network_architecture(
        self,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the plans' encoder with a head for the target; how many labels the dataset has does not matter."""
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, 1, enable_deep_supervision
        )
        settings = self.settings.target
        return pooled_encoder(unet, self.task.outputs, settings.stages, settings.dropout)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: there is no deep supervision."""

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        self.batch_size *= self.settings.target.batch_factor

    def _build_loss(self) -> nn.Module:
        return self.task.loss(self.settings.target).to(self.device)

    def _load_body(self, filename: str, checkpoint: dict, fix: str) -> None:
        weights = finite_weights(checkpoint, filename)
        names = [name for name in self.bare_network.state_dict() if is_encoder(name)]
        self._tensors_loaded = load_tensors(self.bare_network, weights, names, filename, fix)
        self.print_to_log_file(f"Loaded the encoder of {filename}; the head starts fresh.")

    def get_dataloaders(self) -> tuple[Loader, Loader]:
        """Return loaders of crops for training and validation."""
        patch = self.configuration_manager.patch_size
        rotation, dummy_2d, crop, mirror = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.settings.target.mirror:
            mirror, self.inference_allowed_mirroring_axes = (), None
        transform = self.get_training_transforms(patch, rotation, None, mirror, dummy_2d)
        training, validation = self.splits
        if self.definition.task == "survival":  # the loss remembers the risks of all
            training = training.assign(number=np.arange(len(training)))
        ranks = dist.get_world_size() if self.is_ddp else 1
        steps = max(1, round(self.settings.run.iterations / 5))
        # names may be sorted by what is predicted: what is shown spans its values
        validation = validation.sort_values(list(validation.columns), kind="stable")
        validation = validation.iloc[self.local_rank % len(validation) :: ranks]
        shown = min(len(validation), steps * self.batch_size)
        validation = validation.iloc[np.linspace(0, len(validation) - 1, shown).round().astype(int)]
        self.num_val_iterations_per_epoch = -(-len(validation) // self.batch_size)
        train_batches = TargetCrops(
            self.dataset, training, patch, self.batch_size, training=True, crop_size=crop, transform=transform
        )
        validation_batches = TargetCrops(self.dataset, validation, patch, self.batch_size, training=False)
        processes, pin_memory = get_allowed_n_proc_DA(), self.device.type == "cuda"
        start = self.current_epoch * self.num_iterations_per_epoch
        numbered = {"seed": self._batch_seed, "rank": self.local_rank}
        return (
            start_loader(NumberedBatches(train_batches, start=start, **numbered), processes, pin_memory),
            start_loader(
                NumberedBatches(validation_batches, period=self.num_val_iterations_per_epoch, **numbered),
                min(processes, 1),
                pin_memory,
            ),
        )

    # --------------------------------------------------------------------------------------------- training

    def _describe_start(self) -> dict:
        return super()._describe_start() | {"target": asdict(self.definition)}

    def on_train_start(self) -> None:
        """Begin as FineTuneTrainer does; a fresh run may let the head start as a linear probe."""
        super().on_train_start()
        if self.settings.target.probe_first and self.current_epoch == 0:
            self.bare_network.head.load_state_dict(on_one_rank(self._probed_head))

    def _probed_head(self) -> dict[str, torch.Tensor]:
        """Return a head that is the linear model of the training cases' features."""
        network = copy.deepcopy(self.bare_network).eval()
        predictor = CasePredictor(network, self.configuration_manager.patch_size, self.settings.target.window_step, ())
        found = case_features(predictor, self.dataset, self.splits[0].index.tolist())
        truth = torch.tensor(self.splits[0].loc[list(found)].to_numpy(np.float32))
        features, groups = torch.cat(list(found.values())), self.targets.groups(list(found))
        loss, apart = self._build_loss().cpu().eval(), self.definition.task in ("regression", "multilabel")
        penalties = start_head(network.cpu(), features, truth, loss, groups, apart)
        said = ", ".join(f"{penalty:.3g}" for penalty in penalties)
        self.print_to_log_file(f"The head starts as a linear probe of {len(found)} cases, penalty {said}.")
        return network.head.state_dict()

    def on_train_epoch_start(self) -> None:
        """Begin an epoch as FineTuneTrainer does."""
        super().on_train_epoch_start()
        self.loss.train()

    def train_step(self, batch: Any) -> dict:
        """Take a step as FineTuneTrainer does; ``batch`` is a `TargetBatch`."""
        return super().train_step({"data": batch.views, "target": batch.target, "keys": batch.cases})

    def validation_step(self, batch: TargetBatch) -> dict:
        """Return outputs and truth of the middle crops of some cases."""
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            outputs = self.network(batch.views.to(self.device, non_blocking=True))
        return {"outputs": outputs.float().cpu().numpy(), "truth": batch.target.numpy()}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log loss and score of the middle crops; whole cases are scored at the end of the run."""
        gathered = of_all_ranks([(output["outputs"], output["truth"]) for output in val_outputs])
        outputs, truth = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        self.loss.eval()
        loss = self.loss(torch.from_numpy(outputs).to(self.device), torch.from_numpy(truth).to(self.device)).item()
        score = self.task.metrics(truth, self.task.predictions(outputs))[self.task.score](np.arange(len(truth)))
        self.logger.log("val_losses", loss, self.current_epoch)
        self._epoch_metrics = {"val_loss": loss, f"val_{self.task.score}": score}

    def on_epoch_end(self) -> None:
        """Log, draw and save. The best checkpoint is that of the lowest validation loss, smoothed as nnU-Net does."""
        self._keep_checkpoints()
        now = time()
        self.logger.log("epoch_end_timestamps", now, self.current_epoch)
        row = {"epoch": self.current_epoch, "loss": self.logger.get_value("train_losses", step=-1)}
        row |= self._epoch_metrics | {"lr": self.optimizer.param_groups[0]["lr"]}
        row["seconds"] = now - self.logger.get_value("epoch_start_timestamps", step=-1)
        self.history.append(row)
        self.print_to_log_file(", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))
        if self.local_rank == 0:
            self.history.write_csv(os.path.join(self.output_folder, "metrics.csv"))
        last = self.current_epoch + 1 == self.num_epochs
        periodic = (self.current_epoch + 1) % self.save_every == 0
        if self.local_rank == 0 and (periodic or last):  # drawing takes seconds, and epochs may be shorter
            draw_progress(self.history, os.path.join(self.output_folder, "progress.png"))
        if periodic and not last:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        smooth = pd.Series(self.history.column("val_loss")).ewm(alpha=0.1, adjust=False).mean().iloc[-1]
        if self._best_ema is None or -smooth > self._best_ema:
            self._best_ema = -float(smooth)
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_best.pth"))
        self.current_epoch += 1

    # ------------------------------------------------------------------------------ checkpoints, validation

    def save_checkpoint(self, filename: str) -> None:
        """Save nnU-Net's entries and what the outputs mean, whole or not at all, plain data only."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        save_checkpoint(
            {
                "network_weights": self.bare_network.state_dict(),
                "optimizer_state": self.optimizer.state_dict(),
                "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
                "logging": self.logger.get_checkpoint(),
                "_best_ema": self._best_ema,
                "current_epoch": self.current_epoch + 1,
                "init_args": self.my_init_kwargs,
                "trainer_name": type(self).__name__,
                "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
                "history": self.history.rows,
                "loss_state": self.loss.state_dict(),
                "targets": self._record(),
            },
            filename,
        )

    def _record(self) -> dict:
        """Return what ``nnunet_alice predict_targets`` needs beside weights and plans."""
        return {
            "task": self.task.record(),
            "settings": asdict(self.settings.target),
            "configuration": self.configuration_name,
            "num_input_channels": self.num_input_channels,
            "orientation": self.orientation,
        }

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint as FineTuneTrainer does.

        Raises:
            CheckpointError: targets or folds are not those that the checkpoint was trained for.
        """
        super().load_checkpoint(filename_or_checkpoint)
        given = filename_or_checkpoint
        checkpoint = given if isinstance(given, dict) else load_checkpoint(given)
        if checkpoint.get("targets", {}).get("task") != self.task.record():
            raise CheckpointError(
                f"{filename_or_checkpoint} was trained for other targets or training cases than {self.targets.path} "
                f"and {SPLITS} name now; put these back, or start without --c."
            ).about(path=self.targets.path, option="--c")
        self.history = MetricsHistory(checkpoint["history"])
        self.loss.load_state_dict(checkpoint["loss_state"])

    def _validate(self, save_probabilities: bool) -> None:
        """Predict the fold's validation cases by windows; write ``predictions.csv``, metrics and pictures."""
        self.bare_network.eval()
        predictor = CasePredictor(
            self.bare_network,
            self.configuration_manager.patch_size,
            self.settings.target.window_step,
            self.inference_allowed_mirroring_axes or (),
        )
        ranks = dist.get_world_size() if self.is_ddp else 1
        cases = self.splits[1].index.tolist()
        own = validate_cases(predictor, self.dataset, cases[self.local_rank :: ranks])
        found = Validated.joined(of_all_ranks([own]))
        for case, reason in found.failed.items():
            self.print_to_log_file(f"WARNING: {case} could not be predicted: {reason}")
        if self.local_rank != 0:
            return
        truth = self.splits[1].loc[found.cases].to_numpy(float)
        folder = os.path.join(self.output_folder, "validation")
        metrics = write_results(folder, self.task, found, truth, self.targets.groups(found.cases))
        for row in metrics.itertuples():
            self.print_to_log_file(f"{row.metric} {row.value:.4f} (95 % interval {row.low:.4f} to {row.high:.4f})")
        for case in found.cases[: self.settings.target.pictures]:
            image, geometry = self.dataset.image(case), load_geometry(self.dataset, case)
            draw_case(predictor, self.task, image, geometry, os.path.join(folder, f"{case}_occlusion.png"))


class ClassificationTrainer(TargetTrainer):
    """Predict a class, or several labels, of a whole case; needs nnunet_alice targets and -pretrained_weights."""

    tasks = ("classification", "multilabel")


class RegressionTrainer(TargetTrainer):
    """Predict numbers of a whole case, e.g. the age; needs nnunet_alice targets and -pretrained_weights."""

    tasks = ("regression",)


class RegressionTrainer_survival(TargetTrainer):
    """Predict the risk of an event from times that may be censored (Cox); needs nnunet_alice targets."""

    tasks = ("survival",)


_SCRATCH = changed(TargetTrainer.settings, {"optimisation.learning_rate": 1e-3, "expects_weights": False})


class ClassificationTrainer_scratch(ClassificationTrainer):
    """The baseline from scratch: the same class at a higher learning rate (0.001), without weights."""

    settings = _SCRATCH


class RegressionTrainer_scratch(RegressionTrainer):
    """The baseline from scratch: the same class at a higher learning rate (0.001), without weights."""

    settings = _SCRATCH


class RegressionTrainer_survival_scratch(RegressionTrainer_survival):
    """The baseline from scratch: the same class at a higher learning rate (0.001), without weights."""

    settings = _SCRATCH


__getattr__ = trainer_names(globals())
