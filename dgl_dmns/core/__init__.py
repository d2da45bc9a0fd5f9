"""The method in plain torch; nothing here imports DGL."""

from dgl_dmns.core.by_level import draw_by_level
from dgl_dmns.core.curriculum import Curriculum, EasyFirst, HardFirst
from dgl_dmns.core.diffusion import (
    diffusion_loss,
    level_gaussians,
    noise_to,
    reverse_step,
    sample_chain,
)
from dgl_dmns.core.distribution import NodeDistribution
from dgl_dmns.core.engine import RefreshReport, TableReport, TypeReport, build_table
from dgl_dmns.core.gaussians import LevelGaussians
from dgl_dmns.core.generator import DiffusionGenerator, FitReport
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.levels import Levels
from dgl_dmns.core.pairs import sample_neighbours, sample_pairs
from dgl_dmns.core.pools import PoolSettings
from dgl_dmns.core.predictor import (
    AffineNoisePredictor,
    FiLMPredictor,
    MLPPredictor,
    NoisePredictor,
)
from dgl_dmns.core.rules import (
    Blend,
    Density,
    Gate,
    Hardest,
    Nearest,
    Part,
    Rule,
    SelfAdversarial,
)
from dgl_dmns.core.schedule import NoiseSchedule
from dgl_dmns.core.sharpness import sharpened
from dgl_dmns.core.snapshot import Scorer, Snapshot, dot_score
from dgl_dmns.core.space import Space
from dgl_dmns.core.table import NO_LEVEL, Candidates, CandidateTable

__all__ = [
    "NO_LEVEL",
    "AffineNoisePredictor",
    "Blend",
    "CandidateTable",
    "Candidates",
    "Curriculum",
    "Density",
    "DiffusionGenerator",
    "EasyFirst",
    "FiLMPredictor",
    "FitReport",
    "Gate",
    "HardFirst",
    "Hardest",
    "KnownEdges",
    "LevelGaussians",
    "Levels",
    "MLPPredictor",
    "Nearest",
    "NodeDistribution",
    "NoisePredictor",
    "NoiseSchedule",
    "Part",
    "PoolSettings",
    "RefreshReport",
    "Rule",
    "Scorer",
    "SelfAdversarial",
    "Snapshot",
    "Space",
    "TableReport",
    "TypeReport",
    "build_table",
    "diffusion_loss",
    "dot_score",
    "draw_by_level",
    "level_gaussians",
    "noise_to",
    "reverse_step",
    "sample_chain",
    "sample_neighbours",
    "sample_pairs",
    "sharpened",
]
