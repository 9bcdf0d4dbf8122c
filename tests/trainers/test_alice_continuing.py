"""Continued runs of AliceTrainer: equal to uninterrupted ones, and refused where something changed."""

import math
from pathlib import Path

import pytest
import torch
from support.alice_runs import LaterMatcher, opened_matcher, variant
from support.pretraining_runs import (
    kill_at,
    make_trainer,
    poisoned,
    run,
    same_content,
    whole_and_resumed,
    with_method,
    without_times,
)
from support.refused import refused

from nnunet_alice.errors import CheckpointError, NotPreparedError
from nnunet_alice.matching import registry
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.registry import Provider
from nnunet_alice.trainers import alice


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


@pytest.mark.slow
def test_a_continued_run_keeps_its_matcher(small_run, monkeypatch):
    path = begun(variant(), small_run)
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
def test_a_finished_run_goes_on_saying_what_it_saw(small_run):
    final = run(make_trainer(variant(), small_run)) / "checkpoint_final.pth"
    content = torch.load(final, weights_only=True)
    content["pretraining"]["views"]["cases"] = "of then"  # since then cases came or went
    torch.save(content, final)
    again = make_trainer(variant(), small_run, continue_training=True)
    again.load_checkpoint(str(final))
    run(again)
    assert torch.load(final, weights_only=True)["pretraining"]["views"] == content["pretraining"]["views"]
