"""The training of the command line, of any task, with early stopping.

Everything random of an epoch is seeded by the seed and the epoch's number, and all that lasts is in
a checkpoint, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dgl_dmns.cli.edges import NamedGraph
from dgl_dmns.cli.options import naming_options, sampler_of_options
from dgl_dmns.cli.querytasks import KnowledgeTask, ShopTask
from dgl_dmns.cli.records import Records
from dgl_dmns.cli.tasks import GraphTask, Settings, Task, Tested
from dgl_dmns.core import fit_seed
from dgl_dmns.diagnostics import Monitor
from dgl_dmns.files import read_state, write_state
from dgl_dmns.losses import bce_loss
from dgl_dmns.samplers import RefreshingSampler
from dgl_dmns.seeds import seed_all

__all__ = ["Run", "Settings", "read_checkpoint", "train"]

_FORMAT = "dgl-dmns training 4"


def _task(data: NamedGraph | Records, settings: Settings) -> Task:
    if isinstance(data, NamedGraph):
        return GraphTask(data, settings)
    return (ShopTask if data.kind == "bipartite" else KnowledgeTask)(data, settings)


class Run:
    """Model, optimizer, sampler and loader of a run; what a checkpoint holds, and what it came to.

    ``h`` are embeddings of the best epoch, and ``tested`` is what the test edges came to, once it
    has finished. ``monitor`` is None for a sampler that follows no encoder, and
    ``history`` has loss, the watched metric and seconds of each epoch.
    """

    def __init__(self, data: NamedGraph | Records, settings: Settings) -> None:
        self.settings = settings
        self.task = task = _task(data, settings)
        self.optimizer = torch.optim.Adam(task.model.parameters(), lr=settings.lr)
        self.sampler: Any = sampler_of_options(
            settings.sampler,
            task.g,
            task.model,
            settings.k,
            fit_seed(settings.seed),
            settings.options,
            settings.loss,
            task.own,
        )
        self.monitor: Monitor | None = None
        if isinstance(self.sampler, RefreshingSampler):
            self.monitor = Monitor(self.sampler, held_out=task.held_out)
        self.batches = -(-task.num_edges // settings.batch_size)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best = {"value": -1.0, "epoch": 0}
        self.best_state = copy.deepcopy(task.model.state_dict())
        self.h: Any = None
        self.tested: Tested

    def start(self) -> None:
        """The first table; a refresh after each epoch follows."""
        if self.monitor is not None and self.sampler.version == 0:
            with naming_options(self.settings.sampler, self.settings.options):
                self.sampler.refresh()

    def run_epoch(self, bar: Any) -> float:
        """One pass over the training edges, then a refresh; the mean loss."""
        task = self.task
        task.model.train()
        losses = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Dataloader CPU affinity")
            seed_all(self.settings.seed, self.epoch + 1)
            # A new one for each epoch: DGL's shuffles its edges further from epoch to epoch.
            for input_nodes, pos_graph, neg_graph, blocks in task.loader(self.sampler):
                h = task.forward(input_nodes, blocks)
                loss = self._loss(h, pos_graph, neg_graph)
                if self.settings.regularization:
                    loss = loss + self.settings.regularization * task.model.squares(h, pos_graph)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                losses.append(float(loss.detach()))
                bar.update()
        if self.monitor is not None:
            self.sampler.refresh()
        self.epoch += 1
        return sum(losses) / len(losses)

    def _loss(self, h: Any, pos_graph: Any, neg_graph: Any) -> Tensor:
        if self.settings.loss == "bce":
            scores = self.task.model.scores
            positive, negative = (scores(h, graph) for graph in (pos_graph, neg_graph))
            return bce_loss(positive, negative.view(len(positive), -1), balanced=True)
        loss: Tensor = self.sampler.loss(
            h,
            pos_graph,
            neg_graph,
            share="batch" if self.settings.loss == "shared" else "edge",
            scorer=self.task.own.get("scorer"),
            filtered=self.settings.known == "leave-out",
            discount=self.settings.discount,
        )
        return loss

    @torch.no_grad()
    def embed(self) -> Any:
        """Embeddings of all nodes."""
        g = self.task.g
        return self.task.model.eval()(g, g.ndata["feat"])

    def validate(self, loss: float, seconds: float) -> float:
        """The watched metric on validation edges; kept, with the weights if it is the best."""
        watched, value = self.task.watched, self.task.validate(self.embed())
        self.history.append({"epoch": self.epoch, "loss": loss, watched: value, "seconds": seconds})
        if self.monitor is not None:
            self.monitor.log(watch=watched, **self.history[-1])
        if value > self.best["value"]:
            self.best = {"value": value, "epoch": self.epoch}
            self.best_state = copy.deepcopy(self.task.model.state_dict())
        return value

    def finish(self) -> None:
        """Test the weights of the best epoch."""
        self.task.model.load_state_dict(self.best_state)
        self.h = self.embed()
        self.tested = self.task.test(self.h)

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
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict() if self.monitor is not None else None,
            "monitor": self.monitor.state_dict() if self.monitor is not None else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was made, which is of this run."""
        self.epoch, self.best = state["epoch"], state["best"]
        self.history, self.best_state = state["history"], state["best_state"]
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.monitor is not None:
            self.sampler.load_state_dict(state["sampler"])
            self.monitor.load_state_dict(state["monitor"])


def train(
    data: NamedGraph | Records,
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    identity: Mapping[str, str] | None = None,
    state: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a link predictor and test it.

    Args:
        data: a graph, or rows of users and items or of triples.
        settings: what decides the run.
        checkpoint: file that is written after every epoch, if any.
        identity: what the checkpoint belongs to beside the settings, ``data.fingerprints()``.
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
            value = run.validate(loss, time.perf_counter() - started)
            now = {"loss": f"{loss:.3f}", run.task.watched: f"{value:.3f}"}
            bar.set_postfix({"epoch": run.epoch, **now})
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
