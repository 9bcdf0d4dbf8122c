"""Landmark crops: the right anatomy of the right subjects, augmented within limits, repeatable."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.refused import refused

from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.errors import InputError
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.methods.drasclr.queue import KeyQueue
from nnunet_alice.views.affine_crops import AffineRange
from nnunet_alice.views.landmark_crops import LandmarkCrops, crop_size, noise_and_gamma, size_of_batch

SPACING = (4.0, 2.0, 2.0)
SHAPES = {"a": (20, 40, 40), "b": (24, 36, 40), "c": (20, 40, 44), "short": (8, 40, 40)}


@pytest.fixture
def world():
    """Cases in mm = atlas mm but for a shift; voxels hold (case, z, y, x), so that a crop says where it is from."""
    grid = np.stack(np.meshgrid([16, 48, 64], [24, 52], [20, 44, 60], indexing="ij"), axis=-1).reshape(-1, 3)
    landmarks = Landmarks(grid.astype(float), (20, 40, 40), SPACING, 16.0, 24.0)
    affines = []
    for number in range(len(SHAPES)):
        affine = np.eye(4)
        affine[:3, 3] = (0, 2.0 * number, -2.0 * number)
        affines.append(affine)
    places = LandmarkPlaces(landmarks, list(SHAPES), affines, SHAPES.values(), SPACING)

    def image(case):
        axes = np.meshgrid(*map(np.arange, SHAPES[case]), indexing="ij")
        return np.stack([np.full(SHAPES[case], list(SHAPES).index(case)), *axes]).astype(np.float32)

    return SimpleNamespace(places=places, landmarks=landmarks, affines=affines, image=image)


def crops(world, cases=tuple(SHAPES), **settings):
    settings = {"affine": None, "neighbours": 2, "batch_size": 8} | settings
    batch_size = settings.pop("batch_size")
    return LandmarkCrops(world.places, cases, world.image, (4, 8, 8), SPACING, batch_size, **settings)


def many_subjects(count: int, **settings) -> LandmarkCrops:
    """Six landmarks that all of so many equal cases show."""
    grid = np.stack(np.meshgrid([8, 16, 24], [10, 20], [12], indexing="ij"), axis=-1).reshape(-1, 3)
    landmarks = Landmarks(grid.astype(float), (32, 32, 24), (1.0, 1.0, 1.0), 4.0, 8.0)
    cases = [f"c{number}" for number in range(count)]
    places = LandmarkPlaces(landmarks, cases, [np.eye(4)] * count, [(32, 32, 24)] * count, (1.0, 1.0, 1.0))
    image = np.zeros((1, 32, 32, 24), dtype=np.float32)
    settings = {"affine": None, "neighbours": 0} | settings
    return LandmarkCrops(places, cases, lambda _: image, (2, 2, 2), (1, 1, 1), settings.pop("batch_size"), **settings)


def test_crops_show_the_landmark_and_its_neighbours_in_every_subject(world):
    make = crops(world)
    nearest = world.landmarks.neighbours(2)
    for number in range(len(make.landmarks)):
        batch = make(number, np.random.default_rng(number))
        landmark, count = batch.landmark, len(batch.cases)
        assert batch.views.shape == (4 * count, 4, 4, 8, 8) and batch.views.dtype == torch.float32
        patches = batch.views.unflatten(0, (4, count))
        assert torch.equal(patches[0], patches[1])  # two views of the same patch, here not augmented
        for row, place in ((0, landmark), (2, nearest[landmark][0]), (3, nearest[landmark][1])):
            for column, case in enumerate(batch.cases):
                subject = list(SHAPES).index(case)
                point_mm = world.landmarks.points_mm[place] - world.affines[subject][:3, 3]
                middle = patches[row, column, :, 2, 4, 4].numpy()
                assert middle[0] == subject == batch.subjects[column]
                np.testing.assert_array_equal(middle[1:], np.floor(point_mm / SPACING + 0.5))
        np.testing.assert_array_equal(batch.location, world.landmarks.locations[landmark])
        np.testing.assert_array_equal(batch.neighbour_locations, world.landmarks.locations[nearest[landmark]])


@pytest.mark.slow
def test_subjects_are_those_that_show_landmark_and_neighbours(world):
    make = crops(world)
    nearest = world.landmarks.neighbours(2)
    high = set()
    for number in range(len(make.landmarks)):
        drawn = [make(number, np.random.default_rng(seed)) for seed in range(20)]
        batch = drawn[0]
        involved = [batch.landmark, *nearest[batch.landmark]]
        expected = {
            case
            for number, case in enumerate(SHAPES)
            if all(
                world.landmarks.in_case(world.affines[number], SHAPES[case], SPACING).landmarks.tolist().count(place)
                for place in involved
            )
        }
        assert {case for batch in drawn for case in batch.cases} == expected
        high.add("short" in expected)
    assert high == {True, False}
    assert set(crops(world, cases=["a", "b", "unknown"])(0, np.random.default_rng(0)).cases) == {"a", "b"}


def test_batches_are_not_larger_than_asked_and_repeat_nobody(world):
    for seed in range(10):
        cases = crops(world, batch_size=2)(seed, np.random.default_rng(seed)).cases
        assert len(cases) == 2 == len(set(cases))


def visits(make, batches: int) -> list[tuple[int, list[int]]]:
    """(landmark, its batch numbers) of the visits of the first batches, by the landmarks that batches show."""
    found: list[tuple[int, list[int]]] = []
    for number in range(batches):
        landmark = make.visit_of(number).landmark
        if make.visit_of(number).step == 0:
            found.append((landmark, []))
        found[-1][1].append(number)
        assert found[-1][0] == landmark
    return found


def test_a_visit_stays_until_all_subjects_were_shown_once_and_a_round_visits_every_landmark():
    make = many_subjects(13, batch_size=4)
    length = int(make.stays.sum())
    assert make.stays.tolist() == [3] * len(make.landmarks)
    rounds = [visits(make, 2 * length)[part] for part in (slice(0, 6), slice(6, 12))]
    orders = [[landmark for landmark, _ in one] for one in rounds]
    assert sorted(orders[0]) == sorted(orders[1]) == make.landmarks.tolist() and orders[0] != orders[1]
    for landmark, numbers in rounds[0] + rounds[1]:
        shown = [make(number, np.random.default_rng(number)) for number in numbers]
        subjects = [int(subject) for batch in shown for subject in batch.subjects]
        assert {batch.landmark for batch in shown} == {landmark} and len(subjects) == 12 == len(set(subjects))
    other = many_subjects(13, batch_size=4, seed=1)
    assert [landmark for landmark, _ in visits(other, length)] != orders[0]


def test_ranks_are_at_one_landmark_with_different_subjects():
    shares = [many_subjects(13, batch_size=size, together=5, before=before) for size, before in ((3, 0), (2, 3))]
    for number in range(2 * int(shares[0].stays.sum())):
        one, two = (make(number, np.random.default_rng([rank, number])) for rank, make in enumerate(shares))
        assert one.landmark == two.landmark and len(one.subjects) == 3 and len(two.subjects) == 2
        assert not set(one.subjects.tolist()) & set(two.subjects.tolist())


def test_too_few_subjects_for_all_ranks_are_drawn_by_each():
    for before in (0, 4):
        make = many_subjects(5, batch_size=4, together=8, before=before)
        assert make.stays.tolist() == [1] * 6 and len(make(1, np.random.default_rng(0)).cases) == 4


def test_batches_have_few_sizes():
    """The largest, and powers of two below, as each is compiled; none shows fewer than half of what it could."""
    sizes = [size_of_batch(subjects, 12) for subjects in range(1, 30)]
    assert set(sizes) == {1, 2, 4, 8, 12} and sizes == sorted(sizes)
    assert all(size <= subjects < 2 * size or size == 12 for subjects, size in enumerate(sizes, start=1))
    for subjects in (2, 3, 5, 7, 11, 13):
        make = many_subjects(subjects, batch_size=12)
        for number in range(6):
            assert len(make(number, np.random.default_rng(number)).cases) == size_of_batch(subjects, 12)


def test_a_batch_without_its_unreadable_cases_has_one_of_the_sizes(world):
    sizes = set()
    for broken in ((), ("a",), ("a", "b")):

        def image(case, broken=broken):
            if case in broken:
                raise OSError(case)
            return world.image(case)

        make = LandmarkCrops(
            world.places, list(SHAPES), image, (4, 8, 8), SPACING, 4, affine=None, neighbours=0, min_subjects=1
        )
        for number in range(len(make.landmarks)):
            batch = make(number, np.random.default_rng(number))
            assert not set(batch.cases) & set(broken)
            assert len(batch.views) == 2 * len(batch.cases)
            sizes.add(len(batch.cases))
    assert sizes == {1, 2, 4}


def test_a_stay_can_be_limited():
    assert many_subjects(13, batch_size=2, max_stay=4).stays.tolist() == [4] * 6


def test_negatives_are_as_young_as_a_visit_is_long_and_of_every_other_subject_once():
    """Queue and order together, simulated: no key older than its visit, no subject twice."""
    make = many_subjects(13, batch_size=4)
    queue, whole = KeyQueue(13, dim=2), 0
    for number in range(3 * int(make.stays.sum())):
        batch, visit = make(number, np.random.default_rng(number)), make.visit_of(number)
        seen = queue.seen_from(batch.landmark)
        ages, subjects = seen.ages[seen.here].tolist(), seen.subjects[seen.here].tolist()
        assert len(set(subjects)) == len(subjects)
        if number == visit.step or make.visit_of(number - visit.step - 1).landmark != visit.landmark:
            assert sorted(ages) == sorted(list(range(1, visit.step + 1)) * 4)
            assert len(set(subjects) | set(batch.subjects.tolist())) == 4 * (visit.step + 1)
            whole += 1
        queue.enqueue(torch.zeros(4, 2), torch.full((4,), batch.landmark), batch.subjects)
    assert whole > 40


def test_scans_of_one_person_are_one_subject():
    """Never twice in a visit, each of them now and then; counted as one where a landmark is too rarely shown."""
    subject_of = {f"c{number}": f"person{number // 3}" for number in range(12)}
    make = many_subjects(13, batch_size=2, subject_of=subject_of)
    assert make.stays.tolist() == [2] * 6  # four persons and one case that the table does not name
    seen = {}
    for _, numbers in visits(make, 10 * int(make.stays.sum())):
        batches = [make(number, np.random.default_rng(number)) for number in numbers]
        people = [subject_of.get(case, case) for batch in batches for case in batch.cases]
        numbers = [int(subject) for batch in batches for subject in batch.subjects]
        assert len(set(people)) == len(people) == len(set(numbers))
        for batch in batches:
            for case, subject in zip(batch.cases, batch.subjects.tolist(), strict=True):
                seen.setdefault(subject, set()).add(case)
    groups = {frozenset(f"c{3 * person + scan}" for scan in range(3)) for person in range(4)} | {frozenset({"c12"})}
    assert {frozenset(cases) for cases in seen.values()} == groups
    with refused(InputError, option="--roi", value=6):
        many_subjects(13, batch_size=2, subject_of=subject_of, min_subjects=6)


def test_a_batch_depends_on_number_and_generator_alone(world):
    make = crops(world, affine=AffineRange(), transform=noise_and_gamma(1.0))
    one = make(3, np.random.default_rng([1, 2]))
    make(4, np.random.default_rng(9))
    torch.rand(3)
    two = make(3, np.random.default_rng([1, 2]))
    assert torch.equal(one.views, two.views) and one.cases == two.cases
    assert not torch.equal(one.views, make(3, np.random.default_rng([1, 3])).views)
    views = one.views.unflatten(0, (4, -1))
    assert not torch.equal(views[0], views[1])  # each view is augmented on its own


def test_too_few_cases_or_landmarks_get_one_sentence(world):
    with refused(InputError, option="--roi", value=2, command="nnunet_alice anatomy"):
        crops(world, cases=["a"])
    crops(world, cases=["a"], min_subjects=1)
    with refused(InputError, option="step", value=18):
        crops(world, neighbours=18)


def test_noise_and_gamma_come_a_quarter_of_the_time():
    view = np.random.default_rng(0).normal(size=(1, 6, 6, 6)).astype(np.float32)
    from nnunet_alice.views.augmentation import augmented

    views = augmented((view.copy() for _ in range(400)), noise_and_gamma(), np.random.default_rng(1)).numpy()
    same = np.mean([np.array_equal(one, view) for one in views])
    assert abs(same - 0.75**2) < 0.08


@pytest.mark.parametrize(
    ("patch_mm", "spacing", "strides", "largest", "expected"),
    [
        (32, (1, 1, 1), (32, 32, 32), (128, 128, 128), (64, 64, 64)),  # two voxels at the bottleneck
        (100, (1, 1, 1), (32, 32, 32), (128, 128, 128), (128, 128, 128)),
        (500, (1, 1, 1), (32, 32, 32), (128, 128, 100), (128, 128, 96)),
        (32, (5, 0.8, 0.8), (4, 32, 32), (20, 256, 256), (8, 64, 64)),
        (32, (1, 1, 1), (16, 16, 16), (16, 16, 16), (32, 32, 32)),  # plans that keep one voxel
    ],
)
def test_crop_size(patch_mm, spacing, strides, largest, expected):
    assert crop_size(patch_mm, spacing, strides, largest) == expected
