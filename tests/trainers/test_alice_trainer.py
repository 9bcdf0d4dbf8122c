"""AliceTrainer on small phantoms: runs, resumes to the bit, stops when it must, reads no label."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.pretraining_runs import (
    DATASET,
    PLANS,
    finished_rows,
    kill_at,
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

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, InputError, NonFiniteLossError, NotPreparedError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.matching import registry
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.registry import Provider
from nnunet_alice.pretraining.alice import AliceMethod, AlicePretrainingSettings
from nnunet_alice.trainers import alice

SMALL = {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 16, "attention_heads": 2, "retrieval_candidates": 4}


def variant(base=alice.AliceTrainer, name="AliceTrainer_test", **run):
    """A trainer with a small head and a short run."""
    own = {"run.epochs": 2, "run.iterations": 2} | {f"run.{key}": value for key, value in run.items()}
    return with_settings(base, own | {f"method.{key}": value for key, value in SMALL.items()}, name)


@pytest.fixture
def fresh_run(folders):
    """Four phantoms, preprocessed; no anatomy yet."""
    write_run(folders / "preprocessed", phantom_images(4))
    return folders / "preprocessed"


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """The same, registered to an atlas, once for all tests."""
    base = tmp_path_factory.mktemp("registered")
    write_run(base, phantom_images(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(base))
        prepare_atlas(PreprocessedDataset.find(DATASET, PLANS, "3d_fullres"), 1)
    return base


@pytest.fixture
def small_run(folders, registered):
    """A copy of the registered dataset."""
    shutil.copytree(registered, folders / "preprocessed", dirs_exist_ok=True)
    return folders / "preprocessed"


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
def test_four_epochs_equal_two_a_kill_and_two_more(small_run):
    expected, resumed = whole_and_resumed(variant(epochs=4), small_run, killed_in=2)
    for part in ("network_weights", "model_state", "optimizer_state"):
        assert same_content(expected[part], resumed[part]), part
    assert without_times(expected["history"]) == without_times(resumed["history"])


@pytest.mark.slow
def test_the_same_command_gives_the_same_run(small_run):
    one, two = (torch.load(run(make_trainer(variant(), small_run)) / "checkpoint_final.pth") for _ in range(2))
    assert same_content(one["network_weights"], two["network_weights"])


@pytest.mark.slow
def test_continuing_with_other_settings_or_method_is_refused(small_run):
    path = run(make_trainer(variant(), small_run)) / "checkpoint_final.pth"
    with refused(CheckpointError, path=path, option="epochs"):
        make_trainer(variant(epochs=7), small_run).load_checkpoint(str(path))
    with refused(CheckpointError, path=path, option="--c", value="Alice"):
        make_trainer(with_method(variant(), name="Other"), small_run).load_checkpoint(str(path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        make_trainer(variant(), small_run).load_checkpoint(str(path))


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
def test_a_run_goes_on_after_a_bad_step_and_resumes_to_the_bit(small_run):
    def end_of_an_epoch_and_start_of_the_next(progress, training):
        return training and progress.step in (2, 3)

    kind = poisoned(variant(epochs=3, iterations=3), end_of_an_epoch_and_start_of_the_next)
    expected, resumed = whole_and_resumed(kind, small_run, killed_in=1)
    assert [row["skipped_steps"] for row in expected["history"]] == [1, 1, 0]
    for part in ("network_weights", "model_state", "optimizer_state"):
        assert same_content(expected[part], resumed[part]), part
    assert without_times(expected["history"]) == without_times(resumed["history"])
    assert all(math.isfinite(value) for row in expected["history"] for value in row.values())
    state = {**expected["network_weights"], **expected["model_state"]}
    assert all(value.isfinite().all() for value in state.values())


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


def opened_matcher(trainer):
    """The matcher that the trainer opens for its views."""
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.get_dataloaders()
    return trainer.method.matcher


def begun(kind, base) -> str:
    """Checkpoint of a run that was killed before its second epoch."""
    trainer = make_trainer(kind, base)
    kill_at(trainer, 1)
    return str(Path(trainer.output_folder) / "checkpoint_latest.pth")


def continued(kind, base, path):
    """The matcher of the run that goes on from a checkpoint."""
    trainer = make_trainer(kind, base, continue_training=True)
    trainer.load_checkpoint(path)
    return opened_matcher(trainer)


class LaterMatcher(AtlasMatcher):
    """Stands for an embedding."""

    name = "embedding"


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
def test_a_continued_run_keeps_its_matcher(small_run, monkeypatch, older):
    path = begun(variant(), small_run)
    if older:
        content = torch.load(path)
        del content["pretraining"]["views"], content["pretraining"]["ranks"]
        torch.save(content, path)
    embedding = Provider("embedding", lambda _: True, LaterMatcher)
    monkeypatch.setattr(registry, "PROVIDERS", [embedding, *registry.PROVIDERS])
    assert opened_matcher(make_trainer(variant(), small_run)).name == "embedding"
    assert continued(variant(), small_run, path).name == "atlas"
    with refused(CheckpointError, option="--c"):
        continued(variant(alice.AliceTrainer_embedding, "AliceTrainer_test"), small_run, path)


@pytest.mark.slow
def test_a_run_whose_matcher_is_gone_is_not_continued_with_another(small_run, monkeypatch):
    with monkeypatch.context() as patch:
        embedding = Provider("embedding", lambda _: True, LaterMatcher)
        patch.setattr(registry, "PROVIDERS", [embedding, *registry.PROVIDERS])
        path = begun(variant(), small_run)
    with refused(NotPreparedError, command="--method embedding"):
        continued(variant(), small_run, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"cases": ("case0", "case1", "case2")}, {"threshold": 0.01}, {"fingerprint": {"atlas_case": "case9"}}],
)
def test_a_run_whose_anatomy_or_cases_changed_is_not_continued(small_run, monkeypatch, change):
    path = begun(variant(), small_run)

    def changed_matcher(dataset):
        matcher = AtlasMatcher(dataset)
        vars(matcher).update(change)
        return matcher

    monkeypatch.setattr(registry, "PROVIDERS", [Provider("atlas", lambda _: True, changed_matcher)])
    with refused(CheckpointError, option="--c"):
        continued(variant(), small_run, path)


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
    trainer = make_trainer(with_settings(variant(), {"optimisation.learning_rate": 0.0}), small_run)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(path))
    trainer.on_train_start()
    weights = torch.load(path, weights_only=True)["network_weights"]
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
