"""The runner: killed anywhere it goes on, never runs a finished cell again, shares cells without overlap."""

import json
import shlex
import sys
from collections import Counter

import pytest
import SimpleITK as sitk
from support.benchmark_runs import CASES, CELLS, content, make_runner
from support.labelled_runs import DATASET, write_labelled
from support.refused import refused

from nnunet_alice.benchmark.measures import validation_dice
from nnunet_alice.benchmark.results import collect
from nnunet_alice.benchmark.runner import Command, Runner, run_command
from nnunet_alice.checkpoints.weights_folder import SUMS
from nnunet_alice.errors import CheckpointError, InputError, MissingFileError, OccupiedError
from nnunet_alice.files import write_json


def test_every_cell_runs_once_with_its_settings(base):
    runner, pretender = make_runner(base, content(base))
    outcome = runner.run()
    assert len(outcome.done) == CELLS and not outcome.failed and not outcome.waiting
    assert len(set(pretender.finished)) == len(pretender.finished) == CELLS
    assert [words[0] for words in pretender.calls] == ["nnunet_alice"] + ["nnUNetv2_train"] * CELLS
    trainers = Counter(words[words.index("-tr") + 1] for words in pretender.trainings)
    ends = "_keep50_seed{}"
    assert trainers == {
        start + ends.format(1000 * draw): 2
        for start in (
            "FineTuneTrainer_scratch_4epochs_2iterations_lr0.01",
            "FineTuneTrainer_4epochs_2iterations_lr0.001",
        )
        for draw in (0, 1)
    }
    for words in pretender.trainings:
        assert ("-pretrained_weights" in words) == ("scratch" not in words[words.index("-tr") + 1])
    again, idle = make_runner(base, content(base))
    assert len(again.run().done) == CELLS and not idle.calls


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nothing", "checkpoint", "trained", "half_summary"])
def test_killed_at_any_cell_it_goes_on(base, how):
    for cell in range(1, CELLS + 1):
        runner, pretender = make_runner(base, content(base), die_at=1, how=how)
        with pytest.raises(KeyboardInterrupt):
            runner.run()
        runner, pretender = make_runner(base, content(base), die_at=2, how=how)
        if cell < CELLS:
            with pytest.raises(KeyboardInterrupt):
                runner.run()
            assert len(pretender.finished) == 1
        else:
            assert len(runner.run().done) == CELLS
    done, idle = make_runner(base, content(base))
    assert len(done.run().done) == CELLS and not idle.calls
    summaries = list((base / "bench" / "results").rglob("fold_*/validation/summary.json"))
    assert len(summaries) == CELLS


def with_located_arm(base, **changes) -> dict:
    """A third arm, whose encoder knows the location, on a dataset of its own."""
    located = {"trainer": "DrasCLRFineTuneTrainer", "dataset": 505, "checkpoints": str(base / "located")}
    own = content(base)
    return own | {"arms": own["arms"] | {"drasclr": located | {"learning_rates": [2e-3]} | changes}}


@pytest.mark.slow
def test_an_arm_may_train_on_the_located_dataset(base):
    """Its weights may be a folder, as fetch leaves it."""
    write_labelled(base / "preprocessed", CASES, "Dataset505_Located")
    (base / "located").mkdir()
    (base / "located" / SUMS).write_text("what is in it")
    runner, pretender = make_runner(base, with_located_arm(base))
    outcome = runner.run()
    assert len(outcome.done) == CELLS + CELLS // 2 and not outcome.failed
    located = [words for words in pretender.trainings if words[1] == "Dataset505_Located"]
    assert len(located) == CELLS // 2
    for words in located:
        assert words[words.index("-tr") + 1].startswith(
            "DrasCLRFineTuneTrainer_4epochs_2iterations_lr0.002_keep50_seed"
        )
        assert words[words.index("-pretrained_weights") + 1] == str(base / "located")  # nothing is transferred
    splits = [
        json.loads((runner.workspace.preprocessed / name / "splits_final.json").read_text())
        for name in (DATASET, "Dataset505_Located")
    ]
    assert splits[0] == splits[1] and runner.workspace.dataset == DATASET
    assert sum(words[0] == "nnunet_alice" for words in pretender.calls) == 1  # the other arm's
    again, idle = make_runner(base, with_located_arm(base))
    assert len(again.run().done) == CELLS + CELLS // 2 and not idle.calls
    table, unusable = collect(runner, 1)
    assert set(table["arm"]) == {"scratch", "alice", "drasclr"} and not unusable


