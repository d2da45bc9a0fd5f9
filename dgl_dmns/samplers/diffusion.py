"""What a refresh does for one edge type that has a diffusion model: it fits the model, too."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgl_dmns.core import DiffusionGenerator, FitReport, Levels, rows_of, sample_pairs
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

    def fit(self, ends: Ends) -> FitReport:  # noqa: D102
        diffusion, width = self.diffusion, ends.h_query.shape[1]
        first = self.model is None
        steps = diffusion.warmup_steps if first else diffusion.fit_steps
        if self.model is None:
            self.model = diffusion.make(width, self.levels, self.seed)
        check_width(self.model.space.embedding_width, width)
        if ends.trainers is not None:
            return self._fit_together(self.model, ends, ends.trainers, steps, settle=not first)
        space, one_type = self.model.space, ends.h_candidate is ends.h_query
        space.update(ends.h_query if one_type else torch.cat([ends.h_query, ends.h_candidate]))
        z_query = space.encode(ends.h_query)
        z_candidate = z_query if one_type else space.encode(ends.h_candidate)
        return self.model.fit(
            z_query, z_candidate, ends.known, steps, settle=not first, generator=ends.random
        )

    def _fit_together(
        self,
        model: DiffusionGenerator,
        ends: Ends,
        trainers: Trainers,
        steps: int,
        *,
        settle: bool,
    ) -> FitReport:
        """Fit one model on pairs of all trainers: the first one fits, and the others take it over.

        Pairs travel in the model's space, as many from each trainer.
        """
        space, first = model.space, trainers.rank == 0
        h_query, candidates, random = ends.h_query, ends.h_candidate, ends.random

        def of_a_sample() -> dict[str, Tensor] | None:
            if first:  # destinations are a uniform sample of all
                one_type = ends.known.exclude_self
                space.update(candidates.h if one_type else torch.cat([h_query, candidates.h]))
            return dict(space.state_dict()) if first else None

        def pairs() -> Tensor:
            count = -(-steps * model.batch_pairs // trainers.count)
            query, neighbour = sample_pairs(ends.known, count, generator=random)
            h = torch.stack([h_query[query], rows_of(candidates, neighbour)])
            return space.encode(h.flatten(0, 1)).view(2, count, -1)

        def fitted() -> tuple[dict[str, Any], FitReport] | None:
            if not first:
                return None
            total = every.shape[1]
            order, taken = torch.randperm(total, generator=random), 0

            def draw(count: int) -> tuple[Tensor, Tensor]:
                nonlocal taken
                some = order[taken : taken + count]
                taken += count
                return every[0, some], every[1, some]

            report = model.fit_pairs(
                draw, space.encode(h_query), steps, settle=settle, generator=random
            )
            return dict(model.state_dict()), report

        space.load_state_dict(trainers.each(of_a_sample)[0] or {})
        every = torch.cat(trainers.each(pairs), dim=1)
        made = trainers.each(fitted)[0]
        assert made is not None
        if not first:
            model.load_state_dict(made[0])
        return made[1]

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
