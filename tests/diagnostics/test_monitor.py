import logging
import pickle
import sys
import warnings

import dgl
import pandas as pd
import pytest
import torch
from graphs import communities

from dgl_dmns import UniformSampler
from dgl_dmns.core import FiLMPredictor
from dgl_dmns.diagnostics import Monitor, NegativesWarning, Thresholds, signs
from dgl_dmns.losses import bce_loss
from dgl_dmns.samplers.registry import make_sampler

G, H, HELD_OUT = communities()


class Encoder:
    """Returns one tensor after the other, the last one again and again."""

    def __init__(self, *embeddings):
        self.embeddings = list(embeddings)

    def __call__(self):
        return self.embeddings.pop(0) if len(self.embeddings) > 1 else self.embeddings[0]


def watched(encoder=lambda: H, kind="dmns", thresholds=None, **arguments):
    sampler = make_sampler(kind, G, encoder, k=3, **arguments)
    return sampler, Monitor(sampler, held_out=HELD_OUT, thresholds=thresholds)


def test_a_row_for_each_refresh_and_level(caplog):
    turned = torch.roll(H, 1, dims=1)
    sampler, monitor = watched(Encoder(H, H, turned))
    with caplog.at_level(logging.INFO, logger="dgl_dmns.monitor"):
        for _ in range(3):
            report = sampler.refresh()
    frame = monitor.frame()
    assert len(frame) == 3 * 8
    assert frame.drop_duplicates("refresh")["refresh"].tolist() == [1, 2, 3]
    last = frame[frame["refresh"] == 3].iloc[0]
    assert last["fit_loss"] == report.fit.loss
    assert last["filtered"] == report.table.filtered
    assert last["refresh_seconds"] == report.seconds
    assert last["table_mib"] > sampler.table.cells.numel() * 4 / 2**20
    assert last["process_mib"] > 50
    staleness = frame.groupby("refresh")["staleness"].first()
    assert staleness[2] == pytest.approx(0.0, abs=1e-6)
    moved = 1 - torch.nn.functional.cosine_similarity(H, turned).mean()
    assert staleness[3] == pytest.approx(float(moved), rel=1e-4)
    assert len(caplog.messages) == 3
    assert caplog.messages[2].startswith("refresh 3  0.1T ")
    assert "false negatives" in caplog.messages[2]


def test_the_table_agrees_with_stats():
    sampler, monitor = watched()
    sampler.refresh()
    own = sampler.stats(held_out=HELD_OUT)
    assert (own.pop("handed_out") == 0).all()  # of this table so far; a record has the last one's
    pd.testing.assert_frame_equal(monitor.frame()[own.columns.tolist()], own)


def test_watching_changes_no_negative_and_ends():
    plain = make_sampler("dmns", G, lambda: H, k=3)
    sampler, monitor = watched()
    plain.refresh()
    sampler.refresh()
    assert torch.equal(plain.table.current().ids, sampler.table.current().ids)
    assert pickle.loads(pickle.dumps(sampler)).version == 1
    other = Monitor(sampler, every=2)
    with monitor:
        sampler.refresh()
    for _ in range(3):
        sampler.refresh()
    assert monitor.frame()["refresh"].max() == 2
    assert monitor.seconds > 0
    assert other.frame()["refresh"].unique().tolist() == [2, 4]


def test_a_graph_that_grows():
    more = torch.cat([H, H[:5]])
    sampler, monitor = watched(Encoder(H, more))
    sampler.refresh()
    grown = dgl.add_edges(dgl.add_nodes(G, 5), torch.arange(5), torch.arange(5) + len(H))
    sampler.update_graph(grown)
    sampler.refresh()
    staleness = monitor.frame().groupby("refresh")["staleness"].first()
    assert staleness.iloc[-1] == pytest.approx(0.0, abs=1e-6)  # of the nodes that were there before


def test_metrics_beside_the_negatives():
    sampler, monitor = watched()
    sampler.refresh()
    monitor.log(epoch=0, loss=0.5)
    sampler.refresh()
    monitor.log(epoch=1, loss=0.25, mrr=0.1)
    metrics = monitor.metrics()
    assert metrics["refresh"].tolist() == [1, 2]
    assert metrics["loss"].tolist() == [0.5, 0.25]
    with pytest.raises(ValueError, match=r"watch: expected one of the values \['loss'\]"):
        monitor.log(watch="mrr", loss=1.0)


