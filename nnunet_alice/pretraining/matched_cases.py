"""What views are cut from: cases and the matcher that pairs them; recorded, so that ``--c`` goes on with the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from nnunetv2.configuration import default_num_processes

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, NotPreparedError
from nnunet_alice.matching.interface import Matcher
from nnunet_alice.matching.registry import open_matcher
from nnunet_alice.methods.distributed import world_size
from nnunet_alice.training.ranks import on_one_rank_first


def record_of_views(matcher: Matcher | None, cases: Sequence[str]) -> dict[str, Any]:
    """What views depend on beside settings and seed, for the checkpoint: plain types.

    Args:
        matcher: pairs views; None if nothing does.
        cases: cases of the run; those that the matcher does not know are never seen.

    Returns:
        ``matching``, name of the matcher; ``anatomy``, fingerprint of what it was prepared from; ``cases``,
        fingerprint of the cases' names; ``number`` of cases.
    """
    seen = sorted(cases if matcher is None else set(cases) & set(matcher.cases))
    prepared = getattr(matcher, "fingerprint", None)
    prepared = asdict(prepared) if is_dataclass(prepared) else prepared
    return {
        "matching": None if matcher is None else matcher.name,
        "anatomy": _digest([prepared, None if matcher is None else float(matcher.threshold)]),
        "cases": _digest(seen),
        "number": len(seen),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check_same_views(run: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Make sure that a continued run sees the views that it would have seen.

    Args:
        run: entry ``pretraining`` of its checkpoint. Older ones know the matcher's name only.
        now: from :func:`record_of_views`.
        where: folder of the run.

    Raises:
        CheckpointError: matcher, anatomy or cases are others.
    """
    then = run.get("views") or {"matching": run["matching"]}
    changed = []
    if then["matching"] != now["matching"]:
        changed.append(f"were matched by the {then['matching']} and are by the {now['matching']}")
    elif then.get("anatomy", now["anatomy"]) != now["anatomy"]:
        changed.append(f"were matched by another {now['matching']} than is prepared now")
    if then.get("cases", now["cases"]) != now["cases"]:
        changed.append(f"came from {then['number']} cases and come from {now['number']}, not all of them the same")
    if changed:
        raise CheckpointError(
            f"The run in {where} cannot be continued, as its views {' and '.join(changed)}; "
            "bring that back, or start without --c."
        )


class MatchedCases:
    """Mixed into pretraining trainers: the matcher, and the record of what views are cut from.

    Attributes:
        dataset: the preprocessed dataset.
        matcher: pairs views, once it was opened.
        views_record: from :func:`record_of_views`, once the cases are known.
        resumed_run: entry ``pretraining`` of the checkpoint that the run continues from.
    """

    dataset: PreprocessedDataset
    matcher: Matcher | None = None
    views_record: dict[str, Any] | None = None
    resumed_run: Mapping[str, Any] | None = None

    def prepare_cases(self, train_cases: list[str], validation_cases: list[str]) -> tuple[list[str], list[str]]:
        """Hook: make ready what views need of these cases; returns those to train and to validate on."""
        self.matcher = on_one_rank_first(self.open_matcher)
        self.print_to_log_file(f"Views are matched by the {self.matcher.name} ({len(self.matcher.cases)} cases).")
        if len(set(validation_cases) & set(self.matcher.cases)) < 2:
            self.print_to_log_file("Fewer than two validation cases can be matched: validating on training cases.")
            validation_cases = train_cases
        return train_cases, validation_cases

    def open_matcher(self) -> Matcher:
        """The matcher that was prepared; prepares the atlas where none was."""
        try:
            return self.open_prepared_matcher()
        except NotPreparedError:
            if self.recorded_matching not in (None, "atlas"):
                raise
            self.print_to_log_file(
                "No anatomy was prepared for this dataset: registering every case to an atlas now. "
                "Next time run nnunet_alice anatomy before, to look at the registrations first."
            )
            prepare_atlas(self.dataset, default_num_processes)
            return self.open_prepared_matcher()

    def open_prepared_matcher(self) -> Matcher:
        """Hook: the best matcher that was prepared; a continued run takes the one that it began with.

        Raises:
            NotPreparedError: none was.
        """
        return open_matcher(self.dataset, name=self.recorded_matching)

    @property
    def recorded_matching(self) -> str | None:
        """Name of the matcher of the run that is continued."""
        return None if self.resumed_run is None else self.resumed_run["matching"]

    def note_views(self, train_cases: Sequence[str]) -> None:
        """Record what views are cut from; a run that is continued must have the same.

        Raises:
            CheckpointError: it has not.
        """
        self.views_record = record_of_views(self.matcher, train_cases)
        if self.resumed_run is None or self.current_epoch >= self.num_epochs:
            return
        check_same_views(self.resumed_run, self.views_record, self.output_folder)
        before = self.resumed_run.get("ranks", world_size())
        if before != world_size():
            self.print_to_log_file(
                f"WARNING: the run began on {before} GPUs and continues on {world_size()}: from here on its views are "
                "others than they would have been."
            )
