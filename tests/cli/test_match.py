"""The command match, on indices whose right answers are known."""

import shutil

import numpy as np
import pandas as pd
import pytest
from support.known_matches import CENTRE_VOX, ORIGIN, SHIFTS_MM, SPACING

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main

pytestmark = pytest.mark.usefixtures("in_matched")


def match(*arguments) -> int:
    return main(["match", "-d", "900", "--from", "a", "--method", "embedding", *map(str, arguments)])


def test_match_writes_voxels_and_world_of_all_cases(tmp_path, capsys, real_figures):
    assert match("--point", *CENTRE_VOX, "--csv", "table.csv") == 0
    table = pd.read_csv("table.csv").set_index("case")
    assert sorted(table.index) == ["b", "c"]
    for case in "bc":
        found_mm = table.loc[case, ["z_vox", "y_vox", "x_vox"]].to_numpy(dtype=float) * SPACING
        expected_mm = CENTRE_VOX * SPACING + SHIFTS_MM[case]
        assert np.linalg.norm(found_mm - expected_mm) < 2
        world = table.loc[case, ["world_x_mm", "world_y_mm", "world_z_mm"]].to_numpy(dtype=float)
        np.testing.assert_allclose(world, found_mm[::-1] + ORIGIN, atol=1e-6)
        assert table.loc[case, "score"] > 0.8 and table.loc[case, "trusted"]
    out = capsys.readouterr().out
    assert "by embedding" in out and "world_x_mm" in out
    assert (tmp_path / "match_a.png").stat().st_size > 10_000


def test_match_takes_world_points_and_named_cases():
    world = ORIGIN + CENTRE_VOX[::-1] * SPACING[::-1]
    assert match("--world", "--point", *world, "--to", "c", "--csv", "world.csv", "-o", "w.png") == 0
    assert match("--point", *CENTRE_VOX, "--to", "c", "--csv", "voxel.csv", "-o", "v.png") == 0
    pd.testing.assert_frame_equal(pd.read_csv("world.csv"), pd.read_csv("voxel.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", 99, 5, 5], "outside its preprocessed array of 16 x 44 x 30"),
        (["--point", 5, 5, 5, "--to", "nobody"], "Case nobody cannot be matched"),
    ],
)
def test_match_refuses_what_it_cannot_match_in_one_sentence(capsys, arguments, message):
    assert match(*arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["c.pkl", "c.b2nd"])
def test_a_damaged_case_is_named_and_the_others_are_matched(matched, tmp_path, monkeypatch, capsys, caplog, damaged):
    """Damaged properties fail the case; an image that is not the indexed one leaves it out before."""
    copy = tmp_path / "copy"
    shutil.copytree(matched, copy)
    monkeypatch.setenv("nnUNet_preprocessed", str(copy))
    path = copy / "Dataset900_Small" / "nnUNetPlans_3d_fullres" / damaged
    path.write_bytes(path.read_bytes()[:40])
    assert match("--point", *CENTRE_VOX, "--csv", "table.csv") == (SOME_FAILED if damaged == "c.pkl" else 0)
    said = capsys.readouterr().out.lower() + caplog.text.lower()
    assert "case c" in said or "(c)" in said
    table = pd.read_csv("table.csv").set_index("case")
    assert table.loc["b", "trusted"] and "c" not in table.index
    assert (tmp_path / "match_a.png").is_file()
    assert match("--point", *CENTRE_VOX, "--to", "b", "-o", "b.png") == 0
