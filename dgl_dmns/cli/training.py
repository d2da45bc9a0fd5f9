"""The training of the command line: GraphSAGE with an inner product, and early stopping.

Everything random of an epoch is seeded by the seed and the epoch's number, and all that lasts is in
a checkpoint, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dgl_dmns._compat import require_dgl
from dgl_dmns.cli.options import naming_options, sampler_of_options
from dgl_dmns.core import fit_seed
from dgl_dmns.data import GraphData, split_pairs
from dgl_dmns.diagnostics import Monitor
from dgl_dmns.evaluate import candidate_ranking, full_ranking, ranking_metrics
from dgl_dmns.files import read_state, write_state
from dgl_dmns.losses import bce_loss
from dgl_dmns.models import GraphSAGE
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import seed_all
from dgl_dmns.shared_softmax import Share

__all__ = ["Run", "Settings", "read_checkpoint", "train"]

_dgl: Any = require_dgl()
_FORMAT = "dgl-dmns training 3"
_MOST_PAIRS = 2000  # validation and test pairs that are ranked among all nodes


@dataclass(frozen=True)
class Settings:
    """What decides a run; see ``dgl-dmns train --help``."""

    sampler: str = "dmns"
    loss: str = "shared"
    k: int = 1
    epochs: int = 200
    patience: int = 30
    batch_size: int = 2048
    lr: float = 3e-3
    hidden: int = 64
    layers: int = 2
    fanout: int = 0
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class Run:
    """Model, optimizer, sampler and loader of a run; what a checkpoint holds, and what it came to.

    ``h`` [N, D] are embeddings of the best epoch, ``metrics`` those of the test edges (``measured``
    says how), once it has finished. ``monitor`` is None for a sampler that follows no encoder, and
    ``history`` has loss, validation MRR and seconds of each epoch.
    """

    def __init__(self, data: GraphData, settings: Settings) -> None:
        self.data, self.settings = data, settings
        self.split = split_pairs(data, seed=settings.seed)
        self.known = data.csr()
        src, dst = self.split.message_edges()
        self.g = _dgl.graph((src, dst), num_nodes=data.num_nodes)
        width = data.features.shape[1]
        own = torch.arange(data.num_nodes)
        self.g.ndata["feat"] = nn.functional.normalize(data.features, dim=1) if width else own
        seed_all(settings.seed, 0)
        self.model = GraphSAGE(data.num_nodes, settings.hidden, settings.layers, features=width)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        which, options, loss = settings.sampler, settings.options, settings.loss
        seed = fit_seed(settings.seed)
        self.sampler: Any = sampler_of_options(
            which, self.g, self.model, settings.k, seed, options, loss
        )
        self.monitor: Monitor | None = None
        if isinstance(self.sampler, RefreshingSampler):
            self.monitor = Monitor(self.sampler, held_out=self.split.val)
        key, twin = src * data.num_nodes + dst, dst * data.num_nodes + src
        self.reverse = torch.searchsorted(key, twin)  # edges are ordered by (src, dst)
        self.batches = -(-len(src) // settings.batch_size)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best = {"mrr": -1.0, "epoch": 0}
        self.best_state = copy.deepcopy(self.model.state_dict())
        self.h = torch.empty(0)
        self.metrics: dict[str, float] = {}
        self.measured = ""

    def start(self) -> None:
        """The first table; a refresh after each epoch follows."""
        if self.monitor is not None and self.sampler.version == 0:
            with naming_options(self.settings.sampler, self.settings.options):
                self.sampler.refresh()

    def _loader(self) -> Any:
        """A loader for one epoch: DGL's shuffles its edges further from epoch to epoch."""
        settings, loading = self.settings, _dgl.dataloading
        blocks: Any = loading.NeighborSampler(
            [settings.fanout or -1] * settings.layers, prefetch_node_feats=["feat"]
        )
        sampler = loading.as_edge_prediction_sampler(
            blocks, exclude="reverse_id", reverse_eids=self.reverse, negative_sampler=self.sampler
        )
        edges = torch.arange(self.g.num_edges())
        return loading.DataLoader(
            self.g, edges, sampler, batch_size=settings.batch_size, shuffle=True
        )

    def run_epoch(self, bar: Any) -> float:
        """One pass over the training edges, then a refresh; the mean loss."""
        self.model.train()
        losses = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Dataloader CPU affinity")
            seed_all(self.settings.seed, self.epoch + 1)
            for _, pos_graph, neg_graph, blocks in self._loader():
                h = self.model(blocks, blocks[0].srcdata["feat"])
                loss = self._loss(h, pos_graph, neg_graph)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                losses.append(float(loss.detach()))
                bar.update()
        if self.monitor is not None:
            self.sampler.refresh()
        self.epoch += 1
        return sum(losses) / len(losses)

    def _loss(self, h: Tensor, pos_graph: Any, neg_graph: Any) -> Tensor:
        if self.settings.loss == "bce":
            ends = (graph.edges() for graph in (pos_graph, neg_graph))
            positive, negative = ((h[src] * h[dst]).sum(-1) for src, dst in ends)
            return bce_loss(positive, negative.view(len(positive), -1), balanced=True)
        share: Share = "batch" if self.settings.loss == "shared" else "edge"
        loss: Tensor = self.sampler.loss(h, pos_graph, neg_graph, share=share)
        return loss

    @torch.no_grad()
    def embed(self) -> Tensor:
        """Embeddings of all nodes, shape [N, D]."""
        self.model.eval()
        h: Tensor = self.model(self.g, self.g.ndata["feat"])
        return h

    def validate(self, loss: float, seconds: float) -> float:
        """The validation MRR; kept, with the weights if it is the best."""
        mrr = self._rank(self.embed(), self.split.val)["MRR"]
        self.history.append({"epoch": self.epoch, "loss": loss, "mrr": mrr, "seconds": seconds})
        if self.monitor is not None:
            self.monitor.log(watch="mrr", **self.history[-1])
        if mrr > self.best["mrr"]:
            self.best = {"mrr": mrr, "epoch": self.epoch}
            self.best_state = copy.deepcopy(self.model.state_dict())
        return mrr

    def _rank(self, h: Tensor, pairs: Tensor) -> dict[str, float]:
        """Metrics of pairs, each ranked among all nodes, known edges left out."""
        ranks = full_ranking(h, pairs[:, :_MOST_PAIRS], self.known)
        return ranking_metrics(ranks, hits=(10, 50))

    def finish(self) -> None:
        """Test the weights of the best epoch."""
        self.model.load_state_dict(self.best_state)
        self.h = self.embed()
        nodes, pairs = self.data.num_nodes, self.split.test
        full, count = self._rank(self.h, pairs), pairs.shape[1]
        generator = torch.Generator().manual_seed(fit_seed(self.settings.seed))
        nine = torch.randint(0, nodes, (count, 9), generator=generator)
        candidates = torch.cat([pairs[1].unsqueeze(1), nine], dim=1)
        among = ranking_metrics(candidate_ranking(self.h, pairs[0], candidates))
        self.metrics = {name: full[name] for name in ("MRR", "Hits@10", "Hits@50")}
        self.metrics["MAP@9"] = among["MRR"]
        which = f"the {count}" if count <= _MOST_PAIRS else f"{_MOST_PAIRS} of the {count}"
        chance = float((1 / torch.arange(1, nodes + 1, dtype=torch.float64)).mean())
        self.measured = (
            f"MRR and Hits: the destination of {which} test edges ranked among all {nodes} nodes, "
            f"known edges left out; a random order would have an MRR of {chance:.2g}. MAP@9: "
            "ranked among nine uniform nodes; a random order would have 0.29."
        )

    def finished(self) -> bool:
        """Whether the epochs or the patience are used up."""
        waited = self.epoch - self.best["epoch"]
        return self.epoch >= self.settings.epochs or waited >= self.settings.patience

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "format": _FORMAT,
            "settings": asdict(self.settings),
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
            "best_state": self.best_state,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict() if self.monitor is not None else None,
            "monitor": self.monitor.state_dict() if self.monitor is not None else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was made, which is of this run."""
        self.epoch, self.best = state["epoch"], state["best"]
        self.history, self.best_state = state["history"], state["best_state"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.monitor is not None:
            self.sampler.load_state_dict(state["sampler"])
            self.monitor.load_state_dict(state["monitor"])


def train(
    data: GraphData,
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    identity: Mapping[str, str] | None = None,
    state: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a link predictor and test it; 5 % of the pairs are for validation, 10 % for the test.

    Args:
        data: the graph.
        settings: what decides the run.
        checkpoint: file that is written after every epoch, if any.
        identity: what the checkpoint belongs to beside the settings; see `NamedGraph.fingerprints`.
        state: where to go on, of `read_checkpoint`.
        quiet: no progress bar.
    """
    run = Run(data, settings)
    if state is not None:
        run.load(state)
    run.start()
    with tqdm(
        total=settings.epochs * run.batches,
        initial=run.epoch * run.batches,
        desc=settings.sampler,
        unit="batch",
        file=sys.stderr,
        disable=quiet,
    ) as bar:
        while not run.finished():
            started = time.perf_counter()
            loss = run.run_epoch(bar)
            mrr = run.validate(loss, time.perf_counter() - started)
            bar.set_postfix(epoch=run.epoch, loss=f"{loss:.3f}", mrr=f"{mrr:.3f}")
            if checkpoint is not None:
                write_state(checkpoint, {**run.state(), "identity": dict(identity or {})})
    run.finish()
    return run


