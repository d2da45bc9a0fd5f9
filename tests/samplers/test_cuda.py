"""Devices: where edge ids, graph and encoder may be, and that workers leave CUDA alone.

Tables, known edges and generators are on the CPU, whatever the encoder is on. The tests that need a
GPU (and a DGL that was built for one) skip without; that of the workers runs everywhere.
"""

from __future__ import annotations

from typing import Any

import dgl
import pytest
import torch
from dgl.nn import SAGEConv
from shared import KINDS, WIDTH, check, ends, graph, loader, normal, optimizer, refreshed
from torch import Tensor

from dgl_dmns.samplers import Resources

NODES, K = 50, 3


def why_no_cuda() -> str:
    """Why DGL cannot work on a GPU here; empty where it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        graph(NODES, 200).to("cuda")
    except dgl.DGLError as error:
        return f"DGL was not built for CUDA: {str(error).splitlines()[-1][:80]}"
    return ""


NO_CUDA = why_no_cuda()
needs_cuda = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
idtypes = pytest.mark.parametrize("idtype", [torch.int64, torch.int32])


def every_sampler(g: Any, encoder: Any) -> list[Any]:
    return [refreshed(name, g, encoder) for name in KINDS]


def check_batches(g: Any, sampler: Any, device: str, workers: int = 0, **more: Any) -> None:
    eids = torch.arange(g.num_edges(), dtype=g.idtype, device="cpu" if workers else device)
    count = 0
    for _, positive, negative, _ in loader(
        g, sampler, workers, eids, exclude="self", device=torch.device(device), **more
    ):
        assert negative.device.type == device
        assert negative.idtype == g.idtype
        src, dst = ends(negative)
        assert torch.equal(src, ends(positive)[0].repeat_interleave(K))
        check(g, src, dst)
        count += src.numel()
    assert count == K * g.num_edges()


# Anywhere.


def test_nothing_in_a_worker_touches_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trap where torch would start CUDA; workers are forked with it."""
    touched = torch.zeros(1, dtype=torch.int64).share_memory_()

    def trap() -> None:
        touched.add_(1)
        raise RuntimeError("CUDA was touched")

    g = graph(NODES, 200)
    encoder = SAGEConv(5, 8, "mean")
    samplers = every_sampler(g, encoder)
    monkeypatch.setattr(torch.cuda, "_lazy_init", trap)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")
    assert int(touched) == 1  # so the trap works
    for sampler in samplers:
        check_batches(g, sampler, "cpu", 1)
        if isinstance(sampler, KINDS["dmns"][0]):
            sampler.refresh()
            check_batches(g, sampler, "cpu", 1)
    assert int(touched) == 1


# On a GPU.


@needs_cuda
@idtypes
def test_edge_ids_on_the_gpu_graph_in_pinned_memory(idtype: torch.dtype) -> None:
    """UVA: DGL samples on the GPU from a graph in the memory of the host."""
    g = graph(NODES, 200, idtype)
    encoder = SAGEConv(5, 8, "mean")
    for sampler in every_sampler(g, encoder):
        check_batches(g, sampler, "cuda", use_uva=True)


@needs_cuda
@idtypes
def test_everything_on_the_gpu(idtype: torch.dtype) -> None:
    g = graph(NODES, 200, idtype).to("cuda")
    encoder = SAGEConv(5, 8, "mean").to("cuda")
    for sampler in every_sampler(g, encoder):
        src, dst = sampler(g, torch.arange(20, dtype=idtype, device="cuda"))
        assert (src.device.type, dst.device.type) == ("cuda", "cuda")
        assert (src.dtype, dst.dtype) == (idtype, idtype)
        chosen = sampler.for_queries(g, torch.arange(5, dtype=idtype, device="cuda"))
        assert chosen.device.type == "cuda"
        check_batches(g, sampler, "cuda")


@needs_cuda
@pytest.mark.parametrize("workers", [0, 2])
def test_a_graph_on_the_cpu_and_batches_on_the_gpu(workers: int) -> None:
    """DGL's prefetch thread without workers; workers that are forked after CUDA was started."""
    g = graph(NODES, 200)
    encoder = SAGEConv(5, 8, "mean").to("cuda")
    feat = g.ndata["feat"].to("cuda")

    def embed() -> Tensor:
        with torch.no_grad():
            return encoder(g.to("cuda"), feat)

    for sampler in every_sampler(g, embed):
        check_batches(g, sampler, "cuda", workers)


@needs_cuda
@idtypes
def test_refreshes_and_look_ups_on_the_gpu(idtype: torch.dtype) -> None:
    """`test_device` has the same on a pretended device, where there is no GPU."""
    g = graph(NODES, 200, idtype).to("cuda")
    encoder = SAGEConv(5, 8, "mean").to("cuda")
    for name in ("dmns", "self-adversarial", "dynamic", "adversarial"):
        sampler = refreshed(name, g, encoder, resources=Resources(device="cuda"))
        check_batches(g, sampler, "cuda")
        sampler.refresh()
        check_batches(g, sampler, "cuda")
        src, dst = (ids.long() for ids in g.edges())
        torch.cuda.set_sync_debug_mode("error")  # what waits for the GPU
        try:
            found = sampler.negatives_for_edges(g, src, dst, g.canonical_etypes[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        check(g, src.repeat_interleave(K).cpu(), found.flatten().cpu())
        state = sampler.state_dict()
        refreshed(name, g.cpu(), normal(NODES, 8)).load_state_dict(state)


@needs_cuda
def test_an_encoder_on_the_gpu_has_its_latents_and_log_ratios_there() -> None:
    g = graph(NODES, 200)
    h = normal(NODES, WIDTH).to("cuda")
    sampler = refreshed("dmns", g, h)
    assert sampler.table.cells.device.type == "cpu"
    assert next(sampler.model.predictor.parameters()).device.type == "cpu"
    assert sampler.generate(h[:4]).device.type == "cuda"
    assert sampler.for_embeddings(h[:4]).device.type == "cuda"
    pair = tuple(end.to("cuda") for end in sampler(g, torch.arange(9)))
    assert sampler.log_ratio(pair).device.type == "cuda"
    assert sampler.attach(optimizer()) is not None
    assert sampler.version == 2
