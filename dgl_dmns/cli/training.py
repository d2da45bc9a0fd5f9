"""The training loop of the command line: minibatch link prediction with early stopping.

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
from dgl_dmns.checkpoint import read_state, write_state
from dgl_dmns.cli.model import SAGE, edge_score
from dgl_dmns.cli.samplers import make_sampler, option_error
from dgl_dmns.data import EdgeSplit, GraphData, split_pairs
from dgl_dmns.diagnostics import Monitor
from dgl_dmns.evaluate import candidate_ranking, full_ranking, ranking_metrics
from dgl_dmns.losses import bce_loss
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import fit_seed, seed_all
from dgl_dmns.shared_softmax import Share

__all__ = ["Outcome", "Settings", "read_checkpoint", "train"]

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


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        h: embeddings of the best epoch, shape [N, D].
        metrics: of the test edges, by name.
        measured: how they were measured, in words.
        sampler: the sampler after the last refresh.
        monitor: its records; None for a sampler that follows no encoder.
        epochs: number of epochs that were run.
        history: loss, validation MRR and seconds of each of them.
    """

    h: Tensor
    metrics: dict[str, float]
    measured: str
    sampler: Any
    monitor: Monitor | None
    epochs: int
    history: list[dict[str, float]]


class _Trainer:
    """Model, optimizer, sampler and loader of a run, and what a checkpoint holds of them."""

    def __init__(self, data: GraphData, split: EdgeSplit, settings: Settings) -> None:
        self.data, self.split, self.settings = data, split, settings
        self.known = data.csr()
        src, dst = split.message_edges()
        self.g = _dgl.graph((src, dst), num_nodes=data.num_nodes)
        width = data.features.shape[1]
        own = torch.arange(data.num_nodes)
        self.g.ndata["feat"] = nn.functional.normalize(data.features, dim=1) if width else own
        seed_all(settings.seed, 0)
        self.model = SAGE(data.num_nodes, width, settings.hidden, settings.layers)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        seed = fit_seed(settings.seed)
        self.sampler = make_sampler(
            settings.sampler,
            self.g,
            self.model,
            settings.k,
            seed,
            settings.options,
            settings.loss,
        )
        key, twin = src * data.num_nodes + dst, dst * data.num_nodes + src
        self.reverse = torch.searchsorted(key, twin)  # edges are ordered by (src, dst)
        self.batches = -(-len(src) // settings.batch_size)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best = {"mrr": -1.0, "epoch": 0}
        self.best_state = copy.deepcopy(self.model.state_dict())
        self.monitor: Monitor | None = None
        if isinstance(self.sampler, RefreshingSampler):
            self.monitor = Monitor(self.sampler, held_out=split.val)

    def _loader(self) -> Any:
        """A loader for one epoch: DGL's shuffles its edges further from epoch to epoch."""
        settings = self.settings
        blocks: Any = _dgl.dataloading.NeighborSampler(
            [settings.fanout or -1] * settings.layers, prefetch_node_feats=["feat"]
        )
        return _dgl.dataloading.DataLoader(
            self.g,
            torch.arange(self.g.num_edges()),
            _dgl.dataloading.as_edge_prediction_sampler(
                blocks,
                exclude="reverse_id",
                reverse_eids=self.reverse,
                negative_sampler=self.sampler,
            ),
            batch_size=settings.batch_size,
            shuffle=True,
        )

    def start(self) -> None:
        """The first table, and a refresh after each epoch from now on."""
        if isinstance(self.sampler, RefreshingSampler) and self.sampler.version == 0:
            try:
                self.sampler.refresh()
            except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
                raise option_error(self.settings.sampler, self.settings.options, error) from error

    def run_epoch(self, bar: Any) -> float:
        """One pass over the training edges; the mean loss."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Dataloader CPU affinity")
            loss = self._pass_over_edges(bar)
        if isinstance(self.sampler, RefreshingSampler):
            self.sampler.refresh()
        self.epoch += 1
        return loss

    def _pass_over_edges(self, bar: Any) -> float:
        self.model.train()
        losses = []
        seed_all(self.settings.seed, self.epoch + 1)
        for _, pos_graph, neg_graph, blocks in self._loader():
            h = self.model(blocks, blocks[0].srcdata["feat"])
            loss = self._loss(h, pos_graph, neg_graph)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            bar.update()
        return sum(losses) / len(losses)

    def _loss(self, h: Tensor, pos_graph: Any, neg_graph: Any) -> Tensor:
        if self.settings.loss != "bce":
            share: Share = "batch" if self.settings.loss == "shared" else "edge"
            of_pools: Tensor = self.sampler.loss(h, pos_graph, neg_graph, share=share)
            return of_pools
        positive, negative = edge_score(pos_graph, h), edge_score(neg_graph, h)
        return bce_loss(positive, negative.view(len(positive), -1), balanced=True)

    @torch.no_grad()
    def embed(self) -> Tensor:
        """Embeddings of all nodes, shape [N, D]."""
        self.model.eval()
        h: Tensor = self.model(self.g, self.g.ndata["feat"])
        return h

    def validate(self, loss: float, seconds: float) -> float:
        """The validation MRR; kept, with the weights if it is the best."""
        mrr = self.rank(self.embed(), self.split.val)["MRR"]
        self.history.append({"epoch": self.epoch, "loss": loss, "mrr": mrr, "seconds": seconds})
        if self.monitor is not None:
            self.monitor.log(watch="mrr", **self.history[-1])
        if mrr > self.best["mrr"]:
            self.best = {"mrr": mrr, "epoch": self.epoch}
            self.best_state = copy.deepcopy(self.model.state_dict())
        return mrr

    def rank(self, h: Tensor, pairs: Tensor) -> dict[str, float]:
        """Metrics of pairs, each ranked among all nodes, known edges left out."""
        ranks = full_ranking(h, pairs[:, :_MOST_PAIRS], self.known)
        return ranking_metrics(ranks, hits=(10, 50))

    def test(self, h: Tensor) -> dict[str, float]:
        """Metrics of the test edges."""
        full = self.rank(h, self.split.test)
        pairs = self.split.test
        generator = torch.Generator().manual_seed(fit_seed(self.settings.seed))
        nine = torch.randint(0, self.data.num_nodes, (pairs.shape[1], 9), generator=generator)
        candidates = torch.cat([pairs[1].unsqueeze(1), nine], dim=1)
        among = ranking_metrics(candidate_ranking(h, pairs[0], candidates))
        return {
            "MRR": full["MRR"],
            "Hits@10": full["Hits@10"],
            "Hits@50": full["Hits@50"],
            "MAP@9": among["MRR"],
        }

    def how_measured(self) -> str:
        """What the test metrics are, and what a random order would have."""
        nodes, pairs = self.data.num_nodes, self.split.test.shape[1]
        which = f"the {pairs}" if pairs <= _MOST_PAIRS else f"{_MOST_PAIRS} of the {pairs}"
        chance = float((1 / torch.arange(1, nodes + 1, dtype=torch.float64)).mean())
        return (
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
) -> Outcome:
    """Train a link predictor and test it.

    Args:
        data: the graph; 5 % of its pairs are held out for validation, 10 % for the test.
        settings: what decides the run.
        checkpoint: file that is written after every epoch, if any; see `dgl_dmns.checkpoint`.
        identity: what the checkpoint belongs to beside the settings, by name; see
            `dgl_dmns.cli.identity`.
        state: where to go on, of `read_checkpoint`.
        quiet: no progress bar.

    Returns:
        What it came to, with the weights of the epoch of the best validation MRR.

    Raises:
        ValueError: if the graph has too few edges, or an option does not fit.
    """
    split = split_pairs(data, seed=settings.seed)
    trainer = _Trainer(data, split, settings)
    if state is not None:
        trainer.load(state)
    trainer.start()
    with tqdm(
        total=settings.epochs * trainer.batches,
        initial=trainer.epoch * trainer.batches,
        desc=settings.sampler,
        unit="batch",
        file=sys.stderr,
        disable=quiet,
    ) as bar:
        while not trainer.finished():
            started = time.perf_counter()
            loss = trainer.run_epoch(bar)
            seconds = time.perf_counter() - started
            mrr = trainer.validate(loss, seconds)
            bar.set_postfix(epoch=trainer.epoch, loss=f"{loss:.3f}", mrr=f"{mrr:.3f}")
            if checkpoint is not None:
                write_state(checkpoint, {**trainer.state(), "identity": dict(identity or {})})
    trainer.model.load_state_dict(trainer.best_state)
    h = trainer.embed()
    return Outcome(
        h,
        trainer.test(h),
        trainer.how_measured(),
        trainer.sampler,
        trainer.monitor,
        trainer.epoch,
        trainer.history,
    )


def read_checkpoint(
    file: Path, settings: Settings, identity: Mapping[str, str]
) -> dict[str, Any] | None:
    """The state in a checkpoint of this very run; None if there is no file.

    Raises:
        ValueError: for a file of another kind or version, of other edges, ids or features, or with
            settings that differ, other than the number of epochs and the patience.
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
    was, now = (
        {name: value for name, value in all_of.items() if name not in ("epochs", "patience")}
        for all_of in (state["settings"], asdict(settings))
    )
    differ = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if differ:
        was, now = ({name: side.get(name) for name in differ} for side in (was, now))
        raise ValueError(
            f"--resume: the checkpoint was made with {was}, this run has {now}; use the same "
            "arguments, or another --out"
        )
    return state