def test_a_located_dataset_without_all_cases_and_senseless_arms_are_refused(base):
    write_labelled(base / "preprocessed", CASES - 1, "Dataset505_Located")
    with refused(InputError, option="drasclr", command="nnunet_alice locate -d"):
        make_runner(base, with_located_arm(base))[0].prepare()
    for changes, option in (
        ({"dataset": None}, "dataset"),
        ({"parts": "encoder"}, "parts"),
        ({"trainer": "FineTuneTrainer"}, "dataset"),
    ):
        with refused(InputError, option=option):
            make_runner(base, with_located_arm(base, **changes))


def test_killed_in_tuning_it_goes_on(base):
    arms = {"scratch": {"learning_rates": [1e-2, 1e-3]}, "alice": {"checkpoints": str(base / "pretrained.pth")}}
    for how in ("nothing", "checkpoint", "trained", "half_summary"):
        runner, pretender = make_runner(base, content(base, arms=arms), die_at=1, how=how)
        with pytest.raises(KeyboardInterrupt):
            runner.run()
        assert not pretender.finished
    runner, pretender = make_runner(base, content(base, arms=arms))
    assert len(runner.run().done) == 2 + CELLS and len(set(pretender.finished)) == 2 + CELLS


def test_killed_in_transfer_it_transfers_again(base):
    runner, pretender = make_runner(base, content(base))
    runner.execute = lambda command, keep_open=(): 1
    with refused(InputError, option="alice"):
        runner.run()
    runner, pretender = make_runner(base, content(base))
    assert len(runner.run().done) == CELLS and pretender.calls[0][:2] == ("nnunet_alice", "transfer")


def test_a_continued_run_is_not_given_weights_again(base):
    runner, pretender = make_runner(base, content(base), die_at=2, how="checkpoint")
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    runner, pretender = make_runner(base, content(base))
    runner.run()
    first, *others = pretender.trainings
    assert "--c" in first and "-pretrained_weights" not in first and not any("--c" in words for words in others)


def test_a_failure_does_not_stop_the_others_and_is_tried_again(base):
    runner, pretender = make_runner(base, content(base))
    pretender.fail.add("FineTuneTrainer_4epochs_2iterations_lr0.001_keep50_seed0")
    outcome = runner.run()
    assert len(outcome.done) == CELLS - 2 and len(outcome.failed) == 2
    assert all("status 1" in why and "logs" in why for why in outcome.failed.values())
    runner, pretender = make_runner(base, content(base))
    assert len(runner.run().done) == CELLS and len(pretender.calls) == 2


def test_a_pretrained_arm_that_started_from_scratch_is_not_counted(base):
    runner, pretender = make_runner(base, content(base))
    runner.run()
    fold = next(folder for folder in pretender.finished if "FineTuneTrainer_4epochs" in str(folder))
    (fold / "start.json").write_text(json.dumps({"pretrained": False}))
    outcome = make_runner(base, content(base))[0].run()
    assert len(outcome.done) == CELLS - 1
    assert "from pretrained weights" in next(iter(outcome.failed.values()))


def test_a_run_that_trained_on_other_cases_is_not_counted(base):
    """nnU-Net draws a split of its own, over all cases, for a fold that the file lacks."""
    runner, pretender = make_runner(base, content(base))
    runner.run()
    record = pretender.finished[0] / "start.json"
    start = json.loads(record.read_text())
    record.write_text(json.dumps(start | {"training_cases": [*start["training_cases"], runner.divisions[0].test[0]]}))
    outcome = make_runner(base, content(base))[0].run()
    assert len(outcome.done) == CELLS - 1
    assert f"other training cases than this run has; delete {record.parent}" in next(iter(outcome.failed.values()))


def test_links_are_made_anew_where_the_data_moved(base, monkeypatch):
    make_runner(base, content(base))[0].prepare()
    (base / "preprocessed").rename(base / "moved")
    monkeypatch.setenv("nnUNet_preprocessed", str(base / "moved"))
    runner = make_runner(base, content(base))[0]
    runner.prepare()
    for folder in ("gt_segmentations", "nnUNetPlans_3d_fullres"):
        linked, original = (path / DATASET / folder for path in (runner.workspace.preprocessed, base / "moved"))
        assert {path.name for path in linked.iterdir()} == {path.name for path in original.iterdir()}
        assert all(path.exists() for path in linked.iterdir())


def test_changed_truth_is_refused(base):
    make_runner(base, content(base))[0].prepare()
    truth = sorted((base / "preprocessed" / DATASET / "gt_segmentations").iterdir())[2]
    image = sitk.ReadImage(str(truth))
    sitk.WriteImage(sitk.Not(image), str(truth))
    with refused(OccupiedError, case=truth.name.split(".")[0], value=1):
        make_runner(base, content(base))[0].prepare()


