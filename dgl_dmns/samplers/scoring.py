"""Whether a sampler scores edges as the model does that is trained.

Negatives are chosen by the inner product of the embeddings where no ``scorer=`` is given. A model
that scores edges by a layer of its own, as the MLP predictors of DGL's examples do, is then given
negatives that are hard for another function. The inner product may tell edges well all the same,
since neighbours get embeddings that are alike, so that scores alone do not show it. Two things do:

- a layer with one output is trained, and no embedding passes through it: it is found among the
  modules that the encoder refers to and the parameters of attached optimizers, by what it was at
  the refresh before;
- known edges do not score above random nodes, after some refreshes.

Each gives one warning.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dgl_dmns.core import Snapshot
from dgl_dmns.messages import warn
from dgl_dmns.samplers.base import EdgeType
from dgl_dmns.samplers.held_modules import modules_behind
from dgl_dmns.samplers.relation import Relation

__all__ = ["ScoringCheck", "edge_auc"]

_EDGES = 256  # known edges that are looked at, and as many random nodes
_REFRESHES = 10  # before scores are judged
_IN_A_ROW = 3  # refreshes with scores that tell nothing, before that is said
_AUC, _TELLS = 0.55, 0.6  # of scores that tell nothing, and of those that tell enough
_EXAMPLE = (
    "scorer=lambda h_v, h_u: mlp(torch.cat(torch.broadcast_tensors(h_v, h_u), -1)).squeeze(-1), "
    "logits before any sigmoid"
)


class ScoringCheck:
    """Looks at each refresh of a sampler, and warns once of either sign.

    Args:
        sampler: the sampler's class.
        judged: whether negatives are chosen by scores at all.
        given: whether the user has given a scorer.
    """

    def __init__(self, sampler: type, judged: bool, given: bool) -> None:
        self._layers_open = judged and not given
        self._scores_open = judged
        self.given = given
        takes = "scorer" in inspect.signature(sampler).parameters
        self._advice = f"pass {_EXAMPLE}" if takes else f"use a sampler that takes {_EXAMPLE}"
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
            scorer = one.frozen().scorer
            made = Snapshot.take(h[etype[0]], h[etype[2]], one.known, scorer, None)
            auc = edge_auc(made, seed=version)
            if auc >= _TELLS:
                self._told.add(etype)
            self._low[etype] = self._low.get(etype, 0) + 1 if auc < _AUC else 0
            if self._low[etype] == _IN_A_ROW:
                self._scores_open = False
                what = "scorer=" if self.given else "the inner product"
                warn(
                    f"by {what}, known edges of {etype[1]!r} score no higher than "
                    f"random nodes after {version} refreshes (AUC {auc:.2f}), so that negatives "
                    "are no harder than uniform ones; if the model scores edges in another way, "
                    f"{self._advice}; if it has yet to learn, attach later"
                )
                return


@torch.no_grad()
def edge_auc(snapshot: Snapshot, *, seed: int) -> float:
    """Probability that a known edge scores above a random node of the same query.

    Args:
        snapshot: embeddings, scorer and known edges.
        seed: of the edges and nodes that are looked at, a source of its own.
    """
    known = snapshot.known
    generator = torch.Generator().manual_seed(seed)
    edge = torch.randint(known.indices.numel(), (_EDGES,), generator=generator)
    src = torch.searchsorted(known.indptr, edge, right=True) - 1
    pair = torch.stack(
        [known.indices[edge].long(), known.uniform(src, 1, generator=generator).squeeze(1)], dim=1
    )
    score, random = snapshot.scores(src.unsqueeze(1), pair).squeeze(1).unbind(1)
    return float(((score > random).double() + (score == random).double() / 2).mean())
