"""The state of a sampler that follows an encoder: what is saved, what is refused on loading."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.core import MOST_PASSES, EdgeType, candidates_fingerprint, shielded
from dgl_dmns.files import read_state, write_state
from dgl_dmns.samplers.method import Method
from dgl_dmns.samplers.observed import ObservedEmbeddings
from dgl_dmns.samplers.refresher import Refresher
from dgl_dmns.samplers.relation import Relation

__all__ = ["Saved"]

_GROUPS = 1 << 16  # that are looked through at a time


class Saved:
    """The part of `RefreshingSampler` that saves and loads; it has no life of its own."""

    relations: dict[EdgeType, Relation]

    def _original(self, call: str) -> Refresher:
        """The refresher, which copies have none of."""
        raise NotImplementedError

    @shielded
    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if nothing had happened, as a copy.

        Raises:
            RuntimeError: if this is a copy of a sampler.
        """
        refresher = self._original("state_dict")
        refresher.settle()
        embedder = refresher.embedder
        parts = {etype: _state_of(relation) for etype, relation in self.relations.items()}
        state = next(iter(parts.values())) if embedder.homogeneous else {"by_type": parts}
        # With the embeddings the distribution is known, and log ratios go on.
        last = None if embedder.stored else copy.deepcopy(embedder.last)
        state = {"sampler": type(self).__name__, **state, "embeddings": last}
        if embedder.observed is not None:
            state["observed"] = copy.deepcopy(embedder.observed.state_dict())
        return state

    @shielded
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state made by `state_dict` of a sampler with the same arguments.

        Raises:
            ValueError: if the state belongs to another class of samplers, or to other edge types,
                edges, nodes, shapes or widths; this sampler then stays as it was.
            RuntimeError: if this is a copy.
        """
        refresher = self._original("load_state_dict")
        embedder = refresher.embedder
        parts = self._parts(state, embedder.homogeneous)
        for etype, relation in self.relations.items():
            _check(relation, parts[etype])
        observed, last = state.get("observed"), state["embeddings"]
        widths = {one.method.width_of(parts[etype]) for etype, one in self.relations.items()}
        if observed is not None:
            observed = ObservedEmbeddings.restored(observed, embedder.counts)
            widths.add(next(iter(observed.h.values())).shape[1])
        for width in widths:
            if width is not None:
                embedder.check_width(width)
        if last is not None:
            last = embedder.embeddings(last, copy=True)
        refresher.settle()
        methods = {
            etype: one.method.restored(parts[etype], one.table.version)
            for etype, one in self.relations.items()
        }
        for etype, relation in self.relations.items():
            _load(relation, parts[etype], methods[etype])
        embedder.observed, embedder.last = observed, last
        refresher.restarted()

    def _parts(self, state: Any, homogeneous: bool) -> dict[EdgeType, dict[str, Any]]:
        """The states of the edge types, if they are those of such a sampler."""
        name = type(self).__name__
        if not isinstance(state, Mapping) or "sampler" not in state:
            given = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(
                f"state: expected what state_dict() of a {name} returned, got {given}; take the "
                "sampler's part out of a checkpoint, or load(path) a file"
            )
        if state["sampler"] != name:
            raise ValueError(
                f"state: made by {state['sampler']}, this is a {name}; load it into a sampler of "
                "the class that made it"
            )
        flat = dict.fromkeys(self.relations, state) if homogeneous else {}
        parts: dict[EdgeType, dict[str, Any]] = state.get("by_type", flat)
        if parts.keys() != self.relations.keys():
            raise ValueError(
                f"state: made for {list(parts) or 'a homogeneous graph'}, this sampler holds "
                f"{list(self.relations)}; load it into a sampler of the same graph, etypes and k"
            )
        return parts

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, whole or not at all; see `dgl_dmns.files`.

        Raises:
            OSError: if it cannot be written, as where there is no such folder; a file that was
                there stays.
            RuntimeError: if this is a copy.
        """
        write_state(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore the state in a file of `save`, without executing code from it.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or as for `load_state_dict`; this sampler then stays as it
                was.
            RuntimeError: if this is a copy.
        """
        state, before = read_state(path), self.state_dict()
        try:
            self.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            self.load_state_dict(before)
            raise ValueError(
                f"path: not the state of a {type(self).__name__} ({type(error).__name__}: {error});"
                " load a file that such a sampler has saved"
            ) from error


def _state_of(relation: Relation) -> dict[str, Any]:
    """Copies of table, turns, random state and what the method keeps; and whose they are."""
    return {
        "nodes": relation.nodes,
        "edges": relation.known.fingerprint(),
        "candidates": candidates_fingerprint(relation.known),
        "passes": relation.passes,
        "table": relation.table.fields(),
        "asked": relation.turns(),
        "random": relation.random.get_state(),
        **copy.deepcopy(relation.method.state(relation.table.version)),
    }


def _load(relation: Relation, state: dict[str, Any], method: Method) -> None:
    """Restore what `_state_of` gave and `_check_state` let pass, in place: workers see it."""
    relation.make_last(state["passes"])
    if relation.rows.turns is not None:
        relation.rows.turns.asked.copy_(state["asked"])
    relation.table.restore(state["table"])
    relation.taken_over()
    relation.random.set_state(state["random"])
    relation.method = method


def _check(relation: Relation, state: dict[str, Any]) -> None:
    """Refuse a state that does not fit, or is not that of all ranks that share the table."""

    def shared() -> dict[str, Any]:
        _check_state(relation, state)
        table = {name: one for name, one in state["table"].items() if name != "unfinished"}
        return {**state, "table": table, "asked": None}  # each rank has its turns

    if relation.ranks is None:
        _check_state(relation, state)
    else:
        relation.ranks.alike(
            shared, "state: ranks that share a table load other ones; load states of one refresh"
        )


def _check_state(relation: Relation, state: dict[str, Any]) -> None:
    """Refuse a state of other nodes, edges or shapes, or of negatives that are none here."""
    known, kind = relation.known, f"edge type {relation.etype[1]!r}"
    if state["nodes"] != relation.nodes:
        raise ValueError(
            f"state: made for {state['nodes']} nodes, this sampler has {relation.nodes}; load it "
            f"into a sampler of the same graph ({kind})"
        )
    if state.get("edges") != known.fingerprint():
        raise ValueError(
            f"state: made for other known edges (fingerprint {state.get('edges')}, this sampler's "
            f"is {known.fingerprint()}; {kind}); load it into a sampler of the graph that it was "
            "made for, and call update_graph then"
        )
    own = candidates_fingerprint(known)
    if state.get("candidates", "") != own:
        raise ValueError(
            f"state: made for other candidates ({state.get('candidates') or 'all nodes'}, this "
            f"sampler's are {own or 'all nodes'}; {kind}); load it into a "
            "sampler with the same candidates"
        )
    passes = state["passes"]
    if not (isinstance(passes, int) and 1 <= passes <= MOST_PASSES):
        _refuse(f"a number of passes from 1 to {MOST_PASSES}, got {passes!r}", kind)
    sizes = relation.sizes(known, passes)
    hard, groups = relation.table.k, int(sizes.sum())
    found = tuple(state["table"]["ids"].shape[1:])
    start = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    if found != (groups, hard) or not torch.equal(state["table"]["start"], start):
        raise ValueError(
            f"state: table of {found[0]} groups of {found[1]}, this sampler has {groups} of "
            f"{hard}; use the same k, groups, uniform_share and resources ({kind})"
        )
    norms, asked = state.get("norms"), state["asked"]
    if norms is not None and (norms.dim() != 2 or len(norms) != known.num_src):
        _refuse(f"norms of {known.num_src} queries, got shape {tuple(norms.shape)}", kind)
    counted = known.indices.numel() + 1 if passes > 1 else 0
    if (asked is None) != relation.alike or (
        asked is not None and (asked.dtype != torch.uint8 or asked.shape != (counted,))
    ):
        _refuse(f"the turns of {counted} edges", kind)
    _check_table(relation, state["table"], sizes, kind)


def _check_table(relation: Relation, table: dict[str, Tensor], sizes: Tensor, kind: str) -> None:
    known, cells = relation.known, (2, int(sizes.sum()), relation.table.k)
    own: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "start": (torch.int64, known.indptr.shape),
        "ids": (torch.int32, cells),
        "level": (torch.uint8, cells),
        "counter": (torch.int64, (1,)),
        "unfinished": (torch.int64, (1,)),
    }
    if {name: (field.dtype, tuple(field.shape)) for name, field in table.items()} != own:
        _refuse(f"a table of {', '.join(own)} of the types and shapes of this sampler's", kind)
    version = int(table["counter"])
    inside = (table["ids"] >= 0) & (table["ids"] < known.num_dst)
    if version < 0 or not bool(inside.all()):
        _refuse(f"a version of at least 0 and ids in 0 .. {known.num_dst - 1}, got others", kind)
    if not version:
        return
    owner = torch.repeat_interleave(torch.arange(known.num_src), sizes)
    true = ~torch.isin(owner, known.saturated())  # others have no true negatives
    for place in true.nonzero().squeeze(1).split(_GROUPS):
        ids = table["ids"][version % 2][place]
        if bool(known.contains(owner[place].unsqueeze(1), ids).any()):
            raise ValueError(
                f"state: its negatives are edges of this graph ({kind}); load it into a sampler of "
                "the graph that it was made for, and call update_graph then"
            )


def _refuse(expected: str, kind: str) -> None:
    raise ValueError(f"state: expected {expected} ({kind}); load a state that a sampler has given")
