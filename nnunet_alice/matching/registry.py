"""Which matcher to use: of those that were prepared for a dataset, the one that finds the same anatomy more often."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR, AtlasFiles
from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.evidence import EVIDENCE_FILE, measure_evidence
from nnunet_alice.matching.index import IndexStore
from nnunet_alice.matching.interface import Matcher
from nnunet_alice.matching.modalities import ModalityAtlases
from nnunet_alice.matching.search import embedding_is_prepared, open_trusted_embedding

logger = logging.getLogger(__name__)

#: Raised when evidence is measured in another way: what is kept of older ones is measured again.
VERSION = 1
#: a matcher takes the place of one that is listed before it where its answers look more alike by more than this
MARGIN = 0.01


@dataclass(frozen=True)
class Provider:
    """A kind of matcher that has to be prepared for a dataset.

    Attributes:
        name: the matcher's name.
        is_prepared: whether its files are there and fit the dataset.
        open: opens the matcher.
        basis: what its answers depend on, as plain types: evidence for another basis does not count.
    """

    name: str
    is_prepared: Callable[[PreprocessedDataset], bool]
    open: Callable[[PreprocessedDataset], Matcher]
    basis: Callable[[PreprocessedDataset], Any] = lambda dataset: None


def _basis_of_embedding(dataset: PreprocessedDataset) -> Any:
    store = IndexStore(dataset)
    return [asdict(store.fingerprint()), len(store.cases())]


def _basis_of_atlas(dataset: PreprocessedDataset) -> Any:
    reports = [AtlasFiles(part).read_report() for part in dataset.parts]
    basis = [r and [r.fingerprint, [len(r.named(status)) for status in (OK, POOR, FAILED)]] for r in reports]
    return basis[0] if len(basis) == 1 else basis


def _atlas_is_prepared(dataset: PreprocessedDataset) -> bool:
    return any(AtlasFiles(part).read_report() is not None for part in dataset.parts)


def _open_atlas(dataset: PreprocessedDataset) -> Matcher:
    return AtlasMatcher(dataset) if len(dataset.parts) == 1 else ModalityAtlases(dataset)


#: Where evidence does not tell them apart, the first of them is used.
PROVIDERS: list[Provider] = [
    Provider("embedding", embedding_is_prepared, open_trusted_embedding, _basis_of_embedding),
    Provider("atlas", _atlas_is_prepared, _open_atlas, _basis_of_atlas),
]


def open_matcher(dataset: PreprocessedDataset, *, name: str | None = None) -> Matcher:
    """Open the better one of the matchers that were prepared for a dataset.

    Where there are several, their answers are compared on the images once (``matching.evidence``); the outcome is kept
    until one of them is prepared again. The matcher's attribute ``why`` says it in words.

    Args:
        dataset: the preprocessed dataset.
        name: take the matcher of this name only.

    Raises:
        NotPreparedError: nothing is prepared; the message names the command.
    """
    prepared = [one for one in PROVIDERS if name in (None, one.name) and one.is_prepared(dataset)]
    opened: dict[str, Matcher] = {}
    why, unusable = "", None
    if len(prepared) > 1:
        prepared, why, opened = _best_first(dataset, prepared)
    for provider in prepared:
        try:
            matcher = opened.get(provider.name) or provider.open(dataset)
        except NotPreparedError as error:  # it is there, but too little of it is usable
            logger.warning("%s", error)
            unusable = error
            continue
        if why and provider is prepared[0]:
            matcher.why = why
            logger.info("%s", why)
        return matcher
    raise unusable or NotPreparedError(
        f"No anatomy{'' if name is None else f' ({name})'} was prepared for {dataset.folder}; run: "
        f"nnunet_alice anatomy -d {dataset.number} -p {dataset.plans_name} -c {dataset.configuration}"
        + ("" if name is None else f" --method {name}")
    )


def _best_first(
    dataset: PreprocessedDataset, prepared: list[Provider]
) -> tuple[list[Provider], str, dict[str, Matcher]]:
    """Providers, the best first; why, in a sentence; and what had to be opened to find out."""
    basis = json.loads(json.dumps({provider.name: provider.basis(dataset) for provider in prepared}))
    path, opened = dataset.anatomy_folder / EVIDENCE_FILE, {}
    likeness = _kept(path, basis)
    if likeness is None:
        for provider in prepared:
            try:
                opened[provider.name] = provider.open(dataset)
            except NotPreparedError:  # said when its turn comes
                continue
        if len(opened) < 2:
            return sorted(prepared, key=lambda provider: provider.name not in opened), "", opened
        logger.info("Comparing the matchers %s on the images, once.", " and ".join(opened))
        found = measure_evidence(list(opened.values()), lambda case: load_geometry(dataset, case))
        likeness = {name: evidence.likeness for name, evidence in zip(opened, found, strict=True)}
        evidence = {name: asdict(one) for name, one in zip(opened, found, strict=True)}
        write_json(path, {"version": VERSION, "basis": basis, "evidence": evidence})
    best = max(prepared, key=lambda provider: likeness.get(provider.name, 0.0))
    first = next(one for one in prepared if likeness.get(one.name, 0.0) >= likeness[best.name] - MARGIN)
    others = [one for one in prepared if one is not first]
    compared = ", ".join(f"the {one.name} {likeness.get(one.name, 0.0):.2f}" for one in (first, *others))
    why = f"The {first.name} is used: what its matches show is most alike in the images (correlation: {compared})."
    return [first, *others], why, opened


def _kept(path: Path, basis: Any) -> dict[str, float] | None:
    """Name of each matcher -> likeness, as measured before; None if that was with something else."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if (content["version"], content["basis"]) != (VERSION, basis):
            return None
        return {name: float(evidence["likeness"]) for name, evidence in content["evidence"].items()}
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        logger.warning("%s is not usable (%s) and is measured again.", path, error)
        return None
