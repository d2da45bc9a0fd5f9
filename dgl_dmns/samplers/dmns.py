"""`DMNSSampler`: negatives from a conditional diffusion model that follows the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgl_dmns.checks import as_integer, check_ids, check_object
from dgl_dmns.core import (
    AffineNoisePredictor,
    Blend,
    CandidateTable,
    DiffusionGenerator,
    FitReport,
    KnownEdges,
    Levels,
    NoisePredictor,
    NoiseSchedule,
    PoolSettings,
    RowDraws,
    Rule,
    Snapshot,
    SpaceKind,
    check_rule,
    draw_by_level,
    fill_table,
    in_float32,
    shielded,
)
from dgl_dmns.samplers.base import EdgeName
from dgl_dmns.samplers.encoder import Embeddings
from dgl_dmns.samplers.models import Models, check_queries
from dgl_dmns.samplers.refreshing import Encoder, RefreshingSampler, Source
from dgl_dmns.samplers.relation import NegativesPerEdge, Relation, Scorers
from dgl_dmns.samplers.resources import Resources

__all__ = ["DMNSSampler"]

_DRAWS_PER_POOL = 40  # a large pool for many costs less than small ones for a few each


class DMNSSampler(RefreshingSampler):
    """Diffusion-based negative sampler (DMNS, WWW 2024, arXiv 2403.17259), for DGL.

    A drop-in for `dgl.dataloading.negative_sampler.Uniform`. It holds a conditional diffusion model
    of each query's neighbours in embedding space, and chooses real nodes by that model's densities
    at several hardness levels. Refresh it while the encoder trains, by `attach` or `refresh`.

    On a graph with several edge types each has a diffusion model of its own (weights and space),
    fitted on its own edges: that of the destination's embedding, given the source's. Where the ends
    are of two node types, the space is fitted on the embeddings of both together. Time and memory
    are those of one model and one table for each edge type; ``etypes`` bounds them.

    Args:
        g: the training graph; its edges are the known positives. Several node and edge types:
            see `StatefulSampler`.
        encoder: an ``nn.Module`` called as ``encoder(g, g.ndata[feat])`` (heterogeneous graph: with
            a dict of features by node type), or a callable that returns embeddings [N, D]
            (heterogeneous graph: a dict of those).
        k: negatives per edge; a dict by edge type where they differ.
        levels: hardness levels, or their fractions alone; the paper's where not given.
        rule: `Blend` (default, for an unchanged loss: a fifth of the draws through the gate, the
            others by the scorer's softmax), `Gate` (hard for the scorer and likely for the
            generator), `Density` (for the calibrated losses with `log_ratio`; uncalibrated it is
            too hard at convergence), or `Nearest` (the nearest node to a drawn latent).
        uniform_share: share of the negatives that are plain uniform ones, drawn in the call, in
            [0, 1].
        pool: uniform candidates in a pool, at least ``k``.
        lam: exponent on the generator's density.
        groups: groups of candidates that rows of the table have on average, at most. A row has one
            for each edge of its query in the pass between two refreshes, evenly fewer where that is
            more; None: as many as fit 112 bytes a node for each negative of an edge.
        scorer: scores of broadcastable embeddings [.., D], the model's logit before any sigmoid, or
            a dict of such functions by edge type; the inner product where not given. Of an
            ``nn.Module`` each refresh takes a copy, in eval mode.
        source: ``"edge"``, for a ranking per query, or ``"uniform"``, for one ranking of all pairs;
            see `StatefulSampler`.
        etypes: edge types to hold tables for; all that have edges where not given.
        feat: name of the node features, for an ``nn.Module`` encoder.
        fit_steps: fitting steps of the diffusion model in a refresh.
        warmup_steps: fitting steps of the first refresh.
        batch_pairs: (query, neighbour) pairs in a fitting step.
        learning_rate: of the diffusion model's Adam, positive.
        space: ``"compact"`` (standardised leading directions) or ``"raw"`` (the paper's).
        compact_width: width of the compact space.
        schedule: noise schedule; linear with T = 50 where not given.
        predictor: noise predictor; the paper's FiLM layers where not given. Each edge type has a
            copy of it, in float32.
        seed: seed of the generator's weights, of fitting and of table building.
        generator: source of the draws in the main process; torch's global one where not given.
        resources: limits of memory, and refreshes in the background; see `Resources`.

    Raises:
        ValueError: for a value out of range, an unsuitable graph, or a missing feature.
        TypeError: for an argument of a wrong type, a class or a name in place of an object, or a
            predictor without a closed form where the rule needs densities.

    Example:
        >>> import dgl, torch
        >>> g = dgl.graph(([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]))
        >>> sampler = DMNSSampler(g, lambda: torch.eye(6), k=2)
        >>> report = sampler.refresh()
        >>> src, dst = sampler(g, torch.tensor([0, 3]))
        >>> src.tolist()
        [0, 0, 3, 3]
    """

    @shielded
    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: NegativesPerEdge = 1,
        *,
        levels: Levels | Sequence[float] | None = None,
        rule: Rule | None = None,
        uniform_share: float = 0.5,
        pool: int = 128,
        lam: float = 1.0,
        groups: int | None = None,
        scorer: Scorers | None = None,
        source: Source = "edge",
        etypes: Sequence[EdgeName] | None = None,
        feat: str = "feat",
        fit_steps: int = 40,
        warmup_steps: int = 200,
        batch_pairs: int = 1024,
        learning_rate: float = 1e-2,
        space: SpaceKind = "compact",
        compact_width: int = 16,
        schedule: NoiseSchedule | None = None,
        predictor: NoisePredictor | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        resources: Resources | None = None,
    ) -> None:
        fit_steps = as_integer("fit_steps", fit_steps)
        warmup_steps = as_integer("warmup_steps", warmup_steps)
        batch_pairs = as_integer("batch_pairs", batch_pairs)
        compact_width = as_integer("compact_width", compact_width, 1)
        if fit_steps < 0 or warmup_steps < 0 or batch_pairs < 1:
            raise ValueError(
                "fit_steps, warmup_steps, batch_pairs: expected at least 0, 0 and 1, got "
                f"{fit_steps}, {warmup_steps} and {batch_pairs}"
            )
        rule = Blend() if rule is None else rule
        check_rule(rule)
        if predictor is not None:
            check_object("predictor", predictor, nn.Module, "FiLMPredictor(16)")
        schedule = NoiseSchedule.linear() if schedule is None else schedule
        check_object("schedule", schedule, NoiseSchedule, "NoiseSchedule.linear()")
        self.levels = Levels.of(levels)
        if rule.tractable and not isinstance(predictor, (AffineNoisePredictor, type(None))):
            raise TypeError(
                f"predictor: rule={rule} needs densities, so an AffineNoisePredictor, got "
                f"{type(predictor).__name__}; use rule=Nearest(), which only samples"
            )
        super().__init__(
            g,
            encoder,
            k,
            rule=rule,
            settings=PoolSettings(
                pool=pool,
                uniform_share=uniform_share,
                lam=lam,
                groups=groups,
                draws_per_pool=_DRAWS_PER_POOL,
            ),
            feat=feat,
            scorer=scorer,
            source=source,
            etypes=etypes,
            seed=seed,
            generator=generator,
            resources=resources,
        )
        self.fit_steps = fit_steps
        self.warmup_steps = warmup_steps
        self.levels.steps(schedule.steps)
        self._models = Models(
            levels=self.levels,
            schedule=schedule,
            predictor=predictor,
            space=space,
            compact_width=compact_width,
            batch_pairs=batch_pairs,
            learning_rate=learning_rate,
        )

    def _fit(self, relation: Relation, h_query: Tensor, h_candidate: Tensor) -> FitReport:
        steps = self.warmup_steps if relation.model is None else self.fit_steps
        model = self._models.of(relation, h_query.shape[1])
        if h_candidate is h_query:
            model.space.update(h_query)
            z_query = z_candidate = model.space.encode(h_query)
        else:
            model.space.update(torch.cat([h_query, h_candidate]))
            z_query, z_candidate = model.space.encode(h_query), model.space.encode(h_candidate)
        return model.fit(z_query, z_candidate, relation.known, steps, generator=relation.random)

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
            generator: source of the noise; the sampler's own where not given.

        Returns:
            Latent negatives, shape [L, B, D], hardest level first, without gradient, in the space
            and on the device of ``h_query``.

        Raises:
            RuntimeError: before the first refresh, or if this is a copy, which has no generator.
            ValueError: if ``h_query`` has another width than the embeddings refreshed from, or the
                edge type has to be named.
        """
        relation, model = self._fitted("generate", etype)
        check_queries(h_query, model)
        latents = model.generate(
            h_query.detach().cpu().float(), generator=generator or relation.random
        )
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
            known: edges that are not drawn; those of the training graph where not given.
            embeddings: as in `refresh`.
            generator: source of the draws; the sampler's own where not given.

        Returns:
            Destination ids, shape [B, L, n], int64, hardest level first, distinct within a level as
            far as a query has n admissible nodes.

        Raises:
            RuntimeError: before the first refresh, or if this is a copy, which has no encoder.
            ValueError: if the edge type has to be named, embeddings do not fit, ``n`` is below 1,
                or a node is out of range.
            TypeError: if the predictor has no closed form, or ids are no integers.
        """
        relation, model = self._fitted("negatives_by_level", etype)
        n = as_integer("n", n, 1, "nodes per query and level")
        check_ids("nodes", nodes, relation.known.num_src, f"ids of type {relation.etype[0]!r}")
        h = self._embeddings(embeddings)
        z = {t: model.space.encode(h[t]) for t in {relation.etype[0], relation.etype[2]}}
        return draw_by_level(
            model,
            z[relation.etype[0]],
            z[relation.etype[2]],
            relation.known if known is None else known,
            nodes.cpu().long(),
            n,
            lam=self.settings.lam,
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
            known: edges that are not drawn, with the rows of ``h_query`` as sources; none where not
                given.
            embeddings: of the graph's nodes, as in `refresh`.
            generator: source of the draws; the sampler's own where not given.

        Returns:
            Destination ids, shape [B, k], int64, on the device of ``h_query``.

        Raises:
            RuntimeError: before the first refresh, or if this is a copy, which has no encoder.
            ValueError: if the edge type has to be named, or ``h_query``, ``known`` or
                ``embeddings`` do not fit.
        """
        relation, model = self._fitted("for_embeddings", etype)
        check_queries(h_query, model)
        queries, nodes = h_query.shape[0], relation.known.num_dst
        if known is None:
            none = torch.empty(0, dtype=torch.int64)
            known = KnownEdges(none, none, queries, nodes, exclude_self=False)
        if (known.num_src, known.num_dst) != (queries, nodes):
            raise ValueError(
                f"known: expected edges from {queries} queries (the rows of h_query) to {nodes} "
                f"nodes of type {relation.etype[2]!r}, got {known}"
            )
        k = relation.k
        if not queries:
            return torch.empty(0, k, dtype=torch.int64, device=h_query.device)
        h = self._embeddings(embeddings)
        generator = generator or relation.random
        hard = CandidateTable(torch.ones(queries, dtype=torch.int64), self.settings.hard(k))
        snapshot = Snapshot.take(
            h_query.detach().cpu().float(),
            h[relation.etype[2]],
            known,
            relation.frozen().scorer,
            model if self.rule.uses_generator else None,
        )
        fill_table(hard, self._rule(relation), self.settings, snapshot, generator=generator)
        hard.publish()
        rows = RowDraws(known, hard, None, k, self.settings.uniform_share)
        drawn = rows.draw_ids(torch.arange(queries), generator=generator)
        return drawn.to(h_query.device)

    def _fitted(self, call: str, etype: EdgeName | None) -> tuple[Relation, DiffusionGenerator]:
        """What is held for an edge type, with its generator, for a call that needs both."""
        self._check_original(call)
        relation = self.relation(etype)
        if relation.model is None:
            raise RuntimeError(f"{call}: no generator is fitted yet; call refresh() first")
        return relation, relation.model

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_models"] = None  # may hold a predictor: only a refresh needs it
        return state

    def _own_state(self, relation: Relation) -> dict[str, Any]:
        return self._models.state(relation)

    def _load_own_state(self, states: list[tuple[Relation, dict[str, Any]]]) -> None:
        width = states[0][1]["width"]  # all edge types have one, and are fitted together
        if width is None:
            if self.version:
                raise ValueError("state: made before the first refresh, this sampler is past it")
            return
        self._check_width(width)
        self._models.load(states, width)
