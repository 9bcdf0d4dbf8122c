"""Invalidation of what is known of images that changed; whoever writes a preprocessed case again has to call it."""

from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.anatomy.geometry import geometry_file
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.matching.evidence import EVIDENCE_FILE
from nnunet_alice.matching.index import IndexStore


def invalidate_case(dataset: PreprocessedDataset, case: str) -> None:
    """Remove geometry, registration and index of a case; with the atlas case, the atlas counts no more."""
    for atlas in _atlases(dataset):
        if atlas.named_case() == case:
            atlas.atlas_file.unlink(missing_ok=True)
        for path in (atlas.case_file(case), atlas.deformation_file(case)):
            path.unlink(missing_ok=True)
    for path in (geometry_file(dataset, case), IndexStore(dataset).file(case)):
        path.unlink(missing_ok=True)


def invalidate_all(dataset: PreprocessedDataset) -> None:
    """Remove all that is known of the images of a dataset; pictures and landmarks stay to be looked at."""
    store, atlases = IndexStore(dataset), _atlases(dataset)
    evidence = dataset.anatomy_folder / EVIDENCE_FILE
    whole = [file for atlas in atlases for file in (atlas.atlas_file, atlas.report_file)]
    for path in (*whole, store.description_file, store.calibration_file, evidence):
        path.unlink(missing_ok=True)
    for pattern in ("cases/*.npz", "atlas*/cases/*.json", "atlas*/deformations/*.npz", "embedding/*.npz"):
        for path in dataset.anatomy_folder.glob(pattern):
            path.unlink(missing_ok=True)


def _atlases(dataset: PreprocessedDataset) -> list[AtlasFiles]:
    """Return the atlas of all cases, and those of the modalities."""
    return [AtlasFiles(part) for part in (dataset.together(), *dataset.parts)]
