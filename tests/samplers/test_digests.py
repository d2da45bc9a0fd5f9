"""Equal seeds give equal tables, draws, log ratios and states, release after release.

The digests in ``digests.json`` were written down before the samplers were taken apart. They hold on
processors that round as the one they were written on does, which a probe tells; write them anew
with ``python tests/samplers/test_digests.py``, and say in CHANGELOG why.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import dgl
import pytest
import torch
from torch import Tensor, nn

from dgl_dmns import (
    AdversarialSampler,
    DMNSSampler,
    DynamicSampler,
    MCNSSampler,
    Resources,
    SelfAdversarialSampler,
)
from dgl_dmns.core import Blend, Density, Gate, Nearest

FILE = Path(__file__).with_name("digests.json")
N, D, K = 90, 12, 3


def _graph() -> Any:
    made = torch.Generator().manual_seed(1)
    src, dst = torch.randint(0, N, (2, 400), generator=made)
    return dgl.graph((torch.cat([src, dst]), torch.cat([dst, src])), num_nodes=N)


def _shop() -> Any:
    made = torch.Generator().manual_seed(2)
    user, item = (
        torch.randint(0, 40, (200,), generator=made),
        torch.randint(0, 60, (200,), generator=made),
    )
    follow = torch.randint(0, 40, (2, 90), generator=made)
    edges = {
        ("user", "buys", "item"): (user, item),
        ("user", "follows", "user"): (follow[0], follow[1]),
    }
    return dgl.heterograph(edges, num_nodes_dict={"user": 40, "item": 60})


def _h(count: int, refresh: int) -> Tensor:
    made = torch.Generator().manual_seed(100 + refresh)
    return torch.randn(count, D, generator=made)


class _Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.2, 1.4, D))

    def forward(self, h_v: Tensor, h_u: Tensor) -> Tensor:
        return (h_v * h_u * self.weight).sum(-1)


def _none() -> Tensor:
    raise AssertionError("embeddings are handed in")


MAKERS: dict[str, Any] = {
    "dmns": lambda g: DMNSSampler(g, _none, K, seed=3),
    "dmns-gate": lambda g: DMNSSampler(g, _none, K, rule=Gate(), seed=3),
    "dmns-density": lambda g: DMNSSampler(g, _none, K, rule=Density(), seed=3),
    "dmns-nearest": lambda g: DMNSSampler(g, _none, K, rule=Nearest(), seed=3),
    "dmns-sharpened": lambda g: DMNSSampler(g, _none, K, rule=Blend(0.5, 4.0), seed=3),
    "dmns-module": lambda g: DMNSSampler(g, _none, K, scorer=_Scorer(), seed=3),
    "dmns-all-pairs": lambda g: DMNSSampler(g, _none, K, source="uniform", seed=3),
    "dmns-background": lambda g: DMNSSampler(
        g, _none, K, seed=3, resources=Resources(background=True)
    ),
    "dynamic": lambda g: DynamicSampler(g, _none, K, seed=3),
    "self-adversarial": lambda g: SelfAdversarialSampler(g, _none, K, seed=3),
    "self-adversarial-sharpened": lambda g: SelfAdversarialSampler(
        g, _none, K, edge_ratio=3.0, seed=3
    ),
    "adversarial": lambda g: AdversarialSampler(g, _none, K, seed=3),
    "mcns": lambda g: MCNSSampler(g, _none, K, seed=3),
}


def _digest(*values: Any) -> str:
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            found.update(str((value.dtype, tuple(value.shape))).encode())
            found.update(value.detach().contiguous().numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def _tensors(state: Any) -> list[str]:
    """Digests of all tensors in a state, whatever they are called, in an order of their own."""
    if isinstance(state, Tensor):
        return [_digest(state)]
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, (list, tuple)):
        return sorted({one for part in state for one in _tensors(part)})
    return []


def probe() -> str:
    """What tells processors apart that round otherwise."""
    made = torch.Generator().manual_seed(0)
    h = torch.randn(257, 33, generator=made)
    return _digest(
        torch.__version__,
        (h @ h.T).softmax(-1),
        h.exp().log1p(),
        torch.randperm(99, generator=made),
    )


def run(name: str) -> dict[str, Any]:
    """Three refreshes, the second of a few rows where rows are drawn at all."""
    g = _graph()
    torch.manual_seed(5)
    sampler = MAKERS[name](g)
    for refresh in range(3):
        partly = refresh == 1 and name != "mcns"
        sampler.refresh(_h(N, refresh), nodes=torch.arange(0, N, 2) if partly else None)
        if name == "dmns-background":
            sampler.wait()
    eids = torch.arange(0, g.num_edges(), 3)
    src, dst = sampler(g, eids)
    found = {"call": _digest(src, dst), "table": _digest(*sampler.table.current())}
    if sampler.rule.tractable:
        found["ratio"] = _digest(sampler.log_ratio((src, dst)))
        found["positive"] = _digest(sampler.positive_log_ratio(g.find_edges(eids)))
    found["state"] = _tensors(sampler.state_dict())
    return found


def run_shop() -> dict[str, Any]:
    """The same with two edge types."""
    g = _shop()
    torch.manual_seed(5)
    sampler = DMNSSampler(g, _none, {"buys": 2, "follows": 3}, seed=3)
    for refresh in range(2):
        sampler.refresh({"user": _h(40, refresh), "item": _h(60, 9 + refresh)})
    drawn = sampler(g, {e: torch.arange(50) for e in g.canonical_etypes})
    ratio = sampler.log_ratio(drawn)
    return {
        "call": _digest(*(end for pair in drawn.values() for end in pair)),
        "ratio": _digest(*ratio.values()),
        "state": _tensors(sampler.state_dict()),
    }


def everything() -> dict[str, Any]:
    return {**{name: run(name) for name in MAKERS}, "shop": run_shop()}


@pytest.mark.parametrize("name", [*MAKERS, "shop"])
def test_equal_seeds_give_what_they_gave_before(name: str) -> None:
    written = json.loads(FILE.read_text(encoding="utf-8"))
    if written["probe"] != probe():
        pytest.skip("this processor rounds otherwise than the one the digests were written on")
    found = run_shop() if name == "shop" else run(name)
    state, before = set(found.pop("state")), set(written[name].pop("state"))
    assert found == written[name]
    assert before <= state


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({"probe": probe(), **everything()}, indent=1), encoding="utf-8")
