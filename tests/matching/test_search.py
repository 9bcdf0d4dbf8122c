"""Search in indices: against a loop over all points, with descriptors whose right matches are known."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from support.refused import refused
from support.small_datasets import FourierField, ball, replace_image, write_preprocessed

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching import search
from nnunet_alice.matching.calibration import Calibration, write_calibration
from nnunet_alice.matching.index import CaseIndex, Fingerprint, IndexStore, index_grid
from nnunet_alice.matching.registry import open_matcher
from nnunet_alice.matching.search import EmbeddingMatcher, _parabola_peak, embedding_is_prepared
from nnunet_alice.views.pairs import MatchedPairs

SPACING = (4.0, 1.0, 1.5)
DIMENSION = 32
STEP_MM = 5.0
CALIBRATION = Calibration(0.7, 1.0, 1.0, 1.0, 5.0, 100)
FINE, COARSE = FourierField(DIMENSION, 12.0, 1), FourierField(DIMENSION, 40.0, 2)
#: canonical position = (mm - shift) / scale
PLACES = {"a": (np.zeros(3), 1.0), "b": (np.array([4.0, -6.0, 5.0]), 1.1), "c": (np.array([-3.0, 2.0, 1.0]), 0.9)}


def canonical(case: str, points_vox: np.ndarray) -> np.ndarray:
    shift, scale = PLACES[case]
    return (points_vox * SPACING - shift) / scale


def truth(case_a: str, case_b: str, points_vox: np.ndarray) -> np.ndarray:
    shift, scale = PLACES[case_b]
    return (canonical(case_a, points_vox) * scale + shift) / SPACING


def index_of(dataset, case: str, place: str | None = None) -> CaseIndex:
    geometry = load_geometry(dataset, case)
    grid = index_grid(geometry, DIMENSION, STEP_MM)
    places = canonical(place or case, grid.points_vox)
    return CaseIndex(geometry.shape, geometry.spacing, grid, FINE(places), COARSE(places))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    base = tmp_path_factory.mktemp("preprocessed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(base))
        dataset = write_preprocessed(base, {case: ball((16, 60, 40), SPACING, 27) for case in PLACES}, SPACING)
        store, fingerprint = IndexStore(dataset), Fingerprint.of(dataset, "a" * 64, DIMENSION)
        store.begin(fingerprint, "checkpoint_final.pth")
        for case in PLACES:
            store.write(case, index_of(dataset, case), fingerprint)
        write_calibration(store, CALIBRATION, fingerprint.checkpoint)
        yield dataset


@pytest.fixture
def matcher(dataset) -> EmbeddingMatcher:
    return EmbeddingMatcher(dataset)


def inner_points(matcher: EmbeddingMatcher, case: str, count: int = 200, seed: int = 0) -> np.ndarray:
    """Body points at least 8 mm below the surface of the ball."""
    points = matcher.body_points(case, 4 * count, np.random.default_rng(seed))
    middle = (np.array([16, 60, 40]) - 1) / 2
    return points[np.linalg.norm((points - middle) * SPACING, axis=1) < 19][:count]


def error_mm(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.linalg.norm((found - expected) * SPACING, axis=1)


def test_a_case_matched_to_itself_returns_the_point_within_one_grid_step(matcher):
    points = matcher.body_points("a", 300, np.random.default_rng(0))
    matches = matcher.match("a", "a", points)
    assert error_mm(matches.points_vox, points).max() < STEP_MM
    assert np.median(error_mm(matches.points_vox, points)) < 0.3 * STEP_MM
    assert matches.scores.min() > 0.8 and matches.scores.max() <= 1


def test_a_grid_point_matched_to_itself_scores_one(matcher):
    points = matcher.search("a").index.grid.points_vox[::7]
    matches = matcher.match("a", "a", points)
    np.testing.assert_allclose(matches.scores, 1, atol=1e-3)
    assert error_mm(matches.points_vox, points).max() < 0.6 * STEP_MM


@pytest.mark.parametrize(("case_a", "case_b"), [("a", "b"), ("b", "c"), ("c", "a")])
def test_matches_follow_a_known_deformation_below_the_grid_step(matcher, case_a, case_b):
    points = inner_points(matcher, case_a)
    expected = truth(case_a, case_b, points)
    inside = np.linalg.norm((expected - [7.5, 29.5, 19.5]) * SPACING, axis=1) < 22
    errors = error_mm(matcher.match(case_a, case_b, points).points_vox, expected)[inside]
    assert inside.sum() > 50
    assert np.median(errors) < 0.3 * STEP_MM and errors.max() < 1.5 * STEP_MM


def test_the_best_grid_point_and_score_are_those_of_a_loop(matcher):
    points = inner_points(matcher, "a", count=20)
    a, b = matcher.search("a"), matcher.search("b")
    stored = matcher.store.read("b", matcher.fingerprint)
    descriptors, known = a.describe(points)
    assert known.all()
    matches = b.match(descriptors)
    for descriptor, point, score in zip(descriptors, matches.points_vox, matches.scores, strict=True):
        fine, coarse = descriptor[:DIMENSION], descriptor[DIMENSION:]
        fine, coarse = fine / np.linalg.norm(fine), coarse / np.linalg.norm(coarse)
        means = [
            (fine @ f / np.linalg.norm(f) + coarse @ c / np.linalg.norm(c)) / 2
            for f, c in zip(stored.fine.astype(float), stored.coarse.astype(float), strict=True)
        ]
        best = b.index.grid.points_vox[int(np.argmax(means))]
        assert (np.abs(point - best) <= 0.5 * np.asarray(b.index.grid.step_vox) + 1e-9).all()
        assert max(means) - 1e-5 <= score <= max(means) + 0.1


def test_refinement_halves_the_error_of_the_grid(matcher):
    points = inner_points(matcher, "a")
    expected = truth("a", "b", points)
    search = matcher.search("b")
    descriptors, _ = matcher.search("a").describe(points)
    grid_only = search.index.grid.points_vox[(descriptors @ search._table.T).argmax(axis=1)]
    inside = np.linalg.norm((expected - [7.5, 29.5, 19.5]) * SPACING, axis=1) < 22
    refined = error_mm(search.match(descriptors).points_vox, expected)[inside]
    assert np.median(refined) < 0.5 * np.median(error_mm(grid_only, expected)[inside])


def test_parabola_peak_of_known_parabolas():
    peak, height = np.array([0.3, -0.5, 0.0]), np.array([2.0, 1.0, 0.5])

    def parabola(at):
        return height - 0.7 * (at - peak) ** 2

    offset, gain = _parabola_peak(parabola(-1), parabola(0), parabola(1))
    np.testing.assert_allclose(offset, peak)
    np.testing.assert_allclose(parabola(0) + gain, height)
    flat = np.ones(2)
    assert all((value == 0).all() for value in _parabola_peak(flat, flat, flat))


def test_blocks_give_the_same_as_one_product(matcher, monkeypatch):
    points = inner_points(matcher, "a", count=50)
    whole = matcher.match("a", "b", points)
    monkeypatch.setattr("nnunet_alice.matching.search._BLOCK_SIMILARITIES", 1)
    single = matcher.match("a", "b", points)
    np.testing.assert_allclose(single.points_vox, whole.points_vox, atol=1e-3)
    np.testing.assert_allclose(single.scores, whole.scores, atol=1e-5)


def test_points_far_from_the_body_have_no_counterpart(matcher):
    inside = matcher.search("a").index.grid.points_vox[5]
    matches = matcher.match("a", "b", np.array([inside, [0.0, 0.0, 0.0], inside + 0.1]))
    assert np.isneginf(matches.scores).tolist() == [False, True, False]
    assert np.isnan(matches.points_vox[1]).all() and np.isfinite(matches.points_vox[[0, 2]]).all()


def test_no_points_give_no_matches(matcher):
    matches = matcher.match("a", "b", np.empty((0, 3)))
    assert matches.points_vox.shape == (0, 3) and matches.scores.shape == (0,)


def test_a_bounded_number_of_indices_is_open(matcher, monkeypatch):
    monkeypatch.setattr(search, "_OPEN_INDICES", 2)
    points = inner_points(matcher, "a", count=3)
    for case in ("b", "c", "a", "b"):
        matcher.match("a", case, points)
        assert len(matcher._searches) <= 2
    opened = matcher.search("b")
    assert matcher.search("b") is opened
    copy = pickle.loads(pickle.dumps(matcher))
    assert len(copy._searches) == 0
    np.testing.assert_array_equal(copy.match("a", "b", points).scores, matcher.match("a", "b", points).scores)


def test_a_matcher_needs_indices(dataset, matcher, tmp_path, monkeypatch):
    assert matcher.cases == ("a", "b", "c") and matcher.name == "embedding"
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    bare = write_preprocessed(tmp_path, {"a": ball((16, 60, 40), SPACING, 27)}, SPACING)
    assert not embedding_is_prepared(bare)
    with refused(NotPreparedError, path=IndexStore(bare).folder, command="--method embedding"):
        EmbeddingMatcher(bare)


def test_prepared_means_usable_indices_of_two_cases(dataset, tmp_path, monkeypatch, caplog):
    assert embedding_is_prepared(dataset)
    assert open_matcher(dataset).name == "embedding"
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    images = {case: ball((16, 60, 40), SPACING, 27) for case in "ab"}
    other = write_preprocessed(tmp_path, images, SPACING)
    store, fingerprint = IndexStore(other), Fingerprint.of(other, "a" * 64, DIMENSION)
    store.begin(fingerprint, "checkpoint_final.pth")
    store.write("a", index_of(other, "a"), fingerprint)
    assert not embedding_is_prepared(other)
    with refused(NotPreparedError, value=1, command="--method embedding"):
        EmbeddingMatcher(other)
    store.write("b", index_of(other, "b"), fingerprint)
    assert not embedding_is_prepared(other)  # a kill could have left this
    assert f"are not finished and are not used; run: {store.command}" in caplog.text
    write_calibration(store, CALIBRATION, "b" * 64)
    assert not embedding_is_prepared(other)
    write_calibration(store, CALIBRATION, fingerprint.checkpoint)
    assert embedding_is_prepared(other)
    store.begin(replace(fingerprint, plans="otherPlans"), "checkpoint_final.pth")
    assert not embedding_is_prepared(other)
    assert "stale" in caplog.text


def test_descriptors_between_grid_points_come_close_to_the_true_ones(matcher):
    points = inner_points(matcher, "a")
    joined, _ = matcher.search("a").describe(points)
    exact = np.concatenate([FINE(canonical("a", points)), COARSE(canonical("a", points))], axis=1) * np.sqrt(0.5)
    assert ((joined * exact).sum(axis=1) > 0.97).all()


@pytest.mark.slow
def test_a_killed_indexing_does_not_beat_a_finished_atlas(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    other = write_preprocessed(tmp_path, {case: ball((16, 60, 40), SPACING, 27) for case in "ab"}, SPACING)
    prepare_atlas(other, 1, atlas_case="a")
    store, fingerprint = IndexStore(other), Fingerprint.of(other, "a" * 64, DIMENSION)
    store.begin(fingerprint, "checkpoint_final.pth")
    for case in "ab":
        store.write(case, index_of(other, case), fingerprint)
    assert open_matcher(other).name == "atlas"
    write_calibration(store, CALIBRATION, fingerprint.checkpoint)
    assert open_matcher(other, name="embedding").name == "embedding"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A dataset with indices of four cases, to be damaged."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    other = write_preprocessed(tmp_path, {case: ball((16, 60, 40), SPACING, 27) for case in "abcd"}, SPACING)
    store, fingerprint = IndexStore(other), Fingerprint.of(other, "a" * 64, DIMENSION)
    store.begin(fingerprint, "checkpoint_final.pth")
    for case, place in zip("abcd", "abca", strict=True):
        store.write(case, index_of(other, case, place), fingerprint, other.image_checksum(case))
    write_calibration(store, CALIBRATION, fingerprint.checkpoint)
    return other


def test_unusable_indices_are_left_out_when_the_matcher_is_opened(copy, caplog):
    store = IndexStore(copy)
    store.file("a").write_bytes(store.file("a").read_bytes()[:1000])
    replace_image(copy, "c", copy.image("c")[...][:, ::-1])
    assert EmbeddingMatcher(copy).cases == ("b", "d")
    assert "The indices of 2 of 4 cases (a, c) are missing, damaged or of other images" in caplog.text
    assert store.command in caplog.text
    store.file("b").unlink()
    with refused(NotPreparedError, path=store.folder, value=1, command=store.command):
        EmbeddingMatcher(copy)


@pytest.mark.slow
def test_too_few_usable_indices_leave_the_matching_to_the_atlas(copy):
    prepare_atlas(copy, 1, atlas_case="a")
    assert open_matcher(copy, name="embedding").name == "embedding"
    store = IndexStore(copy)
    for case in "abc":
        store.file(case).write_bytes(b"half an index")
    assert open_matcher(copy).name == "atlas"


def test_training_pairs_go_on_without_an_index_that_was_damaged_meanwhile(copy, caplog):
    """Damage that opening the matcher does not see: only what is read when the case is drawn."""
    store = IndexStore(copy)
    whole = bytearray(store.file("a").read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 100] = bytes(100)
    store.file("a").write_bytes(whole)
    pairs = MatchedPairs(EmbeddingMatcher(copy, threshold=0.5), list("abcd"), (4, 8, 8), copy.shape)
    assert "a" in pairs.cases
    drawn = [pairs.readings.again(pairs.draw, np.random.default_rng(seed)) for seed in range(12)]
    assert {case for pair in drawn for case in (pair.case_a, pair.case_b)} == {"b", "c", "d"}
    assert caplog.text.count("Case a is left out of training") == 1 and store.command in caplog.text
