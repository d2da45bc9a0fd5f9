"""A graph whose embeddings are known to be right, and samplers on it."""

import dgl
import torch


def communities(groups=10, size=12, degree=4, seed=0):
    """A graph of communities and embeddings by which members score higher than others.

    Returns:
        The graph, embeddings [N, 8], and held-out pairs [2, P] inside the communities.
    """
    generator = torch.Generator().manual_seed(seed)
    count = groups * size
    group = torch.arange(count) // size
    src = torch.arange(count).repeat_interleave(degree)
    dst = group[src] * size + torch.randint(size, src.shape, generator=generator)
    far = src != dst
    src, dst = src[far], dst[far]
    held = torch.randint(count, (60,), generator=generator)
    other = group[held] * size + torch.randint(size, held.shape, generator=generator)
    edge = set(zip(src.tolist(), dst.tolist()))
    keep = [
        a != b and (a, b) not in edge and (b, a) not in edge
        for a, b in zip(held.tolist(), other.tolist())
    ]
    pairs = torch.stack([held, other])[:, torch.tensor(keep)].unique(dim=1)
    g = dgl.graph((torch.cat([src, dst]), torch.cat([dst, src])), num_nodes=count)
    centres = torch.randn(groups, 8, generator=generator)
    h = centres[group] + 0.4 * torch.randn(count, 8, generator=generator)
    return dgl.to_simple(g), 0.6 * h, pairs
