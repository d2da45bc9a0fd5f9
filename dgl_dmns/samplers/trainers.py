"""What the trainers of a distributed graph do together, at a refresh and nowhere else.

A refresh is a few pieces of work that each trainer does alone. After each piece they tell each
other what came of it: their results, or that one of them could not do it. Then all of them raise
one error, and none waits for another. A trainer that has ended closes its connections, which the
others notice at the next piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from dgl_dmns._compat import require_dgl
from dgl_dmns.messages import first_line

__all__ = ["Trainers"]

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
        several = require_dgl().distributed.role.get_num_trainers()
        if not started and several > 1:
            raise RuntimeError(
                f"g: {several} trainers share this graph, and have to agree on a diffusion model; "
                "call torch.distributed.init_process_group('gloo') on each of them before the "
                "sampler is made"
            )
        if started and (apart or distributed.get_backend() != "gloo"):
            self._group = distributed.new_group(backend="gloo")

    def each(self, work: Callable[[], Made]) -> list[Made]:
        """Do a piece of work on each trainer.

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
            error = raised
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
