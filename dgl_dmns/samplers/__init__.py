"""Negative samplers for DGL; importing this package imports DGL."""

from dgl_dmns.samplers.adversarial import AdversarialSampler
from dgl_dmns.samplers.base import NegativeSampler
from dgl_dmns.samplers.dmns import DMNSSampler
from dgl_dmns.samplers.dynamic import DynamicSampler, SelfAdversarialSampler
from dgl_dmns.samplers.filtered import UniformSampler
from dgl_dmns.samplers.mcns import MCNSSampler
from dgl_dmns.samplers.plain import InBatchSampler, PopularitySampler
from dgl_dmns.samplers.refreshing import RefreshingSampler
from dgl_dmns.samplers.settings import Diffusion, Pools, Resources

__all__ = [
    "AdversarialSampler",
    "DMNSSampler",
    "Diffusion",
    "DynamicSampler",
    "InBatchSampler",
    "MCNSSampler",
    "NegativeSampler",
    "Pools",
    "PopularitySampler",
    "RefreshingSampler",
    "Resources",
    "SelfAdversarialSampler",
    "UniformSampler",
]
