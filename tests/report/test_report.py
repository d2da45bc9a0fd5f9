import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import dgl
import numpy as np
import pandas as pd
import pytest
import torch
from browser import CHROMIUM, DRIVER, Browser
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from dgl_dmns import UniformSampler
from dgl_dmns.diagnostics import Monitor, Sign
from dgl_dmns.report import Run, pictures, save_run, write_report
from dgl_dmns.report.pictures import pictures_of
from dgl_dmns.report.run import comparison, is_better, means, verdict
from dgl_dmns.samplers.registry import make_sampler

EVIL = '<script>alert("x")</script> & <b>'


@pytest.fixture(scope="module")
def sampler():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(60, 6, generator=generator)
    near = (h @ h.t()).topk(6, dim=1).indices
    g = dgl.graph((torch.arange(60).repeat_interleave(6), near.flatten()))
    return make_sampler("dmns", dgl.to_bidirected(g), lambda: h, k=2)


@pytest.fixture(scope="module")
def folder(sampler, tmp_path_factory):
    monitor = Monitor(sampler)
    for epoch in range(2):
        sampler.refresh()
        monitor.log(epoch=epoch, loss=1.0 / (epoch + 1))
    monitor.found.append(Sign(EVIL, 1, EVIL))
    monitor.close()
    return save_run(
        tmp_path_factory.mktemp("run"),
        sampler,
        monitor,
        title=EVIL,
        command=EVIL,
        data={EVIL: EVIL},
        settings={"k": 2, EVIL: EVIL},
        result={EVIL: 0.25, "MRR": float("nan")},
        measured=EVIL,
    )


@pytest.fixture
def sketched(monkeypatch):
    """Draw each picture, but lay none out and write none; the axes by the name of their values."""
    axes = {}

    def sketch(draw, _):
        figure, ax = plt.subplots()
        draw(ax=ax)
        pictures._legend_below(figure, ax)
        axes[ax.get_ylabel()] = ax
        return b"png"

    monkeypatch.setattr(pictures, "_png", sketch)
    yield axes
    plt.close("all")


