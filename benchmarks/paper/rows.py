"""The lines of the paper's table: every sampler a DGL user could choose, and DMNS.

Rows named "(5)" use five negatives an edge; the two with one stand beside them because the paper's
own GCN row has one.
"""

from __future__ import annotations

from benchmarks.paper.config import (
    Adversarial,
    Diffusion,
    Dynamic,
    FixedUniform,
    InBatch,
    Latent,
    MarkovChain,
    Popularity,
    RealNodes,
    Row,
    SelfAdversarial,
    Training,
    Uniform,
)

__all__ = ["ROW_NAMES", "latent_method", "main_rows", "nearest_method"]


def latent_method(dataset: str) -> Latent:
    """DMNS with latent negatives, as tuned on validation edges."""
    return Latent(Diffusion(learning_rate=3e-3))


def nearest_method(dataset: str) -> RealNodes:
    """DMNS with the nearest real nodes, as tuned on validation edges."""
    return RealNodes(pool=256)


def density_method(dataset: str) -> RealNodes:
    """DMNS with real nodes drawn by density, as tuned on validation edges."""
    return RealNodes(rule="density", pool=64, groups=4)


def main_rows(dataset: str, training: Training | None = None) -> dict[str, Row]:
    """The rows of a data set by their command-line names.

    Args:
        dataset: name of the data set.
        training: how the encoders are trained; the default where None.
    """
    training = training or Training()
    rows = {
        "fixed": Row("uniform, fixed (1)", FixedUniform(1), training),
        "uniform-1": Row("uniform, redrawn (1)", Uniform(1), training),
        "uniform-5": Row("uniform, redrawn (5)", Uniform(5), training),
        "in-batch": Row("in-batch (5)", InBatch(5), training),
        "pns": Row("PNS (5)", Popularity(5), training),
        "dns": Row("DNS (5)", Dynamic(5, pool=40), training),
        "mcns": Row("MCNS (5)", MarkovChain(5), training),
        "kbgan": Row("KBGAN (5)", Adversarial(5), training),
        "self-adversarial": Row("self-adversarial (5)", SelfAdversarial(5), training),
        "dmns-latent": Row("DMNS, latent (5)", latent_method(dataset), training),
        "dmns-nearest": Row("DMNS, nearest nodes (5)", nearest_method(dataset), training),
        "dmns-density": Row("DMNS, nodes by density (5)", density_method(dataset), training),
    }
    assert tuple(rows) == ROW_NAMES
    return rows


ROW_NAMES = (
    "fixed",
    "uniform-1",
    "uniform-5",
    "in-batch",
    "pns",
    "dns",
    "mcns",
    "kbgan",
    "self-adversarial",
    "dmns-latent",
    "dmns-nearest",
    "dmns-density",
)
