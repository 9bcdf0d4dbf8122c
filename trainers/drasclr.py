"""DrasCLR for ``nnUNetv2_train``: ``DrasCLRTrainer``, its ablations, and ``DrasCLRTrainer_<N>epochs`` for any N."""

import copy
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.atlas_landmarks import open_landmarks, prepare_landmarks
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.methods.drasclr.conditional import LocationGroups, UnconditionedEncoder
from nnunet_alice.methods.drasclr.conversion import to_conditional, to_plain
from nnunet_alice.methods.drasclr.difference import feature_difference
from nnunet_alice.methods.drasclr.model import DrasCLRModel, PatchEmbedder
from nnunet_alice.methods.drasclr.queue import LandmarkQueues, queue_bytes, queue_size
from nnunet_alice.methods.drasclr.representation import PatchRepresentation
from nnunet_alice.methods.drasclr.settings import DrasCLRSettings
from nnunet_alice.methods.schedules import cosine
from nnunet_alice.pictures.landmark_views import draw_landmark_views
from nnunet_alice.planning.plans import total_stride
from nnunet_alice.pretraining.collapse import MIN_SPREAD
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.training.ranks import on_one_rank_first
from nnunet_alice.training.variants import epochs_variant
from nnunet_alice.views.landmark_crops import LandmarkCrops, crop_size, noise_and_gamma


class DrasCLRStep(NamedTuple):
    """Result of one step.

    Attributes:
        loss: scalar to minimise.
        parts: named scalars, detached.
        accuracies: top-1 accuracies by name, detached; NaN where there was no negative.
    """

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]
    accuracies: dict[str, torch.Tensor]


