"""From a method's configuration to a sampler that DGL's loader takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import dgl
from dgl.dataloading import negative_sampler as dgl_negatives
from torch import Tensor

from benchmarks.dropin.config import (
    DMNS,
    Calibration,
    Dynamic,
    InBatch,
    MarkovChain,
    Method,
    Popularity,
    SelfAdversarial,
    Shared,
    Uniform,
)
from benchmarks.dropin.stand_ins import StandInSampler
from dgl_dmns import samplers
from dgl_dmns.core import Blend, Density, Gate, KnownEdges, Nearest, Rule
from dgl_dmns.losses import shared_softmax_loss

__all__ = ["EveryNode", "calibration", "make_sampler", "negatives_per_edge"]

Scorer = Callable[[Tensor, Tensor], Tensor]

_RULES: dict[str, Callable[[], Rule]] = {"gate": Gate, "density": Density, "nearest": Nearest}


class EveryNode:
    """All nodes as negatives, once a batch, beside the source of its first edge: full softmax.

    Args:
        graph: the training graph; its edges are the known positives.
    """

    def __init__(self, graph: Any) -> None:
        src, dst = graph.edges()
        self.known = KnownEdges(src, dst, graph.num_nodes())

    def __call__(self, g: Any, eids: Tensor) -> tuple[Tensor, Tensor]:
        src, _ = g.find_edges(eids[:1])
        return src.repeat(g.num_nodes()), g.nodes()

    def loss(
        self, h: Tensor, pos_graph: Any, neg_graph: Any, *, scorer: Scorer | None = None
    ) -> Tensor:
        """The loss of a batch, for every positive the sum over all nodes but known ones."""
        src, dst = pos_graph.edges()
        return shared_softmax_loss(
            h,
            src,
            dst,
            neg_graph.edges()[1],
            num_nodes=self.known.num_dst,
            known=self.known,
            ids=pos_graph.ndata[dgl.NID],
            scorer=scorer,
        )


def negatives_per_edge(method: Method, k: int) -> int:
    """K of a method: its own, or else the recipe's."""
    own = method.k if isinstance(method, (Uniform, Shared)) else None
    return k if own is None else own


def calibration(method: Method) -> Calibration:
    """Whose log ratios the loss gets."""
    return method.calibrated if isinstance(method, (DMNS, SelfAdversarial)) else "no"


def make_sampler(
    method: Method,
    k: int,
    graph: Any,
    encoder: Callable[[], Tensor],
    scorer: Scorer | None,
    seed: int,
) -> Any:
    """The sampler of a method.

    Args:
        method: what to make; its fields that are None are left to the sampler's defaults.
        k: negatives per edge.
        graph: the training graph without self loops.
        encoder: returns the embeddings of all nodes, float32 [N, D].
        scorer: scores of broadcastable embeddings; None for the inner product. MCNS has no use for
            it: its target is defined by inner products.
        seed: of the samplers that follow the encoder; the others draw from torch's global stream.
    """
    if isinstance(method, Shared):
        if method.source == "all":
            return EveryNode(graph)
        share = method.uniform_share
        own: dict[str, Any] = {} if share is None else {"uniform_share": share}
        if method.source == "dmns":
            return samplers.DMNSSampler(graph, encoder, k, scorer=scorer, seed=seed, **own)
        if method.source == "self-adversarial":
            own = {"uniform_share": 0.5, **own}
            return samplers.SelfAdversarialSampler(
                graph, encoder, k, scorer=scorer, seed=seed, **own
            )
        made = samplers.UniformSampler if method.source == "uniform" else samplers.InBatchSampler
        return made(graph, k)
    given = {field.name: getattr(method, field.name) for field in fields(method)}
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in ("k", "calibrated", "rule", "score_share", "source"):
        chosen.pop(name, None)
    if isinstance(method, Uniform):
        return dgl_negatives.PerSourceUniform(k)
    if isinstance(method, Popularity):
        return samplers.PopularitySampler(graph, k, **chosen)
    if isinstance(method, InBatch):
        return samplers.InBatchSampler(graph, k)
    if isinstance(method, MarkovChain):
        return samplers.MCNSSampler(graph, encoder, k, seed=seed, **chosen)
    follows = {**chosen, "scorer": scorer, "seed": seed}
    if isinstance(method, Dynamic):
        return samplers.DynamicSampler(graph, encoder, k, **follows)
    if isinstance(method, SelfAdversarial):
        return samplers.SelfAdversarialSampler(graph, encoder, k, **follows)
    follows.pop("edge_ratio", None)  # of the rule
    rule = _blend(method) if method.rule == "blend" else _RULES[method.rule]()
    if method.source != "diffusion":
        return StandInSampler(graph, encoder, k, rule=rule, centre=method.source, **follows)
    return samplers.DMNSSampler(graph, encoder, k, rule=rule, **follows)


def _blend(method: DMNS) -> Blend:
    rule = Blend(edge_ratio=method.edge_ratio)
    return rule if method.score_share is None else replace(rule, score_share=method.score_share)
