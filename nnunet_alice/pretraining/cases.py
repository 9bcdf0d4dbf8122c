"""Which cases a run can use, and how its batch is split: what is checked before training begins."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nnunetv2.configuration import default_num_processes

from nnunet_alice.anatomy.geometry import geometry_file, load_geometry
from nnunet_alice.dataset import PreprocessedDataset, planned_gpus
from nnunet_alice.errors import InputError
from nnunet_alice.matching.interface import GeometryMatcher
from nnunet_alice.parallel import for_each_case
from nnunet_alice.training.ranks import on_one_rank

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager


def cases_with_bodies(
    dataset: PreprocessedDataset, training: list[str], validation: list[str], log: Callable[[str], None]
) -> tuple[GeometryMatcher, list[str], list[str]]:
    """Find the body of every case, on one rank first; cases without one are left out.

    Args:
        dataset: the preprocessed dataset.
        training: training cases.
        validation: validation cases.
        log: takes lines for the log.

    Returns:
        Where the bodies are, the cases to train on, and those to validate on: training cases if no other is usable.
    """
    both = sorted({*training, *validation})
    usable = set(on_one_rank(lambda: cases_with_geometry(dataset, both, default_num_processes)))
    if len(usable) < len(both):
        log(f"No body was found in {len(both) - len(usable)} of {len(both)} cases: left out.")
    training, validation = ([case for case in cases if case in usable] for cases in (training, validation))
    if not validation:
        log("No validation case can be used: validating on training cases.")
    return GeometryMatcher(dataset, usable), training, validation or training


def cases_with_geometry(dataset: PreprocessedDataset, cases: Sequence[str], num_processes: int) -> list[str]:
    """Return cases whose geometry is on disk, after computing what is missing; the others are named in the log.

    Args:
        dataset: the preprocessed dataset.
        cases: names of the cases.
        num_processes: processes.

    Returns:
        the usable cases, sorted.
    """
    outcomes = for_each_case(
        partial(_has_geometry, dataset),
        cases,
        doing="Finding bodies",
        num_processes=num_processes,
        keep=lambda case: geometry_file(dataset, case).is_file() or None,
    )
    return sorted(outcomes.results)


def _has_geometry(dataset: PreprocessedDataset, case: str) -> bool:
    load_geometry(dataset, case)
    return True


def check_batch_split(
    dataset: PreprocessedDataset, configuration: "ConfigurationManager", gpus: int, log: Callable[[str], None]
) -> None:
    """Make sure that every GPU gets a part of the batch; warn where it was planned for a different number of them.

    Args:
        dataset: the preprocessed dataset.
        configuration: of the plans.
        gpus: of this run.
        log: takes the warning.

    Raises:
        InputError: there are more GPUs than pairs in a batch.
    """
    planned = configuration.batch_size
    if planned < gpus:
        raise InputError(
            f"{dataset.base / dataset.plans_name}.json, {dataset.configuration}: batch_size {planned} cannot be split "
            f"among {gpus} GPUs; train with -num_gpus {planned}, or plan with nnunet_alice plan ... -num_gpus {gpus}."
        ).about(path=dataset.base / f"{dataset.plans_name}.json", option="-num_gpus", value=planned)
    expected = planned_gpus(configuration.configuration)
    if expected != gpus:
        each, wanted = (-(-planned // number) for number in (gpus, expected))
        log(
            f"WARNING: the batch was planned for {expected} GPU(s) with {wanted} pairs each; this run has {gpus} "
            f"with up to {each}. Train with -num_gpus {expected}, or plan with nnunet_alice plan ... -num_gpus {gpus}."
        )
