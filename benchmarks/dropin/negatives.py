"""From a method's configuration to a sampler that DGL's loader takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

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
    Uniform,
)
from benchmarks.dropin.stand_ins import StandInSampler
from dgl_dmns import samplers
from dgl_dmns.core import Blend, Density, Gate, Nearest, Rule

__all__ = ["calibration", "make_sampler", "negatives_per_edge"]

Scorer = Callable[[Tensor, Tensor], Tensor]

_RULES: dict[str, Callable[[], Rule]] = {"gate": Gate, "density": Density, "nearest": Nearest}


def negatives_per_edge(method: Method, k: int) -> int:
    """K of a method: its own, or else the recipe's."""
    return method.k if isinstance(method, Uniform) and method.k is not None else k


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