@pytest.mark.parametrize("name", ["negatives.csv", "negatives.parquet"])
def test_files(tmp_path, name):
    sampler, monitor = watched()
    sampler.refresh()
    monitor.save(tmp_path / name)
    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    pd.testing.assert_frame_equal(read(tmp_path / name), monitor.frame(), check_dtype=False)


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _, monitor = watched()
    with pytest.raises(ValueError, match=r"ends in .csv or .parquet, got 'a.xlsx'"):
        monitor.save(tmp_path / "a.xlsx")
    with pytest.raises(ImportError, match="Parquet needs pyarrow"):
        monitor.save(tmp_path / "a.parquet")


def test_tensorboard_holds_the_same_figures(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sampler = make_sampler("dmns", G, lambda: H, k=3)
    with Monitor(sampler, tensorboard=tmp_path) as monitor:
        sampler.refresh()
        sampler.refresh()
        monitor.log(loss=0.5)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    found = [event.value for event in events.Scalars("negatives/percentile/no_level")]
    frame = monitor.frame()
    expected = frame[frame["level"] == "no level"]["percentile"].tolist()
    assert found == pytest.approx(expected, rel=1e-5)
    assert events.Scalars("training/loss")[0].value == 0.5
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        Monitor(sampler, tensorboard=tmp_path)


def test_going_on_in_another_process():
    sampler, monitor = watched()
    sampler.refresh()
    monitor.log(watch="mrr", mrr=0.5)
    state = pickle.loads(pickle.dumps(monitor.state_dict()))
    other, resumed = watched()
    other.load_state_dict(sampler.state_dict())
    resumed.load_state_dict(state)
    other.refresh()
    assert resumed.frame()["refresh"].unique().tolist() == [1, 2]
    assert resumed.metrics()["mrr"].tolist() == [0.5]
    assert repr(resumed).endswith("records=2, signs=0)")


def test_records_of_another_sampler_or_graph_are_refused():
    sampler, monitor = watched()
    sampler.refresh()
    state = monitor.state_dict()
    other_graph = dgl.graph(G.edges(), num_nodes=G.num_nodes() + 1)
    for other in (
        make_sampler("dynamic", G, lambda: H, k=3),
        make_sampler("dmns", other_graph, lambda: H, k=3),
        make_sampler("dmns", dgl.remove_edges(G, [0]), lambda: H, k=3),
    ):
        resumed = Monitor(other)
        with pytest.raises(ValueError, match="^state: expected the records of") as said:
            resumed.load_state_dict(state)
        assert "\n" not in str(said.value)
        assert not len(resumed.frame())
    del state["of"]
    with pytest.raises(ValueError, match="got those of None"):
        monitor.load_state_dict(state)


def test_arguments():
    with pytest.raises(TypeError, match="expected one that is refreshed, got UniformSampler"):
        Monitor(UniformSampler(G, k=2))
    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        Monitor(make_sampler("dmns", G, lambda: H, k=2), every=0)


# ---- failure signs -------------------------------------------------------------------------------

EARLY = Thresholds(warmup=2, window=3)


def refreshed(encoder, times, **arguments):
    """The names of the warnings given, in order, and the last message."""
    sampler, monitor = watched(encoder, thresholds=EARLY, **arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            sampler.refresh()
    given = [w for w in caught if issubclass(w.category, NegativesWarning)]
    assert len(given) == len(monitor.found)
    return monitor.found


def test_healthy_negatives_give_no_warning():
    assert refreshed(lambda: H, 8) == []


def test_divergence_under_hard_negatives():
    generator = torch.Generator().manual_seed(1)
    lost = torch.randn(H.shape, generator=generator)
    (sign,) = refreshed(Encoder(H, H, lost), 3, kind="dynamic", pool=60)
    assert (sign.name, sign.refresh) == ("diverging", 3)
    assert "Hardness came too early" in sign.message


def test_plateau_with_negatives_that_are_too_hard():
    (sign,) = refreshed(lambda: H, 8, kind="dynamic", pool=120)
    assert sign.name == "plateau"
    assert "score above a positive of their query" in sign.message
    assert "log_ratio" in sign.message


def test_plateau_with_levels_out_of_order():
    sampler, _ = watched()
    sampler.refresh()
    frame = pd.concat([sampler.stats().assign(refresh=r) for r in range(1, 6)])
    assert signs(frame, thresholds=EARLY) == []
    order = frame["level"].map({"0.1T": -9.0, "0.5T": 9.0})
    frame["score"] = order.fillna(frame["score"])
    (sign,) = signs(frame, thresholds=EARLY)
    assert "the levels are out of order: the hardest (0.1T) scores -9" in sign.message
    assert signs(frame, [0.1, 0.2, 0.3, 0.4, 0.5], EARLY) == []  # what is watched still gains


def test_a_condition_that_is_not_learned():
    torch.manual_seed(0)  # of the predictor's weights
    found = refreshed(
        lambda: H, 4, predictor=FiLMPredictor(8, conditional=False), warmup_steps=20, fit_steps=1
    )
    sign = found[0]  # a plateau may come of it
    assert sign.name == "not learned"
    assert "its hardest level (0.1T) prefers a positive" in sign.message
    assert "warmup_steps" in sign.message
    (sign,) = refreshed(lambda: H, 3, kind="self-adversarial", temperature=100.0)
    assert sign.name == "not learned"
    assert "lower temperature" in sign.message


def test_collapse_onto_hubs():
    h = H.clone()
    h[:, 0] = h[:, 0].abs() + 1.0
    h[:2, 0] = 60.0  # two nodes that score highest for every query
    found = {sign.name: sign for sign in refreshed(lambda: h, 3, kind="dynamic", pool=90)}
    assert "collapse onto a few nodes" in found["hubs"].message
    assert "normalise them" in found["hubs"].message


def trained(passes, refreshes=3, kind="dynamic", **arguments):
    """A monitor of a training of free vectors, a refresh after each so many passes over edges."""
    torch.manual_seed(0)
    h = torch.nn.Parameter(0.5 * torch.randn(H.shape))
    optimizer = torch.optim.Adam([h], lr=0.05)
    sampler, monitor = watched(lambda: h, kind, EARLY, groups=2, **arguments)
    src, dst = G.edges()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NegativesWarning)
        sampler.refresh()
        for _ in range(refreshes):
            for _ in range(passes):
                u, v = sampler(G, torch.arange(G.num_edges()))
                loss = bce_loss((h[src] * h[dst]).sum(-1), (h[u] * h[v]).sum(-1).view(len(src), -1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            sampler.refresh()
    rows = monitor.frame().query("level == 'all'").set_index("refresh")
    return sampler, rows, {sign.name: sign for sign in monitor.found}


def test_how_often_candidates_are_handed_out():
    sampler, rows, _ = trained(3, 2)
    assert rows["handed_out"].isna().tolist() == [True, False, False]
    groups = sampler.table.groups
    times = 3 * G.num_edges() / groups
    assert rows["handed_out"].tolist()[1:] == pytest.approx([times, times])
    sampler(G, torch.arange(10))
    sampler.draw(torch.arange(4))
    for one in (sampler, pickle.loads(pickle.dumps(sampler))):
        assert one.table.handed_out(sampler.version) == 14 / groups
    assert "drawn" not in sampler.table.state_dict()


def test_candidates_that_come_again_and_again_are_used_up():
    _, rows, found = trained(30)
    assert rows["handed_out"].iloc[-1] > 60
    assert rows["end_percentile"].iloc[-1] < 0.4
    assert "groups=" in found["repeated"].message
    assert f"{rows['handed_out'].iloc[-1]:.1f} times" in found["repeated"].message
    assert "every= of attach" in found["repeated"].message
    assert "uniform negatives would have taught more" in found["used up"].message


def test_candidates_that_are_replaced_in_time_are_not():
    _, rows, found = trained(1, 8)
    assert (rows["end_percentile"].iloc[1:] > 0.5).all()
    assert "used up" not in found


def test_chains_are_not_handed_out_again():
    _, rows, found = trained(2, 3, "mcns")
    assert rows["handed_out"].isna().all()
    assert rows["end_percentile"].isna().all()
    assert not {"repeated", "used up"} & found.keys()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("repeats", 0.0, "a positive number, got 0"),
        ("window", 0, "at least 1 refresh, got 0"),
        ("hard", 1.5, "between 0 and 1, got 1.5"),
    ],
)
def test_thresholds_out_of_range(name, value, message):
    with pytest.raises(ValueError, match=f"{name}: expected .*{message}"):
        Thresholds(**{name: value})
