"""The threshold of scores, learned from matches that come back."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnunet_alice.matching.calibration import VERSION, calibrate, calibration_of, read_calibration, write_calibration
from nnunet_alice.matching.interface import Matches


class Halves:
    """Right where z is positive, with scores of 0.6 to 0.9; elsewhere random, with scores of 0.3 to 0.7."""

    cases = ("a", "b")

    def __init__(self, right: bool = True):
        self.rng = np.random.default_rng(1)
        self.right = right

    def body_points(self, case, count, rng):
        return rng.uniform(-100, 100, (count, 3))

    def match(self, case_a, case_b, points):
        good = (points[:, 0] > 0) & self.right
        found = np.where(good[:, None], points, self.rng.uniform(1000, 2000, points.shape))
        scores = np.where(good, self.rng.uniform(0.6, 0.9, len(points)), self.rng.uniform(0.3, 0.7, len(points)))
        return Matches(found, scores)


def test_the_threshold_keeps_most_of_what_comes_back_and_little_else():
    calibration = calibrate(Halves(), (1.0, 1.0, 1.0), tolerance_mm=5.0)
    assert calibration.returned == pytest.approx(0.5, abs=0.03)
    assert calibration.threshold == pytest.approx(0.6 + 0.05 * 0.3, abs=0.01)
    # 95 % of the right half and the wrong ones above the threshold: (0.7 - 0.615) / 0.4 of their half
    assert calibration.accepted == pytest.approx(0.475 + 0.5 * 0.2125, abs=0.03)
    assert calibration.returned_of_accepted == pytest.approx(0.475 / calibration.accepted, abs=0.01)
    assert calibration.points == 6000


def test_nothing_comes_back_so_nothing_is_trusted():
    calibration = calibrate(Halves(right=False), (1.0, 1.0, 1.0), tolerance_mm=5.0)
    assert (calibration.threshold, calibration.returned, calibration.accepted, calibration.returned_of_accepted) == (
        np.inf,
        0.0,
        0.0,
        0.0,
    )
    assert calibration.finds_nothing


def test_a_few_that_come_back_by_luck_make_nothing_trusted():
    """4 % come back, with scores like those of all others: no score tells them apart."""
    rng = np.random.default_rng(0)
    calibration = calibration_of(rng.uniform(0.9, 1.0, 5000), rng.random(5000) < 0.04, 5.0)
    assert calibration.finds_nothing and calibration.returned == pytest.approx(0.04, abs=0.01)


def test_the_threshold_rises_until_most_of_what_is_trusted_comes_back():
    """Those that come back score higher, but their low scores are those of as many that do not."""
    rng = np.random.default_rng(0)
    returned = np.repeat([True, False], 2000)
    scores = np.where(returned, rng.uniform(0.5, 1.0, 4000), rng.uniform(0.0, 0.9, 4000))
    calibration = calibration_of(scores, returned, 5.0)
    naive = [scores >= t for t in np.sort(scores) if returned[scores >= t].mean() >= 0.8]
    assert calibration.accepted == pytest.approx(naive[0].mean()) and calibration.returned_of_accepted >= 0.8
    assert calibration.threshold > np.quantile(scores[returned], 0.05)


def test_too_few_reliable_matches_count_as_none():
    scores, returned = np.linspace(0, 1, 1000), np.zeros(1000, dtype=bool)
    returned[-90:] = True
    assert calibration_of(scores, returned, 5.0).finds_nothing
    returned[-150:] = True
    assert calibration_of(scores, returned, 5.0).accepted == pytest.approx(0.95 * 0.15, abs=0.002)


def test_unanswered_queries_count_as_lost():
    class Silent(Halves):
        def match(self, case_a, case_b, points):
            matches = super().match(case_a, case_b, points)
            lost = points[:, 1] > 0
            matches.points_vox[lost], matches.scores[lost] = np.nan, -np.inf
            return matches

    calibration = calibrate(Silent(), (1.0, 1.0, 1.0), tolerance_mm=5.0)
    assert calibration.returned == pytest.approx(0.25, abs=0.03) and np.isfinite(calibration.threshold)


def test_what_was_measured_is_kept_for_its_checkpoint_only(tmp_path: Path):
    store: Any = SimpleNamespace(calibration_file=tmp_path / "trust.json")
    halves: Any = Halves()
    assert read_calibration(store, "a") is None
    calibration = calibrate(halves, (1.0, 1.0, 1.0), tolerance_mm=5.0)
    write_calibration(store, calibration, "a")
    assert read_calibration(store, "a") == calibration and read_calibration(store, "b") is None
    nothing = replace(calibration, threshold=np.inf)
    write_calibration(store, nothing, "a")
    assert read_calibration(store, "a") == nothing and "Infinity" not in store.calibration_file.read_text()
    store.calibration_file.write_text(
        store.calibration_file.read_text().replace(f'"version": {VERSION}', '"version": 1')
    )
    assert read_calibration(store, "a") is None  # measured by another rule
    (tmp_path / "trust.json").write_text('{"threshold": 1}')
    assert read_calibration(store, "a") is None
