"""DrasCLR as one module: query and key encoder, projection, queues and the two losses of a step."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_alice.methods.distributed import gather_rows
from nnunet_alice.methods.drasclr.conditional import LocationGroups
from nnunet_alice.methods.drasclr.losses import DrasCLRLoss, drasclr_loss
from nnunet_alice.methods.drasclr.queue import LandmarkQueues
from nnunet_alice.methods.drasclr.representation import LandmarkStandardisation, PatchRepresentation
from nnunet_alice.methods.ema import frozen_copy, update_ema


class PatchEmbedder(nn.Module):
    """Encoder and projection head: patches and their locations -> unit vectors.

    Args:
        encoder: called with patches and `LocationGroups`; gives a tensor (B, C, z, y, x) or a list whose last one is
            the bottleneck. A `ConditionalEncoder`, or an `UnconditionedEncoder`.
        num_channels: C of the bottleneck.
        dim: width D of the embedding.
        hidden_dim: width of the hidden layer; C if None.
        cells: the bottleneck is averaged to ``cells`` ** 3 cells.

    Attributes:
        represent: `PatchRepresentation`, what downstream probes use.

    Raises:
        ValueError: a width is not positive.
    """

    def __init__(
        self, encoder: nn.Module, num_channels: int, *, dim: int = 128, hidden_dim: int | None = None, cells: int = 2
    ) -> None:
        super().__init__()
        hidden_dim = num_channels if hidden_dim is None else hidden_dim
        if min(num_channels, dim, hidden_dim, cells) < 1:
            raise ValueError(f"Widths must be positive: {num_channels=}, {dim=}, {hidden_dim=}, {cells=}.")
        self.encoder = encoder
        self.represent = PatchRepresentation(encoder, num_channels, cells)
        self.standardise = LandmarkStandardisation(self.represent.width)
        self.head = nn.Sequential(
            nn.Linear(self.represent.width, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, dim)
        )

    def forward(self, x: Tensor, locations: LocationGroups) -> Tensor:
        """L2-normalised embeddings (B, D) of patches (B, C_in, z, y, x), float32 at least, also under autocast.

        They compare the subjects that the batch shows at a landmark, and depend on all of them.
        """
        embedding = self.head(self.standardise(self.represent(x, locations), locations))
        return functional.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=1)


class DrasCLRModel(nn.Module):
    """Query encoder with gradient, key encoder as its moving average, one queue a landmark, both losses.

    A step of training: ``forward`` (puts the keys into the queue after the loss, in training mode only), ``backward``
    of ``total``, optimiser step over ``query.parameters()``, `update_key_encoder`.

    DDP: wrap the whole model; the queues are kept out of its broadcasts, and every rank enqueues the keys of all ranks,
    so the queues stay equal. Compilation: call ``model.query.compile()`` and ``model.key.compile()``, which leave the
    names of the parameters alone; the queues have sizes that change with the data and gain nothing.

    Deviations from the reference, each because nnU-Net data sets can be small: keys of the same subject do not count as
    negatives (see `LandmarkQueues`), and the other keys of the batch (of this rank) do, so that the first visit of a
    landmark, whose queue is empty, teaches something (``batch_negatives``). The reference fills new queues with noise.

    Args:
        embedder: query encoder with its head; the key encoder starts as its copy.
        queues: of the embedder's width.
        temperature: of both losses.
        beta: weight of the regional loss.
        batch_negatives: whether the other keys of the batch are negatives beside the queue.

    Raises:
        ValueError: ``embedder`` has batch normalisation; its statistics would tell which key belongs to which query,
            and the reference's remedy, shuffling across ranks, is not there. nnU-Net's instance normalisation is fine.
    """

    def __init__(
        self,
        embedder: PatchEmbedder,
        queues: LandmarkQueues,
        *,
        temperature: float = 0.2,
        beta: float = 1.0,
        batch_negatives: bool = True,
    ) -> None:
        super().__init__()
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in embedder.modules()):
            raise ValueError("DrasCLR needs an encoder without batch normalisation; nnU-Net's default plans have none.")
        self.query = embedder
        self.key = frozen_copy(embedder)
        self.key.standardise = embedder.standardise  # one scale for queries and keys, from the first step on
        self.queues = queues
        self.temperature = temperature
        self.beta = beta
        self.batch_negatives = batch_negatives
        # DDP would send all queues from rank 0 to the others before every forward pass. This is the attribute that it
        # looks at; the prefix is that of a compiled model.
        names = [f"queues.{name}" for name, _ in queues.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = names + [f"_orig_mod.{name}" for name in names]

    def forward(
        self,
        view: Tensor,
        second_view: Tensor,
        location: Tensor,
        landmark: int,
        neighbours: Tensor | None = None,
        neighbour_locations: Tensor | None = None,
        subjects: Tensor | None = None,
    ) -> DrasCLRLoss:
        """Losses of a batch of B subjects at one landmark.

        Args:
            view: (B, C, z, y, x), first augmentation of the patch at the landmark.
            second_view: the same patches, augmented again; they give the keys.
            location: (3,), location of the landmark.
            landmark: its number, the queue.
            neighbours: (k, B, C, z, y, x), patches of the same subjects at the k nearest landmarks; None leaves the
                regional loss out.
            neighbour_locations: (k, 3), locations of these landmarks.
            subjects: (B,) integers >= 0, number of each subject; None if unknown: no key is left out then.

        Returns:
            the parts; differentiate ``total``.

        Raises:
            ValueError: shapes do not fit.
            IndexError: no such landmark.
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
        negatives, ignore = self._negatives(landmark, key, subjects)
        losses = drasclr_loss(
            query, key, negatives, around, temperature=self.temperature, beta=self.beta, ignore=ignore
        )
        if self.training:
            self._enqueue(landmark, key, subjects)
        return losses

    def update_key_encoder(self, momentum: float = 0.999) -> None:
        """Move the key encoder towards the query encoder: ``key <- m * key + (1 - m) * query``."""
        update_ema(self.key, self.query, momentum)

    def _embed_region(
        self, view: Tensor, location: Tensor, neighbours: Tensor, neighbour_locations: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of the landmark (B, D) and of its neighbours (k, B, D), in one pass of 1 + k locations."""
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

    def _negatives(self, landmark: int, key: Tensor, subjects: Tensor | None) -> tuple[Tensor, Tensor]:
        """Negatives (N, D) of a batch of keys (B, D), and which of them do not count for which sample (B, N)."""
        queued = self.queues.negatives(landmark).to(key)
        ignore = torch.zeros(key.shape[0], queued.shape[0], dtype=torch.bool, device=key.device)
        if subjects is not None:
            subjects = subjects.to(key.device)
            ignore |= subjects[:, None] == self.queues.negative_subjects(landmark).to(key.device)
        if not self.batch_negatives:
            return queued, ignore
        own = torch.eye(key.shape[0], dtype=torch.bool, device=key.device)
        if subjects is not None:
            own |= subjects[:, None] == subjects
        return torch.cat([queued, key]), torch.cat([ignore, own], dim=1)

    @torch.no_grad()
    def _enqueue(self, landmark: int, key: Tensor, subjects: Tensor | None) -> None:
        """Put the keys of all ranks into their queues; ranks may be at different landmarks.

        Keys that are not finite (of a broken image) are left out: a queue would hold them for many epochs.
        """
        if subjects is None:
            subjects = torch.full(key.shape[:1], -1)
        landmarks = gather_rows(torch.full(key.shape[:1], landmark, device=key.device))
        keys, subjects = gather_rows(key), gather_rows(subjects.to(key.device, torch.int32))
        finite = keys.isfinite().all(dim=1)
        for number in landmarks.unique().tolist():
            chosen = (landmarks == number) & finite
            self.queues.enqueue(number, keys[chosen], subjects[chosen])
