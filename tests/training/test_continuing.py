"""Runs that are interrupted, and runs that are to become longer."""

import pytest

from nnunet_alice.errors import INTERRUPTED
from nnunet_alice.training.continuing import (
    advice_without_checkpoint,
    set_aside_checkpoints,
    told_when_interrupted,
)
from nnunet_alice.training.splits import absent_cases, sentence_on_absent_cases


@pytest.mark.parametrize(("there", "said"), [(True, "goes on from checkpoint_latest.pth"), (False, "begins again")])
def test_an_interrupted_run_says_how_it_goes_on(tmp_path, there, said):
    if there:
        (tmp_path / "checkpoint_latest.pth").touch()
    lines = []
    with pytest.raises(SystemExit) as caught, told_when_interrupted(str(tmp_path), lines.append):
        raise KeyboardInterrupt
    assert caught.value.code == INTERRUPTED
    assert len(lines) == 1 and "--c" in lines[0] and said in lines[0]


def test_other_errors_pass():
    with pytest.raises(ValueError, match="x"), told_when_interrupted("", print):
        raise ValueError("x")


def finished(base, trainer, plans="nnUNetPlans", fold="all"):
    path = base / f"{trainer}__{plans}__3d_fullres" / f"fold_{fold}" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_whoever_wants_more_epochs_is_told_of_the_shorter_run(tmp_path):
    base = tmp_path / "my results"
    shorter = finished(base, "AliceTrainer_noCASA_100epochs_seed2")
    for others in (("AliceTrainer_100epochs",), ("AliceTrainer_noCASA_seed2", "otherPlans")):
        finished(base, *others)
    finished(base, "AliceTrainer_noCASA_5epochs_seed2", fold="0")
    wanted = base / "AliceTrainer_noCASA_200epochs_seed2__nnUNetPlans__3d_fullres" / "fold_all"
    advice = advice_without_checkpoint(str(wanted))
    assert "begins again" in advice and f"extend -i '{shorter.parent}' --epochs" in advice


def test_where_there_is_no_shorter_run_none_is_named(tmp_path):
    advice = advice_without_checkpoint(str(tmp_path / "AliceTrainer__nnUNetPlans__3d_fullres" / "fold_0"))
    assert "begins again" in advice and "extend" not in advice


def test_absent_cases_of_a_split_are_found_in_both_parts():
    absent = absent_cases((["a", "x"], ["b", "y", "x"]), {"a", "b", "c"})
    assert absent == ["x", "y"]
    assert sentence_on_absent_cases(absent, "Fold 0") == "Fold 0 names 2 cases that nobody has preprocessed (x, y)"
    assert absent_cases((["a"], ["b"]), ["a", "b"]) == []


def test_checkpoints_of_older_runs_are_kept_under_free_names(tmp_path):
    lines = []
    set_aside_checkpoints(str(tmp_path), lines.append)
    assert not lines
    for run, names in enumerate((["final"], ["latest", "best"], ["final", "latest"])):
        for name in names:
            (tmp_path / f"checkpoint_{name}.pth").write_text(f"run {run}")
        set_aside_checkpoints(str(tmp_path), lines.append)
        assert len(lines) == run + 1 and "begins again" in lines[run]
        assert all(f"checkpoint_{name}.pth is checkpoint_{name}_old" in lines[run] for name in names)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "checkpoint_final_old1.pth": "run 0",
        "checkpoint_latest_old1.pth": "run 1",
        "checkpoint_best_old1.pth": "run 1",
        "checkpoint_final_old2.pth": "run 2",
        "checkpoint_latest_old2.pth": "run 2",
    }
