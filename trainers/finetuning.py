"""Fine-tuning and its fair baseline: everything as in stock nnU-Net, but for learning rates and what is trained when.

``FineTuneTrainer`` wants ``-pretrained_weights``; ``FineTuneTrainer_scratch`` is the same class for training from
scratch. All exist as ``<Trainer>_<N>epochs``, and with the other endings of
:mod:`nnunet_alice.training.variants`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel as DDP

from nnunet_alice.anatomy.orientation import differ
from nnunet_alice.anatomy.world import dataset_orientation
from nnunet_alice.checkpoints.loading import finite_weights, load_checkpoint, network_weights
from nnunet_alice.checkpoints.pretraining import explain_failed_resume, pretrained_orientation
from nnunet_alice.checkpoints.saving import whole_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.finetuning.class_weights import count_voxels, rarity
from nnunet_alice.finetuning.parts import (
    FineTuneSchedule,
    GroupRates,
    is_encoder,
    kept_epoch,
    layer_groups,
    load_all_but_segmentation,
    make_optimizer,
    seed_generators,
    transfer_hint,
    without_timing,
)
from nnunet_alice.finetuning.pretrained_hook import load_pretrained_weights_by
from nnunet_alice.finetuning.settings import FineTuneSettings
from nnunet_alice.finetuning.start import line_on_orientations, lines_on_start
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.training.continuing import told_when_interrupted
from nnunet_alice.training.cpu import channels_last_on_cpu, keep_thread_limit
from nnunet_alice.training.devices import OwnDeviceDDP
from nnunet_alice.training.nonfinite import GuardedOptimizer, SkippedSteps
from nnunet_alice.training.ranks import wait_for_all_ranks
from nnunet_alice.training.refusals import tell_refusals
from nnunet_alice.training.settings import changed, flat
from nnunet_alice.training.splits import absent_cases, sentence_on_absent_cases
from nnunet_alice.training.variants import trainer_names, with_learning_rate

#: cases whose labels are counted, at most
_MAX_COUNTED = 50


class FineTuneTrainer(nnUNetTrainer):
    """Fine-tune from -pretrained_weights: warm-up, then nnU-Net's decay at a tenth of its learning rate.

    Network, loss, deep supervision, augmentation and validation are stock nnU-Net's, and so is SGD from 2,000
    iterations on; in shorter runs its momentum is lower (``finetuning.parts.short_momentum``). For runs of a few
    hundred iterations take ``_AdamW``, there far ahead of SGD (docs/results/trials.md). Beside the log lies
    ``start.json``: whether weights were loaded, and the settings.

    Attributes:
        settings: of the trainer.
    """

    settings: ClassVar[FineTuneSettings] = FineTuneSettings()
    # nnU-Net's, which declares no types
    network: nn.Module
    output_folder: str

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's exact signature
    ) -> None:
        tell_refusals()
        super().__init__(plans, configuration, fold, dataset_json, device)
        keep_thread_limit(self.device)
        run = self.settings.run
        self.save_every = run.save_every
        self.num_epochs = run.epochs
        self.num_iterations_per_epoch = run.iterations
        self.num_val_iterations_per_epoch = max(1, round(run.iterations / 5))
        self.initial_lr = self.settings.optimisation.learning_rate
        self._step = 0
        self._resumed = False
        self._training_cases: list[str] = []
        self._tensors_loaded = 0
        self._skipped = SkippedSteps(min(run.max_skipped_steps, run.iterations))
        self.settings.check()

    # --------------------------------------------------------------------------------------------- building

    @property
    def bare_network(self) -> nn.Module:
        """The network without the wrappers of DDP and ``torch.compile``."""
        network = self.network.module if isinstance(self.network, DDP) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    @property
    def decoder_epochs(self) -> int:
        """Epochs at the start in which only the decoder learns."""
        return self.settings.optimisation.decoder_epochs(self.num_epochs)

    def initialize(self) -> None:
        """Initialise as nnU-Net does; ``-pretrained_weights`` then calls ``load_pretrained_weights``.

        Raises:
            InputError: classes are to be weighted, and the labels are regions, which nnU-Net learns one by one.
        """
        if self.settings.task.weighted_classes and self.label_manager.has_regions:
            raise InputError(
                f"{type(self).__name__} weights classes, and the labels of {self.plans_manager.dataset_name} are "
                "regions; take the trainer without _weightedClasses."
            ).about(option="_weightedClasses")
        self._seed(0)
        super().initialize()
        channels_last_on_cpu(self.bare_network, self.device)
        self._guard = GuardedOptimizer(self.optimizer, scaled=self.grad_scaler is not None)
        load_pretrained_weights_by(self)

    def load_pretrained_weights(self, filename: str) -> None:
        """Load all tensors but the segmentation layers', as nnU-Net does; run no code of the file.

        Raises:
            CheckpointError: the file is damaged, would run code, holds NaN, or does not fit.
        """
        plans = self.plans_manager
        fix = transfer_hint(filename, plans.dataset_name, plans.plans_name, self.configuration_name)
        checkpoint = load_checkpoint(filename)
        self._load_body(filename, checkpoint, fix)
        self._compare_orientation(checkpoint, filename)

    def _compare_orientation(self, checkpoint: dict, filename: str) -> None:
        """Warn where the pretraining saw images that lie differently: nothing here can turn them."""
        plans = self.plans_manager
        dataset = PreprocessedDataset(plans.dataset_name, plans.plans_name, self.configuration_name)
        there, here = pretrained_orientation(checkpoint), dataset_orientation(dataset)
        if differ(there, here):
            self.print_to_log_file(line_on_orientations(filename, plans.dataset_name, there, here))

    def _load_body(self, filename: str, checkpoint: dict, fix: str) -> None:
        weights = finite_weights(checkpoint, filename)
        self._tensors_loaded = load_all_but_segmentation(self.bare_network, weights, filename, fix)
        self.print_to_log_file(f"Loaded the weights of {filename}; segmentation layers start fresh.")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Return nnU-Net's SGD (or AdamW) on groups of layers, without a frozen encoder."""
        network = self.bare_network
        settings = self.settings.optimisation
        stands = settings.freeze_encoder or self.decoder_epochs > 0
        if stands and not any(is_encoder(name) for name, _ in network.named_parameters()):
            raise InputError(f"{type(self).__name__} freezes the encoder, and this network has none.")
        if settings.freeze_encoder:
            self._encoder_learns(False)  # and so leaves the optimiser
        groups = layer_groups(network, settings.encoder_decay)
        if stands:
            self._encoder_learns(False)  # before DDP looks which parameters will have gradients
        total = self.num_epochs * self.num_iterations_per_epoch
        optimizer = make_optimizer(groups, settings, total, self.weight_decay)
        schedule = FineTuneSchedule(
            total=total,
            warmup=round(settings.warmup_share * total),
            peak=settings.learning_rate,
            decoder_only=self.decoder_epochs * self.num_iterations_per_epoch,
        )
        return optimizer, GroupRates(optimizer, schedule, self.num_iterations_per_epoch)

    def _encoder_learns(self, learns: bool) -> None:
        """Switch the encoder's gradients."""
        for name, parameter in self.bare_network.named_parameters():
            if is_encoder(name):
                parameter.requires_grad_(learns)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, Any, Any, Any]:
        """Return nnU-Net's settings of augmentation, without axes to mirror where nothing is mirrored."""
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.settings.task.mirrored:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch_size, axes

    @classmethod
    def get_training_transforms(cls, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Return nnU-Net's augmentation; with a seed, the same images in every run."""
        transforms = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        return transforms if cls.settings.run.seed is None else without_timing(transforms)

    def _seed(self, number: int) -> None:
        if self.settings.run.seed is not None:
            value = 1_000_003 * self.settings.run.seed + 1009 * number + self.local_rank
            seed_generators(value)

    # --------------------------------------------------------------------------------------------- training

    def run_training(self) -> None:
        """Train as nnU-Net does; Ctrl-C ends it with one sentence."""
        with told_when_interrupted(self.output_folder, self.print_to_log_file):
            super().run_training()

    def on_train_start(self) -> None:
        """Begin as nnU-Net does, say from which weights the run starts, and refuse to freeze random ones."""
        if not self.was_initialized:
            self.initialize()
        start = self._describe_start()
        super().on_train_start()
        if self.settings.task.weighted_classes:
            self._weigh_classes()
        if not self._resumed:
            start["training_cases"] = self._training_cases
        if self.local_rank == 0:
            write_json(os.path.join(self.output_folder, "start.json"), start)

    def _weigh_classes(self) -> None:
        """Weight the classes of the cross-entropy by their rarity in the training cases."""
        cases = self.dataset_class(self.preprocessed_dataset_folder, self._training_cases[:_MAX_COUNTED])
        found = (cases.load_case(case)[1][:] for case in cases.identifiers)
        weights = rarity(count_voxels(found, self.label_manager.num_segmentation_heads))
        loss = self.loss.loss if self.enable_deep_supervision else self.loss
        loss.ce.weight = torch.from_numpy(weights).to(self.device)
        named = zip(self.label_manager.all_labels, weights, strict=True)
        self.print_to_log_file("Weights of classes:", ", ".join(f"{label}: {weight:.2f}" for label, weight in named))

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return and remember nnU-Net's split, which is drawn for a fold that ``splits_final.json`` lacks.

        Raises:
            InputError: it names cases that nobody has preprocessed: results would be of fewer labels than it says.
        """
        training, validation = super().do_split()
        known = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        absent = absent_cases((training, validation), known)
        if absent:
            where = f"Fold {self.fold} of {os.path.join(self.preprocessed_dataset_folder_base, 'splits_final.json')}"
            raise InputError(
                f"{sentence_on_absent_cases(absent, where)}: preprocess them into {self.preprocessed_dataset_folder}, "
                "or take them out of the split."
            ).about(case=absent[0], path=self.preprocessed_dataset_folder)
        self._training_cases = sorted(map(str, training))
        return training, validation

    def _describe_start(self) -> dict:
        """Return and log whether weights were loaded, by this run or the one that it continues."""
        name, path = type(self).__name__, os.path.join(self.output_folder, "start.json")
        if self._resumed:
            start = read_json(path) if os.path.isfile(path) else {"pretrained": None}
            self.print_to_log_file(f"Continues a run that started with pretrained weights: {start['pretrained']}.")
            return start
        tensors = sum(1 for _ in self.bare_network.parameters())
        for line in lines_on_start(name, self.settings, self._tensors_loaded, tensors):
            self.print_to_log_file(line)
        return {
            "trainer": name,
            "pretrained": self._tensors_loaded > 0,
            "tensors_loaded": self._tensors_loaded,
            "settings": flat(self.settings),
        }

    def on_train_epoch_start(self) -> None:
        """Begin an epoch as nnU-Net does; switch phases, and keep the norms of a frozen encoder as they are."""
        self._seed(1 + self.current_epoch)
        learns = not self.settings.optimisation.freeze_encoder and self.current_epoch >= self.decoder_epochs
        if self.decoder_epochs:
            self._switch_encoder(learns)
        super().on_train_epoch_start()
        if not learns:
            encoder_of(self.bare_network).eval()
        self._step = self.current_epoch * self.num_iterations_per_epoch

    def _switch_encoder(self, learns: bool) -> None:
        """Start or end the decoder's own phase; DDP has to be told again which gradients to expect."""
        encoder = [value for name, value in self.bare_network.named_parameters() if is_encoder(name)]
        if encoder[0].requires_grad == learns:
            return
        self._encoder_learns(learns)
        self.print_to_log_file("The encoder learns from now on." if learns else "The encoder stands still.")
        if self.is_ddp:
            self.network = OwnDeviceDDP(cast(DDP, self.network).module)

    def train_step(self, batch: dict) -> dict:
        """Take nnU-Net's step with this step's learning rates; skip it where a gradient is not finite.

        Raises:
            NonFiniteLossError: so it was several times in a row; the message names the cases of the batch.
        """
        self.lr_scheduler.set(self._step)
        self._step += 1
        output = super().train_step(batch)
        skipped = self._guard.skipped()
        self._skipped.count(skipped)
        if skipped and (self.grad_scaler is None or self.grad_scaler.get_scale() < 1):  # else it looks for its scale
            slower = with_learning_rate(type(self).__name__, self.settings.optimisation.learning_rate / 10)
            cases = sorted(set(batch["keys"]))
            self._skipped.report("gradients", cases, self.current_epoch, slower, self.print_to_log_file)
        return output

    def on_epoch_end(self) -> None:
        """End an epoch as nnU-Net does, and keep a checkpoint where one was asked for."""
        self._keep_checkpoints()
        super().on_epoch_end()

    def _keep_checkpoints(self) -> None:
        for percent in self.settings.validation.keep_at:
            if self.current_epoch + 1 == kept_epoch(percent, self.num_epochs):
                self.save_checkpoint(self._kept_file(percent))

    def _kept_file(self, percent: int) -> str:
        return os.path.join(self.output_folder, f"checkpoint_{percent}.pth")

    # ------------------------------------------------------------------------------ checkpoints, validation

    def save_checkpoint(self, filename: str) -> None:
        """Save nnU-Net's checkpoint, whole or not at all."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with whole_checkpoint(filename) as temporary:
            super().save_checkpoint(str(temporary))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint as nnU-Net does, and remember that the run is continued.

        Raises:
            CheckpointError: the file is damaged, incomplete or of a different network.
        """
        if not self.was_initialized:
            self.initialize()  # here, as what fails in it is not the file's fault
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except Exception:
            if not isinstance(filename_or_checkpoint, dict):
                explain_failed_resume(filename_or_checkpoint, self.bare_network.state_dict())
            raise  # the file is sound: no memory on the GPU, for example
        self._resumed = True

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate the kept checkpoints (below ``at_<percent>``), then the current weights, as nnU-Net does."""
        if not self.settings.validation.mirroring:
            self.inference_allowed_mirroring_axes = None
        for percent in self.settings.validation.keep_at:
            if os.path.isfile(self._kept_file(percent)):
                self.print_to_log_file(f"Validation of the checkpoint at {percent} per cent of the run:")
                with self._kept_weights(percent):
                    self._validate(save_probabilities)
                wait_for_all_ranks()  # rank 0 alone computes the metrics
            else:
                self.print_to_log_file(f"WARNING: {self._kept_file(percent)} is missing and not validated.")
        self._validate(save_probabilities)

    def _validate(self, save_probabilities: bool) -> None:
        """Validate the weights that the network holds, as nnU-Net does."""
        super().perform_actual_validation(save_probabilities)

    @contextmanager
    def _kept_weights(self, percent: int) -> Iterator[None]:
        """Put a kept checkpoint's weights into the network; give a folder for what validation writes."""
        network, folder = self.bare_network, self.output_folder
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        kept = load_checkpoint(self._kept_file(percent))
        try:
            network.load_state_dict(network_weights(kept, self._kept_file(percent)))
            self.output_folder = os.path.join(folder, f"at_{percent}")
            os.makedirs(self.output_folder, exist_ok=True)
            yield
        finally:
            self.output_folder = folder
            network.load_state_dict(own)


class FineTuneTrainer_scratch(FineTuneTrainer):
    """The baseline from scratch: the same class at stock nnU-Net's learning rate (0.01), without weights."""

    settings = changed(FineTuneTrainer.settings, {"optimisation.learning_rate": 1e-2, "expects_weights": False})


class FineTuneTrainer_decoderFirst(FineTuneTrainer):
    """The decoder learns alone over the first tenth of the run, then the whole network warms up again."""

    settings = changed(FineTuneTrainer.settings, {"optimisation.decoder_first_share": 0.1})


class FineTuneTrainer_layerDecay(FineTuneTrainer):
    """Every encoder stage towards the input learns 0.75 times as fast as the next one."""

    settings = changed(FineTuneTrainer.settings, {"optimisation.encoder_decay": 0.75})


class FineTuneTrainer_freezeEncoder(FineTuneTrainer):
    """The pretrained encoder stays as it is; only the decoder learns."""

    settings = changed(FineTuneTrainer.settings, {"optimisation.freeze_encoder": True})


__getattr__ = trainer_names(globals())
