import numpy as np
import pytest
import torch

from dgl_dmns.data import embedded_graph, split_pairs
from dgl_dmns.seeds import fit_seed, seed_all

SEEDS = (0, 21474, 21475, 42949, 20240131, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -1)


@pytest.mark.parametrize("bits", [31, 32, 63])
def test_a_seed_of_any_size_is_in_the_range(bits):
    found = [fit_seed(seed, bits=bits) for seed in SEEDS]
    assert all(0 <= seed < 2**bits for seed in found)
    assert len(set(found)) == len(SEEDS)


def test_a_seed_that_fits_stays_as_it_is():
    assert [fit_seed(seed) for seed in (0, 7, 2**63 - 1)] == [0, 7, 2**63 - 1]
    assert fit_seed(np.int64(7)) == 7
    assert fit_seed(np.int64(7), 3) == fit_seed(7, 3)


def test_no_two_places_of_any_two_seeds_share_a_stream():
    seeds = [*range(100), *SEEDS[1:-1]]
    assert len({fit_seed(seed, epoch) for seed in seeds for epoch in range(200)}) == 200 * 110


@pytest.mark.parametrize("seed", SEEDS)
def test_every_library_takes_it(seed):
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for place in (1, 2, 1):
            seed_all(seed, place)
            shuffled = np.arange(100)
            np.random.shuffle(shuffled)  # noqa: NPY002 (as DGL's loader does)
            drawn.append((int(torch.randint(2**60, ())), shuffled.tolist()))
    assert drawn[0] == drawn[2]
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_splits_take_a_seed_of_any_size():
    data = embedded_graph(200)
    first, again, other, zero = (
        split_pairs(data, seed=seed).test for seed in (2**64, 2**64, 2**64 + 1, 0)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, zero)
