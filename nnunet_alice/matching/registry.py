"""Which matcher to use: the best one that was prepared for a dataset."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.interface import Matcher
from nnunet_alice.matching.search import EmbeddingMatcher, embedding_is_prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provider:
    """A kind of matcher that has to be prepared for a dataset.

    Attributes:
        name: the matcher's name.
        is_prepared: whether its files are there and fit the dataset.
        open: opens the matcher.
    """

    name: str
    is_prepared: Callable[[PreprocessedDataset], bool]
    open: Callable[[PreprocessedDataset], Matcher]


#: Best first: the first one that is prepared is used.
PROVIDERS: list[Provider] = [
    Provider("embedding", embedding_is_prepared, EmbeddingMatcher),
    Provider("atlas", lambda dataset: AtlasFiles(dataset).read_report() is not None, AtlasMatcher),
]


def open_matcher(dataset: PreprocessedDataset, *, name: str | None = None) -> Matcher:
    """Open the best matcher that was prepared for a dataset.

    Args:
        dataset: the preprocessed dataset.
        name: take the matcher of this name only.

    Raises:
        NotPreparedError: nothing is prepared; the message names the command.
    """
    unusable = None
    for provider in PROVIDERS:
        if name in (None, provider.name) and provider.is_prepared(dataset):
            try:
                return provider.open(dataset)
            except NotPreparedError as error:  # it is there, but too little of it is usable
                logger.warning("%s", error)
                unusable = error
    raise unusable or NotPreparedError(
        f"No anatomy{'' if name is None else f' ({name})'} was prepared for {dataset.folder}; run: "
        f"nnunet_alice anatomy -d {dataset.number} -p {dataset.plans_name} -c {dataset.configuration}"
        + ("" if name is None else f" --method {name}")
    )
