"""Matchers compete on what their matches show: the one that finds the same anatomy is used, and it says why."""

from collections.abc import Callable

import numpy as np
import pytest
from support.refused import refused
from support.small_datasets import write_preprocessed

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.matching import registry
from nnunet_alice.matching.evidence import EVIDENCE_FILE, likeness_of_places, measure_evidence
from nnunet_alice.matching.interface import GeometryMatcher, Matches
from nnunet_alice.matching.registry import Provider, open_matcher

SHAPE, SPACING = (30, 36, 32), (3.0, 2.0, 2.0)
SHIFTS_VOX = {"a": (0, 0, 0), "b": (2, -4, 3), "c": (-3, 2, -5)}


def person(shift_vox) -> np.ndarray:
    """(1, z, y, x) body with organs that no two places have in the same arrangement, moved as a whole."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - shift_vox
    middle = (np.array(SHAPE) - 1) / 2
    image = np.where(np.linalg.norm((grid - middle) / (12, 14, 12), axis=-1) < 1, 1.0, -2.0)
    rng = np.random.default_rng(5)
    for value in rng.normal(scale=1.0, size=14):
        at = middle + rng.uniform(-8, 8, 3)
        image += np.where(np.linalg.norm((grid - at) / (3, 4, 4), axis=-1) < 1, value, 0)
    return (image + np.random.default_rng(abs(sum(shift_vox))).normal(scale=0.05, size=SHAPE))[None]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return write_preprocessed(tmp_path, {case: person(shift) for case, shift in SHIFTS_VOX.items()}, SPACING)


class Answering(GeometryMatcher):
    """Answers by a function of the cases and points; implements ``Matcher``."""

    threshold = 0.5

    def __init__(self, dataset, name: str, answer: Callable, cases=None) -> None:
        super().__init__(dataset, cases)
        self.name, self.answer = name, answer

    def match(self, case_a, case_b, points_vox):
        found = self.answer(case_a, case_b, points_vox)
        return Matches(found, np.where(np.isfinite(found).all(axis=1), 1.0, -np.inf))


def right(case_a, case_b, points):
    return points + np.subtract(SHIFTS_VOX[case_b], SHIFTS_VOX[case_a])


def wrong(case_a, case_b, points):
    """Somewhere in the body: the same for the same points."""
    return np.random.default_rng(3).permutation(points)


def never(case_a, case_b, points):
    raise InputError(f"The index of {case_a} is damaged.")


def evidence_of(dataset, *matchers, **options):
    found = measure_evidence(matchers, lambda case: load_geometry(dataset, case), pairs=6, **options)
    return {one.matcher: one for one in found}


def test_places_look_like_themselves_and_unlike_others(dataset):
    geometry = load_geometry(dataset, "a")
    points = geometry.body_points(40, np.random.default_rng(0))
    np.testing.assert_allclose(likeness_of_places(geometry, points, geometry, points), 1.0, atol=1e-5)
    other = likeness_of_places(geometry, points, geometry, wrong("a", "a", points))
    assert (other >= 0).all() and np.median(other) < 0.5
    assert likeness_of_places(geometry, points[:0], geometry, points[:0]).shape == (0,)


def test_a_place_without_any_structure_counts_nothing(dataset):
    geometry = load_geometry(dataset, "a")
    flat = type(geometry)(**vars(geometry) | {"image": np.zeros_like(geometry.image)})
    points = geometry.body_points(5, np.random.default_rng(0))
    assert likeness_of_places(geometry, points, flat, points).tolist() == [0.0] * 5


def test_the_right_matcher_has_the_better_evidence(dataset):
    found = evidence_of(dataset, Answering(dataset, "bad", wrong), Answering(dataset, "good", right))
    assert found["good"].likeness > 0.9 > 0.5 > found["bad"].likeness
    assert found["good"].answered == found["bad"].answered == 1.0 and found["good"].points == 300


def test_coming_back_is_no_evidence(dataset):
    """A matcher that mirrors every point brings all of them back, and is wrong."""
    mirror = Answering(dataset, "mirror", lambda a, b, points: np.array(SHAPE) - 1.0 - points)
    found = evidence_of(dataset, mirror, Answering(dataset, "good", right))
    assert found["mirror"].likeness < 0.6 * found["good"].likeness


def test_points_that_one_does_not_answer_are_asked_of_none_and_unknown_cases_count_nothing(dataset):
    half = lambda a, b, points: np.where(np.arange(len(points))[:, None] % 2, right(a, b, points), np.nan)  # noqa: E731
    found = evidence_of(
        dataset,
        Answering(dataset, "good", right),
        Answering(dataset, "half", half),
        Answering(dataset, "two cases", right, cases=["a", "b"]),
    )
    assert found["half"].answered == 0.5 and found["half"].points == 150
    assert found["half"].likeness == found["good"].likeness > 0.9
    assert found["two cases"].likeness < found["good"].likeness and found["two cases"].answered < 1


def test_a_pair_that_cannot_be_read_is_left_out_for_all(dataset):
    found = evidence_of(dataset, Answering(dataset, "good", right), Answering(dataset, "damaged", never))
    assert found["good"].points == 0 and found["good"].likeness == 0.0


# ------------------------------------------------------------------------------------------------- which one is used


@pytest.fixture
def providers(dataset, monkeypatch):
    """Sets what is prepared: name -> answers, in the order of preference."""

    def prepare(basis=None, **answers):
        monkeypatch.setattr(
            registry,
            "PROVIDERS",
            [
                Provider(name, lambda _: True, lambda data, n=name, a=answer: Answering(data, n, a), lambda _: basis)
                for name, answer in answers.items()
            ],
        )

    return prepare


def test_a_useless_embedding_does_not_take_the_place_of_a_good_atlas(dataset, providers):
    providers(embedding=wrong, atlas=right)
    matcher = open_matcher(dataset)
    assert matcher.name == "atlas"
    assert "The atlas is used" in matcher.why and "the embedding 0." in matcher.why
    assert open_matcher(dataset, name="embedding").name == "embedding"  # a run that began with it goes on with it


def test_a_good_embedding_takes_the_place_of_a_bad_atlas(dataset, providers):
    providers(embedding=right, atlas=wrong)
    assert open_matcher(dataset).name == "embedding"


def test_where_both_are_as_good_the_first_of_the_list_is_used(dataset, providers):
    providers(embedding=right, atlas=right)
    assert open_matcher(dataset).name == "embedding"


@pytest.mark.slow
def test_matchers_are_compared_once_for_what_they_were_made_from(dataset, providers, monkeypatch):
    providers(basis=[1, (2, 3)], embedding=wrong, atlas=right)
    assert open_matcher(dataset).name == "atlas"
    providers(basis=[1, (2, 3)], embedding=right, atlas=wrong)
    assert open_matcher(dataset).name == "atlas"  # as kept
    providers(basis=[2, (2, 3)], embedding=right, atlas=wrong)
    assert open_matcher(dataset).name == "embedding"  # made of something else: compared again
    (dataset.anatomy_folder / EVIDENCE_FILE).write_text("[]")
    providers(basis=[2, (2, 3)], embedding=wrong, atlas=right)
    assert open_matcher(dataset).name == "atlas"


def test_one_that_cannot_be_opened_leaves_the_place_to_the_other(dataset, providers):
    def refuses(data):
        raise NotPreparedError("The embedding finds nothing.").about(value="nothing")

    providers(embedding=right, atlas=wrong)
    registry.PROVIDERS[0] = Provider("embedding", lambda _: True, refuses)
    matcher = open_matcher(dataset)
    assert (matcher.name, matcher.why) == ("atlas", "")
    with refused(NotPreparedError, value="nothing"):
        open_matcher(dataset, name="embedding")
