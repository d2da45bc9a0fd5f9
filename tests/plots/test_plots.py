import builtins

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from dgl_dmns.samplers.registry import make_sampler

matplotlib.use("Agg")

import dgl
from matplotlib import pyplot as plt

from dgl_dmns import UniformSampler
from dgl_dmns.core import MLPPredictor, Nearest
from dgl_dmns.diagnostics import Monitor, Observation, QueryView, observe, view_query
from dgl_dmns.plots import plot_hardness, plot_positivity, plot_query, plot_scores

LEVELS = ["0.1T", "0.125T", "0.25T", "0.5T"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def graph():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(80, 6, generator=generator)
    near = (h @ h.t()).topk(6, dim=1).indices
    g = dgl.graph((torch.arange(80).repeat_interleave(6), near.flatten()))
    return dgl.to_bidirected(g), h


@pytest.fixture(scope="module")
def monitor(graph):
    g, h = graph
    sampler = make_sampler("dmns", g, lambda: h, k=3)
    monitor = Monitor(sampler)
    for _ in range(3):
        sampler.refresh()
    return monitor


@pytest.fixture(scope="module")
def seen(monitor):
    return observe(monitor.sampler)


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("value", ["score", "percentile", "gini", "psi_share"])
def test_hardness_shows_the_records(monitor, value):
    frame = monitor.frame()
    ax = plot_hardness(frame, value)
    lines = {line.get_label(): line for line in ax.get_lines()}
    for level in LEVELS:
        line = lines[f"level {level}"]
        assert line.get_xdata().tolist() == [1, 2, 3]
        expected = frame[frame["level"] == level][value].tolist()
        assert line.get_ydata().tolist() == expected
    assert ("positives" in lines) == (value in ("score", "percentile"))


def test_hardness_as_a_moving_mean(monitor):
    frame = monitor.frame()
    ax = plot_hardness(frame, "score", smooth=2)
    line = next(line for line in ax.get_lines() if line.get_label() == "level 0.1T")
    a, b, c = frame[frame["level"] == "0.1T"]["score"]
    assert line.get_ydata().tolist() == pytest.approx([a, (a + b) / 2, (b + c) / 2])


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda f: f, {"smooth": 0}, "smooth: expected at least 1, got 0"),
        (lambda f: f[:0], {}, "frame: expected records, got none"),
        (lambda f: f, {"value": "level"}, r"value: expected one of \[.*'score'.*got 'level'"),
        (lambda f: pd.concat([f, f.assign(etype="a")]), {}, "etype: expected one of .*; name it"),
        (lambda f: f, {"etype": "x"}, "etype: .*got 'x'"),
        (lambda f: f, {"value": "false_negative_lift"}, "is NaN in all .*held_out"),
    ],
)
def test_hardness_errors(monitor, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_hardness(change(monitor.frame()), **arguments)


def test_hardness_of_one_of_several_edge_types(monitor):
    frame = monitor.frame()
    both = pd.concat([frame, frame.assign(etype="a:b:c", score=1.0)])
    lines = plot_hardness(both, etype="a:b:c").get_lines()
    assert {value for line in lines for value in line.get_ydata()} == {1.0}


def test_scores_are_densities(seen):
    ax = plot_scores(seen, bins=40)
    assert labels_of(ax)[0] == "random nodes"
    assert labels_of(ax)[-1] == "positives"
    line = next(line for line in ax.get_lines() if line.get_label() == "positives")
    x, y = line.get_xdata(), line.get_ydata()
    inside = (seen.positive_score >= x[0]) & (seen.positive_score <= x[-1])
    assert float((y[:-1] * np.diff(x)).sum()) == pytest.approx(float(inside.float().mean()))
    for plot in (plot_scores, plot_positivity):
        with pytest.raises(ValueError, match="bins: expected at least 2, got 1"):
            plot(seen, bins=1)


def test_scores_of_a_sampler_without_levels(graph):
    g, h = graph
    ax = plot_scores(observe(UniformSampler(g, k=3), embeddings=h))
    assert labels_of(ax) == ["random nodes", "all negatives", "positives"]


def test_slopes_of_positivity_fall_with_the_level(seen):
    ax = plot_positivity(seen)
    slopes = [float(label.split()[-1]) for label in labels_of(ax)[1:]]
    assert len(slopes) == 4
    assert 1 > slopes[0] > slopes[-1] > 0
    # By hand, for the hardest level.
    density = seen.log_density.double()
    x, y = (density[i] - density[i].mean(-1, keepdim=True) for i in (0, 1))
    assert slopes[0] == pytest.approx(float((x * y).sum() / (x * x).sum()), abs=0.006)


def test_densities_need_a_generator(graph):
    g, h = graph
    sampler = make_sampler("dynamic", g, lambda: h, k=3)
    sampler.refresh()
    with pytest.raises(ValueError, match="they need a DMNSSampler"):
        plot_positivity(observe(sampler))
    with pytest.raises(ValueError, match="DynamicSampler has no generator to show"):
        view_query(sampler)


def counts_of(view):
    return [int((view.negative_level == level).sum()) for level in (0, 1, 2, 3, 255)]


def labels_in(view):
    names = [*(f"level {name}" for name in LEVELS), "no level"]
    levels = [f"{name}, negatives: {count}" for name, count in zip(names, counts_of(view))]
    return [f"query {view.query}", "positives", *levels, "other nodes"]


def test_a_query_in_the_plane(monitor, graph):
    g, h = graph
    sampler = monitor.sampler
    view = view_query(sampler, 7)
    known = sampler.known.neighbours(7)
    assert view.neighbours.shape == (len(known), 2)
    assert view.negatives.shape == (2 * len(known), 2)  # a group for each edge
    z = sampler.model.space.encode(h)
    # The projection is linear: draws of a level, projected, have its mean and covariance.
    gaussians = sampler.model.gaussians(z[7:8])
    draws = torch.stack([gaussians.sample()[:, 0] for _ in range(4000)])
    _, vectors = torch.linalg.eigh((z - z.mean(0)).T @ (z - z.mean(0)))
    flat = ((draws - z.mean(0)) @ vectors[:, -2:].flip(1)).numpy()
    for level in range(4):
        scale = np.sqrt(np.trace(view.covariance[level]))
        assert np.abs(flat[:, level].mean(0) - view.mean[level]).max() < 0.06 * scale
        assert np.abs(np.cov(flat[:, level].T) - view.covariance[level]).max() < 0.1 * scale**2
    ax = plot_query(view)
    assert len(ax.patches) == 4
    assert labels_of(ax) == labels_in(view)
    handles = ax.get_legend().legend_handles
    for patch, handle in zip(ax.patches, handles[2:]):
        assert patch.get_edgecolor()[:3] == matplotlib.colors.to_rgb(handle.get_color())


def test_a_query_in_a_space_of_width_one(graph):
    g, h = graph
    sampler = make_sampler("dmns", g, lambda: h[:, :1].clone(), k=3)
    sampler.refresh()
    view = view_query(sampler, 7)
    ax = plot_query(view)
    assert [label.get_text() for label in ax.get_yticklabels()] == labels_in(view)
    shown = [points.get_offsets()[:, 0] for points in ax.collections]
    assert shown[1].tolist() == view.neighbours[:, 0].tolist()
    assert [len(points) for points in shown[2:7]] == counts_of(view)
    bars = [line.get_xdata() for line in ax.get_lines()]
    for bar, mean, covariance in zip(bars, view.mean, view.covariance):
        assert bar.mean() == pytest.approx(mean[0], abs=1e-5)
        assert bar[1] - bar[0] == pytest.approx(4 * covariance[0, 0] ** 0.5, rel=1e-4)


@pytest.mark.parametrize("width", [1, 6])
def test_axes_have_names_and_legends_cover_nothing(graph, width):
    g, h = graph
    sampler = make_sampler("dmns", g, lambda: h[:, :width].clone(), k=3)
    with Monitor(sampler) as monitor:
        sampler.refresh()
    seen = observe(sampler)
    drawn = [plot_hardness(monitor.frame(), name) for name in ("score", "percentile", "gini")]
    drawn += [plot_scores(seen), plot_positivity(seen), plot_query(view_query(sampler))]
    for ax in drawn:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert len(ax.get_xticks()) >= 1
        ax.figure.canvas.draw()
        legend = ax.get_legend()
        if legend is not None:
            assert legend.get_window_extent().x0 >= ax.get_window_extent().x1
        for axis in (ax.xaxis, ax.yaxis):
            assert not axis.get_offset_text().get_text()


def test_the_query_that_is_taken_where_none_is_named(monitor):
    view = view_query(monitor.sampler)
    degrees = monitor.sampler.known.degrees()
    assert int((degrees - 12).abs().min()) == abs(len(view.neighbours) - 12)


def test_errors_of_a_query(monitor, graph):
    g, h = graph
    for node in (-1, 80):
        with pytest.raises(ValueError, match="node: expected a source node with a known neighb"):
            view_query(monitor.sampler, node)
    raw = {"rule": Nearest(), "predictor": MLPPredictor(6), "space": "raw", "warmup_steps": 1}
    chain = make_sampler("dmns", g, lambda: h, **raw)
    chain.refresh()
    with pytest.raises(ValueError, match="no level Gaussians to show"):
        view_query(chain)


def test_what_is_drawn_can_be_kept(monitor, seen, tmp_path):
    seen.save(tmp_path / "seen.npz")
    again = Observation.load(tmp_path / "seen.npz")
    view = view_query(monitor.sampler, 3)
    view.save(tmp_path / "query.npz")
    for one, other in ((seen, again), (view, QueryView.load(tmp_path / "query.npz"))):
        for name, value in vars(one).items():
            kept = vars(other)[name]
            assert type(kept) is type(value)
            if isinstance(value, (torch.Tensor, np.ndarray)):
                assert kept.dtype == value.dtype
                assert np.array_equal(np.asarray(kept), np.asarray(value), equal_nan=True)
            else:
                assert kept == value
    plot_scores(again)


def test_axes_that_are_given_are_used(monitor, seen):
    _, ax = plt.subplots()
    assert plot_hardness(monitor.frame(), ax=ax) is ax
    assert plot_scores(seen, ax=ax) is ax
    assert plot_positivity(seen, ax=ax) is ax
    assert plot_query(view_query(monitor.sampler), ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_without_matplotlib_the_message_names_the_extra(seen, monkeypatch):
    def no_matplotlib(name, *arguments, _import=builtins.__import__):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return _import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_scores(seen)
