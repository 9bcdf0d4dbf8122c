"""Embedding heads: unit vectors at the strides of their maps."""

import pytest
import torch

from nnunet_alice.methods.embedding.heads import EmbeddingHeads, embedding_strides


def test_descriptors_are_unit_vectors_of_the_linear_projection():
    torch.manual_seed(0)
    heads = EmbeddingHeads(6, 4, (4, 8, 8), (1, 2, 2), dimension=5)
    coarse_map, fine_map = torch.randn(2, 6, 2, 3, 4), torch.randn(2, 4, 8, 12, 16)
    descriptors = heads(coarse_map, fine_map)
    assert descriptors.coarse.shape == (2, 5, 2, 3, 4) and descriptors.fine.shape == (2, 5, 8, 12, 16)
    weight, bias = heads.fine.weight[:, :, 0, 0, 0], heads.fine.bias
    by_hand = weight @ fine_map[1, :, 3, 5, 7] + bias
    torch.testing.assert_close(descriptors.fine[1, :, 3, 5, 7], by_hand / by_hand.norm())
    torch.testing.assert_close(descriptors.coarse.norm(dim=1), torch.ones(2, 2, 3, 4))


def test_descriptors_stay_float32_under_mixed_precision():
    heads = EmbeddingHeads(6, 4, (8, 8, 8), (2, 2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        descriptors = heads(torch.randn(1, 6, 2, 2, 2), torch.randn(1, 4, 4, 4, 4))
    assert descriptors.fine.dtype == descriptors.coarse.dtype == torch.float32
    torch.testing.assert_close(descriptors.fine.norm(dim=1), torch.ones(1, 4, 4, 4))


def test_strides_of_anisotropic_plans():
    stages = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    assert embedding_strides(stages) == ((4, 16, 16), (1, 2, 2))
    with pytest.raises(ValueError):
        embedding_strides(stages[:2])


def test_maps_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 8, 8\) .* \(2, 2, 2\)"):
        EmbeddingHeads(6, 4, (2, 2, 2), (8, 8, 8))
