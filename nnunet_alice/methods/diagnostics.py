"""Signs of life of a self-distillation: does the teacher say something, and is it about anatomy?

How to read them together. A *collapse* shows as ``conditional_entropy`` near ln K (uniform targets), or as a
``marginal_entropy`` near 0 (always the same target), or an ``embedding_spread`` near 0. A *shortcut* shows in none
of them: there the token's code is its place in the crop (``token_index_information``). Whether anatomy was learned,
only ``retrieval_accuracy`` says.

All work on the tensors of one process, without gradient; there is no communication between ranks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities this close are the same number, rounded differently.
TIE_TOLERANCE = 1e-9


@torch.no_grad()
def conditional_entropy(targets: Tensor) -> Tensor:
    """Return mean entropy of the teacher's targets: 0 for one-hot targets, ln K for uniform ones, the dead state.

    Args:
        targets: (..., K) probabilities.

    Returns:
        Scalar in nats.
    """
    return _entropy(targets).mean()


@torch.no_grad()
def marginal_entropy(targets: Tensor) -> Tensor:
    """Return the entropy of the mean target: ln K when all prototypes are used alike, 0 when all samples share one.

    It is never below the conditional entropy; the difference is the information between sample and prototype. It is at
    most that entropy plus the logarithm of the number of samples. By construction near ln K with Sinkhorn targets.

    Args:
        targets: (..., K) probabilities.

    Returns:
        Scalar in nats.
    """
    return _entropy(targets.reshape(-1, targets.shape[-1]).mean(dim=0))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(dim=-1)


@torch.no_grad()
def embedding_spread(x: Tensor) -> Tensor:
    """Return how far embeddings of different samples lie apart: 0 when all are the same.

    Rows are L2-normalised; the standard deviation over the samples (biased), averaged over the dimensions, is
    multiplied by sqrt(D), so that directions drawn uniformly give about 1, whatever D. It cannot exceed 1.

    Args:
        x: (N, D).

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: If the shape is not (N, D) with at least 2 samples.
    """
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"Expected (N, D) with at least 2 samples, got {tuple(x.shape)}.")
    directions = F.normalize(x.float(), dim=-1)
    return directions.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5


@torch.no_grad()
def retrieval_accuracy(
    query: Tensor, anchor: Tensor, k: Sequence[int] = (1, 5), standardise: bool = True
) -> dict[int, float]:
    """Return the share of query views whose anchor view is among the k most similar of the N anchors, and vice versa.

    Similarity is the cosine. Both directions are averaged. A candidate as similar as the true one counts as more
    similar: a collapsed embedding scores 0, not chance. Non-finite similarities are misses as well. Chance is k / N.

    Args:
        query: (N, D).
        anchor: (N, D); row n shows the same anatomy as row n of ``query``.
        k: Numbers of candidates looked at.
        standardise: Bring each dimension to mean 0 and standard deviation 1 over queries and anchors together first:
            otherwise a part that all embeddings share hides the differences. Constant dimensions become 0.

    Returns:
        Accuracy in [0, 1] for each k.

    Raises:
        ValueError: If the shapes differ or are not (N, D) with N at least 2, or a k is not in [1, N].
    """
    if query.ndim != 2 or query.shape != anchor.shape or query.shape[0] < 2:
        raise ValueError(
            "query and anchor must both have shape (N, D) with N at least 2, "
            f"got {tuple(query.shape)} and {tuple(anchor.shape)}."
        )
    samples = query.shape[0]
    if not k or min(k) < 1 or max(k) > samples:
        raise ValueError(f"Each k must lie between 1 and the {samples} candidates, got {tuple(k)}.")
    # float64 and on the CPU: it is small, and a tie must be a tie.
    views = torch.cat([query, anchor]).detach().to("cpu", torch.float64)
    if standardise:
        spread, mean = torch.std_mean(views, dim=0, correction=0)
        # Deviations at the level of rounding are no information; dividing by them would blow them up to noise.
        constant = spread <= 1e-6 * views.abs().amax(dim=0)
        views = ((views - mean) / spread).masked_fill(constant, 0.0)
    views = F.normalize(views, dim=-1)
    similarity = views[:samples] @ views[samples:].T
    true = similarity.diagonal().unsqueeze(1)
    # "Not clearly smaller" instead of "larger or equal", so that NaN is never a hit; the true candidate itself is
    # among them and makes the rank start at 1.
    ranks = [(~(candidates < true - TIE_TOLERANCE)).sum(dim=1) for candidates in (similarity, similarity.T)]
    return {number: float((torch.cat(ranks) <= number).double().mean()) for number in k}


@torch.no_grad()
def token_index_information(codes: Tensor, permutations: int = 8, seed: int = 0) -> float:
    """Return mutual information between a token's code and its index in the crop, in nats, corrected for chance.

    With few crops, the plain estimate ``I`` is far above 0 for codes that have nothing to do with the index. Its value
    by chance, ``I_0``, is measured by shuffling the codes over all crops and indices. ``I`` is mapped linearly such
    that ``I_0`` becomes 0 and the largest possible value, ``I_max = min(H(code), H(index))``, stays itself:
    ``I_max * (I - I_0) / (I_max - I_0)`` (the adjusted mutual information, times ``I_max``). Slightly negative values
    are chance. Codes that are all the same give 0: read it beside the entropies.

    Args:
        codes: (B, T) integers, e.g. the argmax of the teacher's token logits; T tokens of each of B crops. More crops
            make it more precise; those of several batches can be stacked.
        permutations: Number of shuffles.
        seed: Seed of the shuffles.

    Raises:
        ValueError: If the shape is not (B, T) with at least 2 crops, the codes are not integers or there are no
            permutations.
    """
    if codes.ndim != 2 or codes.shape[0] < 2 or codes.shape[1] < 1:
        raise ValueError(f"Expected codes of shape (B, T) with at least 2 crops, got {tuple(codes.shape)}.")
    if codes.is_floating_point() or permutations < 1:
        raise ValueError(f"Expected integer codes and permutations, got {codes.dtype} and {permutations}.")
    crops, tokens = codes.shape
    _, code = codes.detach().cpu().flatten().unique(return_inverse=True)
    index = torch.arange(tokens).repeat(crops)
    entropy_code, entropy_index = _entropy_of_counts(code), _entropy_of_counts(index)

    def information(shuffled: Tensor) -> float:
        return entropy_code + entropy_index - _entropy_of_counts(shuffled * tokens + index)

    generator = torch.Generator().manual_seed(seed)
    shuffles = [code[torch.randperm(code.numel(), generator=generator)] for _ in range(permutations)]
    by_chance = sum(information(shuffled) for shuffled in shuffles) / permutations
    largest = min(entropy_code, entropy_index)
    if largest - by_chance <= 1e-12:
        return 0.0
    return largest * (information(code) - by_chance) / (largest - by_chance)


def _entropy_of_counts(symbols: Tensor) -> float:
    """Return the entropy in nats of the empirical distribution of non-negative integers."""
    counts = symbols.bincount().double()
    return float(_entropy(counts / counts.sum()))


@torch.no_grad()
def effective_rank(x: Tensor) -> float:
    """Return the effective rank of features (Roy & Vetterli, 2007): exp of the entropy of their singular values.

    Args:
        x: (N, C).

    Returns:
        Number in [1, C]: so many directions the features use. 0 where all rows are the same.
    """
    values = x.double()
    centred = values - values.mean(dim=0)
    variances = torch.linalg.eigvalsh(centred.T @ centred / len(x)).clamp(min=0)
    # what rounding leaves of the mean is no direction
    variances = variances.where(variances > values.square().mean() * torch.finfo(x.dtype).eps ** 2, 0.0)
    singular = variances.sqrt()
    total = singular.sum()
    return float(_entropy(singular / total).exp()) if total > 0 else 0.0


@torch.no_grad()
def dead_channels(x: Tensor) -> float:
    """Return the share of channels of (N, C) whose standard deviation is below a thousandth of the largest."""
    deviations = x.double().std(dim=0, correction=0)
    return float((deviations <= 1e-3 * deviations.max()).double().mean())
