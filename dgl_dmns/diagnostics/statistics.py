"""From an observation to a table: one row a level, with positives and random nodes beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import pandas as pd
import torch
from torch import Tensor

from dgl_dmns.checks import as_integer, check_ids, check_tensor
from dgl_dmns.core import (
    EdgeName,
    EdgeType,
    Embeddings,
    KnownEdges,
    Look,
    Looked,
    canonical_edge_type,
    fit_seed,
    look_at,
    shielded,
)
from dgl_dmns.diagnostics.measures import entropy, gini, percentiles, top_share
from dgl_dmns.diagnostics.observation import Observation, level_masks, observe_look

__all__ = ["HeldOut", "negative_statistics"]

HeldOut = Union[Tensor, Mapping[Any, Tensor]]
"""Held-out pairs, int64 [2, P] of (query, positive) columns, or a dict of those by edge type."""


@shielded
def negative_statistics(
    sampler: Looked,
    *,
    embeddings: Embeddings | None = None,
    held_out: HeldOut | None = None,
    etype: EdgeName | None = None,
    queries: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Hardness, false negatives and variety of the negatives that a sampler holds now.

    Rows: each hardness level (``"0.1T"`` is the level at a tenth of the diffusion steps), hardest
    first; ``"no level"``, uniform negatives and those that the score alone has chosen; ``"all"``
    negatives; then, to compare with,
    ``"random"`` nodes without a known edge and ``"positive"`` ones, known neighbours. A sampler
    without a generator has the last three rows alone.

    Columns (NaN where a row has no such thing):

    - ``share``: of the negatives that are of this level.
    - ``expected_score``: mean score that the generator expects of a latent (inner product only).
    - ``score``, ``score_std``: observed mean and standard deviation.
    - ``percentile``: mean share of random nodes of the same query that score lower; 0.5 for random
      ones, and for positives the AUC of the model.
    - ``above_positive``: share of negatives that score above a positive of the same query.
    - ``false_negatives``: of the negatives of queries with held-out edges, the share that *are*
      held-out edges; ``false_negative_lift``: how many times a uniform draw's chance that is.
    - ``distinct``: number of distinct nodes; ``entropy``, ``gini``: of how often nodes were drawn;
      ``gini_uniform``: of as many uniform draws; ``top_1_percent``: share of the draws that the
      most drawn hundredth of the nodes takes.
    - ``density_auc``: probability that the level's density is larger at a positive than at a random
      node; 0.5 for a generator that has not learned its condition.
    - ``psi_share``: share of latents with Psi >= 0, see `dgl_dmns.diagnostics.measures`.
    - ``handed_out``: how many times each candidate of the table was handed out so far, on average,
      alike in all rows.
    - ``refreshes_behind``, ``steps_behind``, ``embedding_age``: how far the negatives lie behind
      the training, alike in all rows, see `dgl_dmns.samplers.refresher.Staleness`.

    Args:
        sampler: a sampler of this package; one that follows an encoder has to be refreshed.
        embeddings: shape [N, D], or a dict of those by node type; defaults to those of the
            sampler's encoder. A sampler without an encoder needs them.
        held_out: int64 [2, P], true edges that the sampler does not know, for example those of
            validation; a dict by edge type where the sampler holds several.
        etype: edge type; defaults to all that are held.
        queries: at most this many source nodes are looked at, the same ones each time.
        seed: of the choice of queries, positives and random nodes.

    Returns:
        A table with the columns ``etype`` (source, relation and destination joined by colons),
        ``level`` and the above.

    Raises:
        ValueError: if an edge type is unknown, held-out pairs have another shape or ids out of
            range, or embeddings do not fit.
        RuntimeError: before the first refresh.
        TypeError: for a sampler of another package.
    """
    queries, seed = as_integer("queries", queries, 1), as_integer("seed", seed)
    held = getattr(sampler, "known_by_type", None)
    frames = []
    for one in [*held] if etype is None and held else [etype]:
        look = look_at(sampler, one, embeddings)
        pairs = held_out_pairs(held_out, look.etype, sampler)
        frames.append(summarise(look, observe_look(look, queries, seed), pairs, seed))
    return pd.concat(frames, ignore_index=True)


