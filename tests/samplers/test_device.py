"""`Resources(device=...)` without a GPU: where tensors lie, who waits, and what comes out.

On a pretended device (`pretend`) all arithmetic is that of the CPU, so tables have to be equal.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretend import DEVICE, pretended
from shared import WIDTH, check, graph, make, normal, optimizer, refreshed, rng
from torch import Tensor, nn

from dgl_dmns.core import modes
from dgl_dmns.samplers import Resources

NODES, K = 50, 3
THERE = Resources(device=DEVICE)


class There:
    """A graph of DGL on the device, as far as samplers and their loss ask."""

    device = DEVICE

    def __init__(self, g: Any, ids: Tensor | None = None) -> None:
        self.g, self.canonical_etypes, self.ntypes = g, g.canonical_etypes, g.ntypes
        self.idtype, self.is_block = g.idtype, False
        self.num_nodes, self.num_edges = g.num_nodes, g.num_edges
        data = {} if ids is None else {"_ID": ids.to(DEVICE)}
        self.nodes = {n: SimpleNamespace(data=data) for n in g.ntypes}

    def find_edges(self, eids: Tensor, etype: Any = None) -> tuple[Tensor, Tensor]:
        src, dst = self.g.edges()
        return src.to(DEVICE)[eids], dst.to(DEVICE)[eids]


def there(ids: Tensor) -> Tensor:
    return ids.to(DEVICE)


def test_the_pretended_device_tells_where_tensors_lie_and_who_waits() -> None:
    with pretended() as waits:
        ids = torch.arange(4, device=DEVICE)
        assert (ids.device, (ids + 1).device) == (DEVICE, DEVICE)
        assert not waits
        with pytest.raises(RuntimeError, match="on the device and on the CPU"):
            _ = ids + torch.arange(4)
        for wait in (lambda: int(ids.sum()), lambda: ids[ids > 1], lambda: ids.cpu()):
            waits.clear()
            wait()
            assert waits


@pytest.mark.parametrize("kind", ["dmns", "self-adversarial", "dynamic", "adversarial"])
def test_tables_are_those_of_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g, h = graph(NODES, 200), normal(NODES, WIDTH)

    def tables(device: Any) -> tuple[Any, Any]:
        sampler = make(kind, g, h, resources=Resources(device=device))
        sampler.refresh()
        sampler.refresh(h + 0.1, nodes=torch.arange(20))
        return sampler.table.current(), sampler.state_dict()

    with pretended():
        (ids, level), state = tables(DEVICE)

    def seeded(device: torch.device, generator: torch.Generator) -> torch.Generator:
        return rng(int(torch.randint(1 << 62, (), generator=generator)))

    for module in ("method", "diffusion"):  # the same random numbers
        monkeypatch.setattr(f"dgl_dmns.samplers.{module}.generator_on", seeded)
    expected, expected_state = tables("cpu")
    assert torch.equal(ids, expected.ids)
    assert torch.equal(level, expected.level)
    assert_same(state["norms"], expected_state["norms"])
    if kind == "dmns":
        for name, value in expected_state["model"].items():
            if isinstance(value, Tensor):
                assert_same(state["model"][name], value)


def assert_same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("every", [1, 3])
def test_a_call_waits_for_nothing(every: int) -> None:
    g, h = graph(NODES, 200), normal(NODES, WIDTH)
    src, dst = g.edges()
    with pretended() as waits:
        sampler = make("dmns", g, h, k=K, resources=THERE)
        sampler.attach(optimizer(), every=every)
        outside, eids = There(g), there(torch.arange(g.num_edges()))
        sampler(outside, eids)  # looks once whether the graph is the sampler's
        twin = copy.deepcopy(sampler)  # on the CPU, with the turns of no call
        twin(g, torch.arange(g.num_edges()))
        for _ in range(3):
            waits.clear()
            ours, others = sampler(outside, eids)
            assert not waits
            assert ours.device == others.device == DEVICE
            assert torch.equal(ours.cpu(), src.repeat_interleave(K))
            check(g, ours.cpu(), others.cpu())
            # Negatives of the table are those of the turn; the others are drawn.
            hard = sampler.relation().rows.chosen(torch.arange(len(src)))
            same = twin(g, torch.arange(g.num_edges()))[1].view(-1, K)
            assert torch.equal(others.cpu().view(-1, K)[hard], same[hard])
        nodes = there(torch.arange(NODES))
        waits.clear()
        found = sampler.for_queries(outside, nodes)
        check(g, torch.arange(NODES).repeat_interleave(K), found.cpu().flatten())
        before = sampler(outside, eids)[1].cpu()
        sampler.refresh(-h)
        waits.clear()
        after = sampler(outside, eids)[1].cpu().view(-1, K)
        assert not torch.equal(before.view(-1, K)[hard], after[hard])
        assert sampler.table.handed_out(sampler.version) > 0
        # Ids on the CPU are looked up there.
        assert sampler(g, torch.arange(9))[1].device.type == "cpu"


def test_negatives_before_a_refresh_and_with_a_source_of_their_own() -> None:
    g, h = graph(NODES, 200), normal(NODES, WIDTH)
    with pretended():
        sampler = make("dmns", g, h, k=K, source="uniform", resources=THERE)
        outside, eids = There(g), there(torch.arange(60))
        for _ in range(2):
            src, dst = sampler(outside, eids)
            assert (len(src), src.device) == (60 * K, DEVICE)
            check(g, src.cpu(), dst.cpu())
            sampler.refresh()
        one = make("dmns", g, h, generator=rng(3), resources=THERE)
        two = make("dmns", g, h, generator=rng(3), resources=THERE)
        assert torch.equal(one(outside, eids)[1].cpu(), two(outside, eids)[1].cpu())


class Batch(There):
    """A positive or negative graph of a loader over all nodes."""

    def __init__(self, g: Any, src: Tensor, dst: Tensor) -> None:
        super().__init__(g, torch.arange(NODES))
        self.ends = src, dst
        self.edges = _Edges(self)

    def num_edges(self, etype: Any = None) -> int:  # type: ignore[override]
        return len(self.ends[0])


class _Edges:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __call__(self, etype: Any = None) -> tuple[Tensor, Tensor]:
        return self.batch.ends

    def __getitem__(self, etype: Any) -> Any:
        return SimpleNamespace(data={})


@pytest.mark.parametrize(
    ("kind", "options"),
    [("dmns", {}), ("dmns", {"share": "edge"}), ("uniform", {"pool": 10})],
)
def test_the_loss_is_that_of_the_cpu(kind: str, options: dict[str, Any]) -> None:
    g, h = graph(NODES, 200), normal(NODES, WIDTH)
    src, dst = (ends[:40] for ends in g.edges())
    with pretended():
        if kind == "dmns":
            sampler = refreshed(kind, g, h, k=K, resources=THERE)
        else:
            sampler = make(kind, g, k=K, device=DEVICE)
        ours, others = (ends.cpu() for ends in sampler(There(g), there(torch.arange(40))))

        def loss(move: Any, leaf: Tensor) -> Tensor:
            ends = [move(one) for one in (src, dst, ours, others)]
            torch.manual_seed(0)
            return sampler.loss(move(leaf), Batch(g, *ends[:2]), Batch(g, *ends[2:]), **options)

        def here(ids: Tensor) -> Tensor:
            return ids

        leaf = h.clone().requires_grad_()
        wanted = loss(here, leaf)
        wanted.backward()
        again = h.clone().requires_grad_()
        found = loss(there, again)
        assert found.device == DEVICE
        found.backward()
    assert float(found.cpu()) == pytest.approx(float(wanted), rel=1e-6)
    torch.testing.assert_close(again.grad, leaf.grad)


def test_uniform_negatives_wait_for_nothing() -> None:
    g = graph(NODES, 200)
    eids = torch.arange(g.num_edges())
    with pretended() as waits:
        sampler = make("uniform", g, k=K, device=DEVICE)
        outside = There(g)
        sampler(outside, there(eids))
        waits.clear()
        src, dst = sampler(outside, there(eids))
        assert not waits
        check(g, src.cpu(), dst.cpu())
        assert sampler(g, eids)[1].device.type == "cpu"


def test_states_go_to_the_cpu_and_back() -> None:
    g, h = graph(NODES, 200), normal(NODES, WIDTH)
    eids = torch.arange(g.num_edges())
    with pretended():
        sampler = make("dmns", g, h, k=K, resources=THERE)
        sampler.attach(optimizer(), every=3)
        sampler(There(g), there(eids))
        state = sampler.state_dict()
        back = make("dmns", g, h, k=K, resources=THERE)
        back(There(g), there(eids))
        back.load_state_dict(state)
        found = back(There(g), there(eids))[1].cpu().view(-1, K)
    assert int(state["asked"].sum()) == len(set(zip(*(ends.tolist() for ends in g.edges()))))
    plain = make("dmns", g, h, k=K)
    plain.load_state_dict(state)
    wanted = plain(g, eids)[1].view(-1, K)
    hard = plain.relation().rows.chosen(eids)
    assert torch.equal(found[hard], wanted[hard])
    assert bool(plain.log_ratio(plain(g, eids)).isfinite().all())


def test_scorers_are_called_on_the_device() -> None:
    g, h = graph(NODES, 200), normal(NODES, WIDTH)
    with pretended():
        layer = nn.Linear(WIDTH, WIDTH).to(DEVICE)
        seen: set[Any] = set()

        def scorer(h_v: Tensor, h_u: Tensor) -> Tensor:
            seen.add(h_v.device)
            return (layer(h_v) * h_u).sum(-1)

        sampler = make("dmns", g, h, k=K, scorer=scorer, resources=THERE)
        sampler.refresh()
        pair = sampler(g, torch.arange(9))
        assert sampler.log_ratio(pair).device.type == "cpu"
        assert len(sampler.stats()) > 0
        assert seen == {DEVICE}
        module = make("self-adversarial", g, h, k=K, scorer=Score(), resources=THERE)
        module.refresh()
        check(g, *module(g, torch.arange(g.num_edges())))


class Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, h_v: Tensor, h_u: Tensor) -> Tensor:
        return (self.weight * h_v * h_u).sum(-1)


def test_what_stays_on_the_cpu_is_refused() -> None:
    g, h = graph(NODES, 200), normal(NODES, WIDTH)
    with pretended(), pytest.raises(ValueError, match="device: chains are kept on the CPU"):
        make("mcns", g, h, resources=THERE)
    with pytest.raises(ValueError, match="one_table: ranks share a table that the CPU fills"):
        Resources(one_table=True, device=DEVICE)
    for one_table in (False, True):
        with pytest.raises(TypeError, match="device: expected a device of torch, got int"):
            Resources(one_table=one_table, device=0)  # type: ignore[arg-type]
        for device in ("gpu", "xpu:0"):
            with pytest.raises(ValueError, match=f"device: {device} cannot be used"):
                Resources(one_table=one_table, device=device)
    assert modes.generator_on(torch.device("cpu"), None) is None
