"""Edge lists whose columns name two kinds of nodes, and ordinary graphs that must not look so."""

import numpy as np
import pytest

from dgl_dmns.cli.edges import FileError, looks_bipartite, names_of_two_kinds, read_edges


def looks(pairs):
    pairs = np.asarray(pairs)
    ids, places = np.unique(pairs, return_inverse=True)
    src, dst = places.reshape(pairs.shape).T
    return looks_bipartite(src, dst, len(ids))


def attached(r, n=600, m=3):
    """Preferential attachment: each new node to m older ones, by their degree."""
    ends = list(range(m))
    pairs = []
    for new in range(m, n):
        older = {ends[int(place)] for place in r.integers(0, len(ends), m)}
        pairs += [(new, old) for old in older]
        ends += [*older, *[new] * len(older)]
    return pairs


def ordinary(r):
    grid = [
        (20 * i + j, 20 * i + j + step) for i in range(19) for j in range(19) for step in (1, 20)
    ]
    return {
        "random": r.integers(0, 300, (1500, 2)),
        "sparse": r.integers(0, 2000, (1500, 2)),
        "dense": r.integers(0, 60, (1500, 2)),
        "small": r.integers(0, 12, (40, 2)),
        "preferential attachment": attached(r),
        "one link each": attached(r, m=1),
        "grid": grid,
        "tree": [((i - 1) // 2, i) for i in range(1, 400)],
        "two levels": [(0, i) for i in range(1, 10)] + [(1 + i % 9, i) for i in range(10, 200)],
        "star": [(0, i) for i in range(1, 200)],
        "ring": [(i, (i + step) % 90) for i in range(90) for step in (1, 2, 3)],
        "citations": [(i, int(j)) for i in range(10, 500) for j in r.integers(0, i, 5)],
        "recent citations": [
            (i, max(0, i - int(j))) for i in range(10, 500) for j in r.geometric(0.05, 5)
        ],
    }


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_graphs_are_not_asked_about(seed):
    r = np.random.default_rng(seed)
    for name, pairs in ordinary(r).items():
        pairs = np.asarray(pairs)
        other = pairs[:, ::-1]
        flipped = np.where(r.random((len(pairs), 1)) < 0.5, pairs, other)
        renamed = r.permutation(pairs.max() + 1)
        both = np.concatenate([pairs, other])
        for one in (pairs, other, flipped, both, renamed[pairs], renamed[flipped]):
            assert not looks(one), name


@pytest.mark.parametrize(
    ("users", "items", "count", "offset"),
    [
        (4480, 1874, 30_000, 0),
        (943, 1682, 9000, 1),
        (1000, 800, 4000, 0),
        (6040, 300, 9000, 0),
        (200, 100, 600, 0),
        (30, 10, 100, 0),
        (1000, 1500, 4000, 500),
    ],
)
@pytest.mark.parametrize("popular", [False, True])
def test_users_and_items_are_asked_about(users, items, count, offset, popular):
    r = np.random.default_rng(0)
    user = r.integers(0, users, count)
    item = (items * r.random(count) ** (3 if popular else 1)).astype(int) + offset
    item = r.permutation(items + offset)[item] if popular and not offset else item
    assert looks(np.stack([user, item], 1))
    assert looks(np.stack([item, user], 1))


def test_names_that_tell():
    assert names_of_two_kinds("user_id", "movieId")
    assert names_of_two_kinds("ITEM", "User")
    assert not names_of_two_kinds("src", "dst")
    assert not names_of_two_kinds("user", "friend")


@pytest.fixture
def ratings(tmp_path):
    r = np.random.default_rng(1)
    rows = "".join(f"{u},{i}\n" for u, i in zip(r.integers(0, 90, 400), r.integers(0, 30, 400)))
    file = tmp_path / "ratings.csv"
    file.write_text(f"src,dst\n{rows}")
    return file


def test_the_question_has_two_answers(ratings):
    with pytest.raises(
        FileError, match="--kind bipartite .*120 nodes.* --kind graph .*90"
    ) as asked:
        read_edges(ratings)
    assert "\n" not in str(asked.value)
    assert len(read_edges(ratings, sure=True).ids) == 90


def test_names_ask_where_ids_are_shared(tmp_path):
    file = tmp_path / "e.csv"
    file.write_text("user,item\n1,2\n2,3\n3,1\n")
    with pytest.raises(FileError, match="--kind"):
        read_edges(file, source="user", target="item")
    file.write_text("user,item\n1,i2\n2,i3\n3,i1\n")
    assert len(read_edges(file, source="user", target="item").ids) == 6
