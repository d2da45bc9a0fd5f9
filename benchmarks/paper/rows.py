"""The lines of the paper's table: every sampler a DGL user could choose, and DMNS.

Rows named "(5)" use five negatives an edge; the two with one stand beside them because the paper's
own GCN row has one.  Settings of the training and of the methods are chosen on validation edges,
see `benchmarks.paper.tuning`; the defaults here hold where nothing was chosen.
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
from benchmarks.paper.tuning import Choices, chosen_row, read_choices

__all__ = ["ROW_NAMES", "chosen_settings", "default_rows", "main_rows"]


def _latent_method() -> Latent:
    """DMNS with latent negatives, as tuned on validation edges."""
    return Latent(Diffusion(learning_rate=3e-3))


def _nearest_method() -> RealNodes:
    """DMNS with the nearest real nodes, as tuned on validation edges."""
    return RealNodes(pool=256)


def _density_method() -> RealNodes:
    """DMNS with real nodes drawn by density, as tuned on validation edges."""
    return RealNodes(rule="density", pool=64, groups=4)


def default_rows(training: Training | None = None) -> dict[str, Row]:
    """The rows with their defaults, by their command-line names.

    Args:
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
        "dmns-latent": Row("DMNS, latent (5)", _latent_method(), training),
        "dmns-nearest": Row("DMNS, nearest nodes (5)", _nearest_method(), training),
        "dmns-density": Row("DMNS, nodes by density (5)", _density_method(), training),
    }
    assert tuple(rows) == ROW_NAMES
    return rows


def chosen_settings(dataset: str, training: Training, choices: Choices) -> dict[str, str]:
    """Names of the settings chosen for a data set's rows; choices are made and hold for GCN."""
    return dict(choices.get(dataset, {})) if training.encoder == "gcn" else {}


def main_rows(
    dataset: str, training: Training | None = None, choices: Choices | None = None
) -> dict[str, Row]:
    """The rows of a data set, each with its chosen setting, by their command-line names.

    Args:
        dataset: name of the data set.
        training: how the encoders are trained apart from that; the default where None.
        choices: what was chosen; None: what `benchmarks.paper.tuning.CHOICES` says.

    Raises:
        ValueError: for a choice that the row does not have.
    """
    training = training or Training()
    rows = default_rows(training)
    chosen = chosen_settings(dataset, training, read_choices() if choices is None else choices)
    return {
        name: chosen_row(row, name, chosen[name]) if name in chosen else row
        for name, row in rows.items()
    }


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
