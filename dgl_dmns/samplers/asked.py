"""What a sampler is asked that trains on in silence: uniform for ever, log ratios of other pairs.

Negatives are uniform until the first refresh, which is right where a loader draws ahead of it, and
a mistake where ``attach`` was forgotten. A log ratio is known for any pair, and wrong where the
pairs are the positive graph's, another sampler's or of a refresh long ago: some of them are
searched for in the table. How many calls came before the first refresh is counted for all
processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgl_dmns.checks import check_ids
from dgl_dmns.core import KnownEdges, share
from dgl_dmns.messages import warn

if TYPE_CHECKING:
    from dgl_dmns.samplers.relation import Relation

__all__ = ["Asked", "checked_pairs"]

_CALLS = 300  # without any refresh, after which nobody means it
_LOOKED_AT = 64  # pairs that are searched for in the table
_OWN = 0.4  # share of its hard negatives that has to stand in the table


def checked_pairs(
    name: str, pairs: tuple[Tensor, Tensor], known: KnownEdges, etype: tuple[str, str, str]
) -> tuple[Tensor, Tensor]:
    """Pairs of node ids of the whole graph, int64 on the CPU, each of shape [P].

    Raises:
        TypeError: if ids are no integers.
        ValueError: if one is out of range, or the ends differ in number.
    """
    for ids, count, ntype in zip(pairs, (known.num_src, known.num_dst), (etype[0], etype[2])):
        what = f"ids of nodes of type {ntype!r}"
        check_ids(name, ids, count, what, advice="pass ids of the whole graph (dgl.NID)")
    src, dst = pairs
    if src.shape != dst.shape:
        raise ValueError(
            f"{name}: expected two tensors of one shape [P], got {tuple(src.shape)} and "
            f"{tuple(dst.shape)}; pass a source and a destination for each pair"
        )
    return src.cpu().long(), dst.cpu().long()


class Asked:
    """Counts what is asked, and warns once of each misuse.

    Attributes:
        calls: int64 [2] in shared memory: calls before the first refresh, and whether a warning
            was given.
    """

    def __init__(self) -> None:
        self.calls = share(torch.zeros(2, dtype=torch.int64), "the count of calls takes")
        self._unfound = 0
        self._warned: set[str] = set()

    def before_a_refresh(self, sampler: str, edges: int) -> None:
        """Count a call that is answered by uniform negatives."""
        if not edges:
            return
        self.calls[0] += 1
        if int(self.calls[0]) >= _CALLS and not int(self.calls[1]):
            self.calls[1] = 1
            warn(
                f"{sampler}: {_CALLS} calls without a refresh: negatives are uniform until the "
                "first one; call sampler.attach(optimizer) before the training, or "
                "sampler.refresh() in its loop"
            )

    def for_ratios(self, sampler: str, relation: Relation, pairs: tuple[Tensor, Tensor]) -> None:
        """Judge pairs whose log ratio is asked for: edges, or negatives of another sampler."""
        src, dst = pairs
        known, total = relation.known, src.numel()
        if not total or self._warned >= {"edges", "ratios"}:
            return
        free = known.degrees()[src] < known.num_dst - 1  # others get what is no true negative
        edges = int((known.contains(src, dst) & (src != dst) & free).sum())
        if 2 * edges > total:
            self._say(
                "edges",
                f"{sampler}: {edges} of {total} pairs handed to log_ratio are known edges (edge "
                f"type {relation.etype[1]!r}); pass the negative graph, and the positive one to "
                "positive_log_ratio()",
            )
            return
        hard = 1 - relation.rows.uniform_share
        if not relation.table.version or "ratios" in self._warned:
            return
        some = torch.arange(0, total, -(-total // _LOOKED_AT))
        held = int(relation.table.holds(src[some], dst[some]).sum())
        if held >= _OWN * hard * len(some) - 1:
            return
        self._unfound += 1  # each batch drawn before the first refresh may be asked for twice
        if self._unfound > 2 * int(self.calls[0]):
            self._say(
                "ratios",
                f"{sampler}: {held} of {len(some)} pairs that were looked at stand in a table of "
                "this sampler: the others were drawn by another sampler, or more than one refresh "
                "ago; pass the negatives that this sampler drew for the batch, and prefetch less "
                "than a refresh takes",
            )

    def for_positives(self, sampler: str, relation: Relation, pairs: tuple[Tensor, Tensor]) -> None:
        """Judge pairs that were handed over as positives."""
        if "positives" in self._warned or not pairs[0].numel():
            return
        strange = int((~relation.known.contains(*pairs)).sum())
        if 2 * strange > pairs[0].numel():
            self._say(
                "positives",
                f"{sampler}: {strange} of {pairs[0].numel()} pairs handed to positive_log_ratio "
                f"are no known edges (edge type {relation.etype[1]!r}): pass the positive graph, "
                "and the negative one to log_ratio(); nothing is wrong with held-out edges",
            )

    def _say(self, which: str, message: str) -> None:
        if which not in self._warned:
            self._warned.add(which)
            warn(message)
