"""Recommend items to users with every row in turn.

Amazon Health in the published split, three seeds, each row tuned by the same grid:

    python -m benchmarks.recommend --data-dir amazon2014-health --tune
"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks.common.queries import Benchmark, Recipe
from benchmarks.common.queries import main as run
from benchmarks.recommend.problem import load_problem

__all__ = ["BENCHMARK", "main"]

_OTHERS = "Published, matrix factorization, NDCG@20 on this split (Yang et al.): "

BENCHMARK = Benchmark(
    name="recommend",
    title="Users and items, with every row in turn",
    recipe=Recipe(model="mf", learning_rate=1e-2, temperature=0.3, epochs=60, patience=8),
    grid={"learning_rate": (1e-2, 3e-2), "temperature": (0.2, 0.3)},
    load=load_problem,
    metrics=("NDCG@20", "Recall@20"),
    protocol=(
        "Test items of each user ranked among all items, those of the training left out; early "
        "stopping on validation NDCG@20. Mean ± standard error; ratios to the first row, paired by "
        "seed, with a 95 % interval. Seconds are of training and refreshes, on a machine that may "
        "have run other work at the same time."
    ),
    published={
        "amazon2014-health": _OTHERS + ".1234 (BPR), .1261 (sampled softmax), .1268 (PSL), .1390 "
        "(SL@20).",
        "amazon2014-electronic": _OTHERS + ".0527 (BPR), .0529 (sampled softmax), .0541 (PSL), "
        ".0590 (SL@20).",
    },
)


main = partial(run, BENCHMARK)
"""Run what is missing, then write the report; returns 0, or 1 if a cell failed."""

if __name__ == "__main__":
    sys.exit(main())
