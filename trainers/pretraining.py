"""nnU-Net's trainer, driving a pretraining method: its folders, loaders, epochs, records, checkpoints and resume.

A method is a :class:`nnunet_alice.pretraining.method.Method`; docs/how-to/add-your-own-method.md says how to add one.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import time
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from nnunet_alice.anatomy.world import dataset_orientation
from nnunet_alice.checkpoints.loading import finite_weights, load_checkpoint
from nnunet_alice.checkpoints.pretraining import read_for_resume
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.finetuning.parts import load_all_but_segmentation, transfer_hint
from nnunet_alice.finetuning.pretrained_hook import load_pretrained_weights_by
from nnunet_alice.methods.distributed import rank, world_size
from nnunet_alice.pictures.progress import draw_progress
from nnunet_alice.pretraining.cases import check_batch_split
from nnunet_alice.pretraining.checkpoint import checkpoint_of, restore
from nnunet_alice.pretraining.matched_cases import check_same_views, record_of_views
from nnunet_alice.pretraining.method import Method, Progress, RunContext, StepResult
from nnunet_alice.pretraining.online_probe import OnlineProbe, open_probe
from nnunet_alice.pretraining.settings import PretrainingSettings
from nnunet_alice.pretraining.step import TrainingStep
from nnunet_alice.pretraining.usable import REMEDY
from nnunet_alice.training.continuing import (
    advice_without_checkpoint,
    longer_run,
    set_aside_checkpoints,
    told_when_interrupted,
)
from nnunet_alice.training.cpu import channels_last_on_cpu, keep_thread_limit
from nnunet_alice.training.devices import OwnDeviceDDP, share_batch_statistics
from nnunet_alice.training.epoch import EpochMetrics
from nnunet_alice.training.history import MetricsHistory
from nnunet_alice.training.nonfinite import SkippedSteps
from nnunet_alice.training.ranks import number_of_each_rank
from nnunet_alice.training.refusals import tell_refusals
from nnunet_alice.training.settings import flat
from nnunet_alice.training.splits import absent_cases, sentence_on_absent_cases
from nnunet_alice.training.variants import with_learning_rate
from nnunet_alice.views.batch import Batch
from nnunet_alice.views.loader import Loader, NumberedBatches, start_loader
from nnunet_alice.words import pasteable, telling

#: forms of one function that torch compiles before it gives up; student and teacher share theirs
_RECOMPILE_LIMIT = 32


class PretrainingTrainer(nnUNetTrainer):
    """Base of the trainers that learn from unlabelled volumes. Labels are never read.

    A trainer is a method and its settings; a variant changes some settings. Names take endings such as
    ``<Trainer>_<N>epochs`` (:mod:`nnunet_alice.training.variants`).

    Attributes:
        method_class: class of the method.
        settings: of run, optimisation and method.
        method: the method of this run, once it is initialised.
    """

    method_class: ClassVar[type[Method]]
    settings: ClassVar[PretrainingSettings]
    # nnU-Net's, which declares no types
    current_epoch: int
    was_initialized: bool

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's exact signature
    ) -> None:
        tell_refusals()
        self._asked_to_continue = bool(plans.get("continue_training"))  # nnU-Net takes it out
        super().__init__(plans, configuration, fold, dataset_json, device)
        keep_thread_limit(self.device)
        if len(self.configuration_manager.patch_size) != 3:
            raise InputError(
                f"{type(self).__name__} needs a 3D configuration, not '{configuration}'; use for example 3d_fullres."
            ).about(value=configuration)
        if self.configuration_manager.previous_stage_name is not None:
            raise InputError(
                f"{type(self).__name__} cannot pretrain '{configuration}', the second stage of a cascade, whose input "
                "is a segmentation, too; pretrain 3d_fullres and fit its weights with nnunet_alice transfer."
            ).about(value=configuration, command="nnunet_alice transfer")
        run = self.settings.run
        if run.restart >= run.epochs:
            raise InputError(f"{type(self).__name__} restarts its schedules after its end; name more epochs.")
        self.save_every = min(run.save_every, max(1, run.epochs // 10))
        self.num_epochs, self.num_iterations_per_epoch = run.epochs, run.iterations
        self.initial_lr = self.settings.optimisation.learning_rate
        self.enable_deep_supervision = False
        self.rank = rank()
        manager = self.plans_manager
        self.dataset = PreprocessedDataset.find(manager.dataset_name, manager.plans_name, configuration)
        self.history = MetricsHistory()
        self.step = 0
        self.resumed_run: Mapping[str, Any] | None = None  # entry ``pretraining`` of the checkpoint
        self.views_record: dict[str, Any] | None = None
        self.orientation = dataset_orientation(self.dataset)
        # An epoch without a single step would have nothing to report.
        self._skipped = SkippedSteps(min(run.max_skipped_steps, run.iterations))
        self._first_validation: tuple[Batch, StepResult] | None = None
        self._probe: OnlineProbe | None = None
        self._epoch = EpochMetrics()

    # --------------------------------------------------------------------------------------------- building

    def initialize(self) -> None:
        """Build network, method and optimiser; as nnU-Net's, but for a network that reconstructs its input."""
        if self.was_initialized:
            raise RuntimeError("initialize() was called on a trainer that is initialised already.")
        self._set_batch_size_and_oversample()
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        torch.manual_seed(self.settings.run.seed)
        self.network = self._build_network()
        self.method = self.method_class(self.settings.method, self._context())
        self.method.build(self.network)
        self.batch_size = self.method.batch_size
        self.rank_batch_sizes = number_of_each_rank(self.batch_size, self.device)
        self.num_val_iterations_per_epoch = self.method.validation_batches(self.rank_batch_sizes)
        channels_last_on_cpu(self.model, self.device)
        if self.is_ddp:
            share_batch_statistics(self.model, self.device)
            self.method.parallel = OwnDeviceDDP(self.method.trained_module)
        if self._do_i_compile():
            self.print_to_log_file("Using torch.compile...")
            torch._dynamo.config.recompile_limit = max(_RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
            for module in self.method.modules_to_compile:  # in place, so that the weights keep their names
                module.compile(dynamic=False)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self._take_step = TrainingStep(
            self.method, self.optimizer, self.settings.optimisation, self.grad_scaler, self.autocast
        )
        self.was_initialized = True
        load_pretrained_weights_by(self)
        self.logger.update_config({"hparas": self.hyper_parameters()})

    def _build_network(self) -> nn.Module:
        """Return the network of the plans, with as many output channels as input channels.

        Raises:
            InputError: there is none that takes what nnU-Net gives to a U-Net.
        """
        channels = self.num_input_channels
        try:
            return self.build_network_architecture(
                self.plans_manager, self.configuration_manager, channels, channels, self.enable_deep_supervision
            )
        except (ImportError, KeyError, TypeError) as error:
            raise InputError(
                f"The network of {self.dataset.plans_name} cannot be built ({telling(error)}); {REMEDY}."
            ).about(value=self.dataset.plans_name) from error

    def _context(self) -> RunContext:
        return RunContext(
            dataset=self.dataset,
            patch_size=tuple(self.configuration_manager.patch_size),
            spacing=self.dataset.spacing,
            batch_size=self.batch_size,
            seed=self.settings.run.seed,
            device=self.device,
            log=self.print_to_log_file,
        )

    def load_pretrained_weights(self, filename: str) -> None:
        """Start from the weights of a file or folder, all but the last layer's; runs no code of the file.

        Raises:
            CheckpointError: they are damaged, would run code, hold NaN, or do not fit.
        """
        fix = transfer_hint(filename, self.dataset.name, self.dataset.plans_name, self.configuration_name)
        load_all_but_segmentation(self.network, finite_weights(load_checkpoint(filename), filename), filename, fix)
        self.print_to_log_file(f"Starts from the weights of {filename}; the reconstruction layer starts fresh.")

    @property
    def model(self) -> nn.Module:
        """The method's module around the network."""
        return self.method.model

    def hyper_parameters(self) -> dict[str, Any]:
        """Return the settings for the checkpoint, plain types; a continued run must have the same."""
        own = flat(self.settings.run, self.settings.optimisation) | self.method.recorded_settings()
        if self.settings.run.restart:  # only there, so that older runs can be continued
            own["restart"] = self.settings.run.restart
        return own | {"batch_size": sum(self.rank_batch_sizes)}

    def _set_batch_size_and_oversample(self) -> None:
        """Set batch sizes as nnU-Net does, which stops at a bare assertion where a rank would get nothing.

        Raises:
            InputError: there are more GPUs than pairs in a batch.
        """
        check_batch_split(self.dataset, self.configuration_manager, world_size(), self.print_to_log_file)
        super()._set_batch_size_and_oversample()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """Return the optimiser of the settings; rates are set before every step, not by a scheduler."""
        return self.settings.optimisation.optimizer(self.method.trained_module), None

    def get_dataloaders(self) -> tuple[Loader, Loader]:
        """Return loaders of views for training and validation; prepare what they need first where it is missing."""
        matching = None if self.resumed_run is None else self.resumed_run["matching"]
        training, validation = self.method.prepare(*self.do_split(), matching=matching)
        self.views_record = record_of_views(self.method.matcher, training, self.dataset.modalities)
        if self.resumed_run is not None and self.current_epoch < self.num_epochs:
            check_same_views(self.resumed_run, self.views_record, self.output_folder, self.print_to_log_file)
        elif self.resumed_run is not None:  # it is over, whatever cases there are today
            self.views_record = self.resumed_run["views"]
        train = NumberedBatches(
            self.method.batches(training, training=True),
            seed=self.settings.run.seed,
            rank=self.rank,
            start=self.current_epoch * self.num_iterations_per_epoch,
        )
        fixed = NumberedBatches(
            self.method.batches(validation, training=False),
            seed=self.settings.run.seed + 1,
            rank=self.rank,
            period=self.num_val_iterations_per_epoch,
        )
        processes, pin_memory = get_allowed_n_proc_DA(), self.device.type == "cuda"
        # One validation worker at most: more would each start in the middle of the fixed validation batches.
        return start_loader(train, processes, pin_memory), start_loader(fixed, min(processes, 1), pin_memory)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split, less the cases that nobody has preprocessed."""
        split = super().do_split()
        absent = absent_cases(split, self.dataset.cases())
        if absent:
            where = f"fold {self.fold} of {self.dataset.base / 'splits_final.json'}"
            self.print_to_log_file(f"WARNING: {sentence_on_absent_cases(absent, where)}: left out.")
        training, validation = ([case for case in part if case not in set(absent)] for part in split)
        return training, validation

    # --------------------------------------------------------------------------------------------- training

    def run_training(self) -> None:
        """Train as nnU-Net does; Ctrl-C ends it with one sentence."""
        with told_when_interrupted(self.output_folder, self.print_to_log_file):
            super().run_training()

    @property
    def progress(self) -> Progress:
        """How far the run has come; of a run whose schedules begin again, how far in its part."""
        iterations = self.num_iterations_per_epoch
        restart, total = self.settings.run.restart * iterations, self.num_epochs * iterations
        if self.step < restart:
            return Progress(self.current_epoch, self.step, restart)
        return Progress(self.current_epoch, self.step - restart, total - restart)

    def on_train_start(self) -> None:
        """Begin as nnU-Net does, then prepare the method if the run is not continued."""
        super().on_train_start()
        if self.rank == 0:
            trained = self.method.trained_parts()["decoder"]
            self._probe = open_probe(self.network, self.dataset, self.device, trained, self.print_to_log_file)
        if self.resumed_run is None:
            if self._asked_to_continue:
                self.print_to_log_file(f"WARNING: {advice_without_checkpoint(self.output_folder)}")
            if self.rank == 0 and not self.disable_checkpointing:
                set_aside_checkpoints(self.output_folder, self.print_to_log_file)
            self.method.before_training()
        elif self.current_epoch >= self.num_epochs:
            checkpoint = Path(self.output_folder) / "checkpoint_final.pth"
            self.print_to_log_file(f"This run has all of its {self.num_epochs} epochs. {longer_run(checkpoint)}")

    def on_train_epoch_start(self) -> None:
        """Announce the epoch and seed dropout by its number, so that a continued run draws the same."""
        self.model.train()
        torch.manual_seed(self.settings.run.seed + 1000 * (self.current_epoch + 1) + self.rank)
        learning_rate = self.settings.optimisation.learning_rate_at(self.progress.step, self.progress.total_steps)
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self.print_to_log_file(f"Current learning rate: {learning_rate:.3e}")

    def autocast(self) -> AbstractContextManager:
        """Return mixed precision on CUDA, as nnU-Net decides."""
        return torch.autocast(self.device.type) if self.device.type == "cuda" else nullcontext()

    def train_step(self, batch: Batch) -> dict[str, Any]:
        """Take one optimiser step; skip it where loss or gradients are not finite.

        Raises:
            NonFiniteLossError: so it was several times in a row; the message names the cases of the batch.
        """
        outcome = self._take_step(batch.to(self.device), self.progress)
        self.step += 1  # batches and rates are numbered by the step, skipped or not
        self._skipped.count(outcome.skipped is not None)
        scaler = self.grad_scaler  # which finds its scale by skipping steps
        looks_for_scale = outcome.skipped == "gradients" and scaler is not None and scaler.get_scale() >= 1
        if outcome.skipped is not None and not looks_for_scale:
            slower = with_learning_rate(type(self).__name__, self.settings.optimisation.learning_rate / 10)
            self._skipped.report(outcome.skipped, outcome.cases, self.current_epoch, slower, self.print_to_log_file)
        return {"metrics": outcome.metrics, "views": len(batch.views), "skipped": outcome.skipped is not None}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Take the mean of the epoch's metrics over steps and ranks."""
        scale = {} if self.grad_scaler is None else {"grad_scale": self.grad_scaler.get_scale()}
        self._epoch = EpochMetrics.of_training(train_outputs, self.device, scale)

    def on_validation_epoch_start(self) -> None:
        """Switch to evaluation mode: dropout off."""
        self.model.eval()

    @property
    def _draws(self) -> bool:
        """Whether this epoch gets pictures, from this rank."""
        return self._is_due(self.settings.run.pictures_every)

    def _is_due(self, every: int) -> bool:
        """Return whether this rank does what it does every few epochs, and in the last one."""
        last = self.current_epoch == self.num_epochs - 1
        return self.rank == 0 and (last or self.current_epoch % every == 0)

    def validation_step(self, batch: Batch) -> dict[str, Any]:
        """Return metrics and outputs of one validation batch; the first one is kept for the picture."""
        batch = batch.to(self.device)
        with self.autocast():
            result = self.method.compute(batch, self.progress, training=False)
        if self._draws and self._first_validation is None:
            self._first_validation = (batch, result)
        return {"metrics": result.metrics, "outputs": result.outputs}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Take the mean of the losses, and the method's own metrics of the whole epoch."""
        own = self.method.validation_metrics([output["outputs"] for output in val_outputs])
        self._epoch.add_validation([output["metrics"] for output in val_outputs], own, self.device)
        if self._probe is not None and self._is_due(self.settings.run.probe_every):
            self._epoch.validation |= self._probe.measure(self.method.network_weights())

    def on_epoch_end(self) -> None:
        """Log, warn, draw and save."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        started = self.logger.get_value("epoch_start_timestamps", step=-1)
        row = self._epoch.row(self.current_epoch, self.optimizer.param_groups[0]["lr"], started)
        self.history.append(row)
        self.logger.log("train_losses", row["loss"], self.current_epoch)
        self.logger.log("val_losses", row["val_loss"], self.current_epoch)
        self.logger.log("lrs", row["lr"], self.current_epoch)
        for name, value in row.items():
            for logger in self.logger.loggers:  # external ones such as W&B; nnU-Net's own knows only Dice
                logger.log(name, value, self.current_epoch)
            if name != "epoch":
                self.print_to_log_file(f"{name} {value:.6g}")
        for warning in self.method.warnings(row, self.current_epoch):
            self.print_to_log_file(f"WARNING: {warning}.")
        folder = Path(self.output_folder)
        if self.rank == 0:
            self.history.write_csv(folder / "metrics.csv")
            draw_progress(self.history, folder / "progress.png")
        if self._first_validation is not None:
            self.method.draw(*self._first_validation, folder)
            self._first_validation = None  # its maps take the GPU's memory
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch < self.num_epochs - 1:
            self.save_checkpoint(str(folder / "checkpoint_latest.pth"))
        self.current_epoch += 1

    def on_train_end(self) -> None:
        """Let the method measure, then do as nnU-Net does."""
        if self.rank == 0:
            self.method.after_training()
        super().on_train_end()

    # ------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write the checkpoint, whole or not at all: what stock nnU-Net loads, and what ``--c`` needs."""
        if self.rank == 0 and self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
        elif self.rank == 0:
            save_checkpoint(checkpoint_of(self), filename)

    def load_checkpoint(self, filename_or_checkpoint: str | os.PathLike) -> None:
        """Continue a run (``--c``).

        Raises:
            CheckpointError: the file is damaged, or was made by a different method, network or length of run.
        """
        if not self.was_initialized:
            self.initialize()
        settings, weights = self.hyper_parameters(), self.network.state_dict()
        checkpoint = read_for_resume(filename_or_checkpoint, self.method.name, settings, weights)
        restore(self, checkpoint)
        self.history = MetricsHistory(checkpoint["history"])
        self.current_epoch = checkpoint["current_epoch"]
        self.step = self.current_epoch * self.num_iterations_per_epoch
        self.resumed_run = checkpoint["pretraining"]

    # -------------------------------------------------------------- parts of nnU-Net that make no sense without labels

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch nothing: pretraining uses one output."""

    def plot_network_architecture(self) -> None:
        """Plot nothing: nnU-Net's plot needs a package that no longer works."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Say what to do next; there is no segmentation to validate after pretraining."""
        checkpoint = Path(self.output_folder) / "checkpoint_final.pth"
        self.print_to_log_file(
            f"Pretraining has no segmentation to validate. What the checkpoint holds and how to fine-tune from it: "
            f"{pasteable('nnunet_alice', 'inspect', checkpoint)}"
        )
        for sentence in self.method.next_steps():
            self.print_to_log_file(sentence)
