"""AnatomicalEmbeddingTrainer on small phantoms: runs, resumes to the bit, needs neither labels nor an atlas."""

import math

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.pretraining_runs import (
    finished_rows,
    make_trainer,
    phantom_images,
    poisoned,
    run,
    same_content,
    steps_around_a_bad_one,
    training_log,
    whole_and_resumed,
    with_method,
    with_settings,
    without_times,
    write_run,
)
from support.refused import refused

from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.errors import NonFiniteLossError
from nnunet_alice.pretraining.anatomical_embedding import EmbeddingMethod
from nnunet_alice.trainers import anatomical_embedding
from nnunet_alice.trainers.anatomical_embedding import AnatomicalEmbeddingTrainer


def variant(**run):
    """A trainer with few points and a short run."""
    few = {"positives": 8, "fine_hardest": 40, "fine_negatives": 20, "coarse_hardest": 20, "coarse_negatives": 10}
    own = {"run.epochs": 2, "run.iterations": 2, "method.validation_batches": 2, "method.dimension": 8}
    own |= {f"run.{name}": value for name, value in run.items()}
    own |= {f"method.contrast.{name}": value for name, value in few.items()}
    return with_settings(AnatomicalEmbeddingTrainer, own, "AnatomicalEmbeddingTrainer_test")


@pytest.fixture
def small_run(folders):
    """Three phantoms, preprocessed; labels and properties are not readable."""
    write_run(folders / "preprocessed", phantom_images(3))
    for pattern in ("*/*/*_seg.b2nd", "*/*/*.pkl"):
        for file in (folders / "preprocessed").glob(pattern):
            file.write_bytes(b"neither labels nor properties")
    return folders / "preprocessed"


@pytest.mark.slow
def test_a_run_leaves_what_it_promises_without_labels_or_atlas(small_run, real_figures):
    folder = run(make_trainer(variant(), small_run))
    rows = finished_rows(folder, "similarity.png")
    assert (folder / "similarity.png").stat().st_size > 10_000
    promised = {
        *("loss", "loss_fine", "loss_coarse", "val_loss", "val_loss_fine", "accuracy_fine", "accuracy_coarse"),
        *("cosine_fine_positive", "cosine_fine_negative", "cosine_coarse_positive", "cosine_coarse_negative"),
        *("match_error_median_mm", "match_error_p90_mm", "match_error_random_mm", "queries", "lr"),
    }
    assert promised <= rows[0].keys() and len(rows) == 2
    assert all(math.isfinite(float(row[name])) for row in rows for name in promised)
    assert float(rows[0]["loss"]) == pytest.approx(
        float(rows[0]["loss_fine"]) + float(rows[0]["loss_coarse"]), abs=1e-4
    )
    assert not list(small_run.glob("*/*_anatomy/atlas*"))
    log = training_log(folder)
    assert "--method embedding" in log and "fine negatives lie beyond" in log


def test_stock_nnunet_starts_from_the_checkpoint(small_run):
    path = run(make_trainer(variant(epochs=1), small_run)) / "checkpoint_final.pth"
    saved = torch.load(path, weights_only=True)
    assert saved["embedding"] == {"dimension": 8}
    assert {name.partition(".")[0] for name in saved["model_state"]} == {"heads"}
    stock = make_trainer(nnUNetTrainer, small_run)
    stock.initialize()
    load_pretrained_weights(stock.network, str(path))
    for name, value in stock.network.state_dict().items():
        assert ".seg_layers." in name or torch.equal(value, saved["network_weights"][name]), name
    assert "AnatomicalEmbedding" in describe_checkpoint(path)["method"]


@pytest.mark.slow
def test_three_epochs_equal_one_a_kill_and_two_more(small_run):
    expected, resumed = whole_and_resumed(variant(epochs=3), small_run, killed_in=1)
    for part in ("network_weights", "model_state"):
        assert expected[part].keys() == resumed[part].keys()
        for name, value in expected[part].items():
            assert torch.equal(value, resumed[part][name]), name
    one, two = (checkpoint["optimizer_state"]["state"] for checkpoint in (expected, resumed))
    assert one.keys() == two.keys() and len(one) > 0
    assert all(torch.equal(one[key]["momentum_buffer"], two[key]["momentum_buffer"]) for key in one)
    assert without_times(expected["history"]) == without_times(resumed["history"])


@pytest.mark.slow
def test_a_case_without_a_body_is_left_out(folders):
    images = phantom_images(3)
    images["case1"] = torch.zeros(1, 20, 20, 20).numpy()
    write_run(folders / "preprocessed", images)
    seen = set()

    def compute(self, batch, progress, training):
        seen.update(batch.cases)
        return EmbeddingMethod.compute(self, batch, progress, training)

    folder = run(make_trainer(with_method(variant(epochs=1), compute=compute), folders / "preprocessed"))
    assert seen == {"case0", "case2"}
    assert "No body was found in 1 of 3 cases" in training_log(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plans",
    [
        {"family": "ResidualEncoderUNet", "batch_size": 1},
        {"patch_size": (8, 32, 32), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "spacing": (32.0, 8.0, 8.0)},
        {"patch_size": (48, 48, 48)},  # larger than the volumes
    ],
    ids=["residual, one pair", "anisotropic", "small volumes"],
)
def test_other_plans(folders, plans):
    images = phantom_images(2, 1, plans.get("spacing", (16.0, 16.0, 16.0)))
    write_run(folders / "preprocessed", images, **plans)
    trainer = make_trainer(variant(epochs=1), folders / "preprocessed")
    run(trainer)
    assert all(map(math.isfinite, trainer.history.rows[0].values()))
    assert trainer.history.rows[0]["queries"] > 0


def test_a_step_whose_loss_is_not_finite_leaves_nothing_behind(small_run):
    states = steps_around_a_bad_one(make_trainer(variant(iterations=4), small_run))
    assert same_content(states["first"], states["bad"]) and not same_content(states["bad"], states["next"])


def test_a_non_finite_loss_names_the_cases(small_run):
    with refused(NonFiniteLossError, epoch=0, what="loss"):
        make_trainer(poisoned(variant(epochs=1), everything=True), small_run).run_training()


def test_a_rank_without_queries_has_the_metrics_of_the_others(small_run):
    trainer = make_trainer(variant(), small_run)
    trainer.initialize()
    some, none = ({"errors": torch.ones(n), "chance": torch.ones(n)} for n in (3, 0))
    empty = trainer.method.validation_metrics([none, none])
    assert list(empty) == list(trainer.method.validation_metrics([some, none])) and all(map(math.isnan, empty.values()))


def test_variants_are_found_by_name():
    assert anatomical_embedding.AnatomicalEmbeddingTrainer_7epochs.settings.run.epochs == 7
    smoke = anatomical_embedding.AnatomicalEmbeddingTrainer_smoke.settings.run
    assert (smoke.epochs, smoke.iterations) == (2, 2)
    whole = AnatomicalEmbeddingTrainer.settings.run
    assert whole.epochs * whole.iterations == 20_000  # the paper's
