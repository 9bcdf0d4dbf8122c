"""One atlas for each modality: counterparts within a modality alone, regions numbered apart; or all as one."""

import pickle

import numpy as np
import pytest
from support.modality_pools import POOL, planned_pool, run
from support.small_datasets import set_named_folders

from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.invalidation import invalidate_case
from nnunet_alice.matching.modalities import ModalityAtlases, lay_regions_of
from nnunet_alice.matching.registry import open_matcher
from nnunet_alice.views.pairs import MatchedPairs

ANATOMY = ("anatomy", "-d", 900, "-p", "AliceSmallPlans", "-c", "3d_fullres", "-np", 1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool of two modalities, both registered."""
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        set_named_folders(patch, folder)
        dataset = planned_pool(folder)
        run(*ANATOMY)
        yield dataset


def test_counterparts_are_those_of_the_own_atlas_and_none_in_another_modality(pool):
    matcher = open_matcher(pool)
    assert isinstance(matcher, ModalityAtlases) and set(matcher.atlases) == set(POOL)
    for modality, atlas in matcher.atlases.items():
        assert set(atlas.cases) <= set(POOL[modality]) and atlas.atlas.geometry.case in POOL[modality]
    a, b = matcher.atlases["CT"].cases[:2]
    points = matcher.body_points(a, 20, np.random.default_rng(0))
    alone = AtlasMatcher(PreprocessedDataset(pool.name, pool.plans_name, pool.configuration, "CT"))
    np.testing.assert_array_equal(matcher.match(a, b, points).points_vox, alone.match(a, b, points).points_vox)
    elsewhere = matcher.match(a, "T1__m0", points)
    assert np.isneginf(elsewhere.scores).all() and np.isnan(elsewhere.points_vox).all()
    assert elsewhere.points_vox.shape == (20, 3)
    assert pickle.loads(pickle.dumps(matcher)).cases == matcher.cases


@pytest.mark.slow
def test_pairs_stay_within_a_modality_unless_asked(pool):
    matcher, rng = open_matcher(pool), np.random.default_rng(1)
    pairs = MatchedPairs(matcher, pool.cases(), (8, 8, 8), pool.shape, group_of=pool.modalities)
    drawn = [pairs.draw(rng) for _ in range(60)]
    accepted = [pair for pair in drawn if pair.accepted]
    assert {pool.modalities[pair.case_a] for pair in accepted} == set(POOL)
    assert all(pool.modalities[pair.case_a] == pool.modalities[pair.case_b] for pair in drawn)
    run(*ANATOMY, "--across_modalities")
    together = open_matcher(pool.together())
    assert isinstance(together, AtlasMatcher) and AtlasFiles(pool.together()).folder.name == "atlas"
    # demons compare intensities
    assert not any(together.deformation(case).displacement_mm.any() for case in together.cases)
    for atlas in matcher.atlases.values():
        moving = [case for case in atlas.cases if case != atlas.atlas.geometry.case]
        assert all(atlas.deformation(case).displacement_mm.any() for case in moving)
    across = MatchedPairs(together, pool.cases(), (8, 8, 8), pool.shape)
    drawn = [across.draw(rng) for _ in range(60)]
    assert any(pool.modalities[pair.case_a] != pool.modalities[pair.case_b] for pair in drawn if pair.accepted)


def test_regions_of_modalities_have_numbers_of_their_own(pool):
    matcher = open_matcher(pool)
    regions, seen = lay_regions_of(matcher, 20), {}
    for modality, atlas in matcher.atlases.items():
        case = atlas.cases[0]
        found = regions.on_grid(case, (0, 0, 0), (1, 1, 1), pool.shape(case))
        alone = lay_regions_of(atlas, 10).on_grid(case, (0, 0, 0), (1, 1, 1), pool.shape(case))
        np.testing.assert_array_equal(found > 0, alone > 0)
        seen[modality] = set(np.unique(found[found > 0]).tolist())
        assert len(seen[modality]) == len(set(np.unique(alone[alone > 0]).tolist()))
    assert not seen["CT"] & seen["T1"] and max(seen["CT"] | seen["T1"]) <= 20


def test_a_case_that_changes_is_forgotten_by_the_atlas_of_its_modality(pool):
    atlas = open_matcher(pool).atlases["CT"]
    case = next(case for case in atlas.cases if case != atlas.atlas.geometry.case)
    file = atlas.atlas.files.case_file(case)
    kept = file.read_bytes()
    invalidate_case(pool, case)
    assert not file.exists()
    file.write_bytes(kept)
