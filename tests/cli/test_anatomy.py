"""The command ``anatomy``."""

from dataclasses import replace

import numpy as np
import pytest
from support.small_datasets import ball, write_preprocessed

from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main

SPACING = (2.0, 2.0, 2.0)


@pytest.fixture
def balls(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    images = {case: ball((20, 20, 20), SPACING, size) for case, size in zip("abc", (14, 15, 16), strict=True)}
    images["noise"] = np.random.default_rng(7).normal(size=(1, 20, 20, 20))
    images["broken"] = np.full((1, 20, 20, 20), np.nan)
    return write_preprocessed(tmp_path, images, SPACING)


@pytest.mark.slow
def test_it_says_how_it_went_where_the_picture_is_and_what_comes_next(balls, capsys):
    assert main(["anatomy", "-d", "900", "-np", "1", "--atlas", "b"]) == SOME_FAILED
    shown = capsys.readouterr().out
    assert "4 of 5 cases registered to the atlas b (4 now, 0 before), 1 failed" in shown
    assert "poor: noise: quality" in shown
    assert "failed: broken: Case broken: the preprocessed image holds NaN" in shown
    picture = balls.anatomy_folder / "atlas" / "atlas.png"
    assert str(picture) in shown and picture.is_file()
    export = shown.index("export nnUNet_extTrainer=$(nnunet_alice trainers)")
    assert shown.index("nnUNetv2_train 900 3d_fullres all -tr AliceTrainer -p nnUNetPlans") > export


@pytest.mark.slow
def test_parts_and_a_last_run_give_what_one_run_gives(balls, capsys):
    report = AtlasFiles(balls).report_file
    for number in (1, 2):
        main(["anatomy", "-d", "900", "-np", "1", "--atlas", "b", "--part", f"{number}/2"])
        assert not report.exists()
    assert "run the same without --part" in capsys.readouterr().out
    assert main(["anatomy", "-d", "900", "-np", "1", "--atlas", "b"]) == SOME_FAILED
    in_parts = AtlasFiles(balls).read_report().records
    assert main(["anatomy", "-d", "900", "-np", "1", "--atlas", "b", "--overwrite"]) == SOME_FAILED
    at_once = AtlasFiles(balls).read_report().records
    assert in_parts.keys() == at_once.keys()
    assert all(replace(in_parts[case], seconds=0) == replace(at_once[case], seconds=0) for case in at_once)


@pytest.mark.slow
def test_nothing_to_match_is_not_a_success(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    rng = np.random.default_rng(0)
    write_preprocessed(tmp_path, {case: rng.normal(size=(1, 14, 14, 14)) for case in "abc"}, SPACING)
    assert main(["anatomy", "-d", "900", "-np", "1"]) == 1
    assert "name a better atlas with --atlas CASE" in capsys.readouterr().out


def test_errors_are_one_sentence(balls, capsys):
    assert main(["anatomy", "-d", "900", "-np", "1", "--atlas", "nobody"]) == 1
    assert main(["anatomy", "-d", "900", "-p", "OtherPlans"]) == 1
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 2
    assert "'nobody'" in shown[0] and "OtherPlans" in shown[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--roi", "no_such_mask.nii.gz"], "no_such_mask.nii.gz"),
        (["--roi", "label:liver"], "label:liver"),
        (["--checkpoint", "a.pth"], "--checkpoint"),
        (["--method", "embedding", "--roi", "lungs"], "--roi"),
        (["--subjects", "no_such_table.csv"], "no_such_table.csv"),
        (["--subjects", "("], "("),
        (["--atlas", "nobody"], "nobody"),
    ],
)
def test_options_are_checked_before_hours_of_registration(balls, capsys, arguments, named):
    assert main(["anatomy", "-d", "900", "-np", "1", *arguments]) == 1
    assert named in capsys.readouterr().err
    assert not [path for path in balls.anatomy_folder.rglob("*") if path.is_file()]


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["anatomy", "-h"])
    assert "Example: nnunet_alice anatomy -d 900" in capsys.readouterr().out
