"""DrasCLRTrainer on small phantoms: runs, resumes to the bit, carries plain weights on, reads no label."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
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
    whole_and_resumed,
    with_method,
    with_settings,
    without_times,
    write_run,
)
from support.refused import refused
from support.small_datasets import set_folders

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.anatomy.subjects import save_subjects
from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError, NonFiniteLossError
from nnunet_alice.matching.atlas_landmarks import prepare_landmarks
from nnunet_alice.methods.drasclr.conversion import to_plain
from nnunet_alice.pretraining.drasclr import DrasCLRMethod
from nnunet_alice.trainers import drasclr
from nnunet_alice.trainers.drasclr import DrasCLRTrainer


def variant(base=DrasCLRTrainer, name="DrasCLRTrainer_test", **settings):
    """A trainer with a short run; settings are those of run, optimisation or method by their names."""
    own = {"run.epochs": 2, "run.iterations": 2, "run.pictures_every": 100}
    own |= {"method.validation_iterations": 2, "method.dim": 8}
    rooms = {"epochs": "run", "iterations": "run", "learning_rate": "optimisation"}
    return with_settings(base, own | {f"{rooms.get(key, 'method')}.{key}": v for key, v in settings.items()}, name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Four phantoms, preprocessed, registered, with landmarks on a wide grid: once for all tests."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(folder))
        write_run(folder, phantom_images(4))
        dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
        prepare_atlas(dataset, 1)
        prepare_landmarks(dataset, patch_mm=100, step_mm=90)
    return folder


@pytest.fixture
def small_run(prepared, tmp_path, monkeypatch):
    """A copy to write to, in-process loading."""
    set_folders(monkeypatch, tmp_path)
    shutil.copytree(prepared, tmp_path / "preprocessed", dirs_exist_ok=True)
    return tmp_path / "preprocessed"


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(small_run, real_figures):
    trainer = make_trainer(variant(), small_run)
    folder = run(trainer)
    rows = finished_rows(folder, "views.png", "debug.json")
    losses = {"loss", "loss_local", "loss_regional"}
    accuracies = {"accuracy_local", "accuracy_regional"}
    promised = losses | accuracies | {f"val_{name}" for name in losses | accuracies}
    promised |= {"negatives", "negative_age", "spread", "lr", "seconds"}
    assert promised <= rows[0].keys() and len(rows) == 2
    assert all(math.isfinite(float(row[name])) for row in rows for name in promised)
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in accuracies)
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["loss_local"]) + float(row["loss_regional"]), rel=1e-4)
    # Four cases fit one batch: every visit is one step, whose own keys are the negatives.
    assert all(0 < float(row["negatives"]) <= 3 and float(row["negative_age"]) == 0 for row in rows)
    log = training_log(folder)
    assert trainer.model.queue.keys.shape == (4, 8)
    assert f"{len(trainer.method.landmarks)} landmarks" in log and "which count as 4 subjects" in log
    assert "Crops of 8 x 8 x 8 voxels (128 x 128 x 128 mm), 2 x 2 x 2 voxels at the bottleneck" in log
    assert "Features of the plain network against those of the conditional encoder: they differ by" in log


def test_the_key_encoder_follows_and_the_queue_holds_the_batches(small_run):
    trainer = make_trainer(variant(learning_rate=0.5), small_run)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    queue = trainer.model.queue
    query, key = list(trainer.model.query.parameters()), list(trainer.model.key.parameters())
    query_before, key_before = [q.clone() for q in query], [k.clone() for k in key]
    assert all(map(torch.equal, query_before, key_before))
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    seen = queue.seen_from(batch.landmark)
    stored = seen.subjects[seen.here].tolist()
    assert [trainer.method.places.cases[subject] for subject in stored] == batch.cases
    momentum = max(0.0, 1 - 20 / trainer.progress.total_steps)
    assert not all(map(torch.equal, query_before, query))
    for before, after, now in zip(key_before, key, query, strict=True):
        torch.testing.assert_close(after, momentum * before + (1 - momentum) * now)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.validation_step(next(trainer.dataloader_val))
    assert int(queue.step) == 1


@pytest.mark.slow
def test_checkpoint_holds_the_plain_network_and_stock_nnunet_starts_from_it(small_run):
    trainer = make_trainer(variant(learning_rate=0.1), small_run)
    path = run(trainer) / "checkpoint_final.pth"
    saved = torch.load(path, weights_only=True)
    expected = to_plain(trainer.model.query.encoder, trainer.method.training_locations).state_dict()
    assert expected
    for name, value in expected.items():
        assert torch.equal(saved["network_weights"][f"encoder.{name}"], value), name
        assert torch.equal(saved["network_weights"][f"decoder.encoder.{name}"], value), name
    stock = make_trainer(nnUNetTrainer, small_run)
    stock.initialize()
    before = {name: value.clone() for name, value in stock.network.state_dict().items()}
    load_pretrained_weights(stock.network, str(path))
    for name, value in stock.network.state_dict().items():
        wanted = before[name] if ".seg_layers." in name else saved["network_weights"][name]
        assert torch.equal(value, wanted), name
    # The decoder is as it was initialised, the encoder is not.
    untrained = make_trainer(variant(), small_run)
    untrained.initialize()
    before, after = untrained.method.network_weights(), saved["network_weights"]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(".encoder." in f".{name}" for name in changed)
    lines = describe_checkpoint(path)["trained"]
    assert any(line.startswith("decoder") and "NOT trained" in line for line in lines)
    assert any(line.startswith("encoder") and line.endswith("trained") for line in lines)
    # What using the conditional encoder elsewhere needs.
    extras = saved["drasclr"]
    assert len(extras["landmarks"]["points_mm"]) == len(trainer.method.landmarks)
    assert tuple(extras["crop_size"]) == (8, 8, 8)
    assert 0 < extras["feature_difference"]["relative"] < math.inf
    assert any(name.endswith("experts") for name in saved["model_state"])


@pytest.mark.slow
def test_three_epochs_equal_two_a_kill_and_one_more(small_run):
    def keys_are_kept(continued):
        assert int(continued.model.queue.step) == 4 and (continued.model.queue.landmarks >= 0).any()

    expected, resumed = whole_and_resumed(variant(epochs=3), small_run, killed_in=2, look=keys_are_kept)
    for part in ("network_weights", "model_state", "optimizer_state", "drasclr"):
        assert same_content(expected[part], resumed[part]), part
    assert without_times(expected["history"]) == without_times(resumed["history"])


@pytest.mark.slow
def test_continuing_with_other_landmarks_is_refused(small_run):
    path = run(make_trainer(variant(epochs=1), small_run)) / "checkpoint_final.pth"
    prepare_landmarks(PreprocessedDataset(DATASET, PLANS, "3d_fullres"), patch_mm=100, step_mm=120)
    with refused(CheckpointError, path=path, option="landmarks"):
        make_trainer(variant(epochs=1), small_run).load_checkpoint(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DrasCLRTrainer_noLocation", "DrasCLRTrainer_noRegional", "DrasCLRTrainer_2experts"])
def test_ablations(small_run, name):
    trainer = make_trainer(variant(getattr(drasclr, name), name, epochs=1), small_run)
    path = run(trainer) / "checkpoint_final.pth"
    saved = torch.load(path, weights_only=True)
    experts = {len(value) for key, value in saved["model_state"].items() if key.endswith(".experts")}
    assert experts == {"DrasCLRTrainer_noLocation": set(), "DrasCLRTrainer_2experts": {2}}.get(name, {8})
    row = saved["history"][0]
    assert ("loss_regional" in row) == (name != "DrasCLRTrainer_noRegional") == ("accuracy_regional" in row)
    if name == "DrasCLRTrainer_noLocation":
        plain = trainer.model.query.encoder.encoder.state_dict()
        assert all(torch.equal(saved["network_weights"][f"encoder.{key}"], value) for key, value in plain.items())
    stock = make_trainer(nnUNetTrainer, small_run)
    stock.initialize()
    load_pretrained_weights(stock.network, str(path))


def test_ablations_see_the_batches_of_the_whole_method(small_run):
    sizes = set()
    for base in (DrasCLRTrainer, drasclr.DrasCLRTrainer_noRegional, drasclr.DrasCLRTrainer_noLocation):
        trainer = make_trainer(variant(base, max_batch=3), small_run)
        trainer.initialize()
        sizes.add((trainer.batch_size, trainer.method.crop_size))
    assert len(sizes) == 1


def test_variants_by_name():
    assert drasclr.DrasCLRTrainer_30epochs.settings.run.epochs == 30
    assert drasclr.DrasCLRTrainer_noLocation_5epochs.settings.method.conditional is False
    assert drasclr.DrasCLRTrainer_smoke.settings.run.epochs == drasclr.DrasCLRTrainer_smoke.settings.run.iterations == 2
    method = getattr(drasclr, "DrasCLRTrainer_4experts_3neighbours_temperature0.1_queue64").settings.method
    assert (method.num_experts, method.neighbours, method.temperature, method.queue_limit) == (4, 3, 0.1, 64)


@pytest.mark.slow
def test_labels_are_never_read(small_run):
    for labels in small_run.glob("*/*/*_seg.b2nd"):
        labels.write_bytes(b"not labels")
    for properties in small_run.glob("*/*/*.pkl"):
        properties.write_bytes(b"not properties")
    assert (run(make_trainer(variant(epochs=1), small_run)) / "checkpoint_final.pth").is_file()


def test_starting_from_weights_starts_the_conditional_encoder_there(small_run):
    trainer = make_trainer(variant(location_gain=0.0), small_run)
    trainer.initialize()
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.1)
    trainer.on_train_start()
    wanted = {name: value.clone() for name, value in trainer.network.encoder.state_dict().items()}
    for name, value in to_plain(trainer.model.query.encoder, trainer.method.training_locations).state_dict().items():
        torch.testing.assert_close(value, wanted[name])
    assert same_content(dict(trainer.model.query.state_dict()), dict(trainer.model.key.state_dict()))


@pytest.mark.slow
def test_validation_cases_of_a_fold_are_held_out(small_run):
    splits = [{"train": ["case0", "case1"], "val": ["case2", "case3"]}]
    next(small_run.iterdir()).joinpath("splits_final.json").write_text(json.dumps(splits))
    seen = {True: set(), False: set()}

    def compute(self, batch, progress, training):
        seen[training] |= set(batch.cases)
        return DrasCLRMethod.compute(self, batch, progress, training)

    run(make_trainer(with_method(variant(epochs=1), compute=compute), small_run, fold=0))
    assert seen == {True: {"case0", "case1"}, False: {"case2", "case3"}}


@pytest.mark.slow
def test_visits_and_subjects(small_run):
    """Up to two batches of two a visit: negatives of one step before; two scans of a person count as one subject."""
    trainer = make_trainer(variant(iterations=8, max_batch=2), small_run)
    run(trainer)
    assert all(1 < row["negatives"] <= 2 and 0 < row["negative_age"] < 1 for row in trainer.history.rows)
    dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
    save_subjects(dataset, {"case0": "ann", "case1": "ann", "case2": "bob"})
    trainer = make_trainer(variant(name="DrasCLRTrainer_subjects", epochs=1), small_run)
    folder = run(trainer)
    assert "count as 3 subjects" in training_log(folder) and trainer.model.queue.size == 3
    crops = trainer.method.batches([f"case{number}" for number in range(4)], training=True)
    for number in range(10):
        assert len({"case0", "case1"} & set(crops(number, np.random.default_rng(number)).cases)) <= 1


def test_a_step_whose_loss_is_not_finite_leaves_nothing_behind(small_run):
    trainer = make_trainer(variant(iterations=4), small_run)
    states = steps_around_a_bad_one(trainer)
    assert same_content(states["first"], states["bad"]) and not same_content(states["bad"], states["next"])
    assert (states["first"]["queue.landmarks"] >= 0).any() and states["first"]["query.standardise.batches"] == 1


def test_a_non_finite_loss_names_the_cases(small_run):
    with refused(NonFiniteLossError, epoch=0, what="loss"):
        make_trainer(poisoned(variant()), small_run).run_training()


@pytest.mark.slow
def test_without_preparation_it_prepares_and_says_so(small_run):
    shutil.rmtree(next(small_run.glob("*/*_anatomy/atlas")))
    dataset = PreprocessedDataset(DATASET, PLANS, "3d_fullres")
    trainer = make_trainer(variant(), small_run)
    trainer.initialize()
    log = training_log(trainer.output_folder)
    assert "registering every case to an atlas" in log and "laying them over the body now" in log
    assert trainer.method.landmarks.step_mm == 26 and (dataset.anatomy_folder / "atlas" / "landmarks.json").is_file()


def test_a_2d_configuration_is_refused(small_run):
    with refused(InputError, value="2d"):
        make_trainer(variant(), small_run, configuration="2d")


def test_a_pool_of_several_modalities_has_one_atlas(small_run):
    folder, modality_of = small_run / DATASET, {f"case{number}": ("CT", "T1")[number % 2] for number in range(4)}
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    (folder / f"{PLANS}.json").write_text(json.dumps(plans | {"modalities": {"CT": {}, "T1": {}}}))
    (folder / "modalities.json").write_text(json.dumps(modality_of))
    trainer = make_trainer(variant(), small_run)
    trainer.initialize()
    assert len(trainer.dataset.parts) == 2 and list(trainer.method.matcher.cases) == sorted(modality_of)
