"""What trainers do together: those of a distributed graph, or ranks that share one table.

They do it at a refresh, and where a shared table is made or loaded. That is a few pieces of work
that each trainer does alone. After each piece they tell each other what came of it: their results,
or that one of them could not do it. Then all of them raise one error, and none waits for another. A
trainer that has ended closes its connections, which the others notice at the next piece.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from dgl_dmns._compat import require_dgl
from dgl_dmns.core import SHARED, CandidateTable, Folder, KnownEdges, Portion, Rule
from dgl_dmns.messages import first_line

__all__ = ["RanksOfMachine", "Trainers", "agreed", "trainers_of"]

Made = TypeVar("Made")


class Trainers:
    """The trainers of a run, all of which refresh after the same step.

    They talk by ``torch.distributed``, in a gloo group.

    Args:
        apart: whether that is a group of their own, for a thread beside the training.

    Attributes:
        rank: of this trainer.
        count: how many there are.

    Raises:
        RuntimeError: if there are several, and ``torch.distributed`` was not initialised.
    """

    def __init__(self, *, apart: bool = False) -> None:
        started = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if started else 0
        self.count = distributed.get_world_size() if started else 1
        self._group: Any = None
        self._pieces = 0  # of work so far
        self._told: Exception | None = None  # the last error that all of them know
        several = 1 if started else require_dgl().distributed.role.get_num_trainers()
        if several > 1:
            raise RuntimeError(
                f"g: {several} trainers share this graph, and have to agree on a diffusion model; "
                "call torch.distributed.init_process_group('gloo') on each of them before the "
                "sampler is made"
            )
        if started and (apart or distributed.get_backend() != "gloo"):
            self._group = distributed.new_group(backend="gloo")

    def each(self, work: Callable[[], Made]) -> list[Made]:
        """Do a piece of work on each trainer, which may have such pieces in it.

        Args:
            work: what to do; it returns what pickle takes.

        Returns:
            What it returned on each of them, in order of rank.

        Raises:
            RuntimeError: on all trainers, if one could not do it, or has ended.
            Exception: what ``work`` has raised, if that is the same on all of them.
        """
        if self.count == 1:
            return [work()]
        error, made = None, None
        try:
            made = work()
        except Exception as raised:
            if raised is self._told:  # by a piece of this one, where the others have heard of it
                raise
            error = raised
        try:
            return self._exchanged(error, made)
        except Exception as raised:
            self._told = raised
            raise

    def _exchanged(self, error: Exception | None, made: Any) -> list[Any]:
        """What a piece of work returned on each of them, if none of them has an error."""
        said = None if error is None else first_line(error)
        self._pieces += 1
        found: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(found, (self._pieces, said, made), group=self._group)
        except Exception as gone:
            raise RuntimeError(
                f"refresh: another trainer has ended, or does not answer ({first_line(gone)}); end "
                "this run, look at the first error that any trainer has printed, and start again "
                "from a checkpoint"
            ) from (error or gone)
        pieces = [one for one, _, _ in found]
        if len(set(pieces)) > 1:
            raise RuntimeError(
                f"refresh: trainers have come apart (pieces of work so far: {pieces}); make "
                "samplers in one order, and refresh on all trainers after the same step"
            ) from error
        failed = {rank: said for rank, (_, said, _) in enumerate(found) if said is not None}
        if failed:
            rank, said = next(iter(failed.items()))
            if error is not None and list(failed.values()) == [said] * self.count:
                raise error
            raise RuntimeError(
                f"refresh: {len(failed)} of {self.count} trainers could not make it, trainer "
                f"{rank} for one ({said}); no trainer has changed its tables, the last ones stay "
                "in use"
            ) from error
        return [one for _, _, one in found]

    def agree(self, work: Callable[[], Made]) -> Made:
        """The same for work whose result is no business of the others; returns the own one."""
        made: list[Made] = []
        self.each(lambda: made.append(work()))
        return made[0]


class RanksOfMachine(Trainers):
    """The ranks of one machine that share a table, each of which fills some of its blocks.

    Raises:
        RuntimeError: if ``torch.distributed`` was not initialised.
    """

    def __init__(self) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise RuntimeError(
                "one_table: there are no ranks to share a table; call torch.distributed."
                "init_process_group on each rank before the sampler is made, or leave it out"
            )
        super().__init__()
        hosts = self.each(platform.node)
        for host in dict.fromkeys(hosts):  # all ranks make all groups
            ranks = [rank for rank, one in enumerate(hosts) if one == host]
            group = distributed.new_group(ranks, backend="gloo")
            if self.rank in ranks:
                own, place = group, ranks
        self._group, self.rank, self.count = own, place.index(self.rank), len(place)

    @property
    def part(self) -> Portion:
        """The blocks of a table that this rank fills."""
        return Portion(self.rank, self.count, self.each)

    def alike(self, work: Callable[[], Any], what: str) -> None:
        """Refuse, on all ranks, what is not the same on all of them.

        Raises:
            RuntimeError: if what ``work`` returns differs; its text begins with ``what``.
        """
        found = self.each(lambda: _digest(work()))
        if len(set(found)) > 1:
            raise RuntimeError(f"{what} (digests by rank: {[one[:8] for one in found]})")

    def table(
        self, known: KnownEdges, sizes: Tensor, k: int, folder: Folder | None
    ) -> CandidateTable:
        """A table of all of them, in a file that the first one makes; each has its own version."""
        made: list[CandidateTable] = []
        if folder is None:
            folder = SHARED if SHARED.is_dir() else tempfile.gettempdir()

        def first() -> Path | None:
            if self.rank == 0:
                made.append(CandidateTable(sizes, k, folder=folder))
            return made[0].path if made else None

        def others() -> None:
            if self.rank:
                if not path.is_file():
                    raise FileNotFoundError(
                        f"one_table: this rank does not see the table of its machine, {path}; name "
                        "a folder that all of its ranks see, with Resources(table_folder=...)"
                    )
                made.append(CandidateTable(sizes, k, folder=path))

        self.alike(
            lambda: [known.fingerprint(), sizes, k],
            "one_table: ranks have other known edges, k, groups or steps between refreshes; make "
            "and attach their samplers with the same graph and arguments",
        )
        path: Any = self.each(first)[0]
        self.agree(others)
        return made[0]


def agreed(trainers: Trainers | None, work: Callable[[], Made]) -> Made:
    """What a piece of work returns, if all trainers, if any, could do it."""
    return work() if trainers is None else trainers.agree(work)


def trainers_of(stored: bool, one_table: bool, rule: Rule) -> Trainers | None:
    """Who refresh together, if anyone: who hold shares of a graph, or are to have one table."""
    if not one_table:
        return Trainers() if stored else None
    if stored:
        raise ValueError(
            "one_table: trainers of a distributed graph with several partitions hold tables of "
            "their own share; leave it out"
        )
    if rule.nearest_among(1) is not None:
        raise ValueError(
            "one_table: a rule that searches (Nearest) fills no part of a table; choose another "
            "rule, or leave it out"
        )
    return RanksOfMachine()


def _digest(value: Any) -> str:
    """A SHA-256 of tensors, numbers and texts in dicts and lists; of other things their class."""
    done = hashlib.sha256()

    def add(one: Any) -> None:
        done.update(type(one).__qualname__.encode())
        if isinstance(one, Tensor):
            done.update(repr((one.dtype, tuple(one.shape))).encode())
            done.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(one, Mapping):
            add([part for pair in one.items() for part in pair])
        elif isinstance(one, (list, tuple)):
            done.update(str(len(one)).encode())
            for part in one:
                add(part)
        elif one is None or isinstance(one, (bool, int, float, str)):
            done.update(repr(one).encode())

    add(value)
    return done.hexdigest()
