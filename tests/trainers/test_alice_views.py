"""What AliceTrainer sees on small phantoms: the body in every view, and cases that cannot be matched."""

import math

import numpy as np
import pytest
from support.pretraining_runs import (
    DATASET,
    PLANS,
    finished_rows,
    make_trainer,
    phantom_images,
    run,
    training_log,
    with_settings,
    write_run,
)

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.anatomy.atlas_files import POOR, AtlasFiles
from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.cropping import crop_bounds
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.files import read_json, write_json
from nnunet_alice.trainers import alice

SMALL = {"method.hidden_dim": 16, "method.bottleneck_dim": 8, "method.prototypes": 16, "method.attention_heads": 2}
SHORT = SMALL | {"method.retrieval_candidates": 4, "run.epochs": 2, "run.iterations": 4}


@pytest.fixture
def dataset(folders):
    """Four phantoms, registered to an atlas."""
    write_run(folders / "preprocessed", phantom_images(4))
    dataset = PreprocessedDataset.find(DATASET, PLANS, "3d_fullres")
    prepare_atlas(dataset, 1)
    return dataset


@pytest.mark.parametrize("name", ["AliceTrainer", "AliceTrainer_maskedOnly", "AliceTrainer_withAir", "MIMTrainer"])
def test_reconstruction_asks_for_the_body(dataset, name):
    trainer = make_trainer(with_settings(getattr(alice, name), SHORT, f"{name}_test"), dataset.base.parent)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    if name == "AliceTrainer_withAir":
        assert batch.body is None
        return
    centres = [(p.case_a, p.point_a) for p in batch.pairs] + [(p.case_b, p.point_b) for p in batch.pairs]
    for (case, point), body in zip(centres, batch.body.numpy(), strict=True):
        geometry, first = load_geometry(dataset, case), crop_bounds(point, body.shape)
        voxels = np.argwhere(np.ones(body.shape, bool)) + first
        np.testing.assert_array_equal(body.ravel(), geometry.in_body(voxels, tolerance_cells=0))
    assert 0 < batch.body.float().mean() < 1
    step = trainer.method.model.eval().compute(batch.views, batch.mask, 0.04, body=batch.body)
    where = batch.body & batch.mask if name == "AliceTrainer_maskedOnly" else batch.body
    rows = slice(0, len(batch.pairs) if name != "MIMTrainer" else None)
    errors = (step.reconstruction - batch.views)[rows].square()[where[rows].unsqueeze(1)]
    assert step.terms["loss_reconstruction"].item() == pytest.approx(0.5 * errors.mean().item(), rel=1e-4)


@pytest.mark.slow
def test_a_case_with_a_poor_registration_is_seen_and_counted(dataset):
    files = AtlasFiles(dataset)
    poor = next(case for case in dataset.cases() if case != files.atlas_case())
    report = read_json(files.report_file)
    report["cases"][poor]["status"] = POOR
    write_json(files.report_file, report)
    changes = SHORT | {"run.iterations": 12}
    trainer = make_trainer(with_settings(alice.AliceTrainer, changes, "AliceTrainer_test"), dataset.base.parent)
    folder = run(trainer)
    rows = finished_rows(folder)
    assert f"1 of 4 cases ({poor}) cannot be matched" in training_log(folder)
    share = np.mean([float(row["unmatched_pairs"]) for row in rows])
    assert 0 < share < 0.6  # a quarter of the draws
    assert all(math.isfinite(float(row["loss"])) for row in rows)
