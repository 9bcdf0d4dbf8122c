"""How far features of the plain encoder are from those of the conditional one that it was made from."""

from collections.abc import Iterable

import torch
from torch import Tensor


def feature_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Compare features of the same patches.

    Args:
        pairs: batches of (conditional features, plain features), (B, C) each, at least two patches in all.

    Returns:
        ``relative``: root mean square of the difference over that of the conditional features;
        ``relative_to_spread``: the same over the conditional features' spread about their mean, which is what tells
        patches apart: at 1 the plain encoder is as far off as the mean of all patches would be;
        ``cosine``: mean cosine of the two.

    Raises:
        ValueError: fewer than two patches.
    """
    conditional, plain = (
        torch.cat([batch.detach().double().cpu() for batch in side]) for side in zip(*pairs, strict=True)
    )
    if len(conditional) < 2:
        raise ValueError("A difference of features needs at least two patches.")
    off = (conditional - plain).square().mean()
    spread = (conditional - conditional.mean(dim=0)).square().mean()
    return {
        "relative": float((off / conditional.square().mean().clamp_min(1e-30)).sqrt()),
        "relative_to_spread": float((off / spread.clamp_min(1e-30)).sqrt()),
        "cosine": float(torch.nn.functional.cosine_similarity(conditional, plain, dim=1).mean()),
    }
