"""Matching through an atlas, on phantoms whose true counterparts are known."""

import pickle

import numpy as np
import pytest
from support.atlas_phantoms import SPACING, Phantoms
from support.refused import refused
from support.small_datasets import write_preprocessed

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.interface import RelativePositionMatcher

ATLAS = "p1"


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    return Phantoms()


@pytest.fixture(scope="module")
def prepared(phantoms, tmp_path_factory):
    """(dataset, report): five phantoms, one case of noise, one that cannot be read."""
    base = tmp_path_factory.mktemp("preprocessed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(base))
        noise = np.random.default_rng(0).normal(size=(1, 30, 20, 30))
        dataset = phantoms.write(base, noise=noise, torn=noise)
        (dataset.folder / "torn.b2nd").write_bytes(b"torn")
        yield dataset, prepare_atlas(dataset, 1, atlas_case=ATLAS)


@pytest.fixture
def matcher(prepared) -> AtlasMatcher:
    return AtlasMatcher(prepared[0])


def test_bad_cases_are_named_and_stop_nothing(prepared, matcher):
    _, report = prepared
    assert {case: record.status for case, record in report.records.items()} == {
        **dict.fromkeys(["p0", "p1", "p2", "p3", "p4"], "ok"), "noise": "poor", "torn": "failed",
    }  # fmt: skip
    assert "below" in report.records["noise"].reason
    assert report.records["torn"].reason
    assert matcher.cases == ("p0", "p1", "p2", "p3", "p4")
    assert report.named("ok")[-1].case == ATLAS


def test_the_report_on_disk_says_the_same(prepared):
    dataset, report = prepared
    stored = AtlasFiles(dataset).read_report()
    assert stored.atlas_case == ATLAS
    for case, record in report.records.items():
        assert (stored.records[case].status, stored.records[case].quality) == (record.status, record.quality)


def test_atlas_matching_beats_the_same_relative_position(prepared, phantoms, matcher):
    relative, rng = RelativePositionMatcher(prepared[0]), np.random.default_rng(0)
    errors = {"atlas": [], "relative": []}
    same_field = {"atlas": [], "relative": []}
    for case_a in matcher.cases:
        points = matcher.body_points(case_a, 100, rng)
        for case_b in set(matcher.cases) - {case_a}:
            truth = phantoms.truth(case_a, case_b, points)
            shown = ((truth >= 0) & (truth <= np.array(phantoms.images[case_b].shape[1:]) - 1)).all(axis=1)
            for name, one in (("atlas", matcher), ("relative", relative)):
                found = one.match(case_a, case_b, points).points_vox
                error = (np.linalg.norm((found - truth) * SPACING, axis=1))[shown]
                errors[name].append(error)
                if {phantoms.subjects[c].field_of_view for c in (case_a, case_b)} == {"torso"}:
                    same_field[name].append(error)
    median = {name: np.median(np.concatenate(all_errors)) for name, all_errors in errors.items()}
    assert median["atlas"] < 0.25 * median["relative"]
    median = {name: np.median(np.concatenate(all_errors)) for name, all_errors in same_field.items()}
    assert median["atlas"] < 0.5 * median["relative"]


def test_deformations_halve_the_errors_of_affine_maps(phantoms, matcher):
    errors, rng = {"affine": [], "deformed": []}, np.random.default_rng(0)
    for case_a in ("p0", "p2"):
        points = matcher.body_points(case_a, 100, rng)
        truth = phantoms.truth(case_a, ATLAS, points)
        affine = Affine(matcher.affine(case_a)).points(points * SPACING) / SPACING
        for name, found in (("affine", affine), ("deformed", matcher.match(case_a, ATLAS, points).points_vox)):
            errors[name].append(np.linalg.norm((found - truth) * SPACING, axis=1))
    median = {name: np.median(np.concatenate(found)) for name, found in errors.items()}
    assert median["deformed"] < 0.6 * median["affine"]


def test_there_and_back_is_the_same_point_and_a_detour_changes_nothing(matcher):
    points = matcher.body_points("p0", 50, np.random.default_rng(0))
    there = matcher.match("p0", "p3", points).points_vox
    np.testing.assert_allclose(matcher.match("p3", "p0", there).points_vox, points, atol=1e-8)
    detour = matcher.match("p0", "p2", points).points_vox
    np.testing.assert_allclose(matcher.match("p2", "p3", detour).points_vox, there, atol=1e-8)


def test_a_match_is_the_formula_by_hand(prepared, matcher):
    report = prepared[1]
    points = matcher.body_points("p0", 20, np.random.default_rng(0))
    matches = matcher.match("p0", "p4", points)
    chest = matcher.geometry("p4")
    in_chest = []
    for point, found in zip(points, matches.points_vox, strict=True):
        atlas_mm = np.array(report.records["p0"].affine) @ [*matcher.deformation("p0").at(point[None] * SPACING)[0], 1]
        undeformed_mm = (np.linalg.inv(report.records["p4"].affine) @ atlas_mm)[:3]
        np.testing.assert_allclose(matcher.deformation("p4").at(found[None] * SPACING)[0], undeformed_mm, atol=1e-8)
        in_chest.append(bool(chest.in_body(found[None])[0]))
    score = min(report.records["p0"].quality, report.records["p4"].quality)
    np.testing.assert_array_equal(matches.scores, np.where(in_chest, score, -np.inf))
    # A torso shows more than a chest: some points have no counterpart, some have one to be trusted.
    assert 0 < sum(in_chest) < 20
    assert score >= matcher.threshold


def location(matcher, case: str, points_vox: np.ndarray) -> np.ndarray:
    deformed_mm = matcher.deformation(case).at(points_vox * matcher.dataset.spacing)
    return matcher.atlas.locations(Affine(matcher.affine(case)).points(deformed_mm))


def test_locations_span_the_atlas(matcher):
    shape = np.array(matcher.geometry(ATLAS).shape)
    corners_and_middle = np.array([[-0.5] * 3, (shape - 1) / 2, shape - 0.5])
    np.testing.assert_allclose(location(matcher, ATLAS, corners_and_middle), [[-1] * 3, [0] * 3, [1] * 3], atol=1e-9)
    points = matcher.body_points("p0", 50, np.random.default_rng(0))
    # Same anatomy, same location.
    there = matcher.match("p0", "p3", points).points_vox
    np.testing.assert_allclose(location(matcher, "p3", there), location(matcher, "p0", points), atol=1e-9)


def test_a_pickled_matcher_answers_the_same(matcher):
    points = matcher.body_points("p0", 20, np.random.default_rng(0))
    copy = pickle.loads(pickle.dumps(matcher))
    np.testing.assert_array_equal(
        copy.match("p0", "p1", points).points_vox, matcher.match("p0", "p1", points).points_vox
    )


# ------------------------------------------------------------------------------------------------ on small balls


def test_fewer_than_two_good_cases_are_no_atlas(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    rng = np.random.default_rng(0)
    images = {case: rng.normal(size=(1, 14, 14, 14)) for case in "abc"}
    dataset = write_preprocessed(tmp_path, images, (2.0, 2.0, 2.0))
    prepare_atlas(dataset, 1, atlas_case="a")
    with refused(NotPreparedError, case="a", value=1, command="--atlas CASE"):
        AtlasMatcher(dataset)
