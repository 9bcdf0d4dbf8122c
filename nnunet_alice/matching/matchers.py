"""Opening every kind of matcher by name, so that they can be measured and looked at side by side."""

import logging
from collections.abc import Callable, Sequence

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.interface import Matcher, RelativePositionMatcher
from nnunet_alice.matching.search import EmbeddingMatcher

logger = logging.getLogger(__name__)

#: method -> opener; the most trustworthy first
METHODS: dict[str, Callable[[PreprocessedDataset], Matcher]] = {
    "embedding": EmbeddingMatcher,
    "atlas": AtlasMatcher,
    "relative": RelativePositionMatcher,
}


def open_matchers(dataset: PreprocessedDataset, methods: Sequence[str] | None = None) -> list[Matcher]:
    """Open matchers of a dataset.

    Args:
        dataset: the preprocessed dataset.
        methods: keys of ``METHODS``; None opens all that are prepared and logs which are not.

    Raises:
        InputError: an unknown method.
        NotPreparedError: a method that was asked for is not prepared; the message names the command.
    """
    if methods is not None:
        unknown = [method for method in methods if method not in METHODS]
        if unknown:
            raise InputError(f"There is no matching method '{unknown[0]}'; choose among {', '.join(METHODS)}.")
        return [METHODS[method](dataset) for method in dict.fromkeys(methods)]
    opened = []
    for method, opener in METHODS.items():
        try:
            opened.append(opener(dataset))
        except NotPreparedError as error:
            logger.info("Without %s: %s", method, error)
    return opened


def shared_cases(matchers: Sequence[Matcher]) -> list[str]:
    """Return cases that all matchers know, sorted; the log says how many are missing."""
    shared = set(matchers[0].cases).intersection(*(matcher.cases for matcher in matchers[1:]))
    known = set().union(*(matcher.cases for matcher in matchers))
    if len(shared) < len(known):
        logger.info(
            "%d of %d cases are not known to all matchers and are left out.", len(known) - len(shared), len(known)
        )
    return sorted(shared)
