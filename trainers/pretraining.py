"""What every pretraining trainer shares: folders, loaders, epochs, records, checkpoints, resume.

A method's trainer subclasses :class:`PretrainingTrainer` and fills in the hooks marked "hook"; the epoch loop stays
nnU-Net's own ``run_training``.
"""

import os
from collections.abc import Iterable
from time import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from nnunet_alice.checkpoints.pretraining import describe_run, read_for_resume
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.dataset import PreprocessedDataset, planned_gpus
from nnunet_alice.errors import InputError, NonFiniteLossError
from nnunet_alice.methods.schedules import cosine, warmup_cosine
from nnunet_alice.pictures.progress import draw_progress
from nnunet_alice.pretraining.history import MetricsHistory, mean_metrics
from nnunet_alice.pretraining.hooks import PretrainingHooks
from nnunet_alice.pretraining.matched_cases import MatchedCases
from nnunet_alice.pretraining.nonfinite import BufferCopies, NonFiniteSteps
from nnunet_alice.pretraining.optimisation import clip_each_gradient, decay_groups, set_learning_rate, set_weight_decay
from nnunet_alice.pretraining.without_labels import NoSegmentation
from nnunet_alice.training.cpu_convolutions import channels_last_on_cpu
from nnunet_alice.training.cpu_threads import keep_thread_limit
from nnunet_alice.training.ranks import metrics_over_ranks, names_of_all_ranks, number_of_each_rank
from nnunet_alice.training.variants import with_learning_rate
from nnunet_alice.views.loader import NumberedBatches, start_loader
from nnunet_alice.views.pairs import matching_metrics


