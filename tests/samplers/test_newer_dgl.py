"""Stand-ins for DGL 2.4, whose ``import dgl`` brings neither GraphBolt nor the distributed part.

GraphBolt's later protocol is in test_graphbolt, the new place of the distributed loaders in
test_examples.
"""

from __future__ import annotations

from shared import fresh

AS_OF_2_4 = """
import sys
import dgl
import dgl.dataloading

parts = ("dgl.distributed", "dgl.graphbolt", "dgl.dataloading.dist_dataloader")
for name in [name for name in sys.modules if name.startswith(parts)]:
    del sys.modules[name]
for name in parts:
    sys.modules[name] = None  # another import of it fails
for name in ("distributed", "graphbolt"):
    vars(dgl).pop(name, None)
for name in ("dist_dataloader", "DistDataLoader", "DistEdgeDataLoader", "DistNodeDataLoader"):
    vars(dgl.dataloading).pop(name, None)
"""


def test_samplers_work_where_nobody_imported_the_distributed_part() -> None:
    code = """
import pickle
import torch
from dgl.dataloading import DataLoader, NeighborSampler, as_edge_prediction_sampler
from dgl_dmns import samplers
from dgl_dmns.cli.parser import main

g = dgl.rand_graph(40, 160)
h = torch.randn(40, 6)
for name in samplers.__all__:
    if not name.endswith("Sampler") or name in ("NegativeSampler", "RefreshingSampler"):
        continue
    cls = getattr(samplers, name)
    following = issubclass(cls, samplers.RefreshingSampler)
    sampler = cls(g, lambda: h, k=2) if following else cls(g, 2)
    if following:
        sampler.refresh()
    flow = as_edge_prediction_sampler(NeighborSampler([2]), negative_sampler=sampler)
    for _, positive, negative, _ in DataLoader(g, torch.arange(160), flow, batch_size=40):
        assert negative.num_edges() == 2 * positive.num_edges()
    src, _ = pickle.loads(pickle.dumps(sampler))(g, torch.arange(160))
    assert len(src) == 320
    print(name)
print(main(["doctor"]))
"""
    printed = fresh(AS_OF_2_4 + code)
    names = [line for line in printed.splitlines() if line.endswith("Sampler")]
    assert {"DMNSSampler", "UniformSampler", "MCNSSampler"} <= set(names)
    assert len(names) >= 8
    assert "no failure(s)" in printed
    assert printed.endswith("\n0")
