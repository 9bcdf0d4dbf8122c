"""DrasCLR as one module: query and key encoder, projection, queue of keys and the two losses of a step."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_alice.methods.distributed import gather_rows
from nnunet_alice.methods.drasclr.conditional import LocatedEncoder, LocationGroups
from nnunet_alice.methods.drasclr.losses import DrasCLRLoss, drasclr_loss
from nnunet_alice.methods.drasclr.queue import KeyQueue
from nnunet_alice.methods.drasclr.representation import LandmarkStandardisation, PatchRepresentation
from nnunet_alice.methods.ema import frozen_copy, update_ema
from nnunet_alice.methods.precision import at_least_float32
from nnunet_alice.methods.unets import has_batch_norm


class PatchEmbedder(nn.Module):
    """Encoder and projection head: patches and their locations -> unit vectors.

    Args:
        encoder: called with patches and `LocationGroups`; gives a tensor (B, C, z, y, x) or a list whose last one is
            the bottleneck. A `ConditionalEncoder`, or an `UnconditionedEncoder`.
        num_channels: C of the bottleneck.
        dim: width D of the embedding.
        cells: the bottleneck is averaged to ``cells`` ** 3 cells.

    Attributes:
        represent: `PatchRepresentation`, what downstream probes use.

    Raises:
        ValueError: a width is not positive.
    """

    def __init__(self, encoder: LocatedEncoder, num_channels: int, *, dim: int = 128, cells: int = 2) -> None:
        super().__init__()
        if min(num_channels, dim, cells) < 1:
            raise ValueError(f"Widths must be positive: {num_channels=}, {dim=}, {cells=}.")
        self.encoder = encoder
        self.represent = PatchRepresentation(encoder, num_channels, cells)
        self.standardise = LandmarkStandardisation(self.represent.width)
        self.head = nn.Sequential(
            nn.Linear(self.represent.width, num_channels), nn.ReLU(inplace=True), nn.Linear(num_channels, dim)
        )

    def forward(self, x: Tensor, locations: LocationGroups) -> Tensor:
        """Return L2-normalised embeddings (B, D) of patches (B, C_in, z, y, x), float32 even under autocast.

        They compare the subjects that the batch shows at a landmark, and depend on all of them.
        """
        embedding = self.head(self.standardise(self.represent(x, locations), locations))
        return functional.normalize(at_least_float32(embedding), dim=1)


class DrasCLRModel(nn.Module):
    """Query encoder with gradient, key encoder as its moving average, a queue of keys, both losses.

    A step of training: ``forward`` (puts the keys into the queue after the loss, in training mode only), ``backward``
    of ``total``, optimiser step over ``query.parameters()``, `update_key_encoder`.

    Negatives of a sample are the keys of other subjects at its landmark: those of this step, of all ranks, and those
    of the steps before that the queue holds. All ranks are to show the same landmark; keys of other landmarks do not
    count. DDP: wrap the whole model; every rank enqueues the keys of all ranks, so the queues stay equal. Compilation:
    call ``model.query.compile()`` and ``model.key.compile()``, which leave the names of the parameters alone.

    Deviations from the reference, each because nnU-Net data sets can be small: keys of the same subject do not count as
    negatives, and keys of the same step do. The reference keeps keys of a landmark from one visit to the next and fills
    new queues with noise; here only keys of the present visit count (see `KeyQueue`).

    Args:
        embedder: query encoder with its head; the key encoder starts as its copy.
        queue: of the embedder's width.
        temperature: of both losses.
        beta: weight of the regional loss.

    Raises:
        ValueError: ``embedder`` has batch normalisation; its statistics would tell which key belongs to which query,
            and the reference's remedy, shuffling across ranks, is not there. nnU-Net's instance normalisation is fine.
    """

    def __init__(
        self, embedder: PatchEmbedder, queue: KeyQueue, *, temperature: float = 0.2, beta: float = 1.0
    ) -> None:
        super().__init__()
        if has_batch_norm(embedder):
            raise ValueError("DrasCLR needs an encoder without batch normalisation; nnU-Net's default plans have none.")
        self.query = embedder
        self.key = frozen_copy(embedder)
        self.key.standardise = embedder.standardise  # one scale for queries and keys, from the first step on
        self.queue = queue
        self.temperature = temperature
        self.beta = beta

    def forward(
        self,
        view: Tensor,
        second_view: Tensor,
        location: Tensor,
        landmark: int,
        subjects: Tensor,
        neighbours: Tensor | None = None,
        neighbour_locations: Tensor | None = None,
    ) -> DrasCLRLoss:
        """Return losses of a batch of B subjects at one landmark; differentiate their ``total``.

        Args:
            view: (B, C, z, y, x), first augmentation of the patch at the landmark.
            second_view: the same patches, augmented again; they give the keys.
            location: (3,), location of the landmark.
            landmark: its number.
            subjects: (B,) integers >= 0, number of each subject.
            neighbours: (k, B, C, z, y, x), patches of the same subjects at the k nearest landmarks; None leaves the
                regional loss out.
            neighbour_locations: (k, 3), locations of these landmarks.

        Raises:
            ValueError: shapes do not fit.
        """
        batch = view.shape[0]
        if second_view.shape != view.shape or location.shape != (3,):
            raise ValueError(
                "Both views must have one shape and the location must be (3,), got "
                f"{tuple(view.shape)}, {tuple(second_view.shape)}, {tuple(location.shape)}."
            )
        here = LocationGroups(location[None], (batch,))
        if neighbours is None:
            query, around = self.query(view, here), None
        else:
            query, around = self._embed_region(view, location, neighbours, neighbour_locations)
        with torch.no_grad():
            key = self.key(second_view, here)
        made = _Made.on_all_ranks(key, landmark, subjects)
        negatives, ignore, ages = self._negatives(landmark, subjects, made)
        losses = drasclr_loss(
            query, key, negatives, around, temperature=self.temperature, beta=self.beta, ignore=ignore, ages=ages
        )
        if self.training:
            self.queue.enqueue(*made)
        return losses

    def update_key_encoder(self, momentum: float = 0.999) -> None:
        """Move the key encoder towards the query encoder: ``key <- m * key + (1 - m) * query``."""
        update_ema(self.key, self.query, momentum)

    def _embed_region(
        self, view: Tensor, location: Tensor, neighbours: Tensor, neighbour_locations: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings of the landmark (B, D) and of its neighbours (k, B, D), in one pass of 1 + k locations."""
        count, batch = neighbours.shape[0], view.shape[0]
        if neighbours.shape[1:] != view.shape or neighbour_locations is None:
            raise ValueError(
                f"Neighbours must be (k, *{tuple(view.shape)}) and have locations, got {tuple(neighbours.shape)}."
            )
        if neighbour_locations.shape != (count, 3):
            raise ValueError(f"Expected {count} neighbour locations, got shape {tuple(neighbour_locations.shape)}.")
        points = torch.cat([location[None], neighbour_locations])
        patches = torch.cat([view, neighbours.flatten(0, 1)])
        embeddings = self.query(patches, LocationGroups(points, (batch,) * (count + 1)))
        return embeddings[:batch], embeddings[batch:].unflatten(0, (count, batch))

    def _negatives(self, landmark: int, subjects: Tensor, made: "_Made") -> tuple[Tensor, Tensor, Tensor]:
        """Return keys (N, D), which do not count for which of B samples (B, N), and ages in steps (N,)."""
        queued = self.queue.seen_from(landmark)
        elsewhere = torch.cat([~queued.here, made.landmarks != landmark])
        own = subjects.to(made.subjects)[:, None] == torch.cat([queued.subjects, made.subjects])
        ages = torch.cat([queued.ages, queued.ages.new_zeros(len(made.keys))])
        return torch.cat([queued.keys.to(made.keys), made.keys]), own | elsewhere, ages


class _Made(NamedTuple):
    """The keys that all ranks made in one step, in the order of `KeyQueue.enqueue`."""

    keys: Tensor
    landmarks: Tensor
    subjects: Tensor

    @classmethod
    def on_all_ranks(cls, key: Tensor, landmark: int, subjects: Tensor) -> "_Made":
        """Gather them; of one process, its own."""
        subjects = subjects.to(key.device, torch.int32)
        return cls(gather_rows(key), gather_rows(torch.full_like(subjects, landmark)), gather_rows(subjects))