class Page(HTMLParser):
    """Tags with their attributes, and the text; fails on tags that do not match."""

    EMPTY = frozenset({"meta", "img"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_complete_and_fetches_nothing(folder):
    file = write_report(folder)
    assert file == folder / "report.html"
    page = Page(file.read_text())
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
            assert attributes["alt"]
    assert "://" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", file.read_text())
    headings = "".join(page.text)
    for title in ("Training loss", "Percentile", "Negatives at the end", "One query", "positivity"):
        assert title in headings
    assert "Not drawn" not in headings
    assert headings.count(EVIL[:29]) >= 10
    assert "–" in headings  # the figure that is not a number


def test_each_series_of_the_training_has_a_scale_of_its_own(tmp_path, sampler, sketched):
    history = [{"epoch": e, "loss": 3.0 - e, "mrr": 0.01 * e, "lr": 0.5} for e in (1, 2)]
    save_run(tmp_path, sampler, title="axes", history=[*history, {"epoch": 3, "mrr": 0.05}])
    pictures_of(Run.load(tmp_path))
    loss, mrr, rate = (sketched[name] for name in ("training loss", "validation MRR", "lr"))
    assert {ax.get_xlabel() for ax in (loss, mrr, rate)} == {"epoch"}
    assert loss.get_lines()[0].get_xydata().tolist() == [[1, 2], [2, 1]]
    assert mrr.get_lines()[0].get_xydata().tolist() == [[1, 0.01], [2, 0.02], [3, 0.05]]
    assert rate.get_lines()[0].get_ydata().tolist() == [0.5, 0.5]


def bare(folder, **more):
    """The folder of a run with nothing but its record."""
    record = {"format": "dgl-dmns run 1", "title": "bare", "sampler": "none", **more}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def images_of(page):
    return [attributes["alt"] for tag, attributes in page.tags if tag == "img"]


@pytest.mark.parametrize("failing", ["plot_scores", "plot_query", "plot_positivity"])
@pytest.mark.usefixtures("sketched")
def test_a_picture_that_fails_costs_no_other(folder, failing, monkeypatch):
    whole = images_of(Page(write_report(folder).read_text()))

    def fail(*_, **__):
        raise KeyError("<b>two\nlines")

    monkeypatch.setattr(pictures, failing, fail)
    page = Page(write_report(folder).read_text())
    assert len(images_of(page)) == len(whole) - 1
    assert "".join(page.text).count("Not drawn: KeyError: '<b>two\\nlines'") == 1


@pytest.mark.usefixtures("sketched")
def test_a_series_without_a_number_says_so(sampler, tmp_path):
    history = [{"epoch": 1, "loss": float("nan"), "mrr": float("inf")}]
    page = Page(write_report(save_run(tmp_path, sampler, title="x", history=history)).read_text())
    said = "".join(page.text)
    assert "Not drawn: loss has no finite value" in said
    assert "Not drawn: mrr has no finite value" in said


@pytest.mark.usefixtures("sketched")
def test_what_only_the_paper_asks_for_is_folded_away(folder):
    text = write_report(folder).read_text()
    page, kept, opened = Page(text), [], 0
    for tag, attributes in page.tags:
        opened += tag == "details"
        kept += [opened] if attributes.get("alt") == "Sub-linear positivity" else []
    assert kept == [2]  # in the second of two
    assert text.index("<details>") < text.index("Psi")


@pytest.mark.parametrize(
    ("width", "refreshes", "options"),
    [(1, 1, {}), (6, 1, {"compact_width": 1}), (1, 2, {"k": 1})],
)
@pytest.mark.usefixtures("sketched")
def test_small_runs_have_all_pictures(sampler, tmp_path, width, refreshes, options):
    h = torch.randn(60, width, generator=torch.Generator().manual_seed(1))
    small = make_sampler("dmns", sampler.refresher.embedder.g, lambda: h, **{"k": 2, **options})
    with Monitor(small) as monitor:
        for epoch in range(refreshes):
            small.refresh()
            monitor.log(epoch=epoch, loss=0.5)
    page = Page(write_report(save_run(tmp_path, small, monitor, title="small")).read_text())
    assert {"Training loss", "Percentile", "Scores", "One query"} <= set(images_of(page))
    assert "Not drawn" not in "".join(page.text)


@pytest.mark.usefixtures("sketched")
def test_several_edge_types_have_their_records_and_a_look_at_one(tmp_path):
    users, items = torch.arange(40) % 10, torch.arange(40) % 7
    edges = {("user", name, "item"): (users, items) for name in ("buys", "views")}
    h = {"user": torch.randn(10, 4), "item": torch.randn(7, 4)}
    both = make_sampler("dmns", dgl.heterograph(edges), lambda: h, k=1)
    with Monitor(both) as monitor:
        both.refresh()
    page = Page(write_report(save_run(tmp_path, both, monitor, title="two")).read_text())
    assert images_of(page).count("Percentile") == 2
    said = "".join(page.text)
    assert "by refresh, user:buys:item" in said
    assert "Of the edge type user:buys:item." in said
    save_run(tmp_path, both, title="two", etype="views")
    page = Page(write_report(tmp_path).read_text())
    assert "Of the edge type user:views:item." in "".join(page.text)


def test_the_ten_best_and_worst_test_edges_are_shown_by_name(sampler, tmp_path):
    rows = [(f"<b>n{at}</b>", f"m{at}", at + 0.5) for at in range(30)]
    ranks = pd.DataFrame(rows, columns=["src", "dst", "rank"])
    save_run(tmp_path, sampler, title="ranked", ranks=ranks)
    page = write_report(tmp_path).read_text()
    best, worst = page.partition("<h3>Best</h3>")[2].split("<h3>Worst</h3>")
    assert re.findall("<td>m(\\d+)</td>", best) == [str(at) for at in range(10)]
    assert re.findall("<td>m(\\d+)</td>", worst) == [str(at) for at in range(29, 19, -1)]
    assert "<b>n" not in page
    assert "All 30 are in" in page
    (tmp_path / "ranks.csv").write_text("src,dst\n1,2\n")
    with pytest.raises(ValueError, match="ranks.csv: expected columns of names, and rank"):
        write_report(tmp_path)
    save_run(tmp_path, sampler, title="no ranks")  # in the folder of another run
    assert "Test edges by rank" not in write_report(tmp_path).read_text()


@pytest.mark.usefixtures("sketched")
def test_a_run_ends_well_where_a_look_cannot_be_had(sampler, tmp_path):
    fresh = make_sampler("dmns", sampler.refresher.embedder.g, lambda: torch.randn(60, 6), k=2)
    with (
        Monitor(fresh) as monitor,
        pytest.warns(UserWarning, match="scores.npz and query.npz are left out"),
    ):
        save_run(tmp_path, fresh, monitor, title="never refreshed")
    page = Page(write_report(tmp_path).read_text())
    said = "".join(page.text)
    assert "not been refreshed" in said
    assert "no records of a monitor" in said
    with Monitor(sampler) as monitor:
        sampler.refresh()
        wrong = torch.zeros(3, 6)
        with pytest.warns(UserWarning, match="are left out"):
            save_run(tmp_path, sampler, monitor, title="wrong embeddings", embeddings=wrong)
    assert "Percentile" in images_of(Page(write_report(tmp_path).read_text()))


@pytest.mark.usefixtures("sketched")
def test_a_sampler_without_gaussians_says_so(sampler, tmp_path):
    dynamic = make_sampler("dynamic", sampler.refresher.embedder.g, lambda: torch.randn(60, 6), k=2)
    with Monitor(dynamic) as monitor:
        dynamic.refresh()
    page = Page(write_report(save_run(tmp_path, dynamic, monitor, title="DNS")).read_text())
    assert {"Percentile", "Scores"} <= set(images_of(page))
    assert "Not drawn: it needs level Gaussians" in "".join(page.text)
    assert "Psi" not in "".join(page.text)


def test_values_of_numpy_and_torch_are_kept(sampler, tmp_path):
    save_run(
        tmp_path,
        sampler,
        title="values",
        settings={"k": {("a", "b", "c"): np.int64(5)}, "path": Path("x")},
        result={"MRR": torch.tensor(0.25), "MAP": np.float32(0.5)},
    )
    run = Run.load(tmp_path)
    assert run.result == {"MRR": 0.25, "MAP": 0.5}
    assert run.settings["k"] == {"('a', 'b', 'c')": 5}
    assert run.settings["path"] == "x"


HOSTILE = st.one_of(
    st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=20),
    st.sampled_from([EVIL, "</p><img src=x onerror=alert(1)>", "' onmouseover='x", "javascript:x"]),
    st.sampled_from(['"><svg/onload=x>', "</style><script>", "<!--", "&lt;b&gt;", "]]>"]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_text_of_a_run_becomes_a_tag(data):
    title, sampler, command, name, value, level, etype = (data.draw(HOSTILE) for _ in range(7))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("dgl_dmns.report.page.pictures_of", lambda _: [])
        record = {
            "format": "dgl-dmns run 1",
            "title": title,
            "sampler": sampler,
            "command": command,
            "data": {name: value},
            "settings": {value: [name]},
            "result": {name: value, "n": 0.5},
            "versions": {name: value},
            "signs": [{"name": name, "refresh": value, "message": level}],
        }
        Path(folder, "run.json").write_text(json.dumps(record))
        rows = {"refresh": [1, 1], "etype": [etype, "other"], "level": [level, value]}
        pd.DataFrame({**rows, "score": [0.5, 1.0]}).to_csv(Path(folder, "negatives.csv"))
        text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert tags <= ALLOWED
    for _, attributes in page.tags:
        assert set(attributes) <= ATTRIBUTES
    # All of it is there, as text: HTML knows no difference between the kinds of line ends.
    said = read("".join(page.text))
    assert all(read(words) in said for words in (title, sampler, name, value))


def read(text):
    """Text as a browser reads it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd")


ALLOWED = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "b", "pre"}
ALLOWED |= {"dl", "dt", "dd", "div", "table", "thead", "tbody", "tr", "th", "td", "details"}
ALLOWED |= {"summary", "h3", "section"}
ATTRIBUTES = {"lang", "charset", "name", "content", "http-equiv", "class", "title"}


def test_names_with_formulas_are_drawn_as_words(folder, tmp_path):
    for file in folder.iterdir():
        if file.suffix != ".html":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    metrics = pd.read_csv(tmp_path / "metrics.csv").rename(columns={"loss": "$\\frac{$"})
    metrics.to_csv(tmp_path / "metrics.csv", index=False)
    page = Page(write_report(tmp_path).read_text())
    assert "$\\frac{$" in images_of(page)
    assert "Not drawn" not in "".join(page.text)


def test_a_sampler_without_an_encoder(sampler, tmp_path):
    uniform = UniformSampler(sampler.refresher.embedder.g, k=2)
    save_run(tmp_path, uniform, title="uniform", embeddings=torch.randn(60, 4))
    text = write_report(tmp_path, tmp_path / "sub" / "page.html").read_text()
    assert "were not watched" in text
    assert images_of(Page(text)) == ["Scores"]
    assert images_of(Page(write_report(bare(tmp_path / "sub")).read_text())) == []


def test_files_of_an_earlier_run_are_replaced(sampler, folder, tmp_path):
    (tmp_path / "negatives.csv").write_text("old")
    save_run(tmp_path, sampler, title="again")
    assert Run.load(tmp_path).negatives is None


RECORD = '{"format": "dgl-dmns run 1", "title": "x"'


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "{", "run.json: Expecting"),
        ("run.json", '{"format": "other"}', "expected the format"),
        ("run.json", RECORD + "}", "sampler"),
        ("run.json", RECORD + ', "sampler": 5}', "sampler: expected str"),
        ("run.json", RECORD + ', "data": [1]}', "data: expected dict"),
        ("run.json", RECORD + ', "signs": [{"name": "x"}]}', "signs: expected name, refresh"),
        ("run.json", RECORD + ', "signs": "x"}', "signs: expected name, refresh"),
        ("run.json", RECORD + ', "unknown": 1}', "unknown"),
        ("run.json", RECORD + ', "versions": null}', "versions: expected dict"),
        ("scores.npz", "x", "scores.npz"),
        ("negatives.csv", "", "negatives.csv"),
        ("negatives.csv", "refresh,level\n1,all\n", "negatives.csv: expected columns"),
        ("negatives.csv", "refresh,etype,level\nx,a:b:c,all\n", "negatives.csv: expected columns"),
    ],
)
def test_incomplete_runs(tmp_path, file, text, message):
    (bare(tmp_path) / file).write_text(text)
    with pytest.raises(ValueError, match=f"not a complete run .*{message}") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"with a file run.json; save_run and dgl-dmns"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="out: expected the name of a file, got the folder"):
        write_report(folder, tmp_path)


@pytest.mark.usefixtures("sketched")
def test_few_refreshes_tell_nothing(sampler, tmp_path):
    with Monitor(sampler) as monitor:
        sampler.refresh()
    for last, said in ((2, "early to tell"), (5, "None seen in 5 refreshes")):
        rows = monitor.frame().assign(refresh=last)
        rows.to_csv(bare(tmp_path) / "negatives.csv", index=False)
        assert said in write_report(tmp_path).read_text()


# ---- beside uniform negatives, and a bench ------------------------------------------------------

RUNS = pd.DataFrame(
    {"sampler": ["uniform", "dmns"] * 3, "seed": [0, 0, 1, 1, 2, 2], "epochs": [10] * 6}
).assign(MRR=[0.2, 0.3, 0.4, 0.5, 0.3, 0.6])


def test_a_verdict_says_which_is_better():
    assert is_better({"MRR": 0.4}, {"MRR": 0.3})
    assert not is_better({"MRR": 0.3}, {"MRR": 0.3})
    assert "0.400 here, 0.300 with uniform negatives: better" in verdict({"MRR": 0.4}, {"MRR": 0.3})
    worse = verdict({"Hits@50": 0.9, "MRR": 0.29}, {"Hits@50": 0.1, "MRR": 0.37})
    assert "MRR 0.290 here, 0.370 with uniform negatives: not better" in worse
    assert "use uniform" in worse
    assert verdict({"AUC": 0.9}, {"AUC": 0.8}).startswith("AUC 0.900")
    with pytest.raises(ValueError, match="baseline"):
        verdict({"AUC": 0.9}, {"MRR": 0.8})


def test_the_table_has_what_both_have():
    table = comparison({"MRR": 0.4, "AUC": 0.9}, {"MRR": 0.3})
    assert table.to_numpy().tolist() == [["this sampler", "0.400"], ["uniform", "0.300"]]


def test_differences_are_paired_by_seed():
    found = means(RUNS).set_index("sampler")
    # 0.1, 0.1 and 0.3: mean 1 / 6, standard error 0.2 / 3
    assert found.at["dmns", "MRR - uniform"] == "0.167 (0.067)"
    assert found.at["uniform", "MRR - uniform"] == ""
    assert found.at["uniform", "MRR"] == "0.300 (0.058)"
    assert "MRR - uniform" not in means(RUNS[RUNS["sampler"] == "dmns"]).columns


def bench(folder, runs, facts):
    folder.mkdir()
    runs.to_csv(folder / "bench.csv", index=False)
    (folder / "bench.json").write_text(json.dumps(facts))
    return folder


def test_the_page_of_a_bench(tmp_path, sketched):
    runs = RUNS.replace("dmns", "<b>mine</b>")
    facts = {"command": "dgl-dmns bench <x>", "data": "cora", "measured": "among all"}
    page = write_report(bench(tmp_path / "b", runs, facts)).read_text()
    assert "0.167 (0.067)" in page
    dots, *_ = sketched[""].get_lines()
    assert dots.get_xydata().tolist() == [[0.2, 0], [0.4, 0], [0.3, 0]]
    assert "<b>mine" not in page
    assert "dgl-dmns bench &lt;x&gt;" in page
    assert "among all" in page


@pytest.mark.parametrize(
    ("runs", "facts"),
    [
        (RUNS.drop(columns="seed"), {}),
        (RUNS[:0], {}),
        (RUNS.assign(MRR="x"), {}),
        (RUNS, [1]),
        (RUNS, {"versions": 3}),
    ],
)
def test_a_bench_that_is_not_one_is_one_line(tmp_path, runs, facts):
    with pytest.raises(ValueError, match="not a complete bench") as error:
        write_report(bench(tmp_path / "b", runs, facts))
    assert "\n" not in str(error.value)


# ---- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and chromedriver (Debian: apt-get install chromium-driver)")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def long_page(sampler, tmp_path_factory):
    """A page with words, numbers and a command that are too long for a phone."""
    with Monitor(sampler) as monitor:
        sampler.refresh()
    word = "a" * 120
    monitor.found.append(Sign(word, 1, word))
    run = save_run(
        tmp_path_factory.mktemp("long"),
        sampler,
        monitor,
        title=word,
        command=f"dgl-dmns train --edges {word}.csv --out {word}",
        data={word: word},
        settings={"k": 2, word: word},
        result={"MRR": 0.25, word: 12345.0},
        measured=word,
    )
    return write_report(run)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser, folder, long_page, width):
    for file in (write_report(folder), long_page):
        browser.open(file, width)
        assert browser.run("return document.title") in (EVIL, "a" * 120)
        wide, seen = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= seen == width  # nothing to scroll sideways
        loaded = "return [...document.images].map(i => i.complete && i.naturalWidth > 300)"
        assert set(browser.run(loaded)) == {True}
        shown = """return [...document.querySelectorAll("p, dd, dt, h1, h2, img, pre")]
            .filter(e => e.getBoundingClientRect().right > innerWidth)
            .map(e => e.outerHTML.slice(0, 80))"""
        assert browser.run(shown) == []
        assert browser.complaints() == []


def test_the_table_fits_a_desktop(browser, folder):
    browser.open(write_report(folder), 1280)
    sizes = "const e = document.querySelector('.wide'); return [e.scrollWidth, e.clientWidth]"
    table, room = browser.run(sizes)
    assert table == room
