"""Which cases a run can use: those in whose preprocessed image a body is found."""

import logging
from collections.abc import Sequence

from nnunet_alice.anatomy.geometry import geometry_file, load_geometry
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import AliceError
from nnunet_alice.parallel import map_cases

logger = logging.getLogger(__name__)


def cases_with_geometry(dataset: PreprocessedDataset, cases: Sequence[str], num_processes: int) -> list[str]:
    """Cases whose geometry is on disk, after computing what is missing; the others are named in the log.

    Args:
        dataset: the preprocessed dataset.
        cases: names of the cases.
        num_processes: processes.

    Returns:
        the usable cases, sorted.
    """
    missing = [case for case in cases if not geometry_file(dataset, case).is_file()]
    failed = set()
    for case, outcome in map_cases(_compute, dataset, missing, num_processes, "Finding bodies"):
        if isinstance(outcome, Exception):
            failed.add(case)
            known = isinstance(outcome, AliceError)
            logger.warning("Left out: %s", outcome if known else f"case {case}: {type(outcome).__name__}: {outcome}")
    return sorted(set(cases) - failed)


def _compute(dataset: PreprocessedDataset, case: str) -> None:
    load_geometry(dataset, case)
