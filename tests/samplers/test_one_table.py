"""Ranks of one machine that share a table: two processes on gloo, beside one that has its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import graph as random_graph
from shared import make, normal, said, shop
from test_ddp import equal, on_ranks
from torch import Tensor, nn

from dgl_dmns import Resources
from dgl_dmns.core import CandidateTable, Nearest, SelfAdversarial
from dgl_dmns.samplers.trainers import trainers_of

NODES, EDGES = 300, 1500
OPTIONS: dict[str, Any] = {"fit_steps": 3, "warmup_steps": 5, "batch_pairs": 64, "groups": 6}


def graph() -> Any:
    return random_graph(NODES, EDGES)


def embeddings(step: int = 0) -> Tensor:
    return normal(NODES, 6, seed=step)


def of_table(sampler: Any) -> dict[str, Any]:
    """What has to be the same as in one process."""
    first = sampler.table.current(sampler.table.start[:9])
    return {
        "table": sampler.table.fields(),
        "norms": sampler.relation().method.norms,
        "ratios": sampler.log_ratio((torch.arange(9), first.ids[:, 0].long())),
        "state": {n: v for n, v in sampler.state_dict().items() if n in ("norms", "random")},
        "report": sampler.report.table,
        "version": sampler.version,
    }


def train(one_table: bool, chunk_bytes: int = 1 << 16) -> dict[str, Any]:
    """A few refreshes after `attach`, some rows anew, and what is left of it."""
    resources = Resources(one_table=one_table, chunk_bytes=chunk_bytes)
    encoder = nn.Embedding.from_pretrained(embeddings())
    sampler = make("dmns", graph(), lambda: encoder.weight, resources=resources, **OPTIONS)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    sampler.attach(optimizer, every=2 * EDGES // 1024 + 4)  # rows of another size
    results = [of_table(sampler)]
    encoder.weight.data.copy_(embeddings(1))
    sampler.refresh()
    results.append(of_table(sampler))
    sampler.refresh(embeddings(2), nodes=torch.arange(0, NODES, 3))
    results.append(of_table(sampler))
    saved = sampler.state_dict()
    sampler.refresh(embeddings(3))
    sampler.load_state_dict(saved)
    sampler.refresh(embeddings(4))
    results.append(of_table(sampler))
    rows = [one.rows for one in sampler.report.by_rank]
    files = [None if one.table.path is None else str(one.table.path) for one in [sampler]]
    return {"results": results, "rows": rows, "files": files, "passes": sampler.relation().passes}


def both(rank: int, ranks: int) -> dict[str, Any]:
    return {"shared": train(True), "alone": train(False)}


def test_a_shared_table_is_that_of_one_process_and_each_rank_fills_half(tmp_path: Path) -> None:
    results = on_ranks(both, 2, tmp_path)
    for one in results:
        assert equal([one["shared"]["results"], one["alone"]["results"]])
        assert one["shared"]["passes"] > 1
        rows = one["shared"]["rows"]
        assert sum(rows) == NODES
        assert min(rows) > NODES / 4
        assert one["alone"]["rows"] == []
    files = [one["shared"]["files"] for one in results]
    assert files[0] == files[1] != [None]
    assert not Path(files[0][0]).exists()  # it went with the samplers


def kinds(rank: int, ranks: int) -> dict[str, Any]:
    """What a table holds and a report says, for other samplers and several edge types."""
    found = {}
    for name, g in (("adversarial", graph()), ("self-adversarial", graph()), ("dmns", shop())):
        made = []
        for one_table in (True, False):
            sampler = make(name, g, resources=Resources(one_table=one_table, chunk_bytes=1))
            sampler.refresh()
            sampler.refresh()
            tables = [one.table.fields() for one in sampler.relations.values()]
            made.append([tables, [one.table for one in sampler.report.by_type.values()]])
        found[name] = made
    return found


def test_other_samplers_and_several_edge_types(tmp_path: Path) -> None:
    for found in on_ranks(kinds, 2, tmp_path):
        for made in found.values():
            assert equal(made)


def failing(rank: int, ranks: int) -> dict[str, Any]:
    """Errors of one rank, each in another part of a refresh, and a good refresh after each."""
    fails = [""]

    def scorer(query: Tensor, candidate: Tensor) -> Tensor:
        if rank and fails[0] == "fill":
            raise OSError("the scorer has failed")
        return (query * candidate).sum(-1)

    def encoder() -> Tensor:
        if rank and fails[0] == "embed":
            raise OSError("the encoder has failed")
        return embeddings(int(bool(rank and fails[0] == "differ")))

    resources = Resources(one_table=True, chunk_bytes=1 << 16)
    sampler = make("dmns", graph(), encoder, resources=resources, scorer=scorer, **OPTIONS)
    sampler.refresh()
    errors = {}
    for part in ("embed", "fill", "differ", "nodes"):
        before = sampler.table.current().ids.clone(), sampler.relation().random.get_state()
        fails[0] = part
        nodes = torch.arange(5 + rank) if part == "nodes" else None
        errors[part] = said(lambda nodes=nodes: sampler.refresh(nodes=nodes))
        fails[0] = ""
        after = sampler.table.current().ids, sampler.relation().random.get_state()
        assert all(map(torch.equal, before, after))
    kind = type(sampler.relation().method)
    for name in ("fit", "snapshot"):  # the latter before others wait for this rank's rows
        whole = getattr(kind, name)

        def broken(self: Any, ends: Any, whole: Any = whole) -> Any:
            if rank:
                raise OSError("the model has failed")
            return whole(self, ends)

        setattr(kind, name, broken)
        errors[name] = said(sampler.refresh)
        setattr(kind, name, whole)
    good, state = sampler.refresh().version, sampler.state_dict()
    if rank:
        state["random"] = torch.Generator().manual_seed(9).get_state()
    errors["load"] = said(lambda: sampler.load_state_dict(state))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    errors["every"] = said(lambda: sampler.attach(optimizer, every=5 + rank))
    errors["share"] = said(lambda: sampler.attach(optimizer, share=0.1))
    errors["grown"] = said(lambda: sampler.update_graph(graph()))
    errors["graph"] = said(
        lambda: make("dmns", random_graph(NODES, EDGES + rank), encoder, resources=resources)
    )
    errors["chains"] = said(lambda: make("mcns", graph(), encoder, resources=resources))
    errors["search"] = said(
        lambda: make("dmns", graph(), encoder, rule=Nearest(), resources=resources)
    )
    return {"errors": errors, "version": good}


COULD_NOT = "RuntimeError: refresh: 1 of 2 trainers could not make it, trainer 1 for one (OSError"
EXPECTED = {
    **dict.fromkeys(("embed", "fit", "snapshot", "fill"), COULD_NOT),
    "differ": "RuntimeError: refresh: ranks that share a table have other embeddings, models",
    "nodes": "RuntimeError: refresh: ranks that share a table would fill different rows",
    "load": "RuntimeError: state: ranks that share a table load other ones",
    "every": "RuntimeError: every: got ",
    "share": "ValueError: share: got 0.1, and trainers that share",
    "grown": "ValueError: g: trainers that refresh together",
    "graph": "RuntimeError: one_table: ranks have other known edges",
    "chains": "ValueError: one_table: the table of this sampler holds chains",
    "search": "ValueError: one_table: a rule that searches",
}


def test_an_error_on_one_rank_is_one_on_both_and_the_last_table_stays(tmp_path: Path) -> None:
    for found in on_ranks(failing, 2, tmp_path):
        assert found["version"] == 2
        for part, text in EXPECTED.items():
            assert found["errors"][part].startswith(text), part


def test_what_cannot_share_a_table_is_refused() -> None:
    with pytest.raises(RuntimeError, match="^one_table: there are no ranks.*init_process_group"):
        make("dmns", graph(), resources=Resources(one_table=True))
    with pytest.raises(ValueError, match="^one_table: .* refresh in place"):
        Resources(one_table=True, background=True)
    with pytest.raises(TypeError, match="^one_table: expected True or False"):
        Resources(one_table=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^one_table: trainers of a distributed graph"):
        trainers_of(True, True, SelfAdversarial())


def test_a_table_whose_file_is_gone_is_not_made_of_zeros(tmp_path: Path) -> None:
    table = CandidateTable(torch.ones(3, dtype=torch.int64), 2, folder=tmp_path)
    sent = pickle.dumps(table)
    del table
    with pytest.raises(FileNotFoundError, match="there is no file .* the sampler that made it"):
        pickle.loads(sent)
    assert not list(tmp_path.iterdir())