class DrasCLRTrainer(PretrainingTrainer):
    """DrasCLR: contrast of subjects at one landmark and around it, in an encoder that knows the location.

    A batch shows one landmark of the atlas in as many subjects as fit where the plans' batch fits. After every epoch
    ``metrics.csv``, ``progress.png`` and, every few epochs, ``views.png`` say how it goes. The checkpoint's network is
    the plain one, its experts mixed at the routing averaged over the training locations; the conditional encoder and
    the queues lie beside it.

    Attributes:
        settings: all numbers of the method.
        sgd_momentum: of SGD.
        largest_batch: subjects a batch at most (the reference's 128, on all GPUs together).
        validation_iterations: batches of a validation epoch.
    """

    method = "DrasCLR"
    settings = DrasCLRSettings()
    learning_rate = 0.01
    final_learning_rate = 0.0
    warmup_share = 0.0
    weight_decay_range = (1e-4, 1e-4)
    max_gradient_norm = None
    sgd_momentum = 0.9
    largest_batch = 128
    validation_iterations = 20

    # --------------------------------------------------------------------------------------------- building

    def initialize(self) -> None:
        """Build everything, landmarks first: their number sets the size of the queues."""
        super().initialize()
        self.num_val_iterations_per_epoch = self.validation_iterations

    def build_model(self, network: nn.Module) -> nn.Module:
        """DrasCLR around a conditional copy of the plans' encoder; the network itself only carries the weights on."""
        self.matcher = on_one_rank_first(self.open_matcher)
        self.landmarks = on_one_rank_first(self.open_landmarks)
        self.places = LandmarkPlaces.of_registered(self.landmarks, self.matcher)
        seen = self.places.seen()
        self.training_locations = torch.from_numpy(self.landmarks.locations[seen >= min(2, int(seen.max()))])
        self.crop_size = self._choose_crop_size(network.encoder)
        self.batch_size = self._choose_batch_size(network)
        slots = queue_size(len(self.places.cases), self.settings.queue_limit)
        self.print_to_log_file(
            f"{len(self.landmarks)} landmarks, {int((seen > 1).sum())} of them shown by at least two of "
            f"{len(self.places.cases)} registered cases. Queues of {slots} keys a landmark take "
            f"{queue_bytes(len(self.landmarks), slots, self.settings.dim) / 1e9:.3g} GB."
        )
        embedder = PatchEmbedder(
            self._make_encoder(network.encoder),
            network.encoder.output_channels[-1],
            dim=self.settings.dim,
            cells=self.settings.cells,
        )
        queues = LandmarkQueues(len(self.landmarks), slots, self.settings.dim)
        return DrasCLRModel(embedder, queues, temperature=self.settings.temperature, beta=self.settings.beta)

    def open_prepared_matcher(self) -> AtlasMatcher:
        """The atlas: landmarks lie on it, whichever other matchers were prepared."""
        return AtlasMatcher(self.dataset)

    def open_landmarks(self) -> Landmarks:
        """Landmarks of the atlas; lays them over the body where none are."""
        try:
            return open_landmarks(self.dataset)
        except NotPreparedError:
            self.print_to_log_file(
                "No landmarks were laid on the atlas: laying them over the body now. "
                "To choose a region or another grid, run nnunet_alice anatomy with --roi and --landmark_... before."
            )
            return prepare_landmarks(self.dataset).landmarks

    def _make_encoder(self, plain: nn.Module) -> nn.Module:
        """The query encoder, starting from the weights of a plain one; the same for the same weights."""
        if not self.settings.conditional:
            return UnconditionedEncoder(copy.deepcopy(plain))
        generator = torch.Generator().manual_seed(self.seed)
        gain = self.settings.location_gain
        return to_conditional(plain, self.settings.num_experts, location_gain=gain, generator=generator)

    def _choose_crop_size(self, encoder: nn.Module) -> tuple[int, ...]:
        strides = total_stride(encoder.strides)
        size = crop_size(self.landmarks.patch_mm, self.dataset.spacing, strides, self.configuration_manager.patch_size)
        shown_mm = (n * step for n, step in zip(size, self.dataset.spacing, strict=True))
        self.print_to_log_file(
            f"Crops of {' x '.join(map(str, size))} voxels ({' x '.join(f'{mm:.0f}' for mm in shown_mm)} mm), "
            f"{' x '.join(str(n // stride) for n, stride in zip(size, strides, strict=True))} voxels at the bottleneck "
            f"of the plans' encoder; landmarks stand for patches of {self.landmarks.patch_mm:g} mm."
        )
        return size

    def _choose_batch_size(self, network: nn.Module) -> int:
        """As many subjects as need about the memory that the plans foresee: the encoder alone, on small crops."""
        planned = self.batch_size * network.compute_conv_feature_map_size(self.configuration_manager.patch_size)
        # The paper's number of crops with gradient in all variants, so that ablations see the same batches.
        subject = (1 + DrasCLRSettings.neighbours) * network.encoder.compute_conv_feature_map_size(self.crop_size)
        size = int(min(max(2, planned // subject), self.largest_batch, len(self.places.cases)))
        self.print_to_log_file(f"Up to {size} subjects a batch, at one landmark, on this GPU.")
        return size

    def trained_module(self) -> nn.Module:
        """The whole model: its forward pass holds both losses and the queues; the key encoder is frozen."""
        return self.model

    def compile_model(self) -> None:
        """Compile query and key encoder."""
        # batches differ in size where few cases show a landmark; torch would stop compiling at the ninth form
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
        self.model.query.compile()
        self.model.key.compile()

    def configure_optimizers(self):
        """SGD with momentum on all that gets gradients, as the reference; rates are set before every step."""
        trained = [parameter for parameter in self.trained_module().parameters() if parameter.requires_grad]
        groups = [{"params": trained, "decays": True}]
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.sgd_momentum), None

    def scheduled_learning_rate(self) -> float:
        """Cosine without warm-up."""
        return cosine(self.step, self.total_steps, self.learning_rate, self.final_learning_rate)

    def make_batches(self, cases: list[str], training: bool) -> LandmarkCrops:
        """Crops of these cases; validation crops are augmented too, as the two views would be equal otherwise."""
        return LandmarkCrops(
            self.places,
            cases,
            self.dataset.image,
            self.crop_size,
            self.dataset.spacing,
            self.batch_size,
            neighbours=self.settings.neighbours,
            seed=self.seed + self.local_rank,
            transform=noise_and_gamma(),
            min_cases=2 if training else 1,
        )

    # --------------------------------------------------------------------------------------------- training

    def before_training(self) -> None:
        """Start from the network's weights, which ``-pretrained_weights`` may have changed."""
        fresh = self._make_encoder(self.network.encoder)
        for embedder in (self.model.query, self.model.key):
            embedder.encoder.load_state_dict(fresh.state_dict())

    def compute(self, batch: dict, training: bool) -> DrasCLRStep:
        """Both losses of one batch."""
        count = len(batch["subjects"])
        patches = batch["data"].unflatten(0, (-1, count))
        regional = self.settings.neighbours > 0
        model = self.wrapped_student if training else self.model
        losses = model(
            patches[0],
            patches[1],
            batch["location"],
            batch["landmark"],
            patches[2:] if regional else None,
            batch["neighbour_locations"] if regional else None,
            batch["subjects"],
        )
        parts = {"loss": losses.total.detach(), "loss_local": losses.local}
        accuracies = {"accuracy_local": losses.local_accuracy}
        if regional:
            parts["loss_regional"] = losses.regional
            accuracies["accuracy_regional"] = losses.regional_accuracy
        if training:
            parts |= accuracies | {"spread": losses.key_spread, "queue_fill": self.model.queues.fill_fraction()}
        return DrasCLRStep(losses.total, parts, accuracies)

    def step_buffers(self) -> list[torch.Tensor]:
        """All but the queues, which are large and take finite keys only."""
        queues = {id(buffer) for buffer in self.model.queues.buffers()}
        return [buffer for buffer in self.model.buffers() if id(buffer) not in queues]

    def after_step(self) -> None:
        """Move the key encoder. In short runs its memory is at most a twentieth of the run."""
        momentum = min(self.settings.key_momentum, max(0.0, 1 - 20 / self.total_steps))
        self.model.update_key_encoder(momentum)

    def cases_of(self, batch: dict) -> list[str]:
        """Names of the cases that a batch shows."""
        return sorted(batch["cases"])

    def on_validation_epoch_start(self) -> None:
        """Evaluation mode, which leaves the queues as they are."""
        super().on_validation_epoch_start()
        self._picture = None

    def validation_outputs(self, batch: dict, result: DrasCLRStep) -> dict:
        """Accuracies; the first batch is kept for the picture."""
        if self._picture is None:
            patches = batch["data"][:, 0].unflatten(0, (-1, len(batch["cases"]))).cpu().numpy()
            self._picture = {"patches": patches, "cases": batch["cases"], "landmark": batch["landmark"]}
        return {name: float(value) for name, value in result.accuracies.items()}

    def validation_metrics(self, outputs: list[dict]) -> dict[str, float]:
        """Mean accuracies of the batches that had negatives."""
        names = [name for name in outputs[0] if name.startswith("accuracy")]
        means = {name: np.array([output[name] for output in outputs]) for name in names}
        return {f"val_{name}": float(np.nanmean(v)) if not np.isnan(v).all() else 0.0 for name, v in means.items()}

    def epoch_warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Collapse of the embedding, from the second epoch on."""
        if self.current_epoch == 0 or not metrics["spread"] < MIN_SPREAD:
            return []
        return [f"this run may be collapsing: embedding spread {metrics['spread']:.4f} is below {MIN_SPREAD}"]

    def draw_pictures(self) -> None:
        """``views.png``: both views of a validation batch and its neighbours."""
        draw_landmark_views(**self._picture, path=os.path.join(self.output_folder, "views.png"))

    def on_train_end(self) -> None:
        """Measure what the plain network loses against the conditional encoder, then save."""
        if self.settings.conditional and self.local_rank == 0:
            self._difference = self.measure_difference()
            self.print_to_log_file(
                "Features of the plain network against those of the conditional encoder: they differ by "
                f"{self._difference['relative']:.1%} of their size and {self._difference['relative_to_spread']:.1%} "
                f"of their spread over patches; mean cosine {self._difference['cosine']:.4f}."
            )
        super().on_train_end()

    @torch.no_grad()
    def measure_difference(self, batches: int = 16) -> dict[str, float]:
        """`feature_difference` over unchanged crops at ``batches`` landmarks, in full precision."""
        crops = LandmarkCrops(
            self.places, self.places.cases, self.dataset.image, self.crop_size, self.dataset.spacing, self.batch_size,
            neighbours=0, seed=self.seed, affine=None, min_cases=1,
        )  # fmt: skip
        channels = self.network.encoder.output_channels[-1]
        plain = PatchRepresentation(UnconditionedEncoder(self.plain_encoder()), channels)
        pairs = []
        for number in range(batches):
            batch = crops(number, np.random.default_rng([self.seed, number]))
            patches = batch["data"].to(self.device)
            where = LocationGroups(batch["location"][None].to(self.device), (len(patches),))
            pairs.append((self.model.query.represent.features(patches, where), plain.features(patches, where)))
        return feature_difference(pairs)

    # ------------------------------------------------------------------------------------------- checkpoints

    def plain_encoder(self) -> nn.Module:
        """The query encoder as the plans build it, experts mixed at the routing averaged over training locations."""
        encoder = self.model.query.encoder
        return to_plain(encoder, self.training_locations) if self.settings.conditional else encoder.encoder

    def network_weights(self) -> dict[str, torch.Tensor]:
        """The plans' network: its encoder is the trained one made plain, its decoder is as it was initialised."""
        self.network.encoder.load_state_dict(self.plain_encoder().state_dict())
        return self.network.state_dict()

    def checkpoint_extras(self) -> dict:
        """What using the conditional encoder elsewhere needs."""
        return {
            "drasclr": {
                "settings": asdict(self.settings),
                "crop_size": self.crop_size,
                "landmarks": asdict(self.landmarks),
                "atlas": asdict(self.matcher.geometry(self.matcher.atlas_case)),
                "training_locations": self.training_locations,
                "feature_difference": getattr(self, "_difference", None),
            }
        }

    def hyper_parameters(self) -> dict:
        """Settings of run and method, and which landmarks: the queues belong to them."""
        layout = hashlib.sha256(np.ascontiguousarray(self.landmarks.points_mm)).hexdigest()[:16]
        own = {
            "sgd_momentum": self.sgd_momentum,
            "landmarks": f"{len(self.landmarks)} ({layout})",
            "registered_cases": len(self.places.cases),
            "crop_size": self.crop_size,
        }
        return super().hyper_parameters() | own | asdict(self.settings)

    def trained_parts(self) -> dict[str, bool]:
        """Only the encoder."""
        return {"encoder": True, "decoder": False}


class DrasCLRTrainer_noLocation(DrasCLRTrainer):
    """Ablation: a plain encoder that is not told the location."""

    settings = replace(DrasCLRTrainer.settings, conditional=False)


class DrasCLRTrainer_noRegional(DrasCLRTrainer):
    """Ablation: local contrast only, no neighbours."""

    settings = replace(DrasCLRTrainer.settings, neighbours=0)


class DrasCLRTrainer_2experts(DrasCLRTrainer):
    """Ablation: two experts instead of eight."""

    settings = replace(DrasCLRTrainer.settings, num_experts=2)


class DrasCLRTrainer_smoke(DrasCLRTrainer):
    """Two epochs of two iterations, to try an installation."""

    epochs = 2
    iterations = 2
    validation_iterations = 2


def __getattr__(name: str) -> type:
    """``<Trainer>_<N>epochs`` of every trainer above."""
    return epochs_variant(name, globals())
