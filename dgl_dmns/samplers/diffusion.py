"""What a refresh does for one edge type that has a diffusion model: it fits the model, too."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.core import (
    DiffusionGenerator,
    FitReport,
    Levels,
    Snapshot,
    generator_on,
    rows_of,
    sample_pairs,
)
from dgl_dmns.samplers.method import Ends, TableMethod, check_width
from dgl_dmns.samplers.settings import Diffusion
from dgl_dmns.samplers.trainers import Trainers

__all__ = ["DiffusionMethod"]


@dataclass(eq=False, repr=False)
class DiffusionMethod(TableMethod):
    """A diffusion model of the destination's embedding given the source's, and a rule on it."""

    levels: Levels
    diffusion: Diffusion

    def copy(self) -> DiffusionMethod:  # noqa: D102
        made = super().copy()
        made.model = copy.deepcopy(self.model)
        return made

    def prepared(self, ends: Ends) -> Ends:  # noqa: D102
        if ends.trainers is None:
            return ends
        count = -(-self._steps() * self.diffusion.batch_pairs // ends.trainers.count)
        query, neighbour = sample_pairs(ends.known, count, generator=ends.random)
        pairs = torch.stack([ends.h_query[query], rows_of(ends.h_candidate, neighbour)])
        return ends._replace(pairs=pairs)

    def _steps(self) -> int:
        """Steps of the next fit."""
        return self.diffusion.warmup_steps if self.model is None else self.diffusion.fit_steps

    def fit(self, ends: Ends) -> FitReport:  # noqa: D102
        first, steps = self.model is None, self._steps()
        if ends.trainers is not None:
            return self._fit_together(ends, ends.trainers, steps, settle=not first)
        device = self.resources.place
        there = Snapshot(ends.h_query, ends.h_candidate, ends.known).on(device)
        h_query, h_candidate, known = there.h_query, there.h_candidate, there.known
        assert isinstance(h_candidate, Tensor)
        model = self._of(h_query.shape[1]).moved(device)
        space, one_type = model.space, h_candidate is h_query
        space.update(h_query if one_type else torch.cat([h_query, h_candidate]))
        z_query = space.encode(h_query)
        z_candidate = z_query if one_type else space.encode(h_candidate)
        random = generator_on(device, ends.random)
        done = model.fit(z_query, z_candidate, known, steps, settle=not first, generator=random)
        model.moved(ends.h_query.device)
        return done

    def _of(self, width: int) -> DiffusionGenerator:
        """The model for embeddings of a width, made at the first refresh."""
        if self.model is None:
            self.model = self.diffusion.make(width, self.levels, self.seed)
        check_width(self.model.space.embedding_width, width)
        return self.model

    def _fit_together(
        self, ends: Ends, trainers: Trainers, steps: int, *, settle: bool
    ) -> FitReport:
        """Fit one model on pairs of all trainers: the first one fits, and the others take it over.

        Pairs travel in the model's space, as many from each trainer.
        """
        first, random = trainers.rank == 0, ends.random
        h_query, candidates = ends.h_query, ends.h_candidate

        def of_a_sample() -> dict[str, Tensor]:
            space = self._of(h_query.shape[1]).space
            if first:  # destinations are a uniform sample of all
                one_type = ends.known.exclude_self
                space.update(candidates.h if one_type else torch.cat([h_query, candidates.h]))
            return dict(space.state_dict())

        def pairs() -> Tensor:
            model = self._of(h_query.shape[1])
            model.space.load_state_dict(states[0])
            h = ends.pairs
            assert h is not None
            return model.space.encode(h.flatten(0, 1)).view(2, h.shape[1], -1)

        def fitted() -> tuple[dict[str, Any], FitReport] | None:
            if not first:
                return None
            model, every, taken = self._of(h_query.shape[1]), torch.cat(parts, dim=1), 0
            order = torch.randperm(every.shape[1], generator=random)

            def draw(count: int) -> tuple[Tensor, Tensor]:
                nonlocal taken
                some = order[taken : taken + count]
                taken += count
                return every[0, some], every[1, some]

            z = model.space.encode(h_query)
            report = model.fit_pairs(draw, z, steps, settle=settle, generator=random)
            return dict(model.state_dict()), report

        def taken_over() -> FitReport:
            assert made is not None
            if not first:
                self._of(h_query.shape[1]).load_state_dict(made[0])
            return made[1]

        # Errors of each piece are those of all trainers, so that none waits for another.
        states = trainers.each(of_a_sample)
        parts = trainers.each(pairs)
        made = trainers.each(fitted)[0]
        return trainers.agree(taken_over)

    def state(self, version: int) -> dict[str, Any]:  # noqa: D102
        model = None if self.model is None else self.model.state_dict()
        width = None if self.model is None else self.model.space.embedding_width
        return {**super().state(version), "model": model, "width": width}

    def width_of(self, state: dict[str, Any]) -> int | None:  # noqa: D102
        return None if state["width"] is None else int(state["width"])

    def restored(self, state: dict[str, Any], version: int) -> DiffusionMethod:  # noqa: D102
        made = super().restored(state, version)
        made.model = None
        if state["width"] is None:
            if version:
                raise ValueError("state: made before the first refresh, this sampler is past it")
            return made
        made.model = self.diffusion.make(state["width"], self.levels, self.seed)
        try:
            made.model.load_state_dict(state["model"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                "state: made with another schedule, predictor or space, or other levels; construct "
                f"the sampler with the same arguments ({error})"
            ) from error
        return made
