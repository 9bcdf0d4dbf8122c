"""Signs that self-distillation has died while the total loss still looks healthy."""

import math
from collections.abc import Mapping

#: an embedding of isotropic unit vectors has spread 1, one that forgot its input 0
MIN_SPREAD = 0.05
#: share of ln K above which a teacher's targets say nothing
MAX_ENTROPY_SHARE = 0.97
#: share of ln K below which all samples share their targets
MIN_MARGINAL_SHARE = 0.1
#: nats of a token's code explained by its index in the crop, as a share of the index's own entropy
MAX_INDEX_SHARE = 0.5


def signs_of_collapse(metrics: Mapping[str, float], prototypes: int, tokens: int) -> list[str]:
    """Return what is wrong, one sentence each; empty while all is well.

    Args:
        metrics: an epoch's metrics; those that a method does not have are skipped.
        prototypes: K.
        tokens: number of tokens whose codes ``token_index_information`` was measured on.
    """
    top = math.log(prototypes)
    found = []
    if metrics.get("spread", 1.0) < MIN_SPREAD:
        found.append(f"embedding spread {metrics['spread']:.4f} is below {MIN_SPREAD}: all views look alike")
    for term in ("cls", "align"):
        conditional = metrics.get(f"conditional_entropy_{term}", 0.0)
        marginal = metrics.get(f"marginal_entropy_{term}", top)
        if conditional > MAX_ENTROPY_SHARE * top:
            found.append(f"teacher entropy of {term} is {conditional:.2f}, at most {top:.2f}: its targets say nothing")
        if marginal < MIN_MARGINAL_SHARE * top:
            found.append(f"marginal entropy of {term} is {marginal:.2f}, at most {top:.2f}: one prototype takes all")
    information = metrics.get("token_index_information", 0.0)
    if tokens > 1 and information > MAX_INDEX_SHARE * math.log(min(tokens, prototypes)):
        found.append(f"token codes hold {information:.2f} nats about the token's index: they tell place, not content")
    return found
