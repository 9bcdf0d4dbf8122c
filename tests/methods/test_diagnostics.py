"""Signs of life: they must tell health from collapse and from a shortcut."""

import math

import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score

from nnunet_alice.methods.diagnostics import (
    conditional_entropy,
    dead_channels,
    effective_rank,
    embedding_spread,
    marginal_entropy,
    retrieval_accuracy,
    token_index_information,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def softmax(values):
    exponents = [math.exp(v) for v in values]
    return [e / sum(exponents) for e in exponents]


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


class TestEntropies:
    def test_equal_loops(self):
        probabilities = torch.softmax(5 * torch.rand(2, 3, 4), dim=-1)
        targets = probabilities.reshape(6, 4).tolist()
        mean_target = [sum(target[k] for target in targets) / 6 for k in range(4)]
        want = sum(entropy(target) for target in targets) / 6
        assert conditional_entropy(probabilities).item() == pytest.approx(want, rel=1e-4)
        assert marginal_entropy(probabilities).item() == pytest.approx(entropy(mean_target), rel=1e-4)

    def test_health_and_both_collapses(self):
        healthy, one_code, uniform = torch.eye(8), torch.eye(8)[:1].expand(8, 8), torch.full((8, 8), 1 / 8)
        values = [(conditional_entropy(x).item(), marginal_entropy(x).item()) for x in (healthy, one_code, uniform)]
        assert values[0] == pytest.approx((0.0, math.log(8)), abs=1e-4)
        assert values[1] == pytest.approx((0.0, 0.0), abs=1e-4)
        assert values[2] == pytest.approx((math.log(8), math.log(8)), abs=1e-4)


class TestSpread:
    @pytest.mark.parametrize("width", [4, 256])
    def test_isotropic_directions_give_one_whatever_the_width(self, width):
        assert embedding_spread(torch.randn(4000, width)).item() == pytest.approx(1.0, abs=0.02)

    def test_collapse_gives_zero_and_hand_value(self):
        assert embedding_spread(torch.ones(5, 3)).item() == pytest.approx(0.0, abs=1e-6)
        # Unit vectors e1 and e2: std 1/2 in both dimensions, times sqrt(2).
        assert embedding_spread(torch.tensor([[3.0, 0.0], [0.0, 0.1]])).item() == pytest.approx(0.5 * math.sqrt(2))

    def test_lengths_do_not_matter(self):
        x = torch.randn(6, 3)
        torch.testing.assert_close(embedding_spread(x * torch.rand(6, 1).add(0.1)), embedding_spread(x))

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError):
            embedding_spread(torch.ones(1, 3))


def retrieval_in_loops(query, anchor, k):
    """Both directions, standardised, with ranks counted one by one."""
    views = torch.cat([query, anchor]).double()
    columns = [views[:, d].tolist() for d in range(views.shape[1])]
    standardised = []
    for column in columns:
        mean = sum(column) / len(column)
        std = math.sqrt(sum((v - mean) ** 2 for v in column) / len(column))
        standardised.append([(v - mean) / std for v in column])
    rows = list(zip(*standardised, strict=True))
    queries, anchors = rows[: len(query)], rows[len(query) :]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    hits = 0
    for sources, candidates in ((queries, anchors), (anchors, queries)):
        for n, source in enumerate(sources):
            true = cosine(source, candidates[n])
            better = sum(cosine(source, other) >= true for m, other in enumerate(candidates) if m != n)
            hits += better < k
    return hits / (2 * len(query))


