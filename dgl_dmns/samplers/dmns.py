"""`DMNSSampler`: negatives from a conditional diffusion model that follows the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.checks import as_integer, check_ids, check_object
from dgl_dmns.core import (
    AffineNoisePredictor,
    Blend,
    CandidateTable,
    DiffusionGenerator,
    EdgeName,
    Embeddings,
    KnownEdges,
    Levels,
    PoolSettings,
    RowDraws,
    Rule,
    Snapshot,
    check_rule,
    draw_by_level,
    fill_table,
    in_float32,
    restricted,
    shielded,
)
from dgl_dmns.samplers.callables import Scorers
from dgl_dmns.samplers.diffusion import DiffusionMethod
from dgl_dmns.samplers.embedder import Encoder
from dgl_dmns.samplers.refreshing import RefreshingSampler
from dgl_dmns.samplers.relation import Relation
from dgl_dmns.samplers.settings import Diffusion, NegativesPerEdge, Pools, Resources
from dgl_dmns.samplers.tables import Source

__all__ = ["DMNSSampler"]


class DMNSSampler(RefreshingSampler):
    """Diffusion-based negative sampler (DMNS, WWW 2024, arXiv 2403.17259), for DGL.

    A drop-in for `dgl.dataloading.negative_sampler.Uniform`. It holds a conditional diffusion model
    of each query's neighbours in embedding space, and chooses real nodes by that model's densities
    at several hardness levels. Refresh it while the encoder trains, by `attach` or `refresh`.

    On a graph with several edge types, each type has its own diffusion model, fitted on its own
    edges. It models the destination's embedding, given the source's. If the ends have two node
    types, one space is fitted on both.

    Args:
        g: the training graph; its edges are the known positives.
        encoder: an ``nn.Module`` called as ``encoder(g, g.ndata[feat])``, or a callable that
            returns embeddings [N, D]; a dict by node type where there are several.
        k: negatives per edge; a dict by edge type where they differ.
        rule: selection rule; defaults to `Blend`, made for an unchanged loss: a fifth of the draws
            through the gate, the others by the scorer's softmax. `Gate`: scores high and is likely.
            `Density`: only for losses that subtract `log_ratio`. `Nearest`: the nearest node to a
            drawn latent.
        levels: hardness levels, or their fractions alone; defaults to the paper's.
        pools: how candidates are proposed; defaults to pools of 128, half of the negatives uniform.
        diffusion: the diffusion model and its fitting; see `Diffusion`.
        scorer: see `RefreshingSampler`; also ``source``, ``etypes``, ``feat``, ``seed``,
            ``generator`` and ``resources``.

    Raises:
        ValueError, TypeError, MemoryError: as for `RefreshingSampler`; also TypeError for a
            predictor without a closed form where the rule needs densities.

    Examples:
        >>> import dgl, torch
        >>> g = dgl.graph(([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]))
        >>> sampler = DMNSSampler(g, lambda: torch.eye(6), k=2)
        >>> report = sampler.refresh()
        >>> src, dst = sampler(g, torch.tensor([0, 3]))
        >>> src.tolist()
        [0, 0, 3, 3]
    """

    # A large pool for many draws costs less than small ones for a few each.
    defaults = PoolSettings(pool=128, uniform_share=0.5, draws_per_pool=40)

    @shielded
    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: NegativesPerEdge = 1,
        *,
        rule: Rule | None = None,
        levels: Levels | Sequence[float] | None = None,
        pools: Pools | None = None,
        diffusion: Diffusion | None = None,
        scorer: Scorers | None = None,
        source: Source = "edge",
        etypes: Sequence[EdgeName] | None = None,
        feat: str = "feat",
        seed: int = 0,
        generator: torch.Generator | None = None,
        resources: Resources | None = None,
    ) -> None:
        rule = Blend() if rule is None else rule
        check_rule(rule)
        self.levels = Levels.of(levels)
        self.diffusion = Diffusion() if diffusion is None else diffusion
        check_object("diffusion", self.diffusion, Diffusion, "Diffusion(fit_steps=40)")
        predictor = self.diffusion.predictor
        if rule.tractable and not isinstance(predictor, (AffineNoisePredictor, type(None))):
            raise TypeError(
                f"predictor: rule={rule} needs densities, so an AffineNoisePredictor, got "
                f"{type(predictor).__name__}; use rule=Nearest(), which only samples"
            )
        assert self.diffusion.schedule is not None
        self.levels.steps(self.diffusion.schedule.steps)
        super().__init__(
            g,
            encoder,
            k,
            rule=rule,
            pools=pools,
            scorer=scorer,
            source=source,
            etypes=etypes,
            feat=feat,
            seed=seed,
            generator=generator,
            resources=resources,
        )

    def _method(self, known: KnownEdges, seed: int) -> DiffusionMethod:
        own = self.rule, self.settings, self.resources, seed
        return DiffusionMethod(*own, self.levels, self.diffusion)

    @in_float32
    @shielded
    def generate(
        self,
        h_query: Tensor,
        *,
        etype: EdgeName | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Latent negatives of all levels, the paper's own way.

        Args:
            h_query: query embeddings, shape [B, D], of the encoder that was refreshed from.
            etype: edge type; may be left out where one is held.
            generator: source of the noise; defaults to the sampler's own.

        Returns:
            Latent negatives, shape [L, B, D], hardest level first, without gradient, in the space
            and on the device of ``h_query``.

        Raises:
            RuntimeError: before the first refresh, or if this is a copy.
            ValueError: if ``h_query`` does not fit, or the edge type has to be named.
        """
        relation, _, model = self._fitted("generate", etype)
        _check_queries(h_query, model)
        h = h_query.detach().cpu().float()
        latents = model.generate(h, generator=generator or relation.random)
        return latents.to(h_query.device, h_query.dtype)

    @in_float32
    @shielded
    def negatives_by_level(
        self,
        nodes: Tensor,
        n: int,
        *,
        etype: EdgeName | None = None,
        known: KnownEdges | None = None,
        embeddings: Embeddings | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Real nodes of every hardness level, drawn from all nodes rather than from the table.

        For evaluation on hard negatives and to look at the levels; it calls the encoder, and takes
        a pass over all nodes for each query. Refresh first: the generators are used as they are.

        Args:
            nodes: query ids, shape [B], int64.
            n: nodes per query and level.
            etype: edge type; may be left out where one is held.
            known: edges that are not drawn; defaults to those of the training graph.
            embeddings: as in `refresh`.
            generator: source of the draws; defaults to the sampler's own.

        Returns:
            Destination ids, shape [B, L, n], int64, hardest level first, distinct within a level as
            far as a query has n admissible nodes.

        Raises:
            RuntimeError: before the first refresh, or if this is a copy.
            ValueError: if the edge type has to be named, embeddings do not fit, ``n`` is below 1,
                or a node is out of range.
            TypeError: if the predictor has no closed form, or ids are no integers.
        """
        relation, _, _ = self._fitted("negatives_by_level", etype)
        n = as_integer("n", n, 1, "nodes per query and level")
        check_ids("nodes", nodes, relation.known.num_src, f"ids of type {relation.etype[0]!r}")
        look = self.look(relation.etype, embeddings)
        assert look.diffusion is not None
        return draw_by_level(
            *look.diffusion,
            relation.known if known is None else restricted(known, relation.known.candidates),
            nodes.cpu().long(),
            n,
            lam=look.lam,
            generator=generator or relation.random,
        )

    @in_float32
    @shielded
    def for_embeddings(
        self,
        h_query: Tensor,
        *,
        etype: EdgeName | None = None,
        known: KnownEdges | None = None,
        embeddings: Embeddings | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Negatives for queries that are given by an embedding: nodes that the table lacks.

        For a user who has just come, or a node that was added since the last refresh. The rule
        chooses among all nodes as in a refresh, by the generator as it is; the encoder is called
        for the candidates.

        Args:
            h_query: query embeddings, shape [B, D], floating point.
            etype: edge type; may be left out where one is held.
            known: edges that are not drawn, with the rows of ``h_query`` as sources, if any.
            embeddings: of the graph's nodes, as in `refresh`.
            generator: source of the draws; defaults to the sampler's own.

        Returns:
            Destination ids, shape [B, k], int64, on the device of ``h_query``.

        Raises:
            RuntimeError: before the first refresh, or if this is a copy.
            ValueError: if the edge type has to be named, or an argument does not fit.
        """
        relation, method, model = self._fitted("for_embeddings", etype)
        _check_queries(h_query, model)
        queries, nodes = h_query.shape[0], relation.known.num_dst
        if known is None:
            none = torch.empty(0, dtype=torch.int64)
            known = KnownEdges(none, none, queries, nodes, exclude_self=False)
        if (known.num_src, known.num_dst) != (queries, nodes):
            raise ValueError(
                f"known: expected edges from {queries} queries (the rows of h_query) to {nodes} "
                f"nodes of type {relation.etype[2]!r}, got {known}"
            )
        known = restricted(known, relation.known.candidates)
        k = relation.k
        if not queries:
            return torch.empty(0, k, dtype=torch.int64, device=h_query.device)
        ends = relation.ends(self._original("refresh").embedder.embeddings(embeddings))
        generator = generator or relation.random
        hard = CandidateTable(torch.ones(queries, dtype=torch.int64), self.settings.hard(k))
        snapshot = Snapshot(
            h_query.detach().cpu().float(),
            ends.h_candidate,
            known,
            ends.scorer,
            model if self.rule.uses_generator else None,
        )
        fill_table(hard, method.drawn_by, self.settings, snapshot, generator=generator)
        hard.publish()
        rows = RowDraws(known, hard, None, k, self.settings.uniform_share)
        drawn = rows.draw_ids(torch.arange(queries), generator=generator)
        return drawn.to(h_query.device)

    def _fitted(
        self, call: str, etype: EdgeName | None
    ) -> tuple[Relation, DiffusionMethod, DiffusionGenerator]:
        """What is held for an edge type, with its model, for a call that needs both."""
        self._original(call)
        relation = self.relation(etype)
        method = relation.method
        assert isinstance(method, DiffusionMethod)
        if method.model is None:
            raise RuntimeError(f"{call}: no generator is fitted yet; call refresh() first")
        return relation, method, method.model


def _check_queries(h_query: Tensor, model: DiffusionGenerator) -> None:
    """Refuse query embeddings of another shape than [B, D], integers, NaN and infinity."""
    width = model.space.embedding_width
    if h_query.dim() != 2 or h_query.shape[1] != width:
        raise ValueError(f"h_query: expected shape [B, {width}], got {tuple(h_query.shape)}")
    if not (h_query.is_floating_point() and bool(h_query.isfinite().all())):
        raise ValueError(
            "h_query: expected floating point embeddings without NaN or infinity, as the encoder "
            f"gives them, got {h_query.dtype}: {h_query}"
        )
