"""DrasCLR as a pretraining method: contrast at atlas landmarks, in an encoder that knows the location."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.anatomy.subjects import load_subjects
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.atlas_landmarks import prepare_landmarks
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.methods.distributed import rank
from nnunet_alice.methods.drasclr.conditional import (
    ConditionalEncoder,
    LocatedEncoder,
    LocationGroups,
    UnconditionedEncoder,
)
from nnunet_alice.methods.drasclr.conversion import to_conditional, to_plain
from nnunet_alice.methods.drasclr.model import DrasCLRModel, PatchEmbedder
from nnunet_alice.methods.drasclr.queue import KeyQueue
from nnunet_alice.methods.drasclr.representation import PatchRepresentation, feature_difference
from nnunet_alice.methods.ema import momentum_for
from nnunet_alice.methods.unets import UNetEncoder, encoder_of
from nnunet_alice.pictures.landmarks import draw_landmark_views
from nnunet_alice.planning.memory import cost_of, live_bytes_of_pairs, live_bytes_of_subjects, subjects_in_memory
from nnunet_alice.planning.plans import total_stride
from nnunet_alice.pretraining.collapse import MIN_SPREAD
from nnunet_alice.pretraining.matched_cases import cases_to_validate_on, open_or_prepare_matcher
from nnunet_alice.pretraining.method import Method, Progress, RunContext, StepResult
from nnunet_alice.pretraining.usable import check_network
from nnunet_alice.training.ranks import number_of_each_rank, on_one_rank_first
from nnunet_alice.training.settings import flat, unrecorded
from nnunet_alice.views.landmark_crops import LandmarkBatch, LandmarkCrops, crop_size, noise_and_gamma
from nnunet_alice.words import counted


@dataclass(frozen=True)
class DrasCLRPretrainingSettings:
    """The numbers of the paper and its reference code, and those of batches and validation.

    Attributes:
        conditional: location-conditioned encoder; False is the ablation without location.
        num_experts: E, kernels of each convolution.
        location_gain: initial size of the routing's dependence on the location, see `to_conditional`.
        neighbours: k, landmarks around that the regional loss adds; 0 leaves it out (ablation).
        temperature: of both losses.
        beta: weight of the regional loss.
        dim: width of the embedding.
        cells: the bottleneck is averaged to ``cells`` ** 3 cells; of one cell instance norm leaves next to nothing.
        queue_limit: most keys that are kept, of all landmarks together; no visit to a landmark lasts longer.
        key_momentum: of the key encoder.
        max_batch: most subjects a batch (the reference's 128, on all GPUs together).
        validation_iterations: batches of a validation epoch.
    """

    conditional: bool = True
    num_experts: int = 8
    location_gain: float = 1.0
    neighbours: int = 2
    temperature: float = 0.2
    beta: float = 1.0
    dim: int = 128
    cells: int = 2
    queue_limit: int = 4096
    key_momentum: float = 0.999
    max_batch: int = unrecorded(128)
    validation_iterations: int = unrecorded(20)


class DrasCLRMethod(Method[LandmarkBatch, DrasCLRPretrainingSettings]):
    """Contrast of subjects at one landmark and around it, in an encoder that knows the location.

    A batch shows one landmark of the atlas in as many subjects as fit where the plans' batch fits. The network is the
    plain one, its experts mixed at the routing averaged over the training locations; the conditional encoder and the
    queue of keys lie beside it.

    Args:
        settings: all numbers of the method.
        context: of the run.

    Attributes:
        landmarks: of the atlas, once the model was made; :attr:`places` says where they lie in the cases.
        subject_of: case -> its subject, for cases that were named (``nnunet_alice anatomy --subjects``).
        training_locations: (n, 3) locations of the landmarks that at least two cases show.
        crop_size: (3,) voxels, (z, y, x).
    """

    name = "DrasCLR"
    model: DrasCLRModel
    matcher: AtlasMatcher
    landmarks: Landmarks
    places: LandmarkPlaces
    subject_of: dict[str, str]
    training_locations: Tensor
    crop_size: tuple[int, ...]

    def __init__(self, settings: DrasCLRPretrainingSettings, context: RunContext) -> None:
        super().__init__(settings, context)
        self._difference: dict[str, float] | None = None

    # ---------------------------------------------------------------------------------------------- the network

    def make_model(self, network: nn.Module) -> DrasCLRModel:
        """Return a conditional copy of the encoder with its queue of keys.

        Raises:
            InputError: it cannot be trained so.
        """
        check_network(network, min_stages=1, batch_norm=False)
        self._open_anatomy()
        seen = self.places.seen()
        self.training_locations = torch.from_numpy(self.landmarks.locations[seen >= min(2, int(seen.max()))])
        self.crop_size = self._choose_crop_size(encoder_of(network))
        self.batch_size = self._choose_batch_size(network)
        subjects = len({self.subject_of.get(case, case) for case in self.places.cases})
        self.context.log(
            f"{counted(len(self.landmarks), 'landmark')}, {int((seen > 1).sum())} of them shown by at least two of "
            f"{len(self.places.cases)} registered cases, which count as {subjects} subjects."
        )
        embedder = PatchEmbedder(
            self._make_encoder(encoder_of(network)),
            encoder_of(network).output_channels[-1],
            dim=self.settings.dim,
            cells=self.settings.cells,
        )
        queue = KeyQueue(min(subjects, self.settings.queue_limit), self.settings.dim)
        return DrasCLRModel(embedder, queue, temperature=self.settings.temperature, beta=self.settings.beta)

    def _open_anatomy(self) -> None:
        """Open the atlas, on which landmarks lie, whichever other matchers were prepared; make what is missing."""
        dataset, log = self.context.dataset.together(), self.context.log
        matcher = on_one_rank_first(lambda: open_or_prepare_matcher(dataset, "atlas", log))
        assert isinstance(matcher, AtlasMatcher)
        self.matcher = matcher
        self.landmarks = on_one_rank_first(self._open_landmarks)
        self.places = LandmarkPlaces.of_registered(self.landmarks, self.matcher)
        self.subject_of = load_subjects(dataset)

    def _open_landmarks(self) -> Landmarks:
        try:
            return self.matcher.atlas.landmarks()
        except NotPreparedError:
            self.context.log(
                "No landmarks were laid on the atlas: laying them over the body now. "
                "To choose a region or a different grid, run nnunet_alice anatomy with --roi and --landmark_... before."
            )
            return prepare_landmarks(self.context.dataset.together()).landmarks

    def _make_encoder(self, plain: nn.Module) -> LocatedEncoder:
        """Return the query encoder, starting from the weights of a plain one; the same for the same weights."""
        if not self.settings.conditional:
            return UnconditionedEncoder(copy.deepcopy(plain))
        generator = torch.Generator().manual_seed(self.context.seed)
        gain = self.settings.location_gain
        return to_conditional(plain, self.settings.num_experts, location_gain=gain, generator=generator)

    def _choose_crop_size(self, encoder: UNetEncoder) -> tuple[int, ...]:
        strides, spacing = total_stride(encoder.strides), self.context.spacing
        size = crop_size(self.landmarks.patch_mm, spacing, strides, self.context.patch_size)
        shown_mm = (n * step for n, step in zip(size, spacing, strict=True))
        self.context.log(
            f"Crops of {' x '.join(map(str, size))} voxels ({' x '.join(f'{mm:.0f}' for mm in shown_mm)} mm), "
            f"{' x '.join(str(n // stride) for n, stride in zip(size, strides, strict=True))} voxels at the bottleneck "
            f"of the plans' encoder; landmarks stand for patches of {self.landmarks.patch_mm:g} mm."
        )
        return size

    def _choose_batch_size(self, network: nn.Module) -> int:
        """Return as many subjects as take the time and fit into the memory that the plans foresee."""
        pairs = self.context.batch_size
        cost = cost_of(network, self.context.patch_size)
        # The paper's number of crops with gradient, and all experts, in all variants: ablations see the same batches.
        crops, experts = 1 + DrasCLRPretrainingSettings.neighbours, self.settings.num_experts
        elements = encoder_of(network).compute_conv_feature_map_size(self.crop_size)
        fitting = subjects_in_memory(cost, pairs, experts, elements, crops)
        if fitting < 2:
            needed = live_bytes_of_subjects(cost, experts, elements, crops, 2)
            planned = live_bytes_of_pairs(cost, pairs)
            self.context.log(
                f"WARNING: {experts} experts and the smallest batch take about {needed / 2**30:.1f} GiB of GPU memory, "
                f"and the plans foresee {planned / 2**30:.1f}: train on a larger GPU, or with fewer experts "
                f"(_{max(1, experts // 2)}experts)."
            )
        size = min(max(2, min(pairs * cost.elements // (crops * elements), fitting)), self.settings.max_batch)
        size = min(size, len(self.places.cases))
        self.context.log(f"Up to {size} subjects a batch, at one landmark, on this GPU.")
        return size

    @property
    def modules_to_compile(self) -> list[nn.Module]:
        """Query and key encoder."""
        return [self.model.query, self.model.key]

    # ------------------------------------------------------------------------------------------------ the views

    def prepare(
        self, training: list[str], validation: list[str], matching: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Choose the cases to validate on; the anatomy was opened for the model."""
        return training, cases_to_validate_on(self.matcher, training, validation, self.context.log)

    def batches(self, cases: list[str], training: bool) -> LandmarkCrops:
        """Return crops of these cases; validation crops are augmented too, as the two views would be equal."""
        sizes = number_of_each_rank(self.batch_size, self.context.device)
        return LandmarkCrops(
            self.places,
            cases,
            self.context.dataset.image,
            self.crop_size,
            self.context.spacing,
            self.batch_size,
            subject_of=self.subject_of,
            neighbours=self.settings.neighbours,
            seed=self.context.seed,
            together=sum(sizes),
            before=sum(sizes[: rank()]),
            # What the queue has forgotten is no negative any more. Validation keeps no keys.
            max_stay=max(1, self.settings.queue_limit // sum(sizes)) if training else 1,
            transform=noise_and_gamma(),
            min_subjects=2 if training else 1,
        )

    def validation_batches(self, rank_batch_sizes: Sequence[int]) -> int:
        """Return the number in the settings."""
        return self.settings.validation_iterations

    # --------------------------------------------------------------------------------------------- the training

    def before_training(self) -> None:
        """Start from the network's weights."""
        fresh = self._make_encoder(encoder_of(self.network))
        for embedder in (self.model.query, self.model.key):
            embedder.encoder.load_state_dict(fresh.state_dict())

    def compute(self, batch: LandmarkBatch, progress: Progress, training: bool) -> StepResult:
        """Return both losses of one batch."""
        patches = batch.views.unflatten(0, (-1, len(batch.subjects)))
        regional = self.settings.neighbours > 0
        losses = self.module_for(training)(
            patches[0],
            patches[1],
            batch.location,
            batch.landmark,
            batch.subjects,
            patches[2:] if regional else None,
            batch.neighbour_locations if regional else None,
        )
        metrics = {"loss": losses.total.detach(), "loss_local": losses.local}
        accuracies = {"accuracy_local": losses.local_accuracy}
        if regional:
            metrics["loss_regional"] = losses.regional
            accuracies["accuracy_regional"] = losses.regional_accuracy
        if not training:
            return StepResult(losses.total, metrics, {name: float(value) for name, value in accuracies.items()})
        metrics |= accuracies | {
            "negatives": losses.negatives,
            "negative_age": losses.negative_age,
            "spread": losses.key_spread,
        }
        return StepResult(losses.total, metrics)

    def after_step(self, progress: Progress) -> None:
        """Move the key encoder."""
        self.model.update_key_encoder(momentum_for(progress.total_steps, self.settings.key_momentum))

    def after_training(self) -> None:
        """Measure what the plain network loses against the conditional encoder."""
        if not self.settings.conditional:
            return
        self._difference = self.measure_difference()
        self.context.log(
            "Features of the plain network against those of the conditional encoder: they differ by "
            f"{self._difference['relative']:.1%} of their size and {self._difference['relative_to_spread']:.1%} "
            f"of their spread over patches; mean cosine {self._difference['cosine']:.4f}."
        )

    @torch.no_grad()
    def measure_difference(self) -> dict[str, float]:
        """Return `feature_difference` over unchanged crops at 16 landmarks, in full precision."""
        context = self.context
        crops = LandmarkCrops(
            self.places, self.places.cases, context.dataset.image, self.crop_size, context.spacing, self.batch_size,
            neighbours=0, seed=context.seed, max_stay=1, affine=None, min_subjects=1,
        )  # fmt: skip
        channels = encoder_of(self.network).output_channels[-1]
        plain = PatchRepresentation(UnconditionedEncoder(self.plain_encoder()), channels)
        pairs = []
        for number in range(16):
            batch = crops(number, np.random.default_rng([context.seed, number])).to(context.device)
            where = LocationGroups(batch.location[None], (len(batch.views),))
            pairs.append((self.model.query.represent.features(batch.views, where), plain.features(batch.views, where)))
        return feature_difference(pairs)

    # ----------------------------------------------------------------------------------------------- the report

    def validation_metrics(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return mean accuracies of the batches that had negatives."""
        means = {name: np.array([output[name] for output in outputs]) for name in outputs[0]}
        return {f"val_{name}": float(np.nanmean(v)) if not np.isnan(v).all() else 0.0 for name, v in means.items()}

    def warnings(self, metrics: Mapping[str, float], epoch: int) -> list[str]:
        """Return whether the embedding collapses, from the second epoch on."""
        if epoch == 0 or not metrics["spread"] < MIN_SPREAD:
            return []
        return [f"this run may be collapsing: embedding spread {metrics['spread']:.4f} is below {MIN_SPREAD}"]

    def draw(self, batch: LandmarkBatch, result: StepResult, folder: Path) -> None:
        """Draw ``views.png``: both views of a validation batch and its neighbours."""
        patches = batch.views[:, 0].unflatten(0, (-1, len(batch.cases))).cpu().numpy()
        draw_landmark_views(patches, batch.cases, batch.landmark, folder / "views.png")

    # ------------------------------------------------------------------------------------------ the checkpoints

    def recorded_settings(self) -> dict[str, Any]:
        """Return the settings, and which landmarks and subjects: the queued keys belong to them."""
        layout = hashlib.sha256(np.ascontiguousarray(self.landmarks.points_mm).data).hexdigest()[:16]
        return super().recorded_settings() | {
            "landmarks": f"{len(self.landmarks)} ({layout})",
            "registered_cases": len(self.places.cases),
            "named_subjects": len(set(self.subject_of.values())),
            "crop_size": self.crop_size,
        }

    def plain_encoder(self) -> nn.Module:
        """Return the query encoder as the plans build it, experts mixed at the mean routing over training locations."""
        encoder = self.model.query.encoder
        if isinstance(encoder, ConditionalEncoder):
            return to_plain(encoder, self.training_locations)
        return encoder.encoder

    def network_weights(self) -> dict[str, Tensor]:
        """Return the plans' network: its encoder is the trained one made plain, its decoder as it was initialised."""
        encoder_of(self.network).load_state_dict(self.plain_encoder().state_dict())
        return self.network.state_dict()

    def checkpoint_extras(self) -> dict[str, Any]:
        """Return what using the conditional encoder elsewhere needs."""
        return {
            "drasclr": {
                "settings": flat(self.settings),
                "crop_size": self.crop_size,
                "landmarks": asdict(self.landmarks),
                **self.matcher.atlas.stored(),
                "training_locations": self.training_locations,
                "feature_difference": self._difference,
            }
        }

    def trained_parts(self) -> dict[str, bool]:
        """Return that only the encoder is trained."""
        return {"encoder": True, "decoder": False}