@pytest.mark.parametrize("stage", [{"next_stage": "3d_cascade_fullres"}, {"previous_stage": "3d_lowres"}])
def test_stages_of_a_cascade_are_refused_before_any_run(base, stage):
    plans = base / "preprocessed" / DATASET / "nnUNetPlans.json"
    described = json.loads(plans.read_text())
    described["configurations"]["3d_fullres"] |= stage
    plans.write_text(json.dumps(described))
    runner, pretender = make_runner(base, content(base))
    with refused(InputError, value="3d_fullres"):
        runner.run()
    assert not pretender.calls


def test_learning_rates_are_chosen_on_validation_cases(base):
    arms = {"scratch": {"learning_rates": [1e-2, 1e-3, 1e-1]}, "alice": {"checkpoints": str(base / "pretrained.pth")}}
    best_in_tuning = {"lr0.001": 0.8, "lr0.01": 0.9, "lr0.1": 0.7}

    def skill(trainer, fold):
        return next((value for rate, value in best_in_tuning.items() if f"_{rate}_" in trainer), 0.5)

    runner, pretender = make_runner(base, content(base, arms=arms), skill=skill)
    outcome = runner.run()
    assert len(outcome.done) == 3 + CELLS
    splits = json.loads((runner.workspace.dataset_folder / "splits_final.json").read_text())
    test = set(runner.divisions[0].test)
    tuning, tests = pretender.trainings[:3], pretender.trainings[3:]
    for words in tuning:
        assert not test & {*splits[int(words[3])]["train"], *splits[int(words[3])]["val"]}
        assert "_keep" not in words[words.index("-tr") + 1]
    for words in tests:
        assert set(splits[int(words[3])]["val"]) == test and not test & set(splits[int(words[3])]["train"])
        trainer = words[words.index("-tr") + 1]
        assert ("_lr0.01_" in trainer) == ("scratch" in trainer) and "lr" not in trainer.replace("_lr0.01_", "")
    rates = json.loads((base / "bench" / "learning_rates.json").read_text())
    assert rates["scratch"]["fixed"]["chosen"] == "0.01"


def test_validation_dice_is_of_the_classes_that_are_there(tmp_path):
    """A class that is in no case makes nnU-Net's own mean NaN, or a number for a model that invents it."""
    there = {"n_ref": 5, "Dice": 0.6}
    for invented in (float("nan"), 0.0):
        cases = [{"metrics": {"1": there, "2": {"n_ref": 0, "Dice": invented}}} for _ in range(2)]
        mean = {"1": {"Dice": 0.6}, "2": {"Dice": invented}}
        write_json(tmp_path / "summary.json", {"metric_per_case": cases, "mean": mean})
        assert validation_dice(tmp_path / "summary.json") == pytest.approx(0.6)
    nothing = {"metric_per_case": [{"metrics": {"1": there | {"n_ref": 0}}}], "mean": {"1": {"Dice": 0.0}}}
    write_json(tmp_path / "summary.json", nothing)
    assert validation_dice(tmp_path / "summary.json") == 0.0


def test_one_pretraining_is_not_two_seeds(base):
    copy = base / "copy.pth"
    copy.write_bytes((base / "pretrained.pth").read_bytes())
    arms = {"scratch": None, "alice": {"checkpoints": [str(base / "pretrained.pth"), str(copy)]}}
    with refused(InputError, option="alice", path="copy.pth"):
        make_runner(base, content(base, arms=arms))[0].run()


def test_a_replaced_checkpoint_makes_new_cells(base):
    make_runner(base, content(base))[0].run()
    (base / "pretrained.pth").write_bytes(b"longer pretraining")
    runner, pretender = make_runner(base, content(base))
    assert len(runner.run().done) == CELLS
    assert len(pretender.trainings) == CELLS / 2 and not any("--c" in words for words in pretender.trainings)


def test_dry_run_prints_what_a_run_would_do(base):
    lines = list(make_runner(base, content(base))[0].dry_run())
    runner, pretender = make_runner(base, content(base))
    runner.run()
    words = [tuple(word for word in shlex.split(line) if "=" not in word) for line in lines]
    assert words == pretender.calls
    assert all(f"nnUNet_preprocessed={base / 'bench' / 'preprocessed'}" in line for line in lines)
    assert list(make_runner(base, content(base))[0].dry_run()) == []


def test_dry_run_continues_what_was_begun(base):
    with pytest.raises(KeyboardInterrupt):
        make_runner(base, content(base), die_at=2, how="checkpoint")[0].run()
    lines = list(make_runner(base, content(base))[0].dry_run())
    runner, pretender = make_runner(base, content(base))
    runner.run()
    words = [tuple(word for word in shlex.split(line) if "=" not in word) for line in lines]
    assert words == pretender.calls and sum("--c" in line for line in lines) == 1


def test_dry_run_leaves_unknown_learning_rates_open(base):
    arms = {"scratch": {"learning_rates": [1e-2, 1e-3]}}
    lines = list(make_runner(base, content(base, arms=arms))[0].dry_run())
    assert sum("lr<LR>" in line for line in lines) == 4 and sum("lr0.01" in line for line in lines) == 1


