"""Damaged cases: named once, replaced by others, and batches that do not depend on who met the damage first."""

import logging

import numpy as np
import pytest
import torch
from support.refused import refused

from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.matching.interface import Matches
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.views.affine_crops import AffineRange
from nnunet_alice.views.batch import Batch
from nnunet_alice.views.landmark_crops import LandmarkCrops
from nnunet_alice.views.loader import NumberedBatches
from nnunet_alice.views.matched_views import MatchedViews
from nnunet_alice.views.overlap import OverlapSampler
from nnunet_alice.views.overlap_batches import OverlappingCrops
from nnunet_alice.views.pairs import MatchedPairs, RandomPairs, SameVolumePairs
from nnunet_alice.views.readings import Readings, UnreadableCaseError

CASES = ("a", "b", "c", "d", "e")
SHAPE, PATCH, SPACING = (24, 24, 24), (8, 8, 8), (2.0, 2.0, 2.0)
DISTANCE = np.linalg.norm(np.indices(SHAPE) - 11.5, axis=0)


def image_of(case: str) -> np.ndarray:
    texture = np.random.default_rng(ord(case)).normal(scale=0.1, size=SHAPE)
    return (np.where(DISTANCE < 10, 1.0, -2.0) + texture)[None].astype(np.float32)


class World:
    """Cases of which some cannot be read, each in its own way; counts how often each of these was tried.

    Args:
        images: cases whose image cannot be cropped.
        anatomy: cases of which nothing else can be read.
    """

    name, threshold, cases = "world", 0.0, CASES

    def __init__(self, images=(), anatomy=()):
        self.bad_images, self.bad_anatomy = set(images), set(anatomy)
        self.images = {case: image_of(case) for case in CASES}
        self.geometries = {case: compute_geometry(case, image, SPACING) for case, image in self.images.items()}
        self.tried = []

    def image(self, case):
        if case in self.bad_images:
            self.tried.append(case)
            raise RuntimeError("Error while getting the buffer")
        return self.images[case]

    def geometry(self, case):
        if case in self.bad_anatomy:
            self.tried.append(case)
            raise NotPreparedError(f"Case {case} is stale; run: nnunet_alice anatomy")
        return self.geometries[case]

    open = geometry

    def body_points(self, case, count, rng):
        return self.geometry(case).body_points(count, rng)

    def match(self, case_a, case_b, points_vox):
        return Matches(points_vox, np.zeros(len(points_vox)))


def matched(world):
    pairs = MatchedPairs(world, CASES, PATCH, lambda case: SHAPE)
    return MatchedViews(pairs, world.image, PATCH, 3, mask_ratio=0.5, transform=None)


def same_volume(world):
    return MatchedViews(
        SameVolumePairs(world, CASES, PATCH), world.image, PATCH, 3, mask_ratio=0.5, transform=None
    )  # fmt: skip


def random_pairs(world):
    return MatchedViews(RandomPairs(world, CASES), world.image, PATCH, 3, mask_ratio=0.5, transform=None)


def overlapping(world, batch_size=3):
    return OverlappingCrops(
        CASES, world.geometry, world.image, SPACING, OverlapSampler(PATCH), batch_size,
        fine_stride=(2, 2, 2), coarse_stride=(4, 4, 4), transform=None,
    )  # fmt: skip


def landmarks(world, batch_size=3, **options):
    grid = np.stack(np.meshgrid([12, 24, 36], [12, 24, 36], [24], indexing="ij"), axis=-1).reshape(-1, 3)
    places = LandmarkPlaces(
        Landmarks(grid.astype(float), SHAPE, SPACING, 16.0, 12.0), CASES, [np.eye(4)] * 5, [SHAPE] * 5, SPACING
    )
    return LandmarkCrops(places, CASES, world.image, (4, 4, 4), SPACING, batch_size, affine=AffineRange(), **options)


LOADERS = [matched, same_volume, random_pairs, overlapping, landmarks]


def shown(batch: Batch) -> set[str]:
    return set(batch.cases)


def batches(loader, count=12, start=0) -> list[Batch]:
    numbered = NumberedBatches(loader, seed=5, start=start)
    return [next(numbered) for _ in range(count)]


def same(one: Batch, two: Batch) -> bool:
    return torch.equal(one.views, two.views) and shown(one) == shown(two)


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("damage", [{"images": "b"}, {"anatomy": "b"}, {"images": "bd"}])
def test_unreadable_cases_are_named_once_and_left_out(make, damage, caplog):
    world = World(**damage)
    if make is landmarks and not world.bad_images:
        pytest.skip("reads nothing but images")
    drawn = batches(make(world))
    bad = world.bad_images | world.bad_anatomy
    assert set().union(*map(shown, drawn)) == set(CASES) - bad
    assert set(world.tried) == bad
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(text.split()[1] for text in warnings) == sorted(bad)
    fix = "delete b.b2nd, preprocess again and run nnunet_alice anatomy" if world.bad_images else "is stale; run:"
    assert any(fix in text for text in warnings)


