"""The matchers, and which to use: of those that are prepared, the one that finds the same anatomy more often."""

import json
import logging
from collections.abc import Callable, Sequence
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
from nnunet_alice.matching.interface import Matcher, RelativePositionMatcher
from nnunet_alice.matching.modalities import ModalityAtlases
from nnunet_alice.matching.search import EmbeddingMatcher, embedding_is_prepared, open_embedding

logger = logging.getLogger(__name__)

#: Raised when evidence is measured in a different way: what is kept of older ones is measured again.
VERSION = 1
#: a matcher takes the place of one that is listed before it where its answers look more alike by more than this
MARGIN = 0.01


@dataclass(frozen=True)
class Provider:
    """A kind of matcher.

    Attributes:
        name: by which it is asked for.
        is_prepared: whether its files are there and fit the dataset, so that views may be matched by it.
        open: opens the matcher, if its matches are worth something.
        fingerprint: what its answers depend on, as plain types: evidence for a different one does not count.
        bare: opens the matcher whatever its matches are worth, to measure it; None does what ``open`` does.
    """

    name: str
    is_prepared: Callable[[PreprocessedDataset], bool]
    open: Callable[[PreprocessedDataset], Matcher]
    fingerprint: Callable[[PreprocessedDataset], Any] = lambda _: None
    bare: Callable[[PreprocessedDataset], Matcher] | None = None


def _embedding_fingerprint(dataset: PreprocessedDataset) -> Any:
    store = IndexStore(dataset)
    return [asdict(store.fingerprint()), len(store.cases())]


def _atlas_fingerprint(dataset: PreprocessedDataset) -> Any:
    reports = [AtlasFiles(part).read_report() for part in dataset.parts]
    found = [r and [r.fingerprint, [len(r.named(status)) for status in (OK, POOR, FAILED)]] for r in reports]
    return found[0] if len(found) == 1 else found


def _atlas_is_prepared(dataset: PreprocessedDataset) -> bool:
    return any(AtlasFiles(part).read_report() is not None for part in dataset.parts)


def _open_atlas(dataset: PreprocessedDataset) -> Matcher:
    return AtlasMatcher(dataset) if len(dataset.parts) == 1 else ModalityAtlases(dataset)


#: Where evidence does not tell them apart, the first of them is used. The last is a baseline, never used for training.
PROVIDERS: list[Provider] = [
    Provider("embedding", embedding_is_prepared, open_embedding, _embedding_fingerprint, EmbeddingMatcher),
    Provider("atlas", _atlas_is_prepared, _open_atlas, _atlas_fingerprint),
    Provider("relative", lambda _: False, RelativePositionMatcher),
]


def open_matchers(dataset: PreprocessedDataset, names: Sequence[str] | None = None) -> list[Matcher]:
    """Open matchers of a dataset side by side, to measure them or to look at them.

    Args:
        dataset: the preprocessed dataset.
        names: of ``PROVIDERS``; None opens all that can be opened and logs which cannot.

    Raises:
        InputError: an unknown name.
        NotPreparedError: a matcher that was asked for is not prepared; the message names the command.
    """
    known = {provider.name: provider.bare or provider.open for provider in PROVIDERS}
    for name in names or ():
        if name not in known:
            raise InputError(f"There is no matching method '{name}'; choose among {', '.join(known)}.").about(
                value=name
            )
    if names is not None:
        return [known[name](dataset) for name in dict.fromkeys(names)]
    opened = []
    for name, opener in known.items():
        try:
            opened.append(opener(dataset))
        except NotPreparedError as error:
            logger.info("Without %s: %s", name, error)
    return opened


def open_matcher(dataset: PreprocessedDataset, *, name: str | None = None) -> Matcher:
    """Open the better one of the matchers that were prepared for a dataset.

    Where there are several, their answers are compared on the images once (``matching.evidence``); the outcome is kept
    until one of them is prepared again. The matcher's attribute ``why`` says it in words.

    >>> import nnunet_alice
    >>> matcher = nnunet_alice.open_matcher(nnunet_alice.open_dataset(900))
    >>> points_vox = np.array([[12.0, 7.0, 10.0], [14.0, 6.0, 8.0]])  # (z, y, x) of the preprocessed array
    >>> matches = matcher.match("case0", "case1", points_vox)
    >>> matches.points_vox.shape, matches.scores >= matcher.threshold
    ((2, 3), array([ True,  True]))

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
    command = dataset.anatomy_command + ("" if name is None else f" --method {name}")
    raise unusable or NotPreparedError(
        f"No anatomy{'' if name is None else f' ({name})'} was prepared for {dataset.folder}; run: {command}"
    ).about(path=dataset.folder, value=name, command=command)


def _best_first(
    dataset: PreprocessedDataset, prepared: list[Provider]
) -> tuple[list[Provider], str, dict[str, Matcher]]:
    """Return providers, the best first; why, in a sentence; and what had to be opened to find out."""
    made_of = json.loads(json.dumps({provider.name: provider.fingerprint(dataset) for provider in prepared}))
    path, opened = dataset.anatomy_folder / EVIDENCE_FILE, {}
    likeness = _kept(path, made_of)
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
        write_json(path, {"version": VERSION, "fingerprint": made_of, "evidence": evidence})
    best = max(prepared, key=lambda provider: likeness.get(provider.name, 0.0))
    first = next(one for one in prepared if likeness.get(one.name, 0.0) >= likeness[best.name] - MARGIN)
    others = [one for one in prepared if one is not first]
    compared = ", ".join(f"the {one.name} {likeness.get(one.name, 0.0):.2f}" for one in (first, *others))
    why = f"The {first.name} is used: what its matches show is most alike in the images (correlation: {compared})."
    return [first, *others], why, opened


def _kept(path: Path, made_of: Any) -> dict[str, float] | None:
    """Return the name of each matcher -> likeness, as measured before; None if that was with something else."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if (content["version"], content["fingerprint"]) != (VERSION, made_of):
            return None
        return {name: float(evidence["likeness"]) for name, evidence in content["evidence"].items()}
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        logger.warning("%s is not usable (%s) and is measured again.", path, error)
        return None
