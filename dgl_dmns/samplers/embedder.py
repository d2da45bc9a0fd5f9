"""`Embedder`: from an encoder, or what was observed of it, to checked embeddings by node type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Union

import torch
from torch import Tensor, nn

from dgl_dmns._compat import is_distributed
from dgl_dmns.checks import type_name
from dgl_dmns.core import Embeddings, callers_device
from dgl_dmns.messages import first_line
from dgl_dmns.samplers.callables import eval_mode, modules_behind, unwrapped
from dgl_dmns.samplers.graphs import is_homogeneous
from dgl_dmns.samplers.observed import NodeIds, ObservedEmbeddings
from dgl_dmns.samplers.stored import StoredRows

__all__ = ["Embedder", "Encoder", "check_embeddings"]

_INSTEAD = (
    "pass a callable that returns the embeddings of all nodes, for example lambda: "
    "model.inference(g, x)"
)
_ADVICE = (
    "the encoder has to return one finite row per node of the sampler's graph (after the graph "
    "has grown, call update_graph(g))"
)
_ROWS = 1 << 16  # embeddings that are checked at a time: a bounded working set

Encoder = Union[nn.Module, Callable[..., Embeddings]]
"""A module or a callable that returns embeddings; its modules are in eval mode meanwhile.

An ``nn.Module`` is called as ``encoder(g, g.ndata[feat])`` on a homogeneous graph, and otherwise,
as ``dgl.nn.HeteroGraphConv`` is, with a dict of features by node type. A callable is called without
arguments (or with the graph); the modules that it refers to or calls are found as
`dgl_dmns.samplers.callables` says.
"""


class Embedder:
    """The encoder of a sampler, its graph, and the embeddings that were seen last.

    They are needed of so many nodes of each type as ``counts`` says; ``feat`` names the features
    for a module.
    """

    def __init__(self, g: Any, encoder: Encoder, feat: str, counts: Mapping[str, int]) -> None:
        _check_encoder(encoder, g, feat)
        self.g = g
        self.encoder = encoder
        self.feat = feat
        self.counts = counts
        self.stored = False  # whether embeddings are read by rows, where each trainer has a share
        self.homogeneous = is_homogeneous(g)
        self.last: dict[str, Any] | None = None  # of the last refresh, float32 [N, D] by type
        self.observed: ObservedEmbeddings | None = None  # what minibatches have computed
        self._called = False

    def embeddings(
        self, given: Embeddings | None = None, observed: bool = True, *, copy: bool = False
    ) -> dict[str, Any]:
        """Checked embeddings by node type, in memory of their own where they are to be kept.

        Where none are given, those that were observed, and without such, those of the encoder.
        Where trainers have shares, they are `StoredRows`, of which rows are read and checked later.
        """
        output: Any = given
        if given is None and observed and self.observed is not None:
            output = self.observed.h
        if output is None:
            output = self._call()
        if self.stored:
            return _by_type(output, self.counts, StoredRows)
        return check_embeddings(output, self.counts, copy=copy)

    @torch.no_grad()
    def _call(self) -> Any:
        """What the encoder returns, without gradient; modules are in eval mode meanwhile.

        One inside ``DistributedDataParallel`` is called without it: that may wait for other ranks.
        An error of the first call says how it was called; memory that runs out excepted.
        """
        encoder, g = unwrapped(self.encoder), self.g
        count, code = _call_of(encoder, g, self.feat)
        arguments: tuple[Any, ...] = (g,) if count else ()
        if count == 2:
            many = {} if self.homogeneous else {n: g.nodes[n].data[self.feat] for n in g.ntypes}
            arguments = (g, many or g.ndata[self.feat])
        with eval_mode(modules_behind(encoder)):
            try:
                with callers_device():
                    output = encoder(*arguments)
            except (MemoryError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:
                if self._called:
                    raise
                kinds = (kind for kind in (TypeError, ValueError) if isinstance(error, kind))
                raise next(kinds, RuntimeError)(
                    f"encoder: called as {code}, which failed: {first_line(error)}; {_INSTEAD}"
                ) from error
        self._called = True
        return output

    def observe(self, node_ids: NodeIds, embeddings: Embeddings) -> None:
        """Keep embeddings of a minibatch, see `RefreshingSampler.observe`."""
        if self.stored:
            raise ValueError(
                "observe: each trainer holds its share of a distributed graph, and no embeddings "
                "of all nodes; let the encoder return a DistTensor, and write the rows of a "
                "minibatch there"
            )
        if self.observed is None:
            if self.last is None:
                raise RuntimeError(
                    "observe: call refresh() or attach() first; nodes that are never seen keep the "
                    "embeddings of that refresh"
                )
            self.observed = ObservedEmbeddings(self.last)
        self.observed.observe(node_ids, embeddings)

    def age(self, ntype: str | None) -> Tensor:
        """Observations since each node was seen last, see `RefreshingSampler.embedding_age`."""
        if self.observed is None:
            raise RuntimeError("embedding_age: nothing was observed; call observe() in the loop")
        held = sorted(self.observed.h)
        ntype = held[0] if ntype is None and len(held) == 1 else ntype
        if ntype not in held:
            raise ValueError(f"ntype: expected one of {held}, got {ntype!r}")
        return self.observed.age(ntype)

    def on(self, g: Any) -> Embedder:
        """The same for a graph that has grown, whose new nodes have no embedding yet."""
        counts = {ntype: int(g.num_nodes(ntype)) for ntype in self.counts}
        return Embedder(g, self.encoder, self.feat, counts)

    def check_width(self, width: int) -> None:
        """Refuse a state that was made for embeddings of another width than the encoder's."""
        h = self.last or self.embeddings(observed=False)
        one = next(iter(h.values()))
        own = one.width if isinstance(one, StoredRows) else one.shape[1]
        if own != width:
            raise ValueError(
                f"state: made for embeddings of width {width}, this sampler's encoder gives {own}; "
                "load it beside the encoder it was trained with"
            )


