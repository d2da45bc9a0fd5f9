"""The diffusion models of a sampler, one for each edge type."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from dgl_dmns.checks import as_number
from dgl_dmns.core import DiffusionGenerator
from dgl_dmns.samplers.relation import Relation

__all__ = ["Models", "check_queries"]


class Models:
    """Makes the diffusion model of each edge type, saves it and restores it.

    A model waits for the first refresh, which tells the width of the embeddings. It is kept as
    ``model`` of its `Relation`.

    Args:
        learning_rate: of the models' Adam, positive.
        **arguments: of all models alike, see `DiffusionGenerator`; each model has a copy of a
            predictor that was handed in.

    Attributes:
        make: what makes a model, called with the width, ``seed`` and the arguments.

    Raises:
        ValueError: for a ``learning_rate`` that is not positive.
    """

    def __init__(
        self,
        *,
        learning_rate: float,
        **arguments: Any,
    ) -> None:
        if not as_number("learning_rate", learning_rate) > 0:
            raise ValueError(
                f"learning_rate: expected a positive rate of the diffusion model, got "
                f"{learning_rate}; 0.01 and 0.003 are good starts"
            )
        self.make: Callable[..., DiffusionGenerator] = DiffusionGenerator
        self.arguments = {"learning_rate": float(learning_rate), **arguments}

    def of(self, relation: Relation, width: int) -> DiffusionGenerator:
        """The model of an edge type, made where there is none yet.

        Args:
            relation: the edge type.
            width: of the embeddings.

        Raises:
            ValueError: if there is one for another width.
        """
        if relation.model is None:
            # A copy: no edge types share weights, and a refresh that fails leaves them alone.
            predictor = copy.deepcopy(self.arguments["predictor"])
            arguments = {**self.arguments, "predictor": predictor}
            relation.model = self.make(width, seed=relation.seed, **arguments)
        elif relation.model.space.embedding_width != width:
            raise ValueError(
                f"encoder: expected embeddings of width {relation.model.space.embedding_width}, as "
                f"at the first refresh, got {width}; make a new sampler for another encoder"
            )
        return relation.model

    @staticmethod
    def state(relation: Relation) -> dict[str, Any]:
        """The model's weights, space and optimizer, and the width that it was made for."""
        if relation.model is None:
            return {"model": None, "width": None}
        return {
            "model": relation.model.state_dict(),
            "width": relation.model.space.embedding_width,
        }

    def load(self, states: list[tuple[Relation, dict[str, Any]]], width: int) -> None:
        """Restore what `state` gave for every edge type, or raise and leave all as they were.

        Args:
            states: edge types with their states.
            width: of the embeddings that the states were made for.

        Raises:
            ValueError: if a state is that of another schedule, predictor or space.
        """
        before = [relation.model for relation, _ in states]
        kept = [{} if model is None else copy.deepcopy(model.state_dict()) for model in before]
        try:
            for relation, state in states:
                self.of(relation, width).load_state_dict(state["model"])
        except (RuntimeError, ValueError) as error:
            # Torch has loaded the entries that fit: take them back.
            for (relation, _), model, weights in zip(states, before, kept):
                relation.model = model
                if model is not None:
                    model.load_state_dict(weights)
            raise ValueError(
                "state: made with another schedule, predictor or space, or other levels; construct "
                f"the sampler with the same arguments ({error})"
            ) from error


def check_queries(h_query: Tensor, model: DiffusionGenerator) -> None:
    """Refuse query embeddings [B, D] that a model cannot be asked about.

    Raises:
        ValueError: for another width than the model's, integers, NaN or infinity.
    """
    width = model.space.embedding_width
    if h_query.dim() != 2 or h_query.shape[1] != width:
        raise ValueError(f"h_query: expected shape [B, {width}], got {tuple(h_query.shape)}")
    if not (h_query.is_floating_point() and bool(h_query.isfinite().all())):
        raise ValueError(
            "h_query: expected floating point embeddings without NaN or infinity, as the encoder "
            f"gives them, got {h_query.dtype}: {h_query}"
        )