class TestRetrieval:
    def test_equals_loops(self):
        query = torch.randn(12, 5)
        anchor = query + 1.0 * torch.randn(12, 5)
        accuracy = retrieval_accuracy(query, anchor, k=(1, 2, 5))
        assert accuracy == {k: pytest.approx(retrieval_in_loops(query, anchor, k)) for k in (1, 2, 5)}
        assert 0 < accuracy[1] < accuracy[5] <= 1

    def test_perfect_reversed_and_chance(self):
        x = torch.randn(32, 64)
        assert retrieval_accuracy(x, x) == {1: 1.0, 5: 1.0}
        assert retrieval_accuracy(x, x.flip(0))[1] == 0.0
        chance = retrieval_accuracy(torch.randn(400, 8), torch.randn(400, 8), k=(1, 40, 400))
        assert chance[40] == pytest.approx(0.1, abs=0.04)
        assert chance[400] == 1.0

    @pytest.mark.parametrize("standardise", [True, False])
    def test_collapse_scores_nothing(self, standardise):
        same = torch.randn(1, 16).expand(32, 16)
        assert retrieval_accuracy(same, same, standardise=standardise) == {1: 0.0, 5: 0.0}
        noisy = same + 1e-8 * torch.randn(32, 16)
        assert retrieval_accuracy(noisy, same)[5] == 0.0
        assert retrieval_accuracy(torch.zeros(8, 3), torch.zeros(8, 3), standardise=standardise)[1] == 0.0

    def test_a_constant_dimension_is_ignored_even_with_rounding_noise(self):
        x = torch.randn(16, 4)
        constant = torch.full((16, 40), 0.1)
        noise = 1e-8 * torch.randn(16, 40)
        for query_part in (constant, constant + noise):
            query, anchor = torch.cat([x, query_part], dim=1), torch.cat([x, constant], dim=1)
            assert retrieval_accuracy(query, anchor, k=(1,))[1] == 1.0

    def test_twins_are_ties_and_no_hits(self):
        x = torch.randn(8, 4)
        x[1] = x[0]
        assert retrieval_accuracy(x, x, k=(1, 2)) == {1: 0.75, 2: 1.0}

    def test_nan_is_a_miss(self):
        x = torch.randn(8, 4)
        broken = x.clone()
        broken[3] = math.nan
        assert retrieval_accuracy(broken, x, k=(1,), standardise=False)[1] < 1.0
        assert retrieval_accuracy(broken, broken, k=(8,), standardise=False)[8] <= 1.0
        assert retrieval_accuracy(x * math.nan, x, k=(1, 5)) == {1: 0.0, 5: 0.0}

    def test_standardising_uncovers_what_a_shared_part_hides(self):
        x = torch.randn(32, 8)
        shared = 1000.0 * torch.ones(8)
        scales = torch.tensor([1.0] * 7 + [1e4])
        query, anchor = (
            (x + 0.2 * torch.randn(32, 8)) * scales + shared,
            (x + 0.2 * torch.randn(32, 8)) * scales + shared,
        )
        assert retrieval_accuracy(query, anchor)[1] > 0.9
        assert retrieval_accuracy(query, anchor, standardise=False)[1] < 0.5
        torch_scaled = retrieval_accuracy(query * 3 - 5, anchor * 3 - 5)
        assert torch_scaled == retrieval_accuracy(query, anchor)

    def test_directions_are_averaged(self):
        # Query 0 sits between both anchors, nearer to anchor 1: forward finds one of two, backward both.
        query = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
        anchor = torch.tensor([[1.0, 0.0], [0.1, 1.0]])
        forward_hits, backward_hits = 1, 2
        accuracy = retrieval_accuracy(query, anchor, k=(1,), standardise=False)[1]
        assert accuracy == (forward_hits + backward_hits) / 4

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"^query and anchor"):
            retrieval_accuracy(torch.zeros(3, 2), torch.zeros(4, 2))
        for k in (0, 4):
            with pytest.raises(ValueError, match=r"^Each k"):
                retrieval_accuracy(torch.zeros(3, 2), torch.zeros(3, 2), k=(k,))


class TestTokenIndexInformation:
    def test_code_that_is_the_index_gives_ln_t(self):
        codes = torch.arange(16).expand(4, 16)
        assert token_index_information(codes) == pytest.approx(math.log(16))
        assert token_index_information(-3 * codes + 7) == pytest.approx(math.log(16))

    def test_code_that_is_half_the_index(self):
        codes = (torch.arange(16) // 8).expand(64, 16)
        assert token_index_information(codes) == pytest.approx(math.log(2), rel=1e-6)

    def test_independent_codes_give_about_zero_where_the_plain_estimate_is_far_off(self):
        values = [token_index_information(torch.randint(0, 64, (16, 64)), seed=n) for n in range(10)]
        assert abs(sum(values) / 10) < 0.05
        assert max(abs(value) for value in values) < 0.2

    def test_content_codes_give_about_zero_even_when_some_are_frequent(self):
        frequent = torch.distributions.Categorical(torch.tensor([0.7, 0.2, 0.05, 0.05]))
        assert abs(token_index_information(frequent.sample((32, 27)))) < 0.05

    def test_agrees_with_adjusted_mutual_information_of_scikit_learn(self):
        index = torch.arange(20).expand(30, 20)
        codes = torch.where(torch.rand(30, 20) < 0.4, index % 6, torch.randint(0, 6, (30, 20)))
        adjusted = adjusted_mutual_info_score(index.flatten(), codes.flatten(), average_method="min")
        shares = torch.bincount(codes.flatten()).double() / codes.numel()
        want = adjusted * entropy(shares.tolist())
        assert token_index_information(codes, permutations=32) == pytest.approx(want, abs=0.01)
        assert want > 0.1

    def test_collapse_gives_zero_and_the_seed_decides(self):
        assert token_index_information(torch.zeros(4, 8, dtype=torch.long)) == 0.0
        codes = torch.randint(0, 5, (4, 8))
        assert token_index_information(codes, seed=1) == token_index_information(codes, seed=1)
        assert token_index_information(codes, seed=1) != token_index_information(codes, seed=2)

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"\(1, 8\)"):
            token_index_information(torch.zeros(1, 8, dtype=torch.long))
        with pytest.raises(ValueError, match="float32"):
            token_index_information(torch.zeros(2, 8))
        with pytest.raises(ValueError, match="int64 and 0"):
            token_index_information(torch.zeros(2, 8, dtype=torch.long), permutations=0)


def test_effective_rank_counts_directions():
    torch.manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(200, 6).double())[0]
    orthogonal = torch.linalg.qr(orthogonal - orthogonal.mean(dim=0))[0]  # centred, of equal length
    assert effective_rank(orthogonal * 3 + 5) == pytest.approx(6)
    assert effective_rank(orthogonal[:, :1] @ torch.ones(1, 6).double()) == pytest.approx(1)
    uneven = effective_rank(orthogonal * torch.tensor([1, 1, 1, 0.1, 0.1, 0.1]).double())
    assert 3 < uneven < 6
    assert effective_rank(torch.full((50, 4), 0.3)) == 0


def test_dead_channels_are_those_that_hardly_change():
    x = torch.randn(100, 8)
    x[:, 2], x[:, 5] = 7.0, 1e-5 * x[:, 0]
    assert dead_channels(x) == pytest.approx(2 / 8)
    assert dead_channels(x[:, [0, 1]]) == 0 and dead_channels(torch.ones(10, 3)) == 1
