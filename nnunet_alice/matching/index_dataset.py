"""Index every case of a dataset with one trained embedding, resumable, and find out which scores can be trusted."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching.calibration import Calibration, calibrate, read_calibration, write_calibration
from nnunet_alice.matching.describing import METHOD, Describer, load_describer
from nnunet_alice.matching.index import CaseIndex, Fingerprint, IndexStore, index_grid
from nnunet_alice.matching.search import EmbeddingMatcher
from nnunet_alice.nnunet_folders import nnunet_folder
from nnunet_alice.parallel import Outcomes, for_each_case
from nnunet_alice.parts import Part
from nnunet_alice.words import telling

logger = logging.getLogger(__name__)

#: trainer whose checkpoint is used when none is named
TRAINER = f"{METHOD}Trainer"
#: a match has come back when it ends within so many grid steps of its start
_RETURN_STEPS = 1.5


@dataclass
class IndexReport:
    """Outcome of indexing.

    Attributes:
        checkpoint: file that made the indices.
        outcomes: of all cases.
        calibration: threshold and where it comes from; None with fewer than two cases.
    """

    checkpoint: Path
    outcomes: Outcomes[bool]
    calibration: Calibration | None = None


def default_checkpoint(dataset: PreprocessedDataset) -> Path:
    """Return the final checkpoint of ``AnatomicalEmbeddingTrainer`` (or a variant) for a dataset's plans.

    The trainer itself comes before its variants, fold ``all`` before 0, later before earlier.

    Raises:
        NotPreparedError: there is none; the message names the training command.
    """
    results = nnunet_folder("nnUNet_results") / dataset.name
    ending = f"__{dataset.plans_name}__{dataset.configuration}"
    found = [
        path
        for fold in ("fold_all", "fold_0")
        for path in results.glob(f"{TRAINER}*{ending}/{fold}/checkpoint_final.pth")
    ]
    if not found:
        raise NotPreparedError(
            f"No trained embedding in {results}; train one, or name a file with --checkpoint: "
            f"{dataset.pretraining_command(TRAINER)}"
        ).about(path=results, option="--checkpoint", command=dataset.pretraining_command(TRAINER))
    best = max(
        found,
        key=lambda path: (
            path.parent.parent.name == f"{TRAINER}{ending}",
            path.parent.name == "fold_all",
            path.stat().st_mtime,
        ),
    )
    logger.info("Embedding: %s%s", best, f" (one of {len(found)})" if len(found) > 1 else "")
    return best


def index_dataset(
    dataset: PreprocessedDataset,
    checkpoint: str | os.PathLike | None = None,
    device: torch.device | None = None,
    overwrite: bool = False,
    part: Part | None = None,
) -> IndexReport:
    """Index all cases that have no index of this checkpoint yet; a case that fails never stops the others.

    Args:
        dataset: the preprocessed dataset.
        checkpoint: of ``AnatomicalEmbeddingTrainer``; None takes :func:`default_checkpoint`.
        device: None takes the GPU if there is one.
        overwrite: index every case again.
        part: index this share of the cases only, and calibrate nothing: that is up to a run without.

    Raises:
        NotPreparedError: there is no checkpoint.
        CheckpointError: the checkpoint is unusable, or does not fit the data.
    """
    path = Path(checkpoint) if checkpoint is not None else default_checkpoint(dataset)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    describer, checksum = load_describer(path, dataset, device)
    store, fingerprint = IndexStore(dataset), Fingerprint.of(dataset, checksum, describer.dimension)
    store.begin(fingerprint, path)

    def index(case: str) -> bool:
        checksum = dataset.image_checksum(case)
        store.write(case, index_case(describer, dataset, case, overwrite), fingerprint, checksum)
        return True

    def rescue(case: str, error: Exception) -> bool:
        if not store.is_usable(case, fingerprint):  # unless a different machine made it meanwhile
            store.file(case).unlink(missing_ok=True)  # an old index of a case that changed must not be used
            raise error
        return True

    outcomes = for_each_case(
        index,
        dataset.cases() if part is None else part.share(dataset.cases()),
        doing="Indexing",
        keep=None if overwrite else lambda case: store.is_usable(case, fingerprint) or None,
        rescue=rescue,
    )
    report = IndexReport(path, outcomes)
    if part is None and len(outcomes.results) > 1:
        known = None if outcomes.done else read_calibration(store, checksum)
        try:
            report.calibration = known or _measure(dataset)
        except NotPreparedError:  # an index that was there before is damaged: only reading it through tells
            _remove_damaged(store, fingerprint, outcomes)
            report.calibration = _measure(dataset)
        write_calibration(store, report.calibration, checksum)
    return report


def _remove_damaged(store: IndexStore, fingerprint: Fingerprint, outcomes: Outcomes[bool]) -> None:
    """Remove those of the indices that were there before which cannot be read to the end."""
    for case in list(outcomes.kept):
        try:
            store.read(case, fingerprint)
        except NotPreparedError as error:
            logger.warning("The index of case %s is removed; run this again to make it: %s", case, error)
            store.file(case).unlink(missing_ok=True)
            outcomes.fail(case, telling(error))


def index_case(
    describer: Describer, dataset: PreprocessedDataset, case: str, overwrite_geometry: bool = False
) -> CaseIndex:
    """Return descriptors of one case on its body grid."""
    geometry = load_geometry(dataset, case, overwrite_geometry)
    finest_mm = min(n * s for n, s in zip(describer.fine_stride, dataset.spacing, strict=True))
    grid = index_grid(geometry, describer.dimension, finest_mm)
    inside = np.clip(grid.points_vox, 0, np.asarray(geometry.shape) - 1.0)
    fine, coarse = describer.describe(dataset.image(case), inside)
    return CaseIndex(geometry.shape, geometry.spacing, grid, fine.astype(np.float16), coarse.astype(np.float16))


def _measure(dataset: PreprocessedDataset) -> Calibration:
    """Return which scores to trust; the tolerance follows from the grid of the first cases."""
    matcher = EmbeddingMatcher(dataset)
    steps_mm = [
        max(np.multiply(matcher.search(case).index.grid.step_vox, dataset.spacing)) for case in matcher.cases[:5]
    ]
    return calibrate(matcher, dataset.spacing, float(_RETURN_STEPS * np.median(steps_mm)))