class PretrainingTrainer(PretrainingHooks, MatchedCases, NoSegmentation, nnUNetTrainer):
    """Base of the trainers that learn from unlabelled volumes. Labels are never read.

    Class attributes are the settings; a variant is a subclass that changes some. ``<Trainer>_<N>epochs`` needs no
    class (:func:`nnunet_alice.training.variants.epochs_variant`).

    Attributes:
        method: name of the method in logs and checkpoints.
        epochs: number of epochs.
        iterations: training iterations an epoch.
        seed: of weights, views and dropout. The same command gives the same run on the CPU.
        learning_rate: peak learning rate of AdamW.
        final_learning_rate: learning rate at the end of the cosine.
        warmup_share: share of the run over which the learning rate rises (the paper's 50 of 1000 epochs).
        weight_decay_range: weight decay at start and end, by a cosine; none on biases and norms.
        max_gradient_norm: every parameter's gradient is clipped to this norm; None does not clip.
        save_every: epochs between two writings of ``checkpoint_latest.pth``, at most a tenth of the run.
        pictures_every: epochs between two sets of pictures of what the network sees.
        most_steps_left_out: so many steps in a row (or an epoch of them) whose loss is not finite end the run.
    """

    method = "pretraining"
    epochs = 1000
    iterations = 250
    seed = 12345
    learning_rate = 1e-3
    final_learning_rate = 1e-6
    warmup_share = 0.05
    weight_decay_range = (0.04, 0.4)
    max_gradient_norm: float | None = 3.0
    save_every = 10
    pictures_every = 5
    most_steps_left_out = 10

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's exact signature
    ) -> None:
        save_every = min(self.save_every, max(1, self.epochs // 10))
        super().__init__(plans, configuration, fold, dataset_json, device)
        keep_thread_limit(self.device)
        if len(self.configuration_manager.patch_size) != 3:
            raise InputError(
                f"{type(self).__name__} needs a 3D configuration, not '{configuration}'; use for example 3d_fullres."
            )
        self.save_every = save_every
        self.num_epochs = self.epochs
        self.num_iterations_per_epoch = self.iterations
        self.initial_lr = self.learning_rate
        self.enable_deep_supervision = False
        self.dataset = PreprocessedDataset.find(
            self.plans_manager.dataset_name, self.plans_manager.plans_name, configuration
        )
        self.history = MetricsHistory()
        self.model: nn.Module | None = None
        self.step = 0
        # An epoch without a single step would have nothing to report.
        self._non_finite = NonFiniteSteps(min(self.most_steps_left_out, self.iterations))
        self._train_metrics: dict[str, float] = {}
        self._validation_metrics: dict[str, float] = {}

    # --------------------------------------------------------------------------------------------- building

    def hyper_parameters(self) -> dict:
        """Settings for the checkpoint, plain types."""
        names = ("epochs", "iterations", "seed", "learning_rate", "final_learning_rate", "warmup_share")
        names += ("weight_decay_range", "max_gradient_norm")
        return {name: getattr(self, name) for name in names} | {"batch_size": sum(self.rank_batch_sizes)}

    def initialize(self) -> None:
        """Build network, model and optimiser; as nnU-Net's, but for a network that reconstructs its input."""
        if self.was_initialized:
            raise RuntimeError("initialize() was called on a trainer that is initialised already.")
        self._set_batch_size_and_oversample()
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        torch.manual_seed(self.seed)
        self.network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.num_input_channels,
            self.enable_deep_supervision,
        )
        self.model = self.build_model(self.network).to(self.device)
        self.rank_batch_sizes = number_of_each_rank(self.batch_size, self.device)
        channels_last_on_cpu(self.model, self.device)
        self.wrapped_student = self.trained_module()
        if self.is_ddp:
            own_gpu = [self.local_rank] if self.device.type == "cuda" else None
            self.wrapped_student = DDP(self.wrapped_student, device_ids=own_gpu)
        if self._do_i_compile():
            self.print_to_log_file("Using torch.compile...")
            self.compile_model()
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.was_initialized = True
        self.logger.update_config({"hparas": self.hyper_parameters()})

    def _set_batch_size_and_oversample(self) -> None:
        """As nnU-Net's, which stops at a bare assertion where a rank would get nothing.

        Raises:
            InputError: there are more GPUs than pairs in a batch.
        """
        planned, gpus = self.configuration_manager.batch_size, dist.get_world_size() if self.is_ddp else 1
        if planned < gpus:
            path = self.dataset.base / f"{self.plans_manager.plans_name}.json"
            raise InputError(
                f"{path}, {self.configuration_name}: batch_size {planned} cannot be split among {gpus} GPUs; "
                f"train with -num_gpus {planned}, or plan with nnunet_alice plan ... -num_gpus {gpus}."
            )
        expected = planned_gpus(self.configuration_manager.configuration)
        if expected != gpus:
            each, wanted = (-(-planned // number) for number in (gpus, expected))
            self.print_to_log_file(
                f"WARNING: the batch was planned for {expected} GPU(s) with {wanted} pairs each; this run has {gpus} "
                f"with up to {each}. Train with -num_gpus {expected}, or plan with "
                f"nnunet_alice plan ... -num_gpus {gpus}."
            )
        super()._set_batch_size_and_oversample()

    def compile_model(self) -> None:
        """Hook: compile in place (``Module.compile``), so that the weights keep their names."""
        self.model.student.backbone.compile()

    def configure_optimizers(self):
        """AdamW on all that gets gradients; rates are set before every step."""
        optimizer = torch.optim.AdamW(decay_groups(self.trained_module()), lr=self.learning_rate)
        return optimizer, None

    def get_dataloaders(self):
        """Loaders of views for training and validation; prepares what they need first where that was not done."""
        train_cases, validation_cases = self.prepare_cases(*self.do_split())
        self.note_views(train_cases)
        processes = get_allowed_n_proc_DA()
        pin_memory = self.device.type == "cuda"
        train = NumberedBatches(
            self.make_batches(train_cases, training=True),
            seed=self.seed,
            rank=self.local_rank,
            start=self.current_epoch * self.num_iterations_per_epoch,
        )
        validation = NumberedBatches(
            self.make_batches(validation_cases, training=False),
            seed=self.seed + 1,
            rank=self.local_rank,
            period=self.num_val_iterations_per_epoch,
        )
        # One validation worker at most: more would each start in the middle of the fixed validation batches.
        return (
            start_loader(train, processes, pin_memory),
            start_loader(validation, min(processes, 1), pin_memory),
        )

    # --------------------------------------------------------------------------------------------- training

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.num_epochs * self.num_iterations_per_epoch

    def on_train_start(self) -> None:
        """As nnU-Net's; then the hook for new runs."""
        super().on_train_start()
        if self.resumed_run is None:
            self.before_training()

    def on_train_epoch_start(self) -> None:
        """Announce the epoch and seed dropout by its number, so that a continued run draws the same."""
        self.model.train()
        torch.manual_seed(self.seed + 1000 * (self.current_epoch + 1) + self.local_rank)
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self.print_to_log_file(f"Current learning rate: {self.scheduled_learning_rate():.3e}")

    def scheduled_learning_rate(self) -> float:
        """Learning rate of the current step: linear warm-up, then cosine."""
        warmup = max(1, round(self.warmup_share * self.total_steps))
        return warmup_cosine(self.step, self.total_steps, warmup, self.learning_rate, end=self.final_learning_rate)

    def autocast(self):
        """Mixed precision on CUDA, as nnU-Net decides."""
        return torch.autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context()

    def to_device(self, batch: dict) -> dict:
        """The batch with its tensors on the trainer's device."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def train_step(self, batch: dict) -> dict:
        """One optimiser step; none where the loss of any rank is not finite.

        Raises:
            NonFiniteLossError: so it was several times in a row; the message names the cases of the batch.
        """
        batch = self.to_device(batch)
        seen = {"views": len(batch["data"]), "pairs": batch.get("pairs", ())}
        copies = BufferCopies(self.step_buffers())
        set_learning_rate(self.optimizer, self.scheduled_learning_rate())
        set_weight_decay(self.optimizer, cosine(self.step, self.total_steps, *self.weight_decay_range))
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            result = self.compute(batch, training=True)
        loss = result.loss
        if self._non_finite.leaves_out(loss):
            copies.restore()
            self.step += 1  # batches and rates are numbered by the step, left out or not
            self._report_step_left_out(() if torch.isfinite(loss) else self.cases_of(batch))
            return {"parts": {}, **seen}
        scaler = self.grad_scaler
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(self.optimizer)
        self.after_backward()
        if self.max_gradient_norm is not None:
            clip_each_gradient(self.trained_module().parameters(), self.max_gradient_norm)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        self.after_step()
        self.step += 1
        return {"parts": result.parts, **seen}

    def _report_step_left_out(self, own_cases: Iterable[str]) -> None:
        """Warn of a step without an update; give up after too many in a row."""
        cases = names_of_all_ranks(own_cases)
        if self._non_finite.too_many():
            slower = with_learning_rate(type(self).__name__, self.learning_rate / 10)
            raise NonFiniteLossError(self._non_finite.in_a_row, self.current_epoch, cases, slower)
        self.print_to_log_file(
            f"WARNING: the loss is not finite on the cases {', '.join(cases)}: this step is left out "
            f"({self._non_finite.in_a_row} in a row; {self._non_finite.most} end the run)."
        )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Mean of the epoch's metrics over steps and ranks."""
        self._train_metrics = metrics_over_ranks(mean_metrics(output["parts"] for output in train_outputs), self.device)
        pairs = [pair for output in train_outputs for pair in output["pairs"]]
        self._train_metrics |= metrics_over_ranks(matching_metrics(pairs), self.device)
        self._views = sum(output["views"] for output in train_outputs) * (dist.get_world_size() if self.is_ddp else 1)
        self._train_end = time()

    def on_validation_epoch_start(self) -> None:
        """Evaluation mode: dropout off."""
        self.model.eval()

    def validation_step(self, batch: dict) -> dict:
        """Metrics and outputs of one validation batch."""
        batch = self.to_device(batch)
        with self.autocast():
            result = self.compute(batch, training=False)
            return {"parts": result.parts, **self.validation_outputs(batch, result)}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Mean of the losses, and the method's own metrics of the whole epoch."""
        metrics = {f"val_{name}": value for name, value in mean_metrics(o["parts"] for o in val_outputs).items()}
        losses = {name: value for name, value in metrics.items() if name.startswith("val_loss")}
        self._validation_metrics = metrics_over_ranks(losses | self.validation_metrics(val_outputs), self.device)

    def on_epoch_end(self) -> None:
        """Log, warn, draw and save."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        started = self.logger.get_value("epoch_start_timestamps", step=-1)
        row = {"epoch": self.current_epoch, **self._train_metrics, **self._validation_metrics}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        row["seconds"] = time() - started
        row["views_per_second"] = self._views / max(self._train_end - started, 1e-9)
        self.history.append(row)
        self.logger.log("train_losses", row["loss"], self.current_epoch)
        self.logger.log("val_losses", row["val_loss"], self.current_epoch)
        self.logger.log("lrs", row["lr"], self.current_epoch)
        for logger in self.logger.loggers:  # external ones such as W&B; nnU-Net's own knows only Dice
            for name, value in row.items():
                logger.log(name, value, self.current_epoch)
        for name, value in row.items():
            if name != "epoch":
                self.print_to_log_file(f"{name} {value:.6g}")
        for warning in self.epoch_warnings(row):
            self.print_to_log_file(f"WARNING: {warning}.")
        if self.local_rank == 0:
            self.history.write_csv(os.path.join(self.output_folder, "metrics.csv"))
            draw_progress(self.history, os.path.join(self.output_folder, "progress.png"))
            if self.current_epoch % self.pictures_every == 0 or self.current_epoch == self.num_epochs - 1:
                self.draw_pictures()
        last = self.current_epoch == self.num_epochs - 1
        if (self.current_epoch + 1) % self.save_every == 0 and not last:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        self.current_epoch += 1

    # ------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write the checkpoint, whole or not at all: what stock nnU-Net loads, and what ``--c`` needs."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        save_checkpoint(
            {
                "network_weights": self.network_weights(),
                "model_state": self.model_state(),
                "optimizer_state": self.optimizer.state_dict(),
                "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
                "logging": self.logger.get_checkpoint(),
                "history": self.history.rows,
                "_best_ema": None,
                "current_epoch": self.current_epoch + 1,
                "init_args": self.my_init_kwargs,
                "trainer_name": type(self).__name__,
                "inference_allowed_mirroring_axes": None,
                **describe_run(
                    method=self.method,
                    trainer_name=type(self).__name__,
                    plans=self.plans_manager.plans,
                    configuration=self.configuration_name,
                    dataset_json=self.dataset_json,
                    num_input_channels=self.num_input_channels,
                    hyper_parameters=self.hyper_parameters(),
                    epochs_done=self.current_epoch + 1,
                    trained=self.trained_parts(),
                    matching=self.matcher.name if self.matcher is not None else None,
                    fold=self.fold,
                    ranks=len(self.rank_batch_sizes),
                    views=self.views_record,
                ),
                **self.checkpoint_extras(),
            },
            filename,
        )

    def model_state(self) -> dict[str, torch.Tensor]:
        """Everything of the model that is not the network itself (which is saved under its own name)."""
        own = {id(parameter) for parameter in self.network.state_dict(keep_vars=True).values()}
        state = self.model.state_dict(keep_vars=True)
        return {name: value.detach() for name, value in state.items() if id(value) not in own}

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Continue a run (``--c``).

        Raises:
            CheckpointError: the file is damaged, or was made by another method, network or length of run.
        """
        if not self.was_initialized:
            self.initialize()
        settings, weights = self.hyper_parameters(), self.network.state_dict()
        checkpoint = read_for_resume(filename_or_checkpoint, self.method, settings, weights, self.rank_batch_sizes)
        self.network.load_state_dict(checkpoint["network_weights"])
        self.model.load_state_dict({**self.model.state_dict(), **checkpoint["model_state"]})
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self.history = MetricsHistory(checkpoint["history"])
        self.current_epoch = checkpoint["current_epoch"]
        self.step = self.current_epoch * self.num_iterations_per_epoch
        self.resumed_run = checkpoint["pretraining"]
