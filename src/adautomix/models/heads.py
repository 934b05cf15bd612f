"""The classification layers of a network: linear layers or 1×1 convolutions."""

from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models.known import is_head


def own_head(model: nn.Module, path: str) -> nn.Linear | nn.Conv2d:
    """The classification layer of that path.

    Raises:
        UsageError: the module does not compute logits from pooled features.
    """
    module = model.get_submodule(path)
    if not (is_head(module) and isinstance(module, nn.Linear | nn.Conv2d)):
        raise UsageError(
            f"head {path!r} of {type(model).__name__} is {type(module).__name__}: name the "
            "nn.Linear that computes the logits"
        )
    if nn.parameter.is_lazy(module.weight):
        raise UsageError(
            f"head {path!r} of {type(model).__name__} has no size yet: run one batch through the "
            "network first, which sets the sizes of its lazy layers"
        )
    return module


def head_sizes(head: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """Numbers of features and of classes."""
    if isinstance(head, nn.Linear):
        return head.in_features, head.out_features
    return head.in_channels, head.out_channels


def new_head(like: nn.Linear | nn.Conv2d) -> nn.Linear:
    """A linear head with the sizes, device and dtype of another; weights N(0, 0.01), bias 0."""
    head = nn.Linear(*head_sizes(like))
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head.to(like.weight.device, like.weight.dtype)


def apply_head(head: nn.Module, pooled: Tensor) -> Tensor:
    """Logits `[B, K]` of pooled features `[B, D]`."""
    logits: Tensor
    if isinstance(head, nn.Conv2d):
        logits = head(pooled[:, :, None, None]).flatten(1)
    else:
        logits = head(pooled)
    return logits