def _check_encoder(encoder: Any, g: Any, feat: str) -> None:
    """Refuse an encoder that cannot be called on the graph."""
    if isinstance(encoder, type) or not callable(encoder):
        advice = "; pass an object of it, the model that is trained"
        raise TypeError(
            "encoder: expected an nn.Module or a callable that returns embeddings [N, D], got "
            f"{type_name(encoder)}{advice if isinstance(encoder, type) else ''}"
        )
    if isinstance(encoder, nn.Module):
        if is_distributed(g, "DistGraph"):
            raise TypeError(
                f"encoder: {type(encoder).__name__} cannot be called on a partitioned graph; pass "
                "a callable that returns embeddings, a tensor or a DistTensor [N, D], for example "
                "by inference layer by layer (examples/distributed.py does)"
            )
        _check_features(g, feat)
    _check_signature(encoder, g, feat)


def _check_features(g: Any, feat: str) -> None:
    """Refuse a graph with a node type that has no feature of that name."""
    missing = [ntype for ntype in g.ntypes if feat not in g.nodes[ntype].data]
    if not missing:
        return
    found = f"nodes of type {', '.join(missing)} have no feature {feat!r}"
    place = f"g.nodes[{missing[0]!r}].data[{feat!r}]"
    if is_homogeneous(g):
        found = f"the graph has no node feature {feat!r}, only {sorted(g.ndata)}"
        place = f"g.ndata[{feat!r}]"
    raise ValueError(
        f"feat: {found}; set {place}, name another one with feat=..., or pass a callable encoder"
    )


def check_embeddings(
    output: Any, counts: Mapping[str, int], *, copy: bool = False
) -> dict[str, Tensor]:
    """Embeddings by node type, float32 [N, D] on the CPU, without gradient, if they are fine.

    Args:
        output: what the encoder returned: a tensor [N, D] if one node type is needed, or a dict of
            such tensors by node type.
        counts: number of nodes of the node types that are needed.
        copy: whether the embeddings are to be kept: an encoder may return its own weights, which
            the training writes on.
    """
    return _by_type(output, counts, lambda name, h: _checked_rows(name, h, copy))


