"""The method in plain torch; nothing here imports DGL."""

from dgl_dmns.core.candidates import CandidateEdges, candidates_fingerprint, restricted
from dgl_dmns.core.choice import WeightedFallback, distinct_pools, first_above
from dgl_dmns.core.depth_first import DepthFirstProposal, ListWeights
from dgl_dmns.core.diffusion import (
    LevelGaussians,
    PoolDensities,
    diffusion_loss,
    level_gaussians,
    noise_to,
    reverse_step,
    sample_chain,
)
from dgl_dmns.core.distribution import NodeDistribution
from dgl_dmns.core.fetched import FetchedRows
from dgl_dmns.core.fill import CHUNK_BYTES, Portion, fill_table
from dgl_dmns.core.generator import DiffusionGenerator, FitReport, sample_neighbours, sample_pairs
from dgl_dmns.core.known import KnownEdges
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
from dgl_dmns.core.mixture import Barred, FilteredDraws, SharedPool
from dgl_dmns.core.modes import (
    CPU,
    callers_device,
    fit_seed,
    generator_on,
    in_float32,
    outside_inference_mode,
    shielded,
)
from dgl_dmns.core.nearest import draw_by_level
from dgl_dmns.core.pools import PoolSettings
from dgl_dmns.core.predictor import (
    AffineNoisePredictor,
    FiLMPredictor,
    MLPPredictor,
    NoisePredictor,
)
from dgl_dmns.core.reports import (
    RankReport,
    RefreshReport,
    Stopwatch,
    TableReport,
    TypeReport,
    held_bytes,
)
from dgl_dmns.core.rows import MOST_PASSES, RowDraws, Turns, row_sizes
from dgl_dmns.core.rules import (
    Blend,
    Density,
    Gate,
    Hardest,
    Nearest,
    Part,
    Rule,
    SelfAdversarial,
    check_rule,
    check_tractable,
)
from dgl_dmns.core.schedule import Levels, NoiseSchedule
from dgl_dmns.core.sharing import SHARED, Folder, amount, free_in, free_memory, share
from dgl_dmns.core.snapshot import (
    Rows,
    Scorer,
    Snapshot,
    called_scorer,
    checked_scores,
    dot_score,
    rows_of,
)
from dgl_dmns.core.softmax import PairScores, pool_softmax
from dgl_dmns.core.space import Space, SpaceKind
from dgl_dmns.core.table import (
    BYTES_PER_CANDIDATE,
    MOST_NODES,
    NO_LEVEL,
    Candidates,
    CandidateTable,
    carry_over,
)

__all__ = [
    "BYTES_PER_CANDIDATE",
    "CHUNK_BYTES",
    "CPU",
    "MOST_NODES",
    "MOST_PASSES",
    "NO_LEVEL",
    "SHARED",
    "AffineNoisePredictor",
    "Barred",
    "Blend",
    "CandidateEdges",
    "CandidateTable",
    "Candidates",
    "Density",
    "DepthFirstProposal",
    "DiffusionGenerator",
    "Draw",
    "EdgeName",
    "EdgeType",
    "Embeddings",
    "FetchedRows",
    "FiLMPredictor",
    "FilteredDraws",
    "FitReport",
    "Folder",
    "Gate",
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
    "PairScores",
    "Part",
    "PoolDensities",
    "PoolSettings",
    "Portion",
    "RankReport",
    "RefreshReport",
    "Refreshed",
    "RowDraws",
    "Rows",
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
    "called_scorer",
    "callers_device",
    "candidates_fingerprint",
    "canonical_edge_type",
    "carry_over",
    "check_rule",
    "check_tractable",
    "checked_scores",
    "diffusion_loss",
    "distinct_pools",
    "dot_score",
    "draw_by_level",
    "fill_table",
    "first_above",
    "fit_seed",
    "free_in",
    "free_memory",
    "generator_on",
    "held_bytes",
    "in_float32",
    "level_gaussians",
    "look_at",
    "noise_to",
    "outside_inference_mode",
    "pool_softmax",
    "restricted",
    "reverse_step",
    "row_sizes",
    "rows_of",
    "sample_chain",
    "sample_neighbours",
    "sample_pairs",
    "share",
    "shielded",
]