class Labels:
    """Regions, and shapes of bodies, of which some cases' files are damaged."""

    def __init__(self, *bad):
        self.bad = bad

    def open(self, case):
        if case in self.bad:
            raise EOFError

    def on_grid(self, case, first_vox, step_vox, size):
        self.open(case)
        return np.zeros(size, np.int64)

    def body_crop(self, case, first_vox, size):
        self.open(case)
        return np.ones(size, bool)


def test_cases_whose_regions_or_body_cannot_be_read_are_left_out():
    """Pairs that an embedding matched need no file of the atlas; the regions do."""

    def labelled(regions, bodies):
        world = World()
        return MatchedViews(
            SameVolumePairs(world, CASES, PATCH), world.image, PATCH, 3, mask_ratio=0.5, transform=None,
            regions=regions, body_crop=bodies.body_crop,
        )  # fmt: skip

    drawn, whole = batches(labelled(Labels("b"), Labels("d"))), batches(labelled(Labels(), Labels()))
    assert set().union(*map(shown, drawn)) == {"a", "c", "e"}
    untouched = [number for number, batch in enumerate(whole) if not shown(batch) & {"b", "d"}]
    assert untouched and all(same(drawn[number], whole[number]) for number in untouched)


@pytest.mark.slow
@pytest.mark.parametrize("make", LOADERS)
def test_batches_do_not_depend_on_when_the_damage_was_met(make):
    """A run that continues in the middle has met nothing yet, one worker of several only its own share."""
    whole = batches(make(World(images="bd")))
    for number, batch in enumerate(whole):
        assert same(batch, batches(make(World(images="bd")), 1, start=number)[0])
    for worker in (0, 1):
        numbered = NumberedBatches(make(World(images="bd")), seed=5, start=worker)
        numbered.stride = 2
        assert all(same(batch, next(numbered)) for batch in whole[worker::2])


class HalfDamaged:
    """An image of which only the lower half can be read, as where one chunk of a file is damaged."""

    def __init__(self, image):
        self.image, self.shape, self.dtype = image, image.shape, image.dtype

    def __getitem__(self, key):
        first = key[1].start if isinstance(key, tuple) and len(key) > 1 and isinstance(key[1], slice) else 0
        if (first or 0) < SHAPE[0] // 3:
            raise RuntimeError("Error while getting the buffer")
        return self.image[key]


@pytest.mark.slow
@pytest.mark.parametrize("make", LOADERS)
def test_batches_do_not_depend_on_which_part_of_a_damaged_case_was_met(make):
    """Who has met the damage goes on reading the sound parts, as somebody who has not would."""

    def damaged():
        world = World()
        world.images["b"] = HalfDamaged(world.images["b"])
        return make(world)

    whole = batches(damaged(), 40)
    assert {"b"} <= set().union(*map(shown, whole))
    for number in range(0, 40, 3):
        assert same(whole[number], batches(damaged(), 1, start=number)[0]), number


@pytest.mark.parametrize("make", LOADERS)
def test_batches_without_damaged_cases_stay_what_they_were(make):
    whole = batches(make(World()))
    with_damage = batches(make(World(images="b")))
    untouched = [number for number, batch in enumerate(whole) if "b" not in shown(batch)]
    assert all(same(whole[number], with_damage[number]) for number in untouched) and len(untouched) < len(whole)


def test_a_batch_of_different_cases_stays_one_while_there_are_enough():
    for batch in batches(overlapping(World(images="ab"))):
        assert sorted(batch.cases) == ["c", "d", "e"]
    for batch in batches(overlapping(World(images="abc"))):
        assert len(batch.cases) == 3 and set(batch.cases) == {"d", "e"}
    for batch in batches(landmarks(World(images="ab"))):
        assert sorted(batch.cases) == ["c", "d", "e"]


def test_a_landmark_of_too_few_readable_cases_gives_way_to_the_next():
    world = World(images="ab")
    loader = landmarks(world, neighbours=0)
    visible = loader.places.visible
    here = loader.visit_of(3)
    only_two = np.array([case in "ac" for case in CASES])
    loader.places.visible = lambda number: visible(number) & only_two if number == here.landmark else visible(number)
    batch = loader(3, np.random.default_rng(0))
    assert batch.landmark == loader.visit_of(here.next).landmark and len(batch.cases) == 3


@pytest.mark.parametrize(
    ("make", "bad", "found"),
    [
        (matched, "abcd", 4),
        (same_volume, "abcde", 5),
        (overlapping, "abcde", 5),
        (landmarks, "abcd", 2),
    ],
)
def test_when_too_few_cases_are_left_one_sentence_says_so(make, bad, found):
    with refused(InputError, value=found):
        batches(make(World(images=bad)))


def test_mistakes_in_the_program_are_not_taken_for_damage():
    readings = Readings()
    with pytest.raises(TypeError), readings.of("a"):
        raise TypeError("no such argument")
    assert readings.unreadable == {}
    with refused(UnreadableCaseError, case="a"), readings.of("a"):
        raise EOFError
