"""A linear probe: do embeddings that were trained for links tell the nodes' classes?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["probe_accuracy"]

_RIDGE = 1e-4
_STEPS = 60


def probe_accuracy(h: Tensor, labels: Tensor, seed: int, train: float = 0.5) -> float:
    """Test accuracy of multinomial logistic regression on frozen embeddings.

    Args:
        h: embeddings, shape [N, D].
        labels: classes, int64 [N].
        seed: which nodes are for training.
        train: their share; the others are for test.

    Returns:
        The share of test nodes whose class is found.
    """
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))
    count = int(train * len(h))
    fit, test = order[:count], order[count:]
    h = h.detach()
    h = (h - h[fit].mean(0)) / h[fit].std(0).clamp(min=1e-6)
    model = nn.Linear(h.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(h[fit]), labels[fit]) + _RIDGE * model.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with torch.no_grad():
        found = model(h[test]).argmax(dim=1)
    return float((found == labels[test]).float().mean())
