"""The two contrastive losses of DrasCLR (Sections 3.1 and 3.2) as functions of embeddings.

Embeddings are L2-normalised rows. Everything is computed in float32 at least, also under autocast: a logit is a cosine
divided by 0.2, and half precision would round it by more than late training moves it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_alice.methods.diagnostics import embedding_spread
from nnunet_alice.methods.precision import at_least_float32


class Contrast(NamedTuple):
    """One InfoNCE term.

    Attributes:
        loss: scalar, mean cross-entropy of picking the positive.
        accuracy: scalar, share of the samples whose positive scores above all their negatives (a tie is a miss);
            samples without any negative do not count, NaN when no sample has one.
    """

    loss: Tensor
    accuracy: Tensor


class DrasCLRLoss(NamedTuple):
    """The terms of one step, all scalars.

    Attributes:
        total: ``local + beta * regional``, with gradient.
        local, regional: the two terms; ``regional`` is 0 without neighbours.
        local_accuracy, regional_accuracy: see `Contrast`; NaN without neighbours.
        negatives: mean number of negatives of a sample.
        negative_age: mean age of these in steps; NaN where there is none or the ages are not known.
        key_spread: `diagnostics.embedding_spread` of the keys; near 0 the embedding has collapsed. NaN for a single
            one.
    """

    total: Tensor
    local: Tensor
    regional: Tensor
    local_accuracy: Tensor
    regional_accuracy: Tensor
    negatives: Tensor
    negative_age: Tensor
    key_spread: Tensor


def local_loss(
    query: Tensor, key: Tensor, negatives: Tensor, *, temperature: float = 0.2, ignore: Tensor | None = None
) -> Contrast:
    """Return local contrast: ``-log softmax_0([q . k, q . n_1, ..., q . n_N] / t)``.

    Args:
        query: (B, D) embeddings of the first views; they need not be of unit length.
        key: (B, D) embeddings of the second views; row i is the positive of query i. No gradient flows into it.
        negatives: (N, D) keys of other subjects at the same landmark, any floating dtype; N may be 0.
        temperature: t, positive.
        ignore: (B, N) bool, True where a negative must not count for a sample (it is of the same subject); None uses
            all.

    Returns:
        loss and top-1 accuracy.

    Raises:
        ValueError: shapes do not fit or the temperature is not positive.
    """
    if query.ndim != 2 or key.shape != query.shape or query.shape[0] == 0:
        raise ValueError(f"Queries and keys must be (B, D) of one shape, got {tuple(query.shape)}, {tuple(key.shape)}.")
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1]:
        raise ValueError(f"negatives must be (N, {query.shape[1]}), got {tuple(negatives.shape)}.")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if ignore is not None and ignore.shape != (query.shape[0], negatives.shape[0]):
        raise ValueError(f"ignore must be {(query.shape[0], negatives.shape[0])}, got {tuple(ignore.shape)}.")
    with torch.autocast(query.device.type, enabled=False):
        query = at_least_float32(query)
        key, negatives = key.detach().to(query), negatives.detach().to(query)
        positive = (query * key).sum(dim=1, keepdim=True) / temperature
        others = query @ negatives.t() / temperature
        if ignore is not None:
            others = others.masked_fill(ignore, float("-inf"))
        loss = (torch.logsumexp(torch.cat([positive, others], dim=1), dim=1) - positive.squeeze(1)).mean()
    with torch.no_grad():
        compared = torch.isfinite(others).any(dim=1)
        hits = compared & (positive > others).all(dim=1)
        accuracy = hits.sum() / compared.sum()
    return Contrast(loss, accuracy.to(loss.dtype))


def regional_loss(
    neighbours: Tensor, key: Tensor, negatives: Tensor, *, temperature: float = 0.2, ignore: Tensor | None = None
) -> Contrast:
    """Return regional contrast: ``-log softmax_0([sum_j r_j . k, sum_j r_j . n_1, ...] / t)``.

    Args:
        neighbours: (k, B, D), ``neighbours[j, i]`` the embedding of sample i's patch at the j-th neighbour of the
            landmark, encoded by the query encoder at that neighbour's own location; k at least 1.
        key, negatives, temperature, ignore: as in `local_loss`; the key is that of the landmark itself.

    Returns:
        loss and top-1 accuracy.

    Raises:
        ValueError: shapes do not fit or the temperature is not positive.
    """
    if neighbours.ndim != 3 or neighbours.shape[0] == 0:
        raise ValueError(f"neighbours must be (k, B, D) with k > 0, got {tuple(neighbours.shape)}.")
    summed = at_least_float32(neighbours).sum(dim=0)
    return local_loss(summed, key, negatives, temperature=temperature, ignore=ignore)


def drasclr_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    neighbours: Tensor | None = None,
    *,
    temperature: float = 0.2,
    beta: float = 1.0,
    ignore: Tensor | None = None,
    ages: Tensor | None = None,
) -> DrasCLRLoss:
    """Return ``L = L_local + beta * L_regional`` with its terms.

    Args:
        query, key, negatives, temperature, ignore: see `local_loss`.
        neighbours: see `regional_loss`; None leaves the regional term out (the ablation).
        beta: weight of the regional term.
        ages: (N,) steps since each negative was made, for the record; None if unknown.

    Raises:
        ValueError: see `local_loss` and `regional_loss`.
    """
    local = local_loss(query, key, negatives, temperature=temperature, ignore=ignore)
    if neighbours is None:
        regional = Contrast(torch.zeros_like(local.loss), torch.full_like(local.accuracy, float("nan")))
        total = local.loss
    else:
        regional = regional_loss(neighbours, key, negatives, temperature=temperature, ignore=ignore)
        total = local.loss + beta * regional.loss
    count, age = _number_and_age(query, negatives, ignore, ages)
    return DrasCLRLoss(
        total=total,
        local=local.loss.detach(),
        regional=regional.loss.detach(),
        local_accuracy=local.accuracy,
        regional_accuracy=regional.accuracy,
        negatives=count,
        negative_age=age,
        key_spread=_spread(at_least_float32(key.detach())),
    )


@torch.no_grad()
def _number_and_age(
    query: Tensor, negatives: Tensor, ignore: Tensor | None, ages: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return mean number of negatives of a sample, and their mean age."""
    used = query.new_ones(query.shape[0], negatives.shape[0])
    if ignore is not None:
        used = used.masked_fill(ignore, 0)
    age = query.new_full((), float("nan")) if ages is None else (used * ages).sum() / used.sum()
    return used.sum() / query.shape[0], age


def _spread(keys: Tensor) -> Tensor:
    if keys.shape[0] < 2:
        return keys.new_full((), float("nan"))
    return embedding_spread(keys).to(keys.dtype)