def read_checkpoint(
    file: Path, settings: Settings, identity: Mapping[str, str]
) -> dict[str, Any] | None:
    """The state in a checkpoint of this very run; None if there is no file.

    A ValueError for a file of another kind or version, of other data, or with settings that differ
    (but epochs and patience).
    """
    if not file.is_file():
        return None
    try:
        state = read_state(file)
        if state.get("format") != _FORMAT:
            raise ValueError(f"its format is {state.get('format')!r}, expected {_FORMAT!r}")
    except ValueError as error:
        raise ValueError(
            f"--resume: {file} is not a checkpoint of this version ({error}); name another --out "
            "to start anew"
        ) from error
    of = state["identity"]
    others = [name for name, value in identity.items() if of.get(name) != value]
    if others:
        raise ValueError(
            f"--resume: {file} is of a run with other {', '.join(others)}; give the files of that "
            "run, or another --out"
        )
    was, now = state["settings"], asdict(settings)
    names = sorted((was.keys() | now.keys()) - {"epochs", "patience"})
    differ = [name for name in names if was.get(name) != now.get(name)]
    if differ:
        before, here = ({name: side.get(name) for name in differ} for side in (was, now))
        raise ValueError(
            f"--resume: the checkpoint was made with {before}, this run has {here}; use the same "
            "arguments, or another --out"
        )
    return state
