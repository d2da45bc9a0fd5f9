import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgl_dmns.diagnostics import entropy, gini, percentiles, top_share

COUNTS = st.lists(st.integers(0, 50), min_size=2, max_size=30)


@given(COUNTS)
def test_gini_is_the_mean_difference_over_twice_the_mean(counts):
    x = torch.tensor(counts)
    if not sum(counts):
        assert math.isnan(gini(x))
        return
    difference = (x.double()[:, None] - x.double()[None, :]).abs().mean()
    assert gini(x) == pytest.approx(float(difference) / (2 * float(x.double().mean())), abs=1e-9)


@given(COUNTS)
def test_entropy_is_that_of_the_shares(counts):
    x = torch.tensor(counts)
    most = min(sum(counts), len(counts))
    if most < 2:
        assert math.isnan(entropy(x))
        return
    expected = float(torch.distributions.Categorical(probs=x.double()).entropy())
    assert entropy(x) == pytest.approx(expected / math.log(most), abs=1e-6)


def test_percentiles_against_a_count_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(0, 9, (7, 5), generator=generator).float()
    random = torch.randint(0, 9, (7, 11), generator=generator).float()
    lower = (random[:, None, :] < score[:, :, None]).float()
    equal = (random[:, None, :] == score[:, :, None]).float()
    torch.testing.assert_close(percentiles(score, random), (lower + equal / 2).mean(-1))


@pytest.mark.parametrize("shape", [(3, 4), (2, 0)])
def test_percentiles_need_random_scores_of_the_same_rows(shape):
    with pytest.raises(ValueError, match=r"random_score: expected shape \[2, R\] with R >= 1"):
        percentiles(torch.zeros(2, 3), torch.zeros(shape))


def test_share_of_the_most_drawn():
    counts = torch.ones(200)
    counts[3] = 51
    assert top_share(counts) == pytest.approx(52 / 250)
    assert math.isnan(top_share(torch.zeros(5)))
