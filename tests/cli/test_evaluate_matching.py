"""The command evaluate_matching, on indices whose right answers are known."""

import shutil

import numpy as np
import pandas as pd
import pytest
from support.known_matches import SHAPE, SHIFTS_MM, SPACING
from support.small_datasets import ball, write_preprocessed

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main

pytestmark = pytest.mark.usefixtures("in_matched")


def test_evaluate_matching_measures_centroids(tmp_path, capsys):
    status = main(["evaluate_matching", "-d", "900", "--methods", "embedding", "relative", "-o", str(tmp_path / "out")])
    assert status == 0
    errors = pd.read_csv(tmp_path / "out" / "errors.csv")
    assert len(errors) == 2 * 6 and set(errors["matcher"]) == {"embedding", "relative position"}
    # arrays of one shape: the same relative position is the same voxel, off by the difference of the shifts
    relative = errors[errors["matcher"] == "relative position"].set_index(["case_a", "case_b"])["error_mm"]
    for (case_a, case_b), error in relative.items():
        assert error == pytest.approx(np.linalg.norm(SHIFTS_MM[case_a] - SHIFTS_MM[case_b]), abs=0.6)
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    medians = summary[summary["point"] == "all"].set_index("matcher")["median_mm"]
    assert medians["embedding"] < 2 < medians["relative position"]
    assert {"within_5_mm", "within_10_mm", "within_20_mm", "p90_mm", "mean_mm"} <= set(summary.columns)
    assert (tmp_path / "out" / "cumulative_error.png").is_file()
    assert "median_mm" in capsys.readouterr().out


def test_pairs_that_cannot_be_measured_are_named_and_the_status_says_so(matched, tmp_path, monkeypatch, capsys, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(matched, copy)
    monkeypatch.setenv("nnUNet_preprocessed", str(copy))
    label = copy / "Dataset900_Small" / "nnUNetPlans_3d_fullres" / "c_seg.b2nd"
    label.write_bytes(label.read_bytes()[:40])
    words = ["evaluate_matching", "-d", "900", "--methods", "embedding", "-o", str(tmp_path / "out")]
    assert main(words) == SOME_FAILED
    assert "case a to c failed" in caplog.text and "4 of 6 pairs were left out" in caplog.text
    errors = pd.read_csv(tmp_path / "out" / "errors.csv")
    assert set(errors["case_a"]) == {"a", "b"}


def test_evaluate_matching_draws_pairs_and_follows_the_seed(tmp_path):
    for name, seed in (("one", 1), ("again", 1)):
        command = ["evaluate_matching", "-d", "900", "--methods", "embedding", "--pairs", "3", "--seed", str(seed)]
        assert main([*command, "-o", str(tmp_path / name)]) == 0
    one, again = (pd.read_csv(tmp_path / name / "errors.csv") for name in ("one", "again"))
    assert len(one) == 3
    pd.testing.assert_frame_equal(one, again)


def test_evaluate_matching_refuses_a_body_mask_as_label(matched, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    dataset = write_preprocessed(tmp_path, {case: ball(SHAPE, SPACING, 21) for case in "ab"}, SPACING)
    (dataset.base / "dataset.json").write_text('{"labels": {"background": 0, "body": 1}}')
    assert main(["evaluate_matching", "-d", "900", "--methods", "relative"]) == 1
    assert "no labels but a body mask" in capsys.readouterr().err


def test_a_method_that_is_not_prepared_names_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    write_preprocessed(tmp_path, {case: ball(SHAPE, SPACING, 21) for case in "ab"}, SPACING)
    assert main(["evaluate_matching", "-d", "900", "--methods", "embedding"]) == 1
    error = capsys.readouterr().err
    assert "nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres --method embedding" in error
