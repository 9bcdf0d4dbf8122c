"""What views are cut from: cases and the matcher that pairs them; recorded, so that ``--c`` goes on with the same."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from nnunetv2.configuration import default_num_processes

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError, NotPreparedError
from nnunet_alice.matching.interface import Matcher
from nnunet_alice.matching.registry import open_matcher
from nnunet_alice.methods.distributed import world_size
from nnunet_alice.words import counted


def record_of_views(
    matcher: Matcher | None, cases: Sequence[str], modalities: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what views depend on beside settings and seed, for the checkpoint: plain types.

    Args:
        matcher: pairs views; None if nothing does.
        cases: cases of the run; those that the matcher does not know are never seen.
        modalities: case -> modality, where there are several.

    Returns:
        ``matching``, name of the matcher; ``anatomy``, fingerprint of what it was prepared from; ``cases``,
        fingerprint of the cases' names; ``number`` of cases; ``modalities``, how many of all
        cases each has (those that nothing matches are seen, too).
    """
    seen = sorted(cases if matcher is None else set(cases) & set(matcher.cases))
    prepared = getattr(matcher, "fingerprint", None)
    prepared = asdict(prepared) if is_dataclass(prepared) and not isinstance(prepared, type) else prepared
    return {
        "matching": None if matcher is None else matcher.name,
        "anatomy": _checksum([prepared, None if matcher is None else float(matcher.threshold)]),
        "cases": _checksum(seen),
        "number": len(seen),
    } | ({"modalities": dict(sorted(Counter(modalities[case] for case in cases).items()))} if modalities else {})


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check_same_views(run: Mapping[str, Any], now: Mapping[str, Any], where: str, log: Callable[[str], None]) -> None:
    """Make sure that a continued run sees the views that it would have seen.

    Args:
        run: entry ``pretraining`` of its checkpoint.
        now: from :func:`record_of_views`.
        where: folder of the run.
        log: takes the warning that the number of GPUs is not the same.

    Raises:
        CheckpointError: matcher, anatomy or cases are others.
    """
    then = run["views"]
    changed = []
    if then["matching"] != now["matching"]:
        changed.append(f"were matched by the {then['matching']} and are by the {now['matching']}")
    elif then["anatomy"] != now["anatomy"]:
        changed.append(f"were matched by a different {now['matching']} than is prepared now")
    if then["cases"] != now["cases"]:
        changed.append(f"came from {then['number']} cases and come from {now['number']}, not all of them the same")
    if changed:
        raise CheckpointError(
            f"The run in {where} cannot be continued, as its views {' and '.join(changed)}; "
            "bring that back, or start without --c."
        ).about(path=where, option="--c")
    before = run["ranks"]
    if before != world_size():
        log(
            f"WARNING: the run began on {before} GPUs and continues on {world_size()}: from here on its views are "
            "others than they would have been."
        )


def open_or_prepare_matcher(dataset: PreprocessedDataset, name: str | None, log: Callable[[str], None]) -> Matcher:
    """Return the matcher of a name, the best that was prepared without one; prepare the atlas where none was.

    Args:
        dataset: the preprocessed dataset.
        name: of the matcher.
        log: takes a line for the log.

    Raises:
        NotPreparedError: a matcher other than the atlas is asked for and was not prepared.
    """
    try:
        return open_matcher(dataset, name=name)
    except NotPreparedError:
        if name not in (None, "atlas"):
            raise
        log(
            "No anatomy was prepared for this dataset: registering every case to an atlas now. "
            "Next time run nnunet_alice anatomy before, to look at the registrations first."
        )
        for part in dataset.parts:
            try:
                prepare_atlas(part, default_num_processes)
            except InputError as error:
                if len(dataset.parts) == 1:
                    raise
                log(f"WARNING: the cases of the modality {part.modality} are not matched: {error}")
        return open_matcher(dataset, name=name)


def cases_to_validate_on(
    matcher: Matcher,
    training: list[str],
    validation: list[str],
    log: Callable[[str], None],
    group_of: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the validation cases, or the training cases where too few of them can be matched; log what was opened.

    Args:
        matcher: of the run.
        training: training cases.
        validation: validation cases.
        log: takes a line for the log.
        group_of: case -> group within which views are paired; None or empty for one group.
    """
    log(f"Views are matched by the {matcher.name} ({counted(len(matcher.cases), 'case')}). {matcher.why}".rstrip())
    groups = Counter((group_of or {}).get(case) for case in set(validation) & set(matcher.cases))
    if max(groups.values(), default=0) >= 2:
        return validation
    log("Fewer than two validation cases can be matched: validating on training cases.")
    return training
