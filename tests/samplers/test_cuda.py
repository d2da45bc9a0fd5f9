"""Devices: where edge ids, graph and encoder may be, and that workers leave CUDA alone.

Tables, known edges and generators are on the CPU, whatever the encoder is on. The tests that need a
GPU (and a DGL that was built for one) skip without; that of the workers runs everywhere.
"""

from __future__ import annotations

from typing import Any

import dgl
import pytest
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl.nn import SAGEConv
from torch import Tensor

from dgl_dmns.samplers import (
    DMNSSampler,
    DynamicSampler,
    InBatchSampler,
    MCNSSampler,
    NegativeSampler,
    Pools,
    PopularitySampler,
    UniformSampler,
)

pytestmark = pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")

NODES, WIDTH, K = 50, 6, 3
SMALL: dict[str, Any] = {"warmup_steps": 4, "fit_steps": 2, "batch_pairs": 64, "groups": 3}


def graph(idtype: torch.dtype = torch.int64) -> Any:
    source = torch.Generator().manual_seed(1)
    src, dst = torch.randint(0, NODES, (2, 200), generator=source)
    g = dgl.graph((src, dst), num_nodes=NODES).astype(idtype)
    g.ndata["feat"] = torch.randn(NODES, WIDTH, generator=source)
    return g


def why_no_cuda() -> str:
    """Why DGL cannot work on a GPU here; empty where it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        graph().to("cuda")
    except dgl.DGLError as error:
        return f"DGL was not built for CUDA: {str(error).splitlines()[-1][:80]}"
    return ""


NO_CUDA = why_no_cuda()
needs_cuda = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
idtypes = pytest.mark.parametrize("idtype", [torch.int64, torch.int32])


def every_sampler(g: Any, encoder: Any) -> list[NegativeSampler]:
    """One of each kind; those that follow an encoder are refreshed."""
    following = [
        DMNSSampler(g, encoder, K, **SMALL),
        DynamicSampler(g, encoder, K, pools=Pools(groups=3)),
        MCNSSampler(g, encoder, K, steps=3, width=10),
    ]
    for sampler in following:
        sampler.refresh()
    return [UniformSampler(g, K), PopularitySampler(g, K), InBatchSampler(g, K), *following]


def check(g: Any, src: Tensor, dst: Tensor) -> None:
    barred = torch.eye(NODES, dtype=torch.bool)
    barred[tuple(end.cpu().long() for end in g.edges())] = True
    assert not barred[src.cpu().long(), dst.cpu().long()].any()


def batches(g: Any, sampler: Any, device: Any, workers: int = 0, **more: Any) -> Any:
    eids = torch.arange(g.num_edges(), dtype=g.idtype, device=device if not workers else "cpu")
    return DataLoader(
        g,
        eids,
        as_edge_prediction_sampler(NeighborSampler([3]), exclude="self", negative_sampler=sampler),
        batch_size=32,
        shuffle=True,
        num_workers=workers,
        device=device,
        **more,
    )


def check_batches(g: Any, loader: Any, device: str) -> None:
    count = 0
    for _, positive, negative, _ in loader:
        assert negative.device.type == device
        assert negative.idtype == g.idtype
        src, dst = (negative.ndata[dgl.NID][end.long()] for end in negative.edges())
        query = positive.ndata[dgl.NID][positive.edges()[0].long()]
        assert torch.equal(src, query.repeat_interleave(K))
        check(g, src, dst)
        count += src.numel()
    assert count == K * g.num_edges()


# Anywhere.


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_in_a_worker_touches_cuda(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trap where torch would start CUDA; workers are forked with it."""
    touched = torch.zeros(1, dtype=torch.int64).share_memory_()

    def trap() -> None:
        touched.add_(1)
        raise RuntimeError("CUDA was touched")

    g = graph()
    encoder = SAGEConv(WIDTH, 8, "mean")
    samplers = every_sampler(g, encoder)
    monkeypatch.setattr(torch.cuda, "_lazy_init", trap)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")
    assert int(touched) == 1  # so the trap works
    for sampler in samplers:
        check_batches(g, batches(g, sampler, "cpu", workers), "cpu")
        if isinstance(sampler, DMNSSampler):
            sampler.refresh()
            check_batches(g, batches(g, sampler, "cpu", workers), "cpu")
    assert int(touched) == 1


# On a GPU.


@needs_cuda
@idtypes
def test_edge_ids_on_the_gpu_graph_in_pinned_memory(idtype: torch.dtype) -> None:
    """UVA: DGL samples on the GPU from a graph in the memory of the host."""
    g = graph(idtype)
    encoder = SAGEConv(WIDTH, 8, "mean")
    for sampler in every_sampler(g, encoder):
        check_batches(g, batches(g, sampler, "cuda", use_uva=True), "cuda")


@needs_cuda
@idtypes
def test_everything_on_the_gpu(idtype: torch.dtype) -> None:
    g = graph(idtype).to("cuda")
    encoder = SAGEConv(WIDTH, 8, "mean").to("cuda")
    for sampler in every_sampler(g, encoder):
        src, dst = sampler(g, torch.arange(20, dtype=idtype, device="cuda"))
        assert (src.device.type, dst.device.type) == ("cuda", "cuda")
        assert (src.dtype, dst.dtype) == (idtype, idtype)
        chosen = sampler.for_queries(g, torch.arange(5, dtype=idtype, device="cuda"))
        assert chosen.device.type == "cuda"
        check_batches(g, batches(g, sampler, "cuda"), "cuda")


@needs_cuda
@pytest.mark.parametrize("workers", [0, 2])
def test_a_graph_on_the_cpu_and_batches_on_the_gpu(workers: int) -> None:
    """DGL's prefetch thread without workers; workers that are forked after CUDA was started."""
    g = graph()
    encoder = SAGEConv(WIDTH, 8, "mean").to("cuda")
    feat = g.ndata["feat"].to("cuda")

    def embed() -> Tensor:
        with torch.no_grad():
            return encoder(g.to("cuda"), feat)

    for sampler in every_sampler(g, embed):
        check_batches(g, batches(g, sampler, "cuda", workers), "cuda")


@needs_cuda
def test_an_encoder_on_the_gpu_has_its_latents_and_log_ratios_there() -> None:
    g = graph()
    h = torch.randn(NODES, WIDTH, device="cuda")
    sampler = DMNSSampler(g, lambda: h, K, **SMALL)
    sampler.refresh()
    assert sampler.table.ids.device.type == "cpu"
    assert next(sampler.model.predictor.parameters()).device.type == "cpu"
    assert sampler.generate(h[:4]).device.type == "cuda"
    assert sampler.for_embeddings(h[:4]).device.type == "cuda"
    pair = tuple(end.to("cuda") for end in sampler(g, torch.arange(9)))
    assert sampler.log_ratio(pair).device.type == "cuda"
    optimizer = torch.optim.SGD([torch.nn.Parameter(h.clone())], lr=0.1)
    assert sampler.attach(optimizer) is not None
    assert sampler.version == 2
