"""Negative samplers for DGL; importing this package imports DGL."""

from dgl_dmns.samplers.adversarial import AdversarialSampler
from dgl_dmns.samplers.base import NegativeSampler
from dgl_dmns.samplers.dmns import DMNSSampler
from dgl_dmns.samplers.dynamic import DynamicSampler, SelfAdversarialSampler
from dgl_dmns.samplers.mcns import MCNSSampler
from dgl_dmns.samplers.popularity import PopularitySampler
from dgl_dmns.samplers.refreshing import RefreshingSampler
from dgl_dmns.samplers.resources import Resources
from dgl_dmns.samplers.shared import InBatchSampler
from dgl_dmns.samplers.uniform import UniformSampler

__all__ = [
    "AdversarialSampler",
    "DMNSSampler",
    "DynamicSampler",
    "InBatchSampler",
    "MCNSSampler",
    "NegativeSampler",
    "PopularitySampler",
    "RefreshingSampler",
    "Resources",
    "SelfAdversarialSampler",
    "UniformSampler",
]
