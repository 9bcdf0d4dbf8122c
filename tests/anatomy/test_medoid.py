"""Choice of the atlas."""

import numpy as np
import pytest
from support.refused import refused

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.anatomy.medoid import MAX_CANDIDATES, describe, find_medoid
from nnunet_alice.errors import InputError


def ellipsoid(size: float, brightness: int = 200, shape=(20, 24, 28)) -> CaseGeometry:
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = sum(a**2 for a in axes) < size**2
    image = np.where(body, brightness, 0).astype(np.uint8)
    return CaseGeometry("case", shape, (2.0, 2.0, 2.0), (1, 1, 1), shape, image, np.packbits(body))


def test_the_middle_of_a_family_is_chosen():
    sizes = {f"s{i}": 0.5 + 0.05 * i for i in range(9)}
    assert find_medoid(sorted(sizes), lambda case: ellipsoid(sizes[case])) == "s4"


@pytest.mark.parametrize(
    "odd", [ellipsoid(0.7, shape=(60, 24, 28)), ellipsoid(0.25), ellipsoid(0.7, brightness=40)], ids=str
)
def test_the_odd_one_out_is_never_chosen(odd):
    geometries = {f"c{i}": ellipsoid(0.7 + 0.01 * i) for i in range(4)} | {"odd": odd}
    for order in (sorted(geometries), sorted(geometries, reverse=True)):
        assert find_medoid(order, geometries.__getitem__) != "odd"


def test_only_some_cases_are_looked_at_in_a_large_dataset_always_the_same():
    runs = []
    for _ in range(2):
        seen = []
        chosen = find_medoid([f"c{i:05d}" for i in range(20_000)], lambda case: seen.append(case) or ellipsoid(0.7))  # noqa: B023
        runs.append((chosen, seen))
    assert runs[0] == runs[1]
    assert len(runs[0][1]) == MAX_CANDIDATES


def test_a_case_that_fails_is_no_candidate_and_stops_nothing():
    def geometry_of(case):
        if case != "good":
            raise InputError(f"Case {case} is bad.")
        return ellipsoid(0.7)

    assert find_medoid(["bad1", "good", "bad2"], geometry_of) == "good"
    with refused(InputError, value=2):
        find_medoid(["bad1", "bad2"], geometry_of)


def test_description_has_its_documented_size_also_of_tiny_volumes():
    for shape in ((20, 24, 28), (3, 5, 40)):
        size, body, image = describe(ellipsoid(0.9, shape=shape))
        np.testing.assert_allclose(size, np.log(np.multiply(shape, 2.0)))
        assert body.shape == image.shape == (512,)
        assert min(body.min(), image.min()) >= 0 and max(body.max(), image.max()) <= 1
