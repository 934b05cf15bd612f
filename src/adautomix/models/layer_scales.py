"""Layer-wise decay of the learning rate, by timm's own grouping of the layers of a network."""

from adautomix.errors import UsageError
from adautomix.models.classifier import Classifier
from adautomix.models.timm_weights import timm_skeleton


def layer_scales(model: Classifier, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter, 1 for the last layers.

    The factor is multiplied by `decay` from each group of layers to the one before it, as in
    `timm.optim.param_groups_layer_decay` (Bao et al., "BEiT", ICLR 2022).

    Args:
        model: the network.
        decay: above 0, at most 1.

    Returns:
        Factors by name of the parameter in `model`.

    Raises:
        UsageError: timm does not group the layers of the network.
    """
    from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

    # The heads stand where timm's classifier does, so count its group too.
    network = timm_skeleton(model)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = (
        param_groups_layer_decay(network, layer_decay=decay)
        if hasattr(network, "group_matcher")
        else []
    )
    if len({group["lr_scale"] for group in groups}) < 2:
        raise UsageError(
            f"layer_decay = {decay:g}: timm does not group the layers of {model.spec.name}; leave "
            "layer_decay at 1, or use another network"
        )
    scales = {
        f"backbone.{names[id(parameter)]}": group["lr_scale"]
        for group in groups
        for parameter in group["params"]
    }
    return {name: scales.get(name, 1.0) for name, _ in model.named_parameters()}
