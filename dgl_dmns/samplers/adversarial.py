r"""`AdversarialSampler`: a generator trained against the encoder by REINFORCE.

Source: Cai and Wang, "KBGAN: Adversarial Learning for Knowledge Graph Embeddings", NAACL 2018. A
generator picks negatives out of a set of M uniform candidates by its own softmax,

    p_G(u|v) = exp(g(v, u)) / sum_u' exp(g(v, u')),

and is rewarded where the discriminator, here the encoder with its scorer ``s``, takes them for
positives. Choosing is discrete, so the gradient is estimated (REINFORCE, with a baseline b):

    grad E[r] = E[(r - b) grad log p_G(u|v)], r = log sigmoid(s(v, u)).

Where this differs from the paper: the generator reads the encoder's embeddings (detached,
standardised per column) through two linear maps, instead of being a second, pretrained embedding
model; the reward is bounded above, so that a few extreme scores do not rule it; known edges are
kept out of the candidates; and the generator is trained at refresh time only, never in workers.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dgl_dmns.checks import as_integer, as_number
from dgl_dmns.core import (
    FitReport,
    KnownEdges,
    Scorer,
    SelfAdversarial,
    Snapshot,
    TableReport,
    called_scorer,
    checked_scores,
    dot_score,
)
from dgl_dmns.messages import warn
from dgl_dmns.samplers.embedder import Encoder
from dgl_dmns.samplers.method import Ends, OnRows, TableMethod, check_width
from dgl_dmns.samplers.refreshing import RefreshingSampler

__all__ = ["AdversarialSampler", "SoftmaxGenerator"]

_PARCEL = 20  # steps whose candidates are drawn at once


class SoftmaxGenerator(nn.Module):
    """The generator's score ``g(v, u) = (P z_v) . (Q z_u) / sqrt(W)`` and its REINFORCE steps.

    ``z`` are embeddings standardised per column. ``Q`` starts small, so the first draws are nearly
    uniform.

    Args:
        width: embedding width D.
        hidden: width W of the two maps.
        learning_rate: of Adam.
        seed: of the initial weights.
    """

    baseline: Tensor

    def __init__(
        self, width: int, *, hidden: int = 32, learning_rate: float = 1e-2, seed: int = 0
    ) -> None:
        super().__init__()
        if width < 1 or hidden < 1:
            raise ValueError(f"width, hidden: expected at least 1, got {width} and {hidden}")
        self.width = width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.query = nn.Linear(width, hidden, dtype=torch.float32)
            # A bias of the candidates would cancel in p_G.
            self.candidate = nn.Linear(width, hidden, bias=False, dtype=torch.float32)
        with torch.no_grad():
            self.candidate.weight.mul_(0.1)
        self.register_buffer("baseline", torch.tensor(math.nan, dtype=torch.float32))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)

    def project(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [N, D] to queries and candidates whose inner products are ``g``, [N, W]."""
        z = _standardise(h)
        return self.query(z) / math.sqrt(self.query.out_features), self.candidate(z)

    def fit(
        self,
        h: Tensor,
        edges: KnownEdges,
        scorer: Scorer,
        steps: int,
        *,
        candidates: int = 32,
        batch: int = 512,
        generator: torch.Generator | None = None,
    ) -> FitReport:
        """REINFORCE steps on sources of random known edges; taken back if one meets NaN.

        The losses of the report are minus the mean reward of each step.

        Args:
            h: embeddings, shape [N, D], float32, without gradient.
            edges: the known edges, kept out of the candidates.
            scorer: the discriminator's scores of broadcastable embeddings.
            steps: optimizer steps.
            candidates: uniform admissible candidates M per query.
            batch: queries B in a step.
            generator: source of queries, candidates and picks.
        """
        started = time.perf_counter()
        z = _standardise(h)
        losses: list[float] = []
        before = copy.deepcopy(self.state_dict())
        for step in range(steps):
            at = step % _PARCEL
            if at == 0:  # few large draws cost much less than many small ones
                count = min(_PARCEL, steps - step) * batch
                edge = torch.randint(0, edges.indices.numel(), (count,), generator=generator)
                queries = torch.searchsorted(edges.indptr, edge, right=True) - 1
                pools = edges.uniform(queries, candidates, generator=generator)
            part = slice(at * batch, (at + 1) * batch)
            query, pool = queries[part], pools[part]
            with torch.enable_grad():
                # (P z_v) . (Q z_u) = (Q' P z_v) . z_u: a product per query, not per candidate.
                left = self.query(z[query]) / math.sqrt(self.query.out_features)
                right = z.index_select(0, pool.flatten()).view(*pool.shape, -1)
                # Row times matrix: torch is slow at the transposed form and its gradient.
                left = (left @ self.candidate.weight).unsqueeze(1)
                log_p = torch.bmm(left, right.transpose(1, 2)).squeeze(1).log_softmax(-1)
                if not bool(log_p.isfinite().all()):
                    losses.append(math.nan)
                    break
                pick = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
                chosen = pool.gather(1, pick).squeeze(1)
                with torch.no_grad():
                    score = called_scorer(scorer, h[query], h[chosen])
                    score = checked_scores(score, chosen.shape)
                    reward = logsigmoid(score.float())
                    if bool(self.baseline.isnan()):
                        self.baseline.copy_(reward.mean())
                loss = -((reward - self.baseline) * log_p.gather(1, pick).squeeze(1)).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            self.baseline.lerp_(reward.mean(), 0.1)
            losses.append(-float(reward.mean()))
            if not math.isfinite(losses[-1]):
                break
        finite = all(bool(p.isfinite().all()) for p in self.parameters())
        diverged = not (finite and all(map(math.isfinite, losses)))
        if diverged:
            self.load_state_dict(before)
            warn(
                "the fit of the adversarial generator diverged and was taken back; lower the "
                "sampler's learning_rate, or look at the embeddings for rows of extreme size"
            )
        seconds = time.perf_counter() - started
        return FitReport(tuple(losses), len(losses) * batch, seconds, diverged)

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, so that fitting resumes exactly."""
        return {"optimizer": self.optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the optimizer's state, as a copy: torch would go on in the tensors handed in."""
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