def summarise(look: Look, seen: Observation, pairs: Tensor | None, seed: int) -> pd.DataFrame:
    """The rows of one edge type; ``pairs`` are held out, int64 [2, P]."""
    false = {} if pairs is None else _false_negatives(look, seen, pairs, seed)
    percentile = percentiles(seen.score, seen.random_score)
    above = percentiles(seen.score, seen.positive_score)
    generator = torch.Generator().manual_seed(fit_seed(seed))
    rows: list[dict[str, Any]] = []
    for index, (name, mask) in enumerate(seen.groups().items()):
        row = _row(name, seen.score[mask], percentile[mask])
        row["share"] = float(mask.float().mean())
        row["above_positive"] = _mean(above[mask])
        if index < len(seen.levels):
            for column in ("expected_score", "density_auc", "psi_share"):
                row[column] = float(getattr(seen, column)[index])
        row.update(_variety(seen.negative[mask], look.known, generator))
        row.update(false.get(name, {}))
        rows.append(row)
    draws = seen.random[:, : seen.negative.shape[1]]
    rows.append(
        {
            **_row("random", seen.random_score, percentiles(seen.random_score, seen.random_score)),
            "above_positive": _mean(percentiles(seen.random_score, seen.positive_score)),
            **_variety(draws.flatten(), look.known, generator),
        }
    )
    rows.append(
        _row("positive", seen.positive_score, percentiles(seen.positive_score, seen.random_score))
    )
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame.insert(0, "etype", ":".join(seen.etype))
    times = float("nan") if look.rows is None else look.rows.table.handed_out(look.version)
    frame["handed_out"] = times
    for name, value in zip(_BEHIND, look.behind):
        frame[name] = float("nan") if value is None else float(value)
    return frame


_BEHIND = ("refreshes_behind", "steps_behind", "embedding_age")
_COLUMNS = [
    *("level", "share", "expected_score", "score", "score_std", "percentile", "above_positive"),
    *("false_negatives", "false_negative_lift", "distinct", "entropy", "gini", "gini_uniform"),
    *("top_1_percent", "density_auc", "psi_share"),
]


def _mean(values: Tensor) -> float:
    return float(values.double().mean())  # NaN for none


def _row(level: str, score: Tensor, percentile: Tensor) -> dict[str, Any]:
    return {
        "level": level,
        "score": _mean(score),
        "score_std": float(score.double().std(correction=0)) if score.numel() else float("nan"),
        "percentile": _mean(percentile),
    }


def _variety(ids: Tensor, known: KnownEdges, generator: torch.Generator) -> dict[str, float]:
    """Over the nodes that may be drawn."""
    counts, nodes = torch.bincount(ids, minlength=known.num_dst), known.num_candidates
    if known.candidates is not None:
        counts = counts[known.candidates]
    uniform = torch.randint(0, nodes, ids.shape, generator=generator)
    return {
        "distinct": float((counts > 0).sum()),
        "entropy": entropy(counts),
        "gini": gini(counts),
        "gini_uniform": gini(torch.bincount(uniform, minlength=nodes)),
        "top_1_percent": top_share(counts),
    }


def _false_negatives(
    look: Look, seen: Observation, pairs: Tensor, seed: int
) -> dict[str, dict[str, float]]:
    """Held-out edges among the negatives of all queries that have some, by level."""
    hidden = _hidden(pairs, look.known)
    if look.rows is not None:
        query = hidden.degrees().nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(fit_seed(seed))
        negative, level = look.rows.look(query, generator)
    else:
        mine = hidden.degrees()[seen.query] > 0
        query, negative, level = seen.query[mine], seen.negative[mine], seen.level[mine]
    hit = hidden.contains(query.unsqueeze(1), negative)
    chance = float(hidden.degrees()[query].double().mean()) / look.known.num_candidates
    found = {}
    for name, mask in level_masks(seen.levels, level, unclaimed=True).items():
        rate = _mean(hit[mask])
        found[name] = {"false_negatives": rate, "false_negative_lift": rate / chance}
    return found


def held_out_pairs(held_out: HeldOut | None, etype: EdgeType, sampler: Looked) -> Tensor | None:
    """The held-out pairs of one edge type, if there are any; ValueError where it is not held."""
    if held_out is None:
        return None
    held = list(sampler.known_by_type)
    if isinstance(held_out, Mapping):
        by_type = {canonical_edge_type(e, held, "held_out"): p for e, p in held_out.items()}
        return by_type.get(etype)
    if len(held) != 1:
        raise ValueError(
            f"held_out: expected a dict of pairs by edge type, for {held}, got one set"
        )
    return held_out


def _hidden(pairs: Tensor, known: KnownEdges) -> KnownEdges:
    """The held-out edges, in both directions where both ends have one type."""
    check_tensor("held_out", pairs, "(query, positive) columns")
    if pairs.dim() != 2 or pairs.shape[0] != 2 or not pairs.shape[1]:
        raise ValueError(
            f"held_out: expected shape [2, P] with P >= 1, (query, positive) columns, got "
            f"{tuple(pairs.shape)}"
        )
    check_ids("held_out", pairs[0], known.num_src, "ids", dim=None)
    check_ids("held_out", pairs[1], known.num_dst, "ids", dim=None)
    pairs = pairs.cpu().long()
    if known.exclude_self:
        pairs = torch.cat([pairs, pairs.flip(0)], dim=1)
    pairs = pairs[:, known.is_candidate(pairs[1])]  # others are never drawn
    return KnownEdges(pairs[0], pairs[1], known.num_src, known.num_dst, exclude_self=False)
