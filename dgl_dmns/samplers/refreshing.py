"""Samplers that follow the encoder: embeddings, refreshes, and the table they fill.

A refresh runs in the main process, outside the loader: called from the training loop or from an
optimizer post-step hook (`RefreshingSampler.attach`). What loaders, their workers and prefetch
threads read is the candidate table alone, in shared memory.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from dgl_dmns.core.engine import RefreshReport, Stopwatch, TableReport, build_table
from dgl_dmns.core.generator import DiffusionGenerator, FitReport
from dgl_dmns.core.pools import PoolSettings
from dgl_dmns.core.rules import Rule
from dgl_dmns.core.snapshot import Scorer
from dgl_dmns.core.table import Candidates, CandidateTable
from dgl_dmns.samplers.base import EdgeType, NegativeSampler, check_has_edges, known_edges

__all__ = ["Encoder", "RefreshingSampler"]

Encoder = Union[nn.Module, Callable[..., Tensor]]
"""An ``nn.Module`` called as ``encoder(g, g.ndata[feat])``, or a callable that returns [N, D]."""


class RefreshingSampler(NegativeSampler):
    """Base of the samplers whose negatives depend on the encoder.

    Before the first refresh every negative is filtered uniform.

    Args:
        g: the training graph, with one node type and one edge type; its edges are the known
            positives.
        encoder: an ``nn.Module``, called as ``encoder(g, g.ndata[feat])`` in eval mode without
            gradient (its training mode is restored), or a callable without arguments (or taking
            the graph) that returns embeddings [N, D].
        k: negatives per edge.
        rule: the selection rule.
        settings: pools and mixture.
        feat: name of the node features for an ``nn.Module``.
        scorer: scores of broadcastable embeddings; the inner product where not given.
        seed: seed of fitting and table building.
        generator: source of the draws from the table in the main process; torch's global one where
            not given. Loader workers always use their own seeded one.

    Raises:
        ValueError: for a graph with several types or without edges, a missing feature, or a pool
            smaller than k.
        TypeError: for an encoder that cannot be called.
    """

    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: int = 1,
        *,
        rule: Rule,
        settings: PoolSettings,
        feat: str = "feat",
        scorer: Scorer | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(k)
        _check_graph(g)
        if not callable(encoder):
            raise TypeError(
                "encoder: expected an nn.Module or a callable that returns embeddings [N, D], got "
                f"{type(encoder).__name__}"
            )
        if isinstance(encoder, nn.Module) and feat not in g.ndata:
            raise ValueError(
                f"feat: the graph has no node feature {feat!r}, only {sorted(g.ndata)}; set "
                f"g.ndata[{feat!r}], name another one with feat=..., or pass a callable encoder"
            )
        if settings.pool < k:
            raise ValueError(
                f"pool: expected at least k = {k} candidates, got {settings.pool}; raise pool"
            )
        self._g = g
        self._encoder = encoder
        self._feat = feat
        self._scorer = scorer
        self._generator = generator
        self.rule = rule
        self.settings = settings
        self.num_nodes = int(g.num_nodes())
        self.known = known_edges(g, g.canonical_etypes[0])
        self.table = CandidateTable(self.num_nodes, settings.groups, k)
        self.model: DiffusionGenerator | None = None
        self.random = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.report: RefreshReport | None = None

    # ---- negatives: the hot path ------------------------------------------------------------

    @property
    def version(self) -> int:
        """How many refreshes the negatives that are drawn now have seen; readable in workers."""
        return self.table.version

    def draw(self, src: Tensor) -> Candidates:
        """Negatives with their log ratios and levels for source nodes (after a refresh).

        Args:
            src: source ids, shape [B], int64, on the CPU.

        Returns:
            Candidates of shape [B, k].
        """
        return self.table.draw(src, generator=self._call_generator())

    def negatives(self, g: Any, src: Tensor, etype: EdgeType) -> Tensor:  # noqa: D102
        if src.numel() and int(src.max()) >= self.num_nodes:
            raise ValueError(
                f"g: the sampler was made for {self.num_nodes} nodes, the graph now has "
                f"{g.num_nodes()}; make a new sampler for a graph that has grown"
            )
        if self.version == 0:
            return self.known.uniform(src, self.k, generator=self._call_generator())
        return self.draw(src).ids

    def _call_generator(self) -> torch.Generator | None:
        # A generator copied into workers would give all of them the same stream.
        return self._generator if get_worker_info() is None else None

    def log_ratio(self, negatives: Any) -> Tensor:
        """Log ratio ``log q(u|v) - log uniform(u)`` of each negative edge.

        Args:
            negatives: the negative graph a loader returned, or a pair ``(src, dst)`` of node id
                tensors of the whole graph, shape [P].

        Returns:
            Log ratios, shape [P], float32, in the order of the edges. They belong to the table's
            live version or the one before; 0 for pairs that stand in neither (drawn before the
            first refresh).

        Raises:
            ValueError: if the rule's distribution is not tractable.
        """
        if not self.rule.tractable:
            raise ValueError(
                f"rule: {type(self.rule).__name__} has no tractable distribution, so no log ratio; "
                "use a sampler with rule=Density() or Gate() for a calibrated loss"
            )
        src, dst = _global_pairs(negatives)
        device = src.device
        return self.table.find_log_ratio(src.cpu().long(), dst.cpu().long()).to(device)

    # ---- refresh ----------------------------------------------------------------------------

    def refresh(self, embeddings: Tensor | None = None) -> RefreshReport:
        """Recompute embeddings, fit the generator a little further, and rebuild the table.

        Args:
            embeddings: shape [N, D], floating point, to use instead of calling the encoder.

        Returns:
            The report of this refresh.

        Raises:
            ValueError: if embeddings are not [N, D] floating point and finite; the last table
                stays in use.
            RuntimeError: if this is a copy, which has no encoder.
        """
        self._check_original("refresh")
        watch = Stopwatch()
        h = self._embed() if embeddings is None else embeddings.detach()
        h = _check_embeddings(h, self.num_nodes).cpu().float()
        watch.mark("embed")
        fit = self._fit(h)
        watch.mark("fit")
        done = self._rebuild(h)
        watch.mark("table")
        self.report = RefreshReport(
            version=self.version,
            fit=fit,
            seconds=watch.total,
            seconds_by_part=watch.parts,
            table=done,
        )
        return self.report

    def _fit(self, h: Tensor) -> FitReport | None:
        """Fit what the sampler learns, if anything; rules without a generator learn nothing."""
        return None

    def _rebuild(self, h: Tensor) -> TableReport:
        return build_table(
            self.table,
            self.rule,
            self.settings,
            self.known,
            h,
            h,
            model=self.model,
            scorer=self._scorer,
            generator=self.random,
        )

    @torch.no_grad()
    def _embed(self) -> Tensor:
        encoder = self._encoder
        if not isinstance(encoder, nn.Module):
            return encoder(*([self._g] if _takes_argument(encoder) else []))
        modes = [(module, module.training) for module in encoder.modules()]
        encoder.eval()
        try:
            output: Tensor = encoder(self._g, self._g.ndata[self._feat])
        finally:
            for module, mode in modes:
                module.training = mode
        return output

    def attach(self, optimizer: torch.optim.Optimizer, every: int = 100) -> Any:
        """Refresh after every ``every``-th step of an optimizer, and once now.

        The refresh runs in the process and thread of the optimizer step, so loader workers and
        prefetch threads never wait in it, and they read the new table from the next batch on.

        Args:
            optimizer: the encoder's optimizer.
            every: optimizer steps between refreshes; the batches of an epoch are a good choice.

        Returns:
            The hook's handle; its ``remove()`` ends the refreshes.

        Raises:
            ValueError: if ``every`` is below 1.
        """
        if every < 1:
            raise ValueError(f"every: expected at least 1 optimizer step, got {every}")
        self.refresh()
        steps = 0

        def hook(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if steps % every == 0:
                self.refresh()

        return optimizer.register_step_post_hook(hook)

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if nothing had happened.

        Returns:
            A copy of the state, which later refreshes leave as it is.

        Raises:
            RuntimeError: if this is a copy, which has no generator.
        """
        self._check_original("state_dict")
        state = {
            "sampler": type(self).__name__,
            "nodes": self.num_nodes,
            "table": self.table.state_dict(),
            "random": self.random.get_state(),
            **self._own_state(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state made by `state_dict` of a sampler with the same arguments.

        Raises:
            ValueError: if the state belongs to another class of samplers, node count, table shape
                or width; this sampler then stays as it was.
            RuntimeError: if this is a copy, which has no encoder.
        """
        self._check_original("load_state_dict")
        if state["sampler"] != type(self).__name__:
            raise ValueError(
                f"state: made by {state['sampler']}, this is a {type(self).__name__}; load it into "
                "a sampler of the class that made it"
            )
        if state["nodes"] != self.num_nodes:
            raise ValueError(
                f"state: made for {state['nodes']} nodes, this sampler has {self.num_nodes}; load "
                "it into a sampler of the same graph"
            )
        shape = tuple(state["table"]["ids"].shape[1:])
        if shape != self.table.shape:
            raise ValueError(
                f"state: table of (nodes, groups, k) = {shape}, this sampler has "
                f"{self.table.shape}; use the same k and groups"
            )
        self._load_own_state(state)
        for name, value in state["table"].items():
            getattr(self.table, name).copy_(value)
        self.random.set_state(state["random"])

    def _own_state(self) -> dict[str, Any]:
        """What a subclass has to keep besides the table; `state_dict` copies it."""
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `_own_state` gave, or raise and leave everything as it was."""

    def __getstate__(self) -> dict[str, Any]:
        """What workers and spawned processes get: look-up state, neither encoder nor graph."""
        state = self.__dict__.copy()
        for name in ("_g", "_encoder", "_scorer", "_generator", "model", "random"):
            state[name] = None
        return state

    def _check_original(self, call: str) -> None:
        if self._encoder is None:
            raise RuntimeError(
                f"{call}: this is a copy of a sampler (pickled, or from copy.copy or deepcopy); a "
                "copy looks up negatives, and has no encoder, graph or generator; use the sampler "
                "it was made from, or make a new one"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k}, rule={self.rule}, version={self.version})"


def _takes_argument(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _check_graph(g: Any) -> None:
    if len(g.ntypes) != 1 or len(g.canonical_etypes) != 1:
        raise ValueError(
            f"g: expected one node type and one edge type, got edge types {g.canonical_etypes}; "
            "heterogeneous graphs are not supported yet, pass one homogeneous relation"
        )
    check_has_edges(g)


def _check_embeddings(h: Any, num_nodes: int) -> Tensor:
    advice = "the encoder has to return one finite row per node of the sampler's graph"
    if not isinstance(h, Tensor):
        raise ValueError(f"encoder: expected a tensor [N, D], got {type(h).__name__}; {advice}")
    if h.dim() != 2 or h.shape[0] != num_nodes or h.shape[1] < 1:
        raise ValueError(
            f"encoder: expected shape [{num_nodes}, D], got {tuple(h.shape)}; {advice}"
        )
    if not h.is_floating_point():
        raise ValueError(f"encoder: expected floating point embeddings, got {h.dtype}; {advice}")
    finite = torch.isfinite(h)
    if not bool(finite.all()):
        bad = int((~finite).any(dim=1).sum())
        raise ValueError(
            f"encoder: NaN or infinity in {bad} of {num_nodes} rows; {advice}; lower the learning "
            "rate or clip gradients if training has diverged (the last table stays in use)"
        )
    return h


def _global_pairs(negatives: Any) -> tuple[Tensor, Tensor]:
    if isinstance(negatives, tuple):
        src, dst = negatives
        return src, dst
    src, dst = negatives.edges()
    nodes = negatives.ndata.get("_ID")
    if nodes is None:
        return src, dst
    return nodes[src.long()], nodes[dst.long()]
