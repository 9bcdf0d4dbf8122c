"""Raw pools of CT and MR in folders of their own, as `import` and `plan --modalities` take them."""

import numpy as np

from nnunet_alice.cli.main import main
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.phantoms import make_subject, render
from support.planned_datasets import write_image

SPACING_MM = 16.0
#: folder -> its cases as import names them; every T1 has a scale of its own, as scanners do
POOL = {"CT": ("CT__c0", "CT__c1", "CT__c2"), "T1": ("T1__m0", "T1__m1", "T1__m2")}


def write_pool(folder, pool=None):
    """Write phantoms as CT in HU, and as MR: dark bone, any scale."""
    for modality, cases in (pool or POOL).items():
        (folder / modality).mkdir(parents=True)
        for number, case in enumerate(cases):
            hounsfield = render(make_subject(number), SPACING_MM).image.astype(np.float32)
            mr = np.clip(1200 - np.abs(hounsfield), 0, None) * 3.0**number
            path = folder / modality / f"{case.partition('__')[2]}.nii.gz"
            write_image(path, hounsfield if modality == "CT" else mr, (SPACING_MM,) * 3)


def run(*words):
    """Run one of our commands, which has to succeed."""
    assert main([*map(str, words)]) == 0


def planned_pool(folder, *more, pool=None) -> PreprocessedDataset:
    """Import and plan a pool below ``folder``."""
    write_pool(folder / "pool", pool)
    run("import", "-i", folder / "pool", "-d", 900, "-n", "Pool", "--channel", "any", "-np", 1)
    run("plan", "-d", 900, "-pl", "AlicePlannerSmall", "-np", 1, "--modalities", *(more or ("folders",)))
    return PreprocessedDataset.find(900, "AliceSmallPlans", "3d_fullres")
