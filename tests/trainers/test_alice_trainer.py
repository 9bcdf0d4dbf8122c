"""AliceTrainer on small phantoms: runs, resumes to the bit, stops when it must, reads no label."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.alice_runs import LaterMatcher, opened_matcher, variant
from support.pretraining_runs import (
    DATASET,
    PLANS,
    finished_rows,
    make_trainer,
    phantom_images,
    poisoned,
    run,
    same_content,
    steps_around_a_bad_one,
    training_log,
    with_method,
    with_settings,
    write_run,
)
from support.refused import refused

from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, NonFiniteLossError, NotPreparedError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.matching import registry
from nnunet_alice.matching.registry import Provider
from nnunet_alice.pretraining.alice import AliceMethod, AlicePretrainingSettings
from nnunet_alice.trainers import alice


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(fresh_run, real_figures):
    trainer = make_trainer(variant(), fresh_run)
    folder = run(trainer)
    rows = finished_rows(folder, "views.png", "debug.json")
    promised = {
        *("loss", "loss_cls", "loss_align", "loss_reconstruction", "val_loss", "lr", "seconds", "views_per_second"),
        *("conditional_entropy_cls", "marginal_entropy_cls", "conditional_entropy_align", "spread", "centre_norm"),
        *("retrieval_top1", "retrieval_top5", "match_score", "accepted_at_first_draw", "token_index_information"),
    }
    assert promised <= rows[0].keys() and len(rows) == 2
    assert all(math.isfinite(float(row[name])) for row in rows for name in promised)
    log = training_log(folder)
    assert "matched by the atlas" in log and "No anatomy was prepared" in log and "nnunet_alice inspect" in log
    assert all(f"{name} " in log for name in promised)


def test_omp_num_threads_limits_training_on_the_cpu(fresh_run, two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_trainer(variant(), fresh_run)
    assert torch.get_num_threads() == 1


def test_fewer_gpus_than_planned_are_warned_of(small_run):
    path = small_run / DATASET / f"{PLANS}.json"
    plans = read_json(path)
    plans["configurations"]["3d_fullres"] |= {"batch_size": 6, "num_gpus": 3}
    write_json(path, plans)
    trainer = make_trainer(variant(), small_run)
    trainer.initialize()
    log = Path(trainer.log_file).read_text()
    assert "planned for 3 GPU(s) with 2 pairs each; this run has 1 with up to 6. Train with -num_gpus 3, or plan" in log


@pytest.mark.slow
def test_checkpoint_is_plain_and_stock_nnunet_starts_from_it(small_run):
    folder = run(make_trainer(variant(), small_run))
    path = folder / "checkpoint_final.pth"
    saved = torch.load(path, weights_only=True)
    assert saved["init_args"]["plans"]["plans_name"] == "nnUNetPlans" and saved["trainer_name"] == "AliceTrainer_test"
    stock = make_trainer(nnUNetTrainer, small_run)
    stock.initialize()
    before = {name: value.clone() for name, value in stock.network.state_dict().items()}
    load_pretrained_weights(stock.network, str(path))
    for name, value in stock.network.state_dict().items():
        expected = before[name] if ".seg_layers." in name else saved["network_weights"][name]
        assert torch.equal(value, expected), name


@pytest.mark.slow
def test_labels_are_never_read(fresh_run):
    for labels in fresh_run.glob("*/*/*_seg.b2nd"):
        labels.write_bytes(b"not labels")
    for properties in fresh_run.glob("*/*/*.pkl"):
        properties.write_bytes(b"not properties")
    assert (run(make_trainer(variant(), fresh_run)) / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("sinkhorn", [True, False])
def test_a_step_whose_loss_is_not_finite_leaves_nothing_behind(small_run, sinkhorn):
    trainer = make_trainer(with_settings(variant(iterations=4), {"method.sinkhorn": sinkhorn}), small_run)
    states = steps_around_a_bad_one(trainer)
    assert same_content(states["first"], states["bad"]) and not same_content(states["bad"], states["next"])
    assert states["first"]["centre_cls.value"].any()
    log = training_log(trainer.output_folder)
    assert len(re.findall(r"WARNING: the loss is not finite on the cases case\d.*: this step is left out", log)) == 1


@pytest.mark.slow
def test_a_non_finite_loss_names_the_cases_and_keeps_the_last_checkpoint(small_run):
    kind = poisoned(variant(epochs=3, save_every=1), lambda progress, _: progress.epoch == 2)
    trainer = make_trainer(kind, small_run)
    with refused(NonFiniteLossError, steps=2, epoch=2, what="loss") as caught:
        trainer.run_training()
    assert caught.value.slower.startswith("AliceTrainer_test_lr0.000") and caught.value.cases
    folder = Path(trainer.output_folder)
    saved = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    assert saved["current_epoch"] == 2 and not (folder / "checkpoint_final.pth").exists()
    assert all(torch.isfinite(weight).all() for weight in saved["network_weights"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "base",
    ["AliceTrainer_noCASA", "AliceTrainer_noContrast", "AliceTrainer_noReconstruction", "AliceTrainer_sameVolume"]
    + ["AliceTrainer_paper", "AliceTrainer_weakContrast", "AliceTrainer_atlas"],
)
def test_ablations_run_and_say_what_they_trained(small_run, base):
    path = run(make_trainer(variant(getattr(alice, base), base), small_run)) / "checkpoint_final.pth"
    description = describe_checkpoint(path)
    decoder = next(line for line in description["trained"] if line.startswith("decoder"))
    assert ("NOT trained" in decoder) == (base == "AliceTrainer_noReconstruction")
    assert ("but for the first stage" in decoder) == (base == "AliceTrainer_noReconstruction")
    metrics = torch.load(path, weights_only=True)["history"][-1]
    assert ("spread" in metrics) == (base != "AliceTrainer_noContrast")
    assert metrics["loss_reconstruction"] == 0 or base != "AliceTrainer_noReconstruction"
    assert base == "AliceTrainer_noContrast" or metrics["retrieval_top5"] >= metrics["retrieval_top1"]


@pytest.mark.slow
def test_masked_images_need_no_anatomy(fresh_run):
    """Any crop of the body: nothing is registered, nothing is matched, and no metric says that it was."""
    folder = run(make_trainer(variant(alice.MIMTrainer, "MIMTrainer_test"), fresh_run))
    rows = finished_rows(folder, "views.png")
    assert not list(fresh_run.glob("*/*_anatomy/atlas*")) and "registering" not in training_log(folder)
    assert float(rows[1]["loss"]) == pytest.approx(10 * float(rows[1]["loss_reconstruction"]), rel=1e-5)
    assert not any(name.startswith(("match", "retrieval", "unmatched")) for name in rows[0])
    saved = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert saved["pretraining"]["matching"] is None and saved["pretraining"]["views"]["number"] == 4
    with pytest.raises(ValueError):
        AlicePretrainingSettings(paired=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plans",
    [
        {"family": "ResidualEncoderUNet"},
        {"patch_size": (8, 32, 32), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "spacing": (32.0, 8.0, 8.0)},
        {"patch_size": (48, 48, 48)},  # larger than the volumes
        {"channels": 3},
    ],
    ids=["residual", "anisotropic", "small volumes", "three channels"],
)
def test_other_plans(folders, plans):
    spacing = plans.get("spacing", (16.0, 16.0, 16.0))
    images = phantom_images(3, plans.pop("channels", 1), spacing)
    write_run(folders / "preprocessed", images, **plans)
    trainer = make_trainer(variant(epochs=1), folders / "preprocessed")
    run(trainer)
    assert all(map(math.isfinite, trainer.history.rows[0].values()))


def test_what_cannot_work_gets_one_sentence(folders, fresh_run):
    with refused(InputError, value="2d"):
        make_trainer(variant(), fresh_run, configuration="2d")
    for case in ("case1", "case2", "case3"):
        for path in fresh_run.glob(f"*/*/{case}*"):
            path.unlink()
    with refused(InputError, value=1):
        run(make_trainer(variant(), fresh_run))


@pytest.mark.slow
def test_the_matcher_can_be_chosen(small_run, monkeypatch):
    """An embedding that is there wins, but for the variant that wants the atlas; where none is, its variant stops."""
    with refused(NotPreparedError, command="--method embedding"):
        run(make_trainer(variant(alice.AliceTrainer_embedding), small_run))
    embedding = Provider("embedding", lambda _: True, LaterMatcher)
    monkeypatch.setattr(registry, "PROVIDERS", [embedding, *registry.PROVIDERS])
    for base, expected in ((alice.AliceTrainer, "embedding"), (alice.AliceTrainer_atlas, "atlas")):
        trainer = make_trainer(variant(base), small_run)
        trainer.initialize()
        assert opened_matcher(trainer).name == expected


@pytest.mark.slow
def test_validation_cases_of_a_fold_are_held_out(small_run):
    splits = [{"train": ["case0", "case1"], "val": ["case2", "case3"]}]
    next(small_run.iterdir()).joinpath("splits_final.json").write_text(json.dumps(splits))
    seen = {True: set(), False: set()}

    def compute(self, batch, progress, training):
        seen[training] |= {case for pair in batch.pairs for case in (pair.case_a, pair.case_b)}
        assert batch.cases == sorted({case for pair in batch.pairs for case in (pair.case_a, pair.case_b)})
        return AliceMethod.compute(self, batch, progress, training)

    run(make_trainer(with_method(variant(), compute=compute), small_run, fold=0))
    assert seen == {True: {"case0", "case1"}, False: {"case2", "case3"}}


@pytest.mark.slow
def test_pretraining_may_start_from_weights(small_run):
    """As nnUNetv2_train -pretrained_weights does it; the teacher starts there, too."""
    path = run(make_trainer(variant(), small_run)) / "checkpoint_final.pth"
    weights = torch.load(path, weights_only=True)["network_weights"]
    trainer = make_trainer(with_settings(variant(), {"optimisation.learning_rate": 0.0}), small_run)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(path))
    trainer.on_train_start()
    for name, value in trainer.model.teacher.backbone.network.state_dict().items():
        assert ".seg_layers." in name or torch.equal(value, weights[name])


def test_variants_are_found_by_name():
    assert alice.AliceTrainer_7epochs.settings.run.epochs == 7
    assert alice.AliceTrainer_noCASA_30epochs.settings.method.casa is False
    assert (alice.AliceTrainer_smoke.settings.run.epochs, alice.AliceTrainer_smoke.settings.run.iterations) == (2, 2)
    assert not hasattr(alice, "AliceTrainer_manyepochs")


@pytest.mark.slow
def test_validation_keeps_the_arrays_of_its_first_batch_only(small_run):
    """Full patches of a whole validation epoch take gigabytes, and one batch is drawn."""
    seen, drawn, largest = [], [], []

    def compute(self, batch, progress, training):
        result = AliceMethod.compute(self, batch, progress, training)
        if not training:
            seen.append(batch.views)
            largest.append(max(value.numel() for value in result.outputs.values()))
        return result

    def draw(self, batch, result, folder):
        drawn.append(batch.views)

    trainer = make_trainer(with_method(variant(epochs=2), compute=compute, draw=draw), small_run)
    trainer.run_training()
    assert len(seen) == 4 and len(drawn) == 2 and max(largest) < seen[0].numel() / 8
    assert drawn[0] is seen[0] and drawn[1] is seen[2] and (seen[0] != seen[1]).any()
    assert trainer._first_validation is None


@pytest.mark.parametrize("volume, warned", [((40, 40, 40), False), ((24, 40, 40), False), ((18, 18, 18), True)])
def test_views_as_large_as_volumes_are_warned_of(small_run, monkeypatch, volume, warned):
    """Two thirds of 24 voxels are the patch's 16; of 18 they are 12."""
    monkeypatch.setattr(PreprocessedDataset, "shape", lambda self, case: volume)
    trainer = make_trainer(variant(), small_run)
    trainer.initialize()
    trainer.get_dataloaders()
    log = training_log(trainer.output_folder)
    assert ("views of 16x16x16 voxels show nearly all of a volume of 18x18x18" in log) == warned
    assert ("set patch_size to 12x12x12" in log) == warned


def test_an_image_that_cannot_be_opened_does_not_stop_the_start(small_run, caplog):
    """Damaged after the matcher was opened, which leaves out what it finds damaged."""
    trainer = make_trainer(variant(), small_run)
    trainer.initialize()
    trainer.method.prepare(trainer.dataset.cases(), [])
    matcher = trainer.method.matcher
    damaged = matcher.cases[0]
    (trainer.dataset.folder / f"{damaged}.b2nd").write_bytes(b"no image")
    views = trainer.method.batches(list(matcher.cases), training=True)
    assert list(views.pairs.readings.unreadable) == [damaged]
    assert f"Case {damaged} is left out of training" in caplog.text
    assert views(0, np.random.default_rng(0)).views.isfinite().all()