@dataclass(eq=False, repr=False)
class AdversarialMethod(TableMethod):
    """A `SoftmaxGenerator` that is trained at each refresh, and rows drawn by its softmax."""

    steps: tuple[int, int]  # in the first refresh, and in others
    batch: int
    hidden: int
    learning_rate: float
    adversary: SoftmaxGenerator | None = None

    def copy(self) -> AdversarialMethod:
        made = super().copy()
        made.adversary = copy.deepcopy(self.adversary)
        return made

    def fit(self, ends: Ends) -> FitReport:
        width = ends.h_query.shape[1]  # both ends have one type
        steps = self.steps[self.adversary is not None]
        return self._of(width).fit(
            ends.h_query,
            ends.known,
            ends.scorer or dot_score,
            steps,
            candidates=self.settings.pool,
            batch=self.batch,
            generator=ends.random,
        )

    def _of(self, width: int) -> SoftmaxGenerator:
        """The generator for embeddings of a width, made at the first refresh."""
        if self.adversary is None:
            self.adversary = SoftmaxGenerator(
                width, hidden=self.hidden, learning_rate=self.learning_rate, seed=self.seed
            )
        check_width(self.adversary.width, width)
        return self.adversary

    @torch.no_grad()
    def snapshot(self, ends: Ends) -> Snapshot:
        # The generator's scores are inner products of its projections: the engine's default scorer.
        query, candidate = self._of(ends.h_query.shape[1]).project(ends.h_query)
        return Snapshot(query, candidate, ends.known, None, None)

    @torch.no_grad()
    def fill(self, ends: Ends, nodes: Tensor | None, on_rows: OnRows) -> TableReport:
        done = super().fill(ends, nodes, on_rows)
        # The encoder's mean score of the first group of negatives just written.
        score, h, table = ends.scorer or dot_score, ends.h_query, ends.table
        ids = table.hidden(table.start[:-1]).ids.long()
        parts = [
            checked_scores(score(h, h[slot]), slot.shape).double().mean() for slot in ids.unbind(1)
        ]
        return replace(done, level_score={"no level": float(torch.stack(parts).mean())})

    def state(self, version: int) -> dict[str, Any]:
        known = self.adversary
        kept = None if known is None else (known.width, known.state_dict())
        return {**super().state(version), "adversary": kept}

    def width_of(self, state: dict[str, Any]) -> int | None:
        return None if state["adversary"] is None else int(state["adversary"][0])

    def restored(self, state: dict[str, Any], version: int) -> AdversarialMethod:
        made = super().restored(state, version)
        made.adversary = None
        if state["adversary"] is None:
            return made
        width, weights = state["adversary"]
        try:
            made._of(width).load_state_dict(weights)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                "state: made with another hidden width; construct the sampler with the same "
                f"arguments ({error})"
            ) from error
        return made