def _by_type(
    output: Any, counts: Mapping[str, int], made: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """What is made of each node type's embeddings, given their name, if shapes are right."""
    if not isinstance(output, Mapping):
        if len(counts) == 1:
            return {
                n: made("encoder", _check_shape("encoder", output, count))
                for n, count in counts.items()
            }
        raise ValueError(
            f"encoder: expected a dict of tensors [N, D] by node type, for {sorted(counts)}, got "
            f"{type(output).__name__}; return one entry for each node type"
        )
    missing = sorted(set(counts) - set(output))
    if missing:
        raise ValueError(
            f"encoder: expected embeddings of node types {sorted(counts)}, got none of {missing}; "
            "return a dict with one entry for each (HeteroGraphConv leaves out node types that no "
            "edge leads to: add reverse edges), or leave their edge types out with etypes=..."
        )
    h = {n: _check_shape(f"encoder: {n}", output[n], count) for n, count in counts.items()}
    widths = {ntype: part.shape[1] for ntype, part in h.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"encoder: expected one width D for all node types, got {widths}; project them to one"
        )
    return {ntype: made(f"encoder: {ntype}", part) for ntype, part in h.items()}


def _check_shape(name: str, h: Any, count: int) -> Any:
    """A tensor or a DistTensor of embeddings, if it has that many rows."""
    if not (isinstance(h, Tensor) or is_distributed(h, "DistTensor")):
        raise ValueError(f"{name}: expected a tensor [N, D], got {type(h).__name__}; {_ADVICE}")
    if isinstance(h, Tensor) and (h.layout != torch.strided or h.is_meta):
        kind = "one without data (device meta)" if h.is_meta else f"one of {h.layout}"
        raise ValueError(f"{name}: expected an ordinary tensor [N, D], got {kind}; {_ADVICE}")
    if len(h.shape) != 2 or h.shape[0] != count or h.shape[1] < 1:
        raise ValueError(f"{name}: expected shape [{count}, D], got {tuple(h.shape)}; {_ADVICE}")
    if not h.dtype.is_floating_point:
        raise ValueError(f"{name}: expected floating point embeddings, got {h.dtype}; {_ADVICE}")
    return h


def _checked_rows(name: str, h: Any, copy: bool) -> Tensor:
    """All rows, float32, on the CPU, if they are finite."""
    count = h.shape[0]
    if is_distributed(h, "DistTensor"):
        h = h[torch.arange(count)]
    # After the conversion: a double may lie beyond the range of a float.
    rows: Tensor = h.detach().to("cpu", torch.float32, copy=copy)
    bad = sum(int((~part.isfinite()).any(dim=1).sum()) for part in rows.split(_ROWS))
    if bad:
        raise ValueError(
            f"{name}: NaN or infinity in {bad} of {count} rows; {_ADVICE}; lower the learning "
            "rate or clip gradients if training has diverged (the last table stays in use)"
        )
    return rows


def _call_of(encoder: Encoder, g: Any, feat: str) -> tuple[int, str]:
    """The number of arguments that an encoder is called with, and the call as code."""
    if isinstance(encoder, nn.Module):
        return 2, f"encoder(g, g.ndata[{feat!r}])" if is_homogeneous(g) else "encoder(g, features)"
    return (1, "encoder(g)") if _takes_argument(encoder) else (0, "encoder()")


def _check_signature(encoder: Encoder, g: Any, feat: str) -> None:
    """Refuse an encoder that is certain not to take the arguments that it is called with."""
    function: Any = unwrapped(encoder)
    count, code = _call_of(function, g, feat)
    if isinstance(function, nn.Module):
        if function._forward_pre_hooks or type(function).__call__ is not nn.Module.__call__:
            return  # other arguments than ours may reach forward
        function = function.forward
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise TypeError(
            f"encoder: called as {code}, but it takes ({takes}): {error}; {_INSTEAD}"
        ) from None


def _takes_argument(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )
