"""Pairs of points: drawn as asked, accepted by the rules, repeatable."""

import itertools
import math

import numpy as np
import pytest
from support.refused import refused

from nnunet_alice.cropping import share_inside
from nnunet_alice.errors import InputError
from nnunet_alice.matching.interface import Matches
from nnunet_alice.views.pairs import MatchedPairs, PointPair, RandomPairs, SameVolumePairs, matching_metrics

SHAPE = (30, 30, 30)


class ShiftMatcher:
    """Counterpart = point + 2; the score is the point's z / 30; case ``c`` has no counterparts at all."""

    name, threshold, cases = "shift", 0.6, ("a", "b", "c")

    def __init__(self):
        self.asked = 0

    def open(self, case):
        pass

    def body_points(self, case, count, rng):
        self.asked += count
        return rng.uniform(0, 29, size=(count, 3))

    def match(self, case_a, case_b, points_vox):
        scores = points_vox[:, 0] / 30
        return Matches(points_vox + 2, np.full(len(points_vox), -np.inf) if "c" in (case_a, case_b) else scores)


def pairs_of(cases, **options):
    return MatchedPairs(ShiftMatcher(), cases, (10, 10, 10), lambda case: SHAPE, **options)


def test_accepted_pairs_follow_the_rules():
    pairs = pairs_of(("a", "b"))
    rng = np.random.default_rng(0)
    for _ in range(100):
        pair = pairs.draw(rng)
        assert {pair.case_a, pair.case_b} == {"a", "b"} and pair.accepted
        np.testing.assert_allclose(pair.point_b, pair.point_a + 2)
        assert pair.score >= 0.6 and pair.score == pair.point_a[0] / 30
        both = np.stack([pair.point_a, pair.point_b])
        assert (share_inside(both, SHAPE, (10, 10, 10)) >= 0.5).all()
        assert pair.draws >= 1


def test_the_first_acceptable_draw_is_taken():
    pairs = pairs_of(("a", "b"))
    pair = pairs.draw(np.random.default_rng(3))
    rng = np.random.default_rng(3)
    rng.integers(2), rng.integers(1)
    drawn = []
    while len(drawn) < pair.draws:
        drawn.extend(rng.uniform(0, 29, size=(10, 3)))
    good = [p[0] / 30 >= 0.6 and (share_inside(np.stack([p, p + 2]), SHAPE, (10, 10, 10)) >= 0.5).all() for p in drawn]
    assert good.index(True) == pair.draws - 1
    np.testing.assert_array_equal(drawn[pair.draws - 1], pair.point_a)


def test_a_case_without_counterparts_falls_back_to_itself_and_says_so():
    pairs = pairs_of(("b", "c"))
    pair = pairs.draw(np.random.default_rng(0))
    assert not pair.accepted and pair.case_a == pair.case_b
    np.testing.assert_array_equal(pair.point_a, pair.point_b)
    assert pairs.matcher.asked == 10 * 100 + 1 and pair.draws == 1000


def test_another_partner_is_tried_when_one_has_no_counterparts():
    pairs = pairs_of(("a", "b", "c"))
    drawn = [pairs.draw(np.random.default_rng(seed)) for seed in range(30)]
    assert all(pair.accepted for pair in drawn if pair.case_a != "c")
    assert {pair.case_b for pair in drawn if pair.accepted} == {"a", "b"}


def test_cases_that_cannot_be_matched_are_paired_with_themselves():
    pairs = pairs_of(("a", "b", "unknown"))
    drawn = [pairs.draw(np.random.default_rng(seed)) for seed in range(60)]
    alone = [pair for pair in drawn if pair.case_a == "unknown"]
    assert 10 < len(alone) < 30 and all(pair.case_b == "unknown" and not pair.accepted for pair in alone)
    assert {pair.case_b for pair in drawn if pair.case_a != "unknown"} == {"a", "b"}
    assert all(pair.accepted for pair in drawn if pair.case_a != "unknown")


def test_same_seed_same_pair():
    one, two = (pairs_of(("a", "b", "unknown")).draw(np.random.default_rng(7)) for _ in range(2))
    assert one.case_a == two.case_a and one.draws == two.draws
    np.testing.assert_array_equal(one.point_a, two.point_a)


@pytest.mark.parametrize("cases", [(), ("a",), ("a", "unknown")])
def test_fewer_than_two_cases_get_a_sentence(cases):
    with refused(InputError, value=len({*cases} - {"unknown"})):
        pairs_of(cases)


def test_matching_metrics_count():
    point = np.zeros(3)
    pairs = [PointPair("a", "b", point, point, 0.5, 1, True), PointPair("a", "a", point, point, 1.0, 40, False)]
    expected = {"match_score": 0.75, "accepted_at_first_draw": 0.5, "unmatched_pairs": 0.5}
    assert matching_metrics(pairs) == expected and matching_metrics([]) == {}


def test_random_pairs_come_from_two_bodies_where_there_are_two():
    rng, matcher = np.random.default_rng(0), ShiftMatcher()
    drawn = [RandomPairs(matcher, ["b", "a", "c"]).draw(rng) for _ in range(60)]
    assert {(pair.case_a, pair.case_b) for pair in drawn} == set(itertools.permutations("abc", 2))
    assert not any(pair.accepted for pair in drawn) and all(math.isnan(pair.score) for pair in drawn)
    alone = RandomPairs(matcher, ["a"]).draw(rng)
    assert (alone.case_a, alone.case_b) == ("a", "a") and (alone.point_a != alone.point_b).any()
    with pytest.raises(InputError):
        RandomPairs(matcher, [])


def test_views_of_one_volume_overlap():
    pairs = SameVolumePairs(ShiftMatcher(), ("a", "b"), (8, 16, 32))
    rng = np.random.default_rng(0)
    drawn = [pairs.draw(rng) for _ in range(200)]
    shifts = np.abs([pair.point_b - pair.point_a for pair in drawn])
    assert all(pair.case_a == pair.case_b for pair in drawn)
    assert (shifts <= [2, 4, 8]).all() and (shifts.max(axis=0) > [1.5, 3, 6]).all()