def test_commands_run_with_their_environment_and_log(base):
    script = "import os; print(os.environ['nnUNet_results']); raise SystemExit(3)"
    command = Command((sys.executable, "-c", script), {"nnUNet_results": "here"}, base / "logs" / "x.log")
    assert run_command(command) == 3
    lines = (base / "logs" / "x.log").read_text().splitlines()
    assert lines[0].startswith("$ nnUNet_results=here ") and lines[-1] == "here"


def test_unknown_trainers_and_checkpoints_are_said_before_any_run(base):
    runner, pretender = make_runner(base, content(base, arms={"scratch": {"trainer": "FineTuneTrainer_magic"}}))
    with refused(CheckpointError) as caught:
        runner.run()
    assert caught.value.value.startswith("FineTuneTrainer_magic_")
    missing = {"scratch": None, "alice": {"checkpoints": str(base / "none.pth")}}
    runner, pretender = make_runner(base, content(base, arms=missing))
    with refused(MissingFileError, path="none.pth", option="alice"):
        runner.run()
    assert not pretender.calls


def test_settings_that_are_refused_leave_the_report_as_it_was(base):
    make_runner(base, content(base))[0].run()
    arms = content(base)["arms"] | {"other": {"checkpoints": str(base / "none.pth")}}
    with refused(MissingFileError, path="none.pth", option="other"):
        make_runner(base, content(base, arms=arms))[0].run()
    assert len(list(Runner.of_folder(base / "bench").finished())) == CELLS


def refused_for_its_checkpoint(base):
    """Start a benchmark whose last check fails, when data, truth and splits lie in its folder."""
    missing = content(base)["arms"] | {"other": {"checkpoints": str(base / "none.pth")}}
    with refused(MissingFileError, option="other"):
        make_runner(base, content(base, arms=missing))[0].run()


def change_plans(base):
    path = base / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 16, 16]
    path.write_text(json.dumps(plans))


def change_truth(base):
    truth = sorted((base / "preprocessed" / DATASET / "gt_segmentations").iterdir())[2]
    sitk.WriteImage(sitk.Not(sitk.ReadImage(str(truth))) * 1, str(truth))


@pytest.mark.parametrize(("change", "settings"), [(None, {"seed": 5}), (None, {"test": 2}), (change_plans, {})])
def test_a_refused_benchmark_has_not_begun(base, change, settings):
    """What is corrected in settings, plans or truth is no change within it."""
    refused_for_its_checkpoint(base)
    if change is not None:
        change(base)
    runner, _ = make_runner(base, content(base, **settings))
    assert len(runner.run().done) == CELLS and len(runner.folds) == CELLS / 2
    change_plans(base) if change is None else change_truth(base)
    with refused(OccupiedError):
        make_runner(base, content(base, **settings))[0].run()


def test_truth_that_was_refused_may_be_mended(base):
    refused_for_its_checkpoint(base)
    change_truth(base)
    assert len(make_runner(base, content(base))[0].run().done) == CELLS


def test_a_refused_benchmark_does_not_keep_the_data_of_a_wrong_folder(base, monkeypatch):
    refused_for_its_checkpoint(base)
    (base / "right").mkdir()
    write_labelled(base / "right", CASES)
    monkeypatch.setenv("nnUNet_preprocessed", str(base / "right"))
    runner, _ = make_runner(base, content(base))
    runner.run()
    for folder in ("gt_segmentations", "nnUNetPlans_3d_fullres"):
        for path in (runner.workspace.dataset_folder / folder).iterdir():
            assert path.resolve().is_relative_to(base / "right")


def test_a_benchmark_whose_transfer_fails_has_not_begun(base):
    """A checkpoint that does not fit the plans may be mended by other plans."""
    two = content(base)["arms"] | {"other": {"checkpoints": str(base / "other.pth")}}
    (base / "other.pth").write_bytes(b"other weights")
    runner, pretender = make_runner(base, content(base, arms=two))
    runner.execute = lambda command, locks=(): 1 if "other.pth" in str(command) else pretender(command)
    with refused(InputError, option="other"):
        runner.run()
    change_plans(base)
    runner, pretender = make_runner(base, content(base, seed=3, arms=two))
    assert len(runner.run().done) == CELLS * 3 / 2
    assert sum(words[0] == "nnunet_alice" for words in pretender.calls) == 2  # both again, for these plans


def test_an_impossible_part_is_refused_before_anything_is_written(base):
    with refused(InputError, option="--part"):
        make_runner(base, content(base))[0].run((3, 2))
    with refused(InputError, option="--part"):
        list(make_runner(base, content(base))[0].dry_run((3, 2)))
    assert not (base / "bench").exists()
