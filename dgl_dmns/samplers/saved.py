"""The state of a sampler that follows an encoder: what is saved, and what is refused on loading."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dgl_dmns.core import shielded
from dgl_dmns.files import read_state, write_state
from dgl_dmns.samplers.base import EdgeType
from dgl_dmns.samplers.encoder import Embeddings, check_embeddings
from dgl_dmns.samplers.lookup import TableSampler
from dgl_dmns.samplers.observed import ObservedEmbeddings
from dgl_dmns.samplers.relation import Relation

__all__ = ["SavedSampler"]


class SavedSampler(TableSampler):
    """Base of `StatefulSampler`: saves and loads tables, generators and observed embeddings."""

    homogeneous: bool
    _encoder: Any
    _last: dict[str, Tensor] | None  # embeddings of the last refresh
    _observed: ObservedEmbeddings | None

    def _embeddings(
        self, given: Embeddings | None = None, observed: bool = True, *, copy: bool = False
    ) -> dict[str, Tensor]:
        raise NotImplementedError

    def _counts(self) -> dict[str, int]:
        raise NotImplementedError

    def _settle(self) -> None:
        """Wait for what changes tables and generators in the background, if anything does."""

    @shielded
    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if nothing had happened.

        Returns:
            A copy of the state, which later refreshes leave as it is.

        Raises:
            RuntimeError: if this is a copy, which has no generator.
        """
        self._check_original("state_dict")
        self._settle()
        parts = {e: {**r.state(), **self._own_state(r)} for e, r in self.relations.items()}
        state = next(iter(parts.values())) if self.homogeneous else {"by_type": parts}
        # With the embeddings the distribution is known, and log ratios go on.
        state = {**state, "embeddings": self._last}
        if self._observed is not None:
            state = {**state, "observed": self._observed.state_dict()}
        return copy.deepcopy({"sampler": type(self).__name__, **state})

    @shielded
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state made by `state_dict` of a sampler with the same arguments.

        Raises:
            ValueError: if the state belongs to another class of samplers, other edge types, other
                known edges, another node count, table shape or width; this sampler then stays as
                it was.
            RuntimeError: if this is a copy, which has no encoder.
        """
        self._check_original("load_state_dict")
        found: Any = state
        if not isinstance(found, Mapping) or "sampler" not in found:
            given = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(
                f"state: expected what state_dict() of a {type(self).__name__} returned, got "
                f"{given}; take the sampler's part out of a checkpoint, or load(path) a file"
            )
        if state["sampler"] != type(self).__name__:
            raise ValueError(
                f"state: made by {state['sampler']}, this is a {type(self).__name__}; load it into "
                "a sampler of the class that made it"
            )
        flat = dict.fromkeys(self.relations, state) if self.homogeneous else {}
        parts: dict[EdgeType, dict[str, Any]] = state.get("by_type", flat)
        if parts.keys() != self.relations.keys():
            raise ValueError(
                f"state: made for {list(parts) or 'a homogeneous graph'}, this sampler holds "
                f"{list(self.relations)}; load it into a sampler of the same graph, etypes and k"
            )
        own = [(relation, parts[etype]) for etype, relation in self.relations.items()]
        for relation, part in own:
            relation.check_state(part)
        observed = state.get("observed")
        if observed is not None:
            observed = ObservedEmbeddings.restored(observed, self._counts())
            self._check_width(next(iter(observed.h.values())).shape[1])
        last = state["embeddings"]
        if last is not None:
            plain = next(iter(last.values())) if self.homogeneous else last
            last = check_embeddings(plain, self._counts(), homogeneous=self.homogeneous, copy=True)
        self._settle()
        self._load_own_state(own)
        for relation, part in own:
            relation.load_state(part)
        self._observed = observed
        self._last = last

    def _check_width(self, width: int) -> None:
        """Refuse a state that was made for embeddings of another width than the encoder's."""
        h = self._last or self._embeddings(observed=False)
        own = next(iter(h.values())).shape[1]
        if own != width:
            raise ValueError(
                f"state: made for embeddings of width {width}, this sampler's encoder gives {own}; "
                "load it beside the encoder it was trained with"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, whole or not at all; see `dgl_dmns.files`.

        Args:
            path: the file; its folder has to exist.

        Raises:
            OSError: if it cannot be written; a file that was there stays.
            RuntimeError: if this is a copy.
        """
        write_state(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore the state in a file of `save`, without executing code from it.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or not the state of such a sampler (see
                `load_state_dict`); this sampler then stays as it was.
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

    def _own_state(self, relation: Relation) -> dict[str, Any]:
        """What a subclass has to keep besides the table; `state_dict` copies it."""
        return {}

    def _load_own_state(self, states: list[tuple[Relation, dict[str, Any]]]) -> None:
        """Restore what `_own_state` gave, or raise and leave everything as it was."""

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get: look-up state, neither encoder nor graph."""
        dropped = dict.fromkeys(("_g", "_encoder", "_last", "_observed"))
        return {**super().__getstate__(), **dropped}

    def _check_original(self, call: str) -> None:
        if self._encoder is None:
            raise RuntimeError(
                f"{call}: this is a copy of a sampler (pickled, or from copy.copy or deepcopy); a "
                "copy looks up negatives, and has no encoder, graph or generator; use the sampler "
                "it was made from, or make a new one"
            )