class AdversarialSampler(RefreshingSampler):
    """Adversarial negative sampling (KBGAN): a learned softmax over uniform candidates.

    A refresh trains the generator a little further and fills the table by drawing, for each query,
    from the generator's softmax over pools of uniform candidates, without replacement within a
    group. The distribution is tractable, so `log_ratio` works. In the report, ``fit.loss`` is minus
    the mean reward, and ``level_score`` the encoder's score of the negatives.

    Args:
        g: the training graph (one node type, one edge type); its edges are the known positives.
        encoder: see `RefreshingSampler`, like ``k``.
        fit_steps: REINFORCE steps in a refresh.
        warmup_steps: REINFORCE steps of the first refresh.
        batch_queries: queries in a step.
        hidden: width of the generator.
        learning_rate: of the generator's Adam.
        **options: ``pools``, ``scorer``, ``feat``, ``seed``, ``generator``, ``resources`` of
            `RefreshingSampler`; pools are of 32 by default.

    Raises:
        ValueError, TypeError, MemoryError: as `RefreshingSampler` says.
    """

    shares = False  # the generator reads the embeddings of all nodes
    # One generator, whose two maps read one node type: no edge types to choose from.
    takes = ("pools", "scorer", "feat", "seed", "generator", "resources")

    def __init__(
        self,
        g: Any,
        encoder: Encoder,
        k: int = 1,
        *,
        fit_steps: int = 40,
        warmup_steps: int = 200,
        batch_queries: int = 512,
        hidden: int = 32,
        learning_rate: float = 1e-2,
        **options: Any,
    ) -> None:
        self._check_taken(options)
        self.fit_steps = as_integer("fit_steps", fit_steps, 0)
        self.warmup_steps = as_integer("warmup_steps", warmup_steps, 0)
        self.batch_queries = as_integer("batch_queries", batch_queries, 1)
        self.hidden = as_integer("hidden", hidden, 1)
        self.learning_rate = as_number("learning_rate", learning_rate)
        super().__init__(g, encoder, k, rule=SelfAdversarial(), **options)

    @property
    def adversary(self) -> SoftmaxGenerator | None:
        """The generator; None before the first refresh."""
        method = self.relation().method
        return method.adversary if isinstance(method, AdversarialMethod) else None

    def _method(self, known: KnownEdges, seed: int) -> AdversarialMethod:
        return AdversarialMethod(
            self.rule,
            self.settings,
            self.resources,
            self.seed,
            steps=(self.warmup_steps, self.fit_steps),
            batch=self.batch_queries,
            hidden=self.hidden,
            learning_rate=self.learning_rate,
        )


def _standardise(h: Tensor) -> Tensor:
    """Columns [N, D] to mean 0 and deviation 1; constant columns to 0."""
    # A power of two first, so that squares do not overflow; it rounds nothing.
    exponent = torch.frexp(h.abs().amax(dim=0)).exponent.clamp_(0, 126)
    h = torch.ldexp(h, -exponent).to(h.dtype)
    centred = h - h.mean(dim=0)
    return centred / centred.square().mean(dim=0).sqrt().clamp(min=1e-6)
