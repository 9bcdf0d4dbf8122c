"""Fine-tuning with DrasCLR's location-conditioned encoder kept: ``DrasCLRFineTuneTrainer`` on a located dataset.

``nnunet_alice locate -d`` writes that dataset: its last four channels say where in the atlas each voxel lies, and are
read but never convolved. Variants as of `nnunet_alice.trainers.finetuning`, and ``_<N>experts``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_alice.checkpoints.conditional import conditional_weights, load_conditional_encoder
from nnunet_alice.checkpoints.loading import load_checkpoint, network_weights
from nnunet_alice.coordinates.atlas_file import atlas_of_checkpoint
from nnunet_alice.coordinates.located_dataset import LOCATED
from nnunet_alice.errors import InputError
from nnunet_alice.finetuning.settings import DrasCLRFineTuneSettings
from nnunet_alice.methods.drasclr.located import COORDINATE_CHANNELS, LocatedUNet
from nnunet_alice.nnunet_folders import dataset_number
from nnunet_alice.planning.memory import live_bytes_of_training, more_bytes_of_experts, network_cost
from nnunet_alice.trainers.finetuning import FineTuneTrainer
from nnunet_alice.training.settings import changed
from nnunet_alice.training.variants import trainer_names
from nnunet_alice.views.location_channels import hide_from_intensities


class DrasCLRFineTuneTrainer(FineTuneTrainer):
    """Fine-tune with DrasCLR's location-conditioned encoder, on a dataset that nnunet_alice locate wrote.

    ``-pretrained_weights`` takes ``checkpoint_final.pth`` of DrasCLRTrainer (the conditional encoder in it; the decoder
    starts fresh) or of this trainer. Schedule, loss and validation are FineTuneTrainer's. nnU-Net's spatial
    augmentation and mirroring move image and coordinates alike; noise, blur, brightness, contrast, low resolution and
    gamma do not see the coordinates.

    The endings ``_<N>experts`` have to be those of the pretraining.
    """

    settings: ClassVar[DrasCLRFineTuneSettings] = DrasCLRFineTuneSettings()

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the plans' network for the images, its encoder made conditional; the predictor calls it too.

        Raises:
            InputError: a 2D configuration, the second stage of a cascade, or no coordinate channels.
        """
        if configuration_manager.previous_stage_name is not None or len(configuration_manager.patch_size) != 3:
            raise InputError(
                f"{cls.__name__} needs a 3D configuration that is no second stage, e.g. 3d_fullres."
            ).about(value=cls.__name__)
        image_channels = num_input_channels - COORDINATE_CHANNELS
        if image_channels < 1:
            raise InputError(
                f"{cls.__name__} needs {COORDINATE_CHANNELS} coordinate channels behind those of the image, and there "
                f"are {num_input_channels} channels in all; run nnunet_alice locate and train on what it writes."
            ).about(value=num_input_channels, command="nnunet_alice locate")
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, image_channels, num_output_channels, enable_deep_supervision
        )
        try:
            return LocatedUNet(network, cls.settings.method.num_experts)
        except ValueError as error:
            raise InputError(f"{cls.__name__}: {error}").about(value=cls.__name__) from None

    @classmethod
    def get_training_transforms(cls, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Return FineTuneTrainer's augmentation, coordinates hidden from what changes intensities."""
        return hide_from_intensities(super().get_training_transforms(*args, **kwargs), COORDINATE_CHANNELS)

    @property
    def bare_network(self) -> LocatedUNet:
        """As FineTuneTrainer's."""
        return cast(LocatedUNet, super().bare_network)

    def initialize(self) -> None:
        """Initialise as FineTuneTrainer does.

        Raises:
            InputError: the dataset was not written by ``nnunet_alice locate``.
        """
        if LOCATED not in self.dataset_json:
            name = self.plans_manager.dataset_name
            raise InputError(
                f"{name} has no coordinate channels; run nnunet_alice locate -d {dataset_number(name)} --atlas "
                "checkpoint_final.pth and train on the dataset that it writes."
            ).about(value=name, command=f"nnunet_alice locate -d {dataset_number(name)} --atlas")
        super().initialize()
        self._say_what_experts_take()

    def _say_what_experts_take(self) -> None:
        """Say how much GPU memory a step takes; warn where it is far more than the plans were made for."""
        network, plan, experts = self.bare_network, self.configuration_manager, self.settings.method.num_experts
        channels = self.num_input_channels - COORDINATE_CHANNELS
        classes = self.label_manager.num_segmentation_heads
        cost = network_cost(plan.configuration["architecture"], plan.patch_size, channels, classes)
        planned = live_bytes_of_training(cost, self.batch_size) / 2**30
        more = more_bytes_of_experts(network.encoder, experts) / 2**30
        self.print_to_log_file(
            f"{'WARNING: ' if more > planned / 4 else ''}A step takes about {planned + more:.1f} GiB of GPU memory, "
            f"{more:.1f} of them for {experts} experts; FineTuneTrainer's takes {planned:.1f} with these plans."
        )

    def load_pretrained_weights(self, filename: str) -> None:
        """Load the conditional encoder of a DrasCLR checkpoint, or the whole network of one of this trainer.

        Raises:
            CheckpointError: the file holds no conditional encoder, or one that does not fit.
        """
        checkpoint = load_checkpoint(filename)
        network = self.bare_network
        if "pretraining" not in checkpoint and any(
            name.startswith("encoder.encoder.") for name in network_weights(checkpoint, filename)
        ):
            self._load_body(filename, checkpoint, "train with the plans and the _<N>experts of the run that wrote it")
            return
        weights = conditional_weights(checkpoint, filename)
        load_conditional_encoder(network.encoder, weights, filename)
        self._tensors_loaded = sum(1 for _ in network.encoder.parameters())
        loaded, fresh = (sum(p.numel() for p in part.parameters()) for part in (network.encoder, network.decoder))
        self.print_to_log_file(
            f"Loaded the location-conditioned encoder of {filename} ({weights.run['trainer']}): {len(weights.state)} "
            f"tensors, {loaded:,} parameters, {weights.num_experts} experts. Fresh: the decoder, {fresh:,} parameters."
        )
        self._compare_orientation(checkpoint, filename)
        self._compare_atlas(checkpoint, filename)
        self._say_how_tiles_differ(weights.own)

    def _compare_atlas(self, checkpoint: dict, filename: str) -> None:
        located, trained = self.dataset_json[LOCATED]["atlas"], atlas_of_checkpoint(checkpoint, filename).checksum
        if located != trained:
            self.print_to_log_file(
                f"WARNING: the coordinates of {self.plans_manager.dataset_name} are of a different atlas than that of "
                f"{filename}: the encoder takes them for other places. Run nnunet_alice locate --atlas {filename}."
            )

    def _say_how_tiles_differ(self, own: Mapping[str, Any]) -> None:
        crop, patch = (" x ".join(map(str, size)) for size in (own["crop_size"], self.configuration_manager.patch_size))
        self.print_to_log_file(f"The encoder saw crops of {crop} voxels and now sees tiles of {patch}, one place each.")


class DrasCLRFineTuneTrainer_scratch(DrasCLRFineTuneTrainer):
    """The baseline from scratch: the same network at stock nnU-Net's learning rate (0.01), without weights."""

    settings = changed(DrasCLRFineTuneTrainer.settings, {"optimisation.learning_rate": 1e-2, "expects_weights": False})


__getattr__ = trainer_names(globals())
