"""The decoupled regularizer: each class of a mix against all classes that are not in it.

Liu, Li, Wang, Li, Chen, Wu, Li, "Harnessing Hard Mixed Samples with Decoupled Regularizer",
NeurIPS 2023, arXiv 2203.10761. The cross-entropy of a mixed label lets its classes compete with
each other. This term, added to it, asks the network to be sure of each class whatever λ is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Classes with a smaller weight in the label do not count as mixed in, as in openmixup.
SMALLEST = 1e-3


def decoupled_regularizer(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the mean over the mixes of `Σ_i -log(exp z_i / (exp z_i + Σ_c exp z_c))`.

    i runs over the classes in the label of a mix and c over all others. A row with a single class
    counts as 0, because it is not mixed.

    Args:
        logits: z, `[M, K]`.
        targets: soft labels, `[M, K]`.
        class_weights: weight of the terms of each class, `[K]`; None: all alike.

    Returns:
        A float32 scalar.
    """
    logits, inside = logits.float(), targets > SMALLEST
    others = logits.masked_fill(inside, -torch.inf).logsumexp(dim=1, keepdim=True)
    terms = F.softplus(others - logits)
    if class_weights is not None:
        terms = terms * class_weights
    counted = inside & (inside.sum(dim=1, keepdim=True) > 1)
    return torch.where(counted, terms, 0.0).sum(dim=1).mean()
