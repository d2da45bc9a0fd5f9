"""The nearest nodes to drawn latents, by brute force."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from listed import (
    NODES,
    WIDTH,
    H,
    admissible,
    fill,
    of_rows,
)
from shared import assert_counts
from small import alike, build, rng
from torch import Tensor
from torch.nn.functional import normalize

from dgl_dmns.core import (
    DiffusionGenerator,
    KnownEdges,
    Levels,
    MLPPredictor,
    Nearest,
    PoolSettings,
)

assert_frequencies = partial(assert_counts, least=1e-4)


class Pointing(DiffusionGenerator):
    """A generator whose latents are a known function of the query and the level."""

    def latent_draws(self, z: Tensor) -> Callable[[torch.Generator | None], Tensor]:
        turns = torch.stack([torch.eye(WIDTH).roll(level, 1) for level in range(len(self.levels))])
        return lambda generator: 3 * z @ turns


def nearest_by_brute_force(query: int, levels: list[int]) -> list[int]:
    """The slots of a group one after the other: never a known, own or taken node."""
    taken: list[int] = []
    for level in levels:
        latent = H[query].roll(level)
        cosine = {u: float(normalize(H[u], dim=0) @ latent) for u in admissible(query)}
        taken.append(max((u for u in cosine if u not in taken), key=lambda u: cosine[u]))
    return taken


def test_nearest_is_the_nearest_admissible_by_brute_force() -> None:
    model = Pointing(WIDTH, levels=Levels((0.1, 0.3, 0.6), shares=(3, 1, 0)), space="raw")
    # The uniform share is drawn in the call and has no part in what a table holds.
    pools = PoolSettings(uniform_share=0.25)
    drawn = of_rows(fill(Nearest(), pools, 4, 3, count=20, model=model))
    for row in range(20 * NODES):
        for ids, levels in zip(drawn.ids[row].tolist(), drawn.level[row].tolist()):
            assert ids == nearest_by_brute_force(row // 20, levels)
    seen = torch.bincount(drawn.level.flatten().long(), minlength=3)
    assert_frequencies(seen, torch.tensor([3.0, 1.0, 0.0]))


def test_nearest_of_a_pool_of_one_is_uniform() -> None:
    model = Pointing(WIDTH, levels=Levels((0.1, 0.3, 0.6)), space="raw")
    # A small block of queries shares the pool, so few copies and many groups.
    ids = of_rows(fill(Nearest(1), PoolSettings(), 1, 800, model=model)).ids.long()
    for query in range(NODES):
        seen = torch.bincount(ids[query].flatten(), minlength=NODES)[admissible(query)]
        assert int(seen.sum()) == 800
        assert_frequencies(seen, torch.ones(len(seen)))


def test_nearest_looks_past_many_known_nodes() -> None:
    """A hub whose 60 nearest nodes are all known: the search has to widen."""
    nodes = 90
    h = torch.stack([torch.linspace(0, 3, nodes).cos(), torch.linspace(0, 3, nodes).sin()], dim=1)
    known = KnownEdges(torch.zeros(60, dtype=torch.int64), torch.arange(1, 61), nodes)

    class Same(DiffusionGenerator):
        def latent_draws(self, z: Tensor) -> Callable[[torch.Generator | None], Tensor]:
            return lambda generator: z.expand(len(self.levels), -1, -1)

    model = Same(2, space="raw")
    table = alike(nodes, 1, 3)
    build(table, Nearest(), PoolSettings(), known, h, h, model=model, generator=rng(7))
    ids = table.current().ids.tolist()
    assert ids[0] == [61, 62, 63]
    assert sorted(ids[40]) in ([38, 39, 41], [39, 41, 42])


def test_nearest_works_with_a_predictor_that_is_not_affine() -> None:
    model = DiffusionGenerator(WIDTH, space="raw", predictor=MLPPredictor(WIDTH))
    table = fill(Nearest(), PoolSettings(), 3, 2, model=model)
    for query, ids in enumerate(of_rows(table).ids.tolist()):
        assert {u for group in ids for u in group} <= set(admissible(query))


@pytest.mark.parametrize("left", [2, 0])
def test_nearest_to_one_that_knows_nearly_all(model: DiffusionGenerator, left: int) -> None:
    src = torch.zeros(NODES - 1 - left, dtype=torch.int64)
    known = KnownEdges(src, torch.arange(1, NODES - left), NODES)
    table = alike(NODES, 2, 2)
    build(table, Nearest(), PoolSettings(), known, H, H, model=model, generator=rng(1))
    expected = [NODES - 2, NODES - 1] if left else [0, 0]  # itself
    assert [sorted(group) for group in of_rows(table).ids[0].tolist()] == [expected] * 2
