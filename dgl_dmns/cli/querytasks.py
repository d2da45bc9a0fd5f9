"""Users and items, and knowledge graphs: both as one graph of queries and items."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgl_dmns.cli.kinds import LAYERED
from dgl_dmns.cli.records import Records
from dgl_dmns.cli.tables import arrays_of
from dgl_dmns.cli.tasks import Settings, Task, Tested, chance_mrr, ranks_by_name
from dgl_dmns.core import KnownEdges, fit_seed
from dgl_dmns.data import QueryGraph, shop_graph
from dgl_dmns.evaluate import filtered_ranking, ranking_metrics, recommendation_metrics
from dgl_dmns.models import edge_loader, make_model
from dgl_dmns.models.base import SIDES
from dgl_dmns.seeds import seed_all

__all__ = ["KnowledgeTask", "QueryTask", "ShopTask"]

_TO = ("query", "to", "item")
_MOST_QUERIES = 2000  # users or triples of validation, test items that are ranked one by one


class QueryTask(Task):
    """Queries of one node type, and items of another that are ranked for them.

    Args:
        records: the rows.
        settings: what decides the run.
        pairs: (query, item) by part, int64 [2, P] each.
        known: (query, item) that the metrics of a part leave out, likewise.
        everything: all that are known, held-out ones included.
        g: the graph of the training pairs.
        queries: of a knowledge graph.
    """

    def __init__(
        self,
        records: Records,
        settings: Settings,
        pairs: dict[str, Tensor],
        known: dict[str, Tensor],
        everything: Tensor,
        g: Any,
        queries: QueryGraph | None = None,
    ) -> None:
        self.records, self.settings, self.pairs, self.g = records, settings, pairs, g
        options: dict[str, Any] = {"width": settings.hidden, "dropout": settings.dropout}
        if settings.temperature is not None:
            options["temperature"] = settings.temperature
        if settings.model in LAYERED:
            options["layers"] = settings.layers
        seed_all(settings.seed, 0)
        self.model = make_model(settings.model, g, queries, **options)
        self.scorer = self.model.scorer
        self.own = {"etypes": ["to"], "scorer": self.scorer}
        self.num_edges = g.num_edges("to")
        self.held_out = {_TO: pairs["val"]}
        self.known = {part: self._known(left_out) for part, left_out in known.items()}
        self.everything = self._known(everything)

    def _known(self, pairs: Tensor) -> KnownEdges:
        counts = (self.g.num_nodes(ntype) for ntype in SIDES)
        return KnownEdges(pairs[0], pairs[1], *counts, exclude_self=False)

    def loader(self, negatives: Any) -> Any:  # noqa: D102
        fanout, size = self.settings.fanout or -1, self.settings.batch_size
        return edge_loader(self.model, self.g, negatives, fanout, batch_size=size)

    def forward(self, input_nodes: Any, blocks: Any) -> Any:  # noqa: D102
        return self.model(blocks, input_nodes)

    def _ranks(self, h: Any, pairs: Tensor, known: KnownEdges) -> Tensor:
        """Ranks of pairs among the items that are not known."""
        batch = 256 if self.scorer is None else 32  # a scorer forms [batch, N, D]
        return filtered_ranking(h["query"], h["item"], pairs, known, self.scorer, batch)

    def _some(self, count: int) -> Tensor:
        """At most so many random places, the same in each epoch."""
        generator = torch.Generator().manual_seed(fit_seed(self.settings.seed))
        return torch.randperm(count, generator=generator)[:_MOST_QUERIES]

    def arrays(self, h: Any) -> dict[str, Any]:  # noqa: D102
        known = self.everything
        return {
            "kind": np.array(self.records.kind),
            "model": np.array(self.settings.model),
            "columns": np.array(self.records.columns),
            "query_trained": (self.g.out_degrees(etype="to") > 0).numpy(),
            **{f"{ntype}_embedding": h[ntype].numpy() for ntype in SIDES},
            "known_indptr": known.indptr.numpy(),
            "known_indices": known.indices.numpy(),
        }


class ShopTask(QueryTask):
    """Users and items: Recall and NDCG of the items of a user, those of the training left out."""

    watched = "ndcg"

    def __init__(self, records: Records, settings: Settings) -> None:
        pairs, _ = records.split(settings.seed)
        users, items = records.count("user"), records.count("item")
        user, item = pairs["train"]
        known = {"val": pairs["train"], "test": torch.cat([pairs["train"], pairs["val"]], dim=1)}
        g, everything = shop_graph(user, item, users, items), records.everything()
        super().__init__(records, settings, pairs, known, everything, g)
        some = pairs["val"][0].unique()
        self.validation = pairs["val"][:, torch.isin(pairs["val"][0], some[self._some(len(some))])]

    def _metrics(self, h: Any, pairs: Tensor, part: str) -> dict[str, float]:
        known, score = self.known[part], self.scorer
        found = recommendation_metrics(h["query"], h["item"], pairs, known, 20, score)
        return {name: found[name] for name in ("NDCG@20", "Recall@20")}

    def validate(self, h: Any) -> float:  # noqa: D102
        return self._metrics(h, self.validation, "val")["NDCG@20"]

    def test(self, h: Any) -> Tested:  # noqa: D102
        pairs, items = self.pairs["test"], self.records.count("item")
        measured = (
            f"NDCG@20 and Recall@20: the {pairs.shape[1]} test items of {len(pairs[0].unique())} "
            f"users, ranked among all {items} items for each, those of training and validation "
            "left out."
        )
        some = pairs[:, self._some(pairs.shape[1]).sort().values]
        ranks = self._ranks(h, some, self.everything)
        ids = [(self.records.ids[what], end) for what, end in zip(("user", "item"), some)]
        named = ranks_by_name(self.records.columns, ids, ranks)
        return Tested(self._metrics(h, pairs, "test"), measured, named)

    def arrays(self, h: Any) -> dict[str, Any]:  # noqa: D102
        ids = {"query": self.records.ids["user"], "item": self.records.ids["item"]}
        named = [arrays_of(own, f"{ntype}_id") for ntype, own in ids.items()]
        return {**named[0], **named[1], **super().arrays(h)}


class KnowledgeTask(QueryTask):
    """Triples: filtered MRR and Hits of both their ends, each asked by the other."""

    watched = "mrr"

    def __init__(self, records: Records, settings: Settings) -> None:
        triples, _ = records.split(settings.seed)
        self.test_triples = triples["test"]
        entities, relations = records.count("entity"), records.count("relation")
        head, relation, tail = records.everything()
        self.queries = QueryGraph.from_triples(head, relation, tail, entities, relations)
        pairs = {part: self.queries.pairs(*rows) for part, rows in triples.items()}
        g = self.queries.graph(pairs["train"])
        known = {"val": torch.cat([pairs["train"], pairs["val"]], dim=1)}
        everything = self.queries.pairs(head, relation, tail)
        super().__init__(records, settings, pairs, known, everything, g, self.queries)
        count = triples["val"].shape[1]
        some = self._some(count)
        self.validation = pairs["val"][:, torch.cat([some, some + count])]

    def validate(self, h: Any) -> float:  # noqa: D102
        return ranking_metrics(self._ranks(h, self.validation, self.known["val"]))["MRR"]

    def test(self, h: Any) -> Tested:  # noqa: D102
        pairs, entities = self.pairs["test"], self.records.count("entity")
        ranks = self._ranks(h, pairs, self.everything)
        found = ranking_metrics(ranks, hits=(1, 3, 10))
        metrics = {name: found[name] for name in ("MRR", "Hits@1", "Hits@3", "Hits@10")}
        measured = (
            f"MRR and Hits: the tail and the head of {pairs.shape[1] // 2} test triples, each "
            f"ranked among all {entities} entities, other known triples left out (filtered); a "
            f"random order would have an MRR of {chance_mrr(entities):.2g}."
        )
        asked = torch.arange(2).repeat_interleave(pairs.shape[1] // 2)
        kinds = (self.records.ids[what] for what in ("entity", "relation", "entity"))
        ids = [(own, end.repeat(2)) for own, end in zip(kinds, self.test_triples)]
        ids.append((np.array(["tail", "head"], dtype=object), asked))
        named = ranks_by_name((*self.records.columns, "asked for"), ids, ranks)
        return Tested(metrics, measured, named)

    def arrays(self, h: Any) -> dict[str, Any]:  # noqa: D102
        ids = {"item": self.records.ids["entity"], "relation": self.records.ids["relation"]}
        named = [arrays_of(own, f"{what}_id") for what, own in ids.items()]
        return {
            **named[0],
            **named[1],
            "query_entity": self.queries.entity.numpy(),
            "query_relation": self.queries.relation.numpy(),
            "relation_embedding": self.model.relation.weight.detach().numpy(),
            **super().arrays(h),
        }
