"""The method in plain torch; nothing here imports DGL."""

from dgl_dmns.core.bitmap import PairBitmap
from dgl_dmns.core.by_level import draw_by_level
from dgl_dmns.core.choice import draw_distinct, first_above
from dgl_dmns.core.curriculum import Curriculum, EasyFirst, HardFirst, check_curriculum
from dgl_dmns.core.depth_first import DepthFirstProposal, ListWeights
from dgl_dmns.core.diffusion import (
    diffusion_loss,
    level_gaussians,
    noise_to,
    reverse_step,
    sample_chain,
)
from dgl_dmns.core.distribution import NodeDistribution, check_tractable
from dgl_dmns.core.effective import effective_size, exponent_for
from dgl_dmns.core.engine import (
    CHUNK_BYTES,
    RefreshReport,
    Stopwatch,
    TableReport,
    TypeReport,
    build_table,
    fill_table,
    queries_at_a_time,
)
from dgl_dmns.core.gaussians import LevelGaussians
from dgl_dmns.core.generator import DiffusionGenerator, FitReport
from dgl_dmns.core.known import KnownEdges
from dgl_dmns.core.levels import Levels
from dgl_dmns.core.look import (
    Draw,
    EdgeName,
    EdgeType,
    Embeddings,
    Look,
    Looked,
    Refreshed,
    canonical_edge_type,
    look_at,
)
from dgl_dmns.core.mixture import FilteredDraws, known_among
from dgl_dmns.core.modes import callers_device, in_float32, outside_inference_mode, shielded
from dgl_dmns.core.pairs import sample_neighbours, sample_pairs
from dgl_dmns.core.pool_softmax import pool_softmax
from dgl_dmns.core.pools import PoolDraw, PoolSettings
from dgl_dmns.core.predictor import (
    AffineNoisePredictor,
    FiLMPredictor,
    MLPPredictor,
    NoisePredictor,
)
from dgl_dmns.core.repair import carry_over, fill_open_slots
from dgl_dmns.core.rows import RowDraws, row_sizes
from dgl_dmns.core.rules import (
    Blend,
    Density,
    Gate,
    Hardest,
    Nearest,
    Part,
    PoolRule,
    Rule,
    SelfAdversarial,
    check_rule,
)
from dgl_dmns.core.schedule import NoiseSchedule
from dgl_dmns.core.seeds import fit_seed
from dgl_dmns.core.shared_pool import Barred, SharedPool
from dgl_dmns.core.sharing import SHARED, Folder, amount, free_in, free_memory, share
from dgl_dmns.core.sharpness import sharpened
from dgl_dmns.core.snapshot import Scorer, Snapshot, called_scorer, checked_scores, dot_score
from dgl_dmns.core.space import Space, SpaceKind
from dgl_dmns.core.table import BYTES_PER_CANDIDATE, NO_LEVEL, Candidates, CandidateTable
from dgl_dmns.core.turns import MOST_PASSES, Turns
from dgl_dmns.core.weighted import WeightedFallback

__all__ = [
    "BYTES_PER_CANDIDATE",
    "CHUNK_BYTES",
    "MOST_PASSES",
    "NO_LEVEL",
    "SHARED",
    "AffineNoisePredictor",
    "Barred",
    "Blend",
    "CandidateTable",
    "Candidates",
    "Curriculum",
    "Density",
    "DepthFirstProposal",
    "DiffusionGenerator",
    "Draw",
    "EasyFirst",
    "EdgeName",
    "EdgeType",
    "Embeddings",
    "FiLMPredictor",
    "FilteredDraws",
    "FitReport",
    "Folder",
    "Gate",
    "HardFirst",
    "Hardest",
    "KnownEdges",
    "LevelGaussians",
    "Levels",
    "ListWeights",
    "Look",
    "Looked",
    "MLPPredictor",
    "Nearest",
    "NodeDistribution",
    "NoisePredictor",
    "NoiseSchedule",
    "PairBitmap",
    "Part",
    "PoolDraw",
    "PoolRule",
    "PoolSettings",
    "RefreshReport",
    "Refreshed",
    "RowDraws",
    "Rule",
    "Scorer",
    "SelfAdversarial",
    "SharedPool",
    "Snapshot",
    "Space",
    "SpaceKind",
    "Stopwatch",
    "TableReport",
    "Turns",
    "TypeReport",
    "WeightedFallback",
    "amount",
    "build_table",
    "called_scorer",
    "callers_device",
    "canonical_edge_type",
    "carry_over",
    "check_curriculum",
    "check_rule",
    "check_tractable",
    "checked_scores",
    "diffusion_loss",
    "dot_score",
    "draw_by_level",
    "draw_distinct",
    "effective_size",
    "exponent_for",
    "fill_open_slots",
    "fill_table",
    "first_above",
    "fit_seed",
    "free_in",
    "free_memory",
    "in_float32",
    "known_among",
    "level_gaussians",
    "look_at",
    "noise_to",
    "outside_inference_mode",
    "pool_softmax",
    "queries_at_a_time",
    "reverse_step",
    "row_sizes",
    "sample_chain",
    "sample_neighbours",
    "sample_pairs",
    "share",
    "sharpened",
    "shielded",
]
