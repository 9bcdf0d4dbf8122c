"""The commands match and evaluate_matching, on indices whose right answers are known."""

import shutil

import numpy as np
import pandas as pd
import pytest
from support.small_datasets import FourierField, ball, write_preprocessed

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main
from nnunet_alice.matching.index import CaseIndex, Fingerprint, IndexStore, index_grid

SPACING = (3.0, 1.0, 1.5)
SHAPE = (16, 44, 30)
SHIFTS_MM = {"a": np.zeros(3), "b": np.array([3.0, -2.0, 4.0]), "c": np.array([-3.0, 4.0, 1.0])}
ORIGIN = np.array([10.0, -20.0, 30.0])  # world x, y, z
CENTRE_VOX = np.array([7.5, 21.5, 14.5])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Three cases with the same descriptors, shifted; label 1 around the shifted centre."""
    base = tmp_path_factory.mktemp("preprocessed")
    grids = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    segs, properties = {}, {}
    for case, shift in SHIFTS_MM.items():
        at = CENTRE_VOX + shift / SPACING
        segs[case] = (np.linalg.norm((grids - at) * SPACING, axis=-1) < 6)[None]
        properties[case] = {
            "sitk_stuff": {"spacing": SPACING[::-1], "origin": ORIGIN, "direction": np.eye(3).ravel()},
            "shape_after_cropping_and_before_resampling": SHAPE,
            "bbox_used_for_cropping": [[0, n] for n in SHAPE],
        }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(base))
        dataset = write_preprocessed(base, {case: ball(SHAPE, SPACING, 21) for case in segs}, SPACING, segs, properties)
        store, fingerprint = IndexStore(dataset), Fingerprint.of(dataset, "a" * 64, 32)
        store.begin(fingerprint, "checkpoint_final.pth")
        fields = FourierField(32, 10.0, 1), FourierField(32, 30.0, 2)
        for case, shift in SHIFTS_MM.items():
            geometry = load_geometry(dataset, case)
            grid = index_grid(geometry, 32, 4.0)
            fine, coarse = (field(grid.points_vox * SPACING - shift) for field in fields)
            store.write(case, CaseIndex(geometry.shape, geometry.spacing, grid, fine, coarse), fingerprint)
    return base


@pytest.fixture(autouse=True)
def folders(base, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(base))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.chdir(tmp_path)


def match(*arguments) -> int:
    return main(["match", "-d", "900", "--from", "a", "--method", "embedding", *map(str, arguments)])


def test_match_writes_voxels_and_world_of_all_cases(tmp_path, capsys):
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
def test_a_damaged_case_is_named_and_the_others_are_matched(base, tmp_path, monkeypatch, capsys, caplog, damaged):
    """Damaged properties fail the case; an image that is not the indexed one leaves it out before."""
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
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


def test_pairs_that_cannot_be_measured_are_named_and_the_status_says_so(base, tmp_path, monkeypatch, capsys, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
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


def test_evaluate_matching_refuses_a_body_mask_as_label(base, tmp_path, monkeypatch, capsys):
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
