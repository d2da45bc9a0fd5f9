"""What goes wrong in silence while a sampler is in use, and is warned of once.

**What is asked.** Negatives are uniform until the first refresh, which is right where a loader
draws ahead of it, and a mistake where ``attach`` was forgotten. A log ratio is known for any pair,
and wrong where the pairs are the positive graph's, another sampler's or of a refresh long ago: some
of them are searched for in the table. Calls before the first refresh are counted for all processes.
Where a trainer holds a share of the queries, the others have uniform negatives; most should be its.

**Whether scores are the model's.** Negatives are chosen by the inner product of the embeddings
unless ``scorer=`` is given. A model that scores edges by a layer of its own, as the MLP predictors
of DGL's examples do, is then given negatives that are hard for another function. The inner product
may tell edges well all the same, since neighbours get embeddings that are alike. Two things show
it: a layer with one output is trained, and no embedding passes through it; or known edges do not
score above random nodes, after some refreshes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dgl_dmns.core import EdgeType, Snapshot, share
from dgl_dmns.messages import warn
from dgl_dmns.samplers.callables import modules_behind
from dgl_dmns.samplers.graphs import Pair
from dgl_dmns.samplers.relation import Relation

__all__ = ["Asked", "ScoringCheck", "edge_auc"]

_CALLS = 300  # without any refresh, after which nobody means it
_LOOKED_AT = 64  # pairs that are searched for in the table
_ASKED = 10_000  # queries, before it is judged whose they are
_OWN = 0.4  # share of its hard negatives that has to stand in the table
_EDGES = 256  # known edges that are looked at, and as many random nodes
_REFRESHES = 10  # before scores are judged
_IN_A_ROW = 3  # refreshes with scores that tell nothing, before that is said
_AUC, _TELLS = 0.55, 0.6  # of scores that tell nothing, and of those that tell enough
_EXAMPLE = (
    "scorer=lambda h_v, h_u: mlp(torch.cat(torch.broadcast_tensors(h_v, h_u), -1)).squeeze(-1), "
    "logits before any sigmoid"
)


class Asked:
    """Counts what is asked of a sampler, by its name, and warns once of each misuse."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Calls before the first refresh, and whether a warning was given; int64 [2], shared.
        self.calls = share(torch.zeros(2, dtype=torch.int64), "the count of calls takes")
        self._unfound = 0
        self._queries = [0, 0]  # of a share of the sources: not held, and held
        self._warned: set[str] = set()

    def before_a_refresh(self, edges: int) -> None:
        """Count a call that is answered by uniform negatives."""
        if not edges:
            return
        self.calls[0] += 1
        if int(self.calls[0]) >= _CALLS and not int(self.calls[1]):
            self.calls[1] = 1
            warn(
                f"{self._name}: {_CALLS} calls without a refresh: negatives are uniform until the "
                "first one; call sampler.attach(optimizer) before the training, or "
                "sampler.refresh() in its loop"
            )

    def of_share(self, held: Tensor) -> None:
        """Count queries, held or not, bool [B], of a sampler that holds a share of them."""
        ours = int(held.sum())
        self._queries[0] += held.numel() - ours
        self._queries[1] += ours
        if sum(self._queries) >= _ASKED and self._queries[0] > self._queries[1]:
            self._say(
                "share",
                f"{self._queries[0]} of {sum(self._queries)} queries are not of this trainer's "
                "share, and have uniform negatives; train on the edges that dgl.distributed."
                "edge_split deals out, with a graph that was partitioned by METIS",
            )

    def for_ratios(self, relation: Relation, pairs: Pair) -> None:
        """Judge pairs whose log ratio is asked for: edges, or negatives of another sampler."""
        src, dst = pairs
        known, total = relation.known, src.numel()
        if not total or self._warned >= {"edges", "ratios"}:
            return
        free = known.admissible_count(src) > 0  # others get what is no true negative
        edges = int((known.knows(src, dst) & (src != dst) & free).sum())
        if 2 * edges > total:
            self._say(
                "edges",
                f"{edges} of {total} pairs handed to log_ratio are known edges (edge type "
                f"{relation.etype[1]!r}); pass the negative graph, and the positive one to "
                "positive_log_ratio()",
            )
            return
        if not relation.table.version or "ratios" in self._warned:
            return
        some = torch.arange(0, total, -(-total // _LOOKED_AT))
        held = int(relation.table.holds(src[some], dst[some]).sum())
        if held >= _OWN * (1 - relation.rows.uniform_share) * len(some) - 1:
            return
        self._unfound += 1  # each batch drawn before the first refresh may be asked for twice
        if self._unfound > 2 * int(self.calls[0]):
            self._say(
                "ratios",
                f"{held} of {len(some)} pairs that were looked at stand in a table of this "
                "sampler: the others were drawn by another sampler, or more than one refresh ago; "
                "pass the negatives that this sampler drew for the batch, and prefetch less than "
                "a refresh takes",
            )

    def for_positives(self, relation: Relation, pairs: Pair) -> None:
        """Judge pairs that were handed over as positives."""
        if "positives" in self._warned or not pairs[0].numel():
            return
        strange = int((~relation.known.knows(*pairs)).sum())
        if 2 * strange > pairs[0].numel():
            self._say(
                "positives",
                f"{strange} of {pairs[0].numel()} pairs handed to positive_log_ratio are no known "
                f"edges (edge type {relation.etype[1]!r}): pass the positive graph, and the "
                "negative one to log_ratio(); nothing is wrong with held-out edges",
            )

    def _say(self, which: str, message: str) -> None:
        if which not in self._warned:
            self._warned.add(which)
            warn(f"{self._name}: {message}")


class ScoringCheck:
    """Looks at each refresh of a sampler, and warns once of either sign."""

    def __init__(self, takes_scorer: bool, judged: bool, given: bool) -> None:
        self._layers_open = judged and not given  # by scores at all, and by the user's
        self._scores_open = judged
        self._given = given
        self._advice = (
            f"pass {_EXAMPLE}" if takes_scorer else f"use a sampler that takes {_EXAMPLE}"
        )
        self._before: list[tuple[Tensor, Tensor]] = []  # parameters, and what they were
        self._low: dict[EdgeType, int] = {}  # refreshes in a row
        self._told: set[EdgeType] = set()  # whose scores have told edges once

    @contextmanager
    def watching(self, encoder: Any, optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
        """While the encoder is called within: look which layers with one output it passes by."""
        if not self._layers_open:
            yield
            return
        modules = modules_behind(encoder)
        parts = {part for module in modules for part in module.modules()}
        layers = [p for p in parts if isinstance(p, (nn.Linear, nn.Bilinear))]
        layers = [layer for layer in layers if layer.out_features == 1]
        called: set[nn.Module] = set()
        with ExitStack() as hooks:
            for layer in layers:
                handle = layer.register_forward_hook(lambda one, *_: called.add(one))
                hooks.callback(handle.remove)
            yield
        mine = {id(p) for module in modules for p in module.parameters()}
        trained = [p for one in optimizers for group in one.param_groups for p in group["params"]]
        aside: list[Tensor] = [layer.weight for layer in layers if layer not in called]
        if any(id(p) in mine for p in trained):  # what the encoder refers to is known
            aside += [p for p in trained if id(p) not in mine and p.dim() == 2 and len(p) == 1]
        changed = any(
            p is one and not torch.equal(p, was) for p in aside for one, was in self._before
        )
        self._before = [(p, p.detach().clone()) for p in aside]
        if changed:
            self._layers_open, self._before = False, []
            warn(
                f"a layer with one output is trained that no embedding passes "
                "through; if it scores edges, negatives are chosen by another function than the "
                f"model's, the inner product: {self._advice}"
            )

    def look(self, version: int, relations: Iterable[Relation], h: dict[str, Tensor]) -> None:
        """Judge the scores of known edges after a refresh, with its embeddings [N, D]."""
        if not self._scores_open or version < _REFRESHES:
            return
        for one in relations:
            etype = one.etype
            if etype in self._told:
                continue
            ends = one.ends(h)
            made = Snapshot(ends.h_query, ends.h_candidate, ends.known, ends.scorer, None)
            auc = edge_auc(made, seed=version)
            if auc >= _TELLS:
                self._told.add(etype)
            self._low[etype] = self._low.get(etype, 0) + 1 if auc < _AUC else 0
            if self._low[etype] == _IN_A_ROW:
                self._scores_open = False
                what = "scorer=" if self._given else "the inner product"
                warn(
                    f"by {what}, known edges of {etype[1]!r} score no higher than "
                    f"random nodes after {version} refreshes (AUC {auc:.2f}), so that negatives "
                    "are no harder than uniform ones; if the model scores edges in another way, "
                    f"{self._advice}; if it has yet to learn, attach later"
                )
                return


@torch.no_grad()
def edge_auc(snapshot: Snapshot, *, seed: int) -> float:
    """Probability that a known edge scores above a random node of the same query."""
    known = snapshot.known
    generator = torch.Generator().manual_seed(seed)
    edge = torch.randint(known.indices.numel(), (_EDGES,), generator=generator)
    src = torch.searchsorted(known.indptr, edge, right=True) - 1
    pair = torch.stack(
        [known.indices[edge].long(), known.uniform(src, 1, generator=generator).squeeze(1)], dim=1
    )
    score, random = snapshot.scores(src.unsqueeze(1), pair).squeeze(1).unbind(1)
    return float(((score > random).double() + (score == random).double() / 2).mean())
